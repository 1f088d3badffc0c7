# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""A bundle brings over exactly what was exported, and nothing else gets in."""

import copy
import hashlib
import io
import json
import os
import pickle
import random
import tarfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from vllm_mmc import catalog
from vllm_mmc.cache import bundles, key
from vllm_mmc.cache import entry as cache
from vllm_mmc.cache.bundles import BundleError, export_bundle, import_bundle
from vllm_mmc.cli.main import main

CATALOG = Path(catalog.__file__)


class Bomb:
    """Touches a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def make_entry(region: str = "CompiledBlock", **factors: str) -> Path:
    """A whole entry in the current cache; its artifact is a bomb."""
    factors = key.machine_factors() | {"region": region} | factors
    place = key.root() / f"{region}-{key.key_of(factors)[:16]}"
    (place / "inductor/ab").mkdir(parents=True)
    (place / "inductor/ab/kernel.so").write_bytes(b"\x7fELF" + region.encode())
    (place / "inductor/empty").touch()
    (place / cache.ARTIFACT).write_bytes(pickle.dumps(Bomb(key.root() / "exploded")))
    sources = {catalog.__name__: cache.text_digest(CATALOG.read_text())}
    for name, content in (
        (cache.FACTORS, factors),
        (cache.DETAILS, {}),
        (cache.SOURCES, sources),
        (cache.CAPTURED_GLOBALS, {}),
    ):
        (place / name).write_text(json.dumps(content))
    seal(place)
    return place


def seal(place: Path) -> None:
    """Writes the digests of an entry as it is now."""
    (place / cache.DIGESTS).write_text(json.dumps(cache.digests_of(place)))


def content(root: Path | None = None) -> dict[str, bytes]:
    """All files of the cache, what waits in hidden directories too."""
    root = root or key.root()
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file()
    }


@dataclass(frozen=True)
class Keys:
    private: Path
    public: Path


def make_keys(directory: Path, private: Any = None) -> Keys:
    key = private or ed25519.Ed25519PrivateKey.generate()
    directory.mkdir()
    keys = Keys(directory / "private.pem", directory / "public.pem")
    keys.private.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    keys.public.write_bytes(
        key.public_key().public_bytes(
            serialization.Encoding.PEM,
            serialization.PublicFormat.SubjectPublicKeyInfo,
        )
    )
    return keys


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return make_keys(tmp_path / "keys")


@pytest.fixture
def move(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Makes the cache of another machine the current one."""

    def to(machine: str) -> None:
        monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path / machine))

    to("here")
    return to


@pytest.fixture
def bundle(tmp_path: Path, move: Callable[[str], None]) -> Path:
    """Two entries, exported; the current cache is another, with one of its own."""
    path = tmp_path / "encoder.tar"
    make_entry("CompiledBlock")
    make_entry("CompiledMerger")
    export_bundle(path)
    move("there")
    make_entry("CompiledOther")
    return path


# ------------------------------------------------------------ what gets through


@pytest.mark.parametrize("signed", [False, True])
def test_round_trip(
    signed: bool, tmp_path: Path, keys: Keys, move: Callable[[str], None]
) -> None:
    names = tuple(
        sorted([make_entry("CompiledB").name, make_entry("tower.CompiledA").name])
    )
    path, again = tmp_path / "encoder.tar", tmp_path / "again.tar"
    exported = export_bundle(path, signing_key=keys.private if signed else None)
    before = content()
    move("there")
    old = os.umask(0)
    try:
        imported = import_bundle(path, public_key=keys.public if signed else None)
    finally:
        os.umask(old)
    assert exported == imported == bundles.Summary(names, {}, signed)
    assert content() == before
    for place in key.root().rglob("*"):
        assert not place.stat().st_mode & 0o022, f"others may write {place}"
    assert [f.state for f in bundles.verify()] == ["whole", "whole"]
    export_bundle(again, signing_key=keys.private if signed else None)
    assert again.read_bytes() == path.read_bytes()


def test_a_signed_bundle_without_a_key_is_taken(
    tmp_path: Path, keys: Keys, move: Callable[[str], None]
) -> None:
    make_entry()
    export_bundle(tmp_path / "b.tar", signing_key=keys.private)
    move("there")
    assert import_bundle(tmp_path / "b.tar").signed
    assert len(bundles.verify()) == 1


def test_an_entry_that_is_there_stays(
    bundle: Path, move: Callable[[str], None]
) -> None:
    mine = make_entry("CompiledBlock")
    inode = (mine / cache.ARTIFACT).stat().st_ino
    done = import_bundle(bundle)
    assert (len(done.entries), done.left_out) == (1, {mine.name: "already there"})
    assert (mine / cache.ARTIFACT).stat().st_ino == inode


@pytest.mark.parametrize("how", ["damaged", "stale", "a file", "a dangling link"])
def test_an_entry_of_no_use_is_replaced(how: str, bundle: Path) -> None:
    mine = make_entry("CompiledBlock")
    if how == "damaged":
        (mine / cache.ARTIFACT).write_bytes(b"?")
    elif how == "stale":
        (mine / cache.SOURCES).write_text(json.dumps({catalog.__name__: "0"}))
        seal(mine)
    else:
        mine.rename(mine.with_name("elsewhere"))
        if how == "a file":
            mine.touch()
        else:
            mine.symlink_to("nowhere")
    done = import_bundle(bundle)
    assert mine.name in done.entries and not done.left_out
    assert {f.state for f in bundles.verify()} == {"whole"}
    assert not mine.is_symlink()


def test_only_what_is_of_use_is_exported(
    tmp_path: Path, move: Callable[[str], None]
) -> None:
    good = make_entry("CompiledGood")
    (good / "inductor/stray.so").touch()  # not in its list: not part of the entry
    damaged = make_entry("CompiledDamaged")
    (damaged / "inductor/ab/kernel.so").write_bytes(b"\x7fELFother")
    foreign = make_entry("CompiledForeign", torch="1.0")
    stale = make_entry("CompiledStale")
    (stale / cache.SOURCES).write_text(json.dumps({catalog.__name__: "0"}))
    seal(stale)
    (key.root() / ".CompiledUnfinished-x").mkdir()
    done = export_bundle(tmp_path / "b.tar")
    assert done.entries == (good.name,)
    assert done.left_out == {
        damaged.name: "inductor/ab/kernel.so is not what was written",
        foreign.name: "made for torch '1.0', and this machine has "
        f"{torch.__version__!r}",
        stale.name: f"compiled from another {CATALOG}",
    }
    with tarfile.open(tmp_path / "b.tar") as tar:
        names = tar.getnames()
    digests = json.loads((good / cache.DIGESTS).read_text())
    files = sorted([*digests, cache.DIGESTS])
    assert names == ["manifest.json", *(f"{good.name}/{file}" for file in files)]
    assert "inductor/stray.so" not in files


def test_nothing_to_export(tmp_path: Path, move: Callable[[str], None]) -> None:
    (tmp_path / "b.tar").write_bytes(b"older")
    with pytest.raises(BundleError, match="nothing to export.*cache warm MODEL"):
        export_bundle(tmp_path / "b.tar")
    assert (tmp_path / "b.tar").read_bytes() == b"older"


def test_a_failed_export_leaves_nothing(
    tmp_path: Path, move: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_entry()
    out = tmp_path / "out"
    out.mkdir()
    (out / "b.tar").write_bytes(b"older")

    def full(*args: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(bundles, "_add", full)
    with pytest.raises(BundleError, match="No space left"):
        export_bundle(out / "b.tar")
    assert content(out) == {"b.tar": b"older"}


# ------------------------------------------------------------ what is refused

Members = dict[str, tuple[tarfile.TarInfo, bytes]]


class Hostile:
    """The content of a good bundle, to be changed and written again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with tarfile.open(path) as tar:
            self.members = [(m, tar.extractfile(m).read()) for m in tar]  # type: ignore[union-attr]
        self.manifest = json.loads(self.members.pop(0)[1])
        self.entries: dict[str, dict[str, str]] = self.manifest["entries"]
        self.entry = min(self.entries)

    def index(self, file: str) -> int:
        names = [member.name for member, _ in self.members]
        return names.index(f"{self.entry}/{file}")

    def set(self, file: str, data: bytes) -> None:
        """Another content for a file of the entry; the manifest agrees."""
        self.members[self.index(file)] = plain(f"{self.entry}/{file}", data)
        self.entries[self.entry][file] = digest(data)

    def add(self, name: str, data: bytes = b"x") -> None:
        """One more file, which the manifest and the entry list."""
        digests = self.digests() | {name: digest(data)}
        self.set(cache.DIGESTS, json.dumps(digests).encode())
        self.members.append(plain(f"{self.entry}/{name}", data))
        self.entries[self.entry][name] = digest(data)

    def digests(self) -> dict[str, str]:
        found: dict[str, str] = json.loads(self.members[self.index(cache.DIGESTS)][1])
        return found

    def set_listed(self, file: str, data: bytes) -> None:
        """Like `set`, and the entry's own list agrees too."""
        self.set(file, data)
        digests = self.digests() | {file: digest(data)}
        self.set(cache.DIGESTS, json.dumps(digests).encode())

    def retype(self, type: bytes, file: str = cache.ARTIFACT) -> None:
        member, _ = self.members[self.index(file)]
        member.type, member.linkname, member.size = type, "/etc/passwd", 0

    def rename(self, name: str) -> None:
        """Another name for the entry, everywhere."""
        for member, _ in self.members:
            member.name = member.name.replace(self.entry, name)
        self.entries[name] = self.entries.pop(self.entry)

    def write(self) -> None:
        manifest = plain("manifest.json", json.dumps(self.manifest).encode())
        with tarfile.open(self.path, "w") as tar:
            for member, data in [manifest, *self.members]:
                tar.addfile(member, io.BytesIO(data))


def plain(name: str, data: bytes) -> tuple[tarfile.TarInfo, bytes]:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    return member, data


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def refuse(path: Path, reason: str, public_key: Path | None = None) -> None:
    """Importing says why in one line, and leaves the cache as it was."""
    before = content()
    with pytest.raises(BundleError) as caught:
        import_bundle(path, public_key=public_key)
    message = str(caught.value)
    assert reason in message
    assert message.startswith(f"{path}: ") and message.isprintable()
    assert content() == before
    assert not [*key.root().glob(".*")]


def outside(hostile: Hostile) -> None:
    hostile.add("../../escaped")


def changed_byte(hostile: Hostile) -> None:
    i = hostile.index("inductor/ab/kernel.so")
    member, data = hostile.members[i]
    hostile.members[i] = member, bytes([data[0] ^ 1]) + data[1:]


def another_factor(hostile: Hostile, **factors: str) -> None:
    """The entry of a machine that differs; its key, its digests and all agree."""
    i = hostile.index(cache.FACTORS)
    made = json.loads(hostile.members[i][1]) | factors
    hostile.set_listed(cache.FACTORS, json.dumps(made).encode())
    hostile.rename(f"CompiledBlock-{key.key_of(made)[:16]}")


def another_file_of_the_list(hostile: Hostile) -> None:
    digests = hostile.digests()
    hostile.add("inductor/evil.so")
    hostile.set(cache.DIGESTS, json.dumps(digests).encode())


def unlisted_required(hostile: Hostile) -> None:
    digests = hostile.digests()
    del digests[cache.SOURCES], hostile.entries[hostile.entry][cache.SOURCES]
    del hostile.members[hostile.index(cache.SOURCES)]
    hostile.set(cache.DIGESTS, json.dumps(digests).encode())


def sparse(hostile: Hostile) -> None:
    """A kernel of a terabyte, all of it a hole."""
    member, _ = hostile.members[hostile.index("inductor/ab/kernel.so")]
    member.pax_headers = {"GNU.sparse.map": "0,0", "GNU.sparse.size": str(1 << 40)}


def twice(hostile: Hostile) -> None:
    member, data = hostile.members[hostile.index(cache.ARTIFACT)]
    hostile.members.append((copy.copy(member), data))


def second_manifest(hostile: Hostile) -> None:
    hostile.members.append(plain("manifest.json", b"{}"))


def a_file_and_a_directory(hostile: Hostile) -> None:
    hostile.add("inductor/empty/kernel.so")


def missing(hostile: Hostile) -> None:
    del hostile.members[hostile.index("inductor/empty")]


def deep(hostile: Hostile) -> None:
    hostile.set_listed(cache.FACTORS, b"[" * 100_000)


def large_manifest(hostile: Hostile) -> None:
    hostile.manifest["padding"] = " " * bundles.LARGEST_MANIFEST


HOSTILE: dict[str, tuple[Callable[[Hostile], Any], str]] = {
    "path traversal": (outside, "'../../escaped' is not a plain relative path"),
    "absolute path": (lambda h: h.add("/tmp/escaped"), "'/tmp/escaped' is not a plain"),
    "dot": (lambda h: h.add("./x"), "'./x' is not a plain relative path"),
    "control character": (
        lambda h: h.add("x\n\x1b[2J"),
        r"'x\n\x1b[2J' is not a plain",
    ),
    "entry outside": (lambda h: h.rename("../escaped"), "'../escaped' is not <Region>"),
    "entry hidden": (lambda h: h.rename(f".x-{'0' * 16}"), "is not <Region>"),
    "symbolic link": (lambda h: h.retype(tarfile.SYMTYPE), "is not a plain file"),
    "hard link": (lambda h: h.retype(tarfile.LNKTYPE), "is not a plain file"),
    "device": (lambda h: h.retype(tarfile.CHRTYPE), "is not a plain file"),
    "pipe": (lambda h: h.retype(tarfile.FIFOTYPE), "is not a plain file"),
    "directory": (lambda h: h.retype(tarfile.DIRTYPE), "is not a plain file"),
    "sparse file": (sparse, "is not a plain file"),
    "extra file": (
        lambda h: h.members.append(plain(f"{h.entry}/inductor/evil.so", b"")),
        "does not list",
    ),
    "extra top-level file": (
        lambda h: h.members.append(plain("evil.so", b"")),
        "manifest.json does not list 'evil.so'",
    ),
    "file its entry does not list": (another_file_of_the_list, "digests.json differ"),
    "required file unlisted": (unlisted_required, "does not list sources.json"),
    "missing file": (missing, "inductor/empty"),
    "missing list": (
        lambda h: h.entries[h.entry].pop(cache.DIGESTS),
        "does not list CompiledBlock-",
    ),
    "duplicate member": (twice, "twice"),
    "second manifest": (second_manifest, "holds 'manifest.json' twice"),
    "file and directory": (a_file_and_a_directory, "inductor/empty"),
    "changed byte": (changed_byte, "kernel.so is not what manifest.json lists"),
    "unknown format": (
        lambda h: h.manifest.update(format="vllm_mmc bundle 2"),
        "its format is 'vllm_mmc bundle 2'; this release reads 'vllm_mmc bundle 1'",
    ),
    "no entries": (lambda h: h.manifest.update(entries={}), "lists no entries"),
    "large manifest": (large_manifest, "has more than"),
    "deeply nested": (deep, "recursion"),
    "another torch": (
        lambda h: another_factor(h, torch="2.12.0"),
        f"made for torch '2.12.0', and this machine has {torch.__version__!r}",
    ),
    "another machine": (
        lambda h: another_factor(h, machine="x86_64 AVX9"),
        "made for machine 'x86_64 AVX9'",
    ),
    "another vllm": (lambda h: another_factor(h, vllm="0.1"), "made for vllm '0.1'"),
    "another python": (lambda h: another_factor(h, python="2"), "made for python '2'"),
    "another vllm_mmc": (lambda h: another_factor(h, vllm_mmc="9"), "for vllm_mmc '9'"),
    "wrong key": (
        lambda h: h.rename(f"CompiledBlock-{'0' * 16}"),
        "factors.json belongs to another entry",
    ),
}


@pytest.mark.parametrize("change, reason", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile(change: Callable[[Hostile], Any], reason: str, bundle: Path) -> None:
    hostile = Hostile(bundle)
    change(hostile)
    hostile.write()
    refuse(bundle, reason)


def test_writing_again_is_not_what_is_refused(bundle: Path) -> None:
    hostile = Hostile(bundle)
    hostile.add("inductor/more.so")
    hostile.write()
    assert len(import_bundle(bundle).entries) == 2


@pytest.mark.parametrize(
    "manifest",
    [b"", b"[]", b"1", b'"manifest"', b"\xff", b"[" * 100_000, b"{}"],
    ids=lambda data: repr(data[:10]),
)
def test_not_a_manifest(manifest: bytes, bundle: Path) -> None:
    with tarfile.open(bundle, "w") as tar:
        member, data = plain("manifest.json", manifest)
        tar.addfile(member, io.BytesIO(data))
    refuse(bundle, "")


def test_not_a_tar(bundle: Path) -> None:
    data = bundle.read_bytes()
    for other in (b"", b"PK\x03\x04" * 300, data[:600], data[: len(data) // 2]):
        bundle.write_bytes(other)
        refuse(bundle, "")
    with tarfile.open(bundle, "w:gz") as tar:
        tar.add(__file__)
    refuse(bundle, "not a whole, uncompressed tar")
    bundle.unlink()
    refuse(bundle, "No such file")


def test_no_flipped_bit_gets_in(bundle: Path, move: Callable[[str], None]) -> None:
    """Whatever bit is flipped, all that was exported gets in, or nothing does."""
    good, chance = bundle.read_bytes(), random.Random(0)
    move("here")
    expected = content()
    refused = 0
    for i in range(200):
        data = bytearray(good)
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        bundle.write_bytes(data)
        move(f"there{i}")
        try:
            import_bundle(bundle)
        except BundleError:
            refused += 1
            assert content() == {}
        else:
            assert content() == expected
    assert 20 < refused < 200  # the others were in the padding between the files


# ------------------------------------------------------------ signatures


def test_a_signature_by_another_key(
    tmp_path: Path, keys: Keys, move: Callable[[str], None]
) -> None:
    make_entry()
    export_bundle(tmp_path / "b.tar", signing_key=keys.private)
    move("there")
    other = make_keys(tmp_path / "other")
    refuse(
        tmp_path / "b.tar", f"not signed with the key of {other.public}", other.public
    )


def test_no_signature(bundle: Path, keys: Keys) -> None:
    refuse(bundle, "lacks 'manifest.sig'", keys.public)


@pytest.mark.parametrize("signature", [b"", b"0" * 64, b"0" * 1000], ids=len)
def test_not_a_signature(signature: bytes, bundle: Path, keys: Keys) -> None:
    hostile = Hostile(bundle)
    hostile.members.append(plain("manifest.sig", signature))
    hostile.write()
    refuse(bundle, "manifest.json is not signed with", keys.public)


def test_a_manifest_changed_after_signing(
    tmp_path: Path, keys: Keys, move: Callable[[str], None]
) -> None:
    make_entry()
    export_bundle(tmp_path / "b.tar", signing_key=keys.private)
    move("there")
    hostile = Hostile(tmp_path / "b.tar")
    hostile.add("inductor/evil.so")
    hostile.write()
    refuse(tmp_path / "b.tar", "manifest.json is not signed with", keys.public)
    # The digests alone do not keep out who can write the manifest.
    assert len(import_bundle(tmp_path / "b.tar").entries) == 1


def test_keys_that_are_none(
    tmp_path: Path, bundle: Path, keys: Keys, move: Callable[[str], None]
) -> None:
    other = make_keys(tmp_path / "ec", ec.generate_private_key(ec.SECP256R1()))
    hostile = Hostile(bundle)
    hostile.members.append(plain("manifest.sig", b"0" * 64))
    hostile.write()
    for public in (other.public, keys.private, bundle):
        refuse(bundle, f"{public} is not an unencrypted Ed25519 public key", public)
    refuse(bundle, "No such file", tmp_path / "nowhere.pem")
    locked = tmp_path / "locked.pem"
    locked.write_bytes(
        ed25519.Ed25519PrivateKey.generate().private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    for private in (other.private, keys.public, bundle, locked):
        with pytest.raises(BundleError, match="Ed25519 private key"):
            export_bundle(tmp_path / "b.tar", signing_key=private)
    assert not (tmp_path / "b.tar").exists()


# ------------------------------------------------------------ nothing is run


def test_nothing_is_unpickled(
    tmp_path: Path, keys: Keys, move: Callable[[str], None]
) -> None:
    place = make_entry()
    bomb = (place / cache.ARTIFACT).read_bytes()
    exploded = key.root() / "exploded"
    export_bundle(tmp_path / "b.tar", signing_key=keys.private)
    move("there")
    import_bundle(tmp_path / "b.tar", public_key=keys.public)
    bundles.verify()
    export_bundle(tmp_path / "again.tar")
    assert not exploded.exists()
    pickle.loads(bomb)
    assert exploded.exists(), "the bomb is a dud"


# ------------------------------------------------------------ verify, the command


def test_verify(move: Callable[[str], None]) -> None:
    assert bundles.verify() == []
    whole = make_entry("CompiledWhole")
    damaged = make_entry("CompiledDamaged")
    (damaged / cache.ARTIFACT).unlink()
    renamed = make_entry("CompiledRenamed")
    renamed = renamed.rename(renamed.with_name(f"CompiledRenamed-{'0' * 16}"))
    malformed = make_entry("CompiledMalformed")
    (malformed / cache.SOURCES).write_text("[]")
    seal(malformed)
    foreign = make_entry("CompiledForeign", python="2.7")
    stale = make_entry("CompiledStale")
    (stale / cache.SOURCES).write_text(json.dumps({catalog.__name__: "0"}))
    seal(stale)
    for name, hours in ((".import-old", 25), (".import-now", 23), ("other", 99)):
        place = key.root() / name
        place.mkdir()
        then = time.time() - hours * 3600
        os.utime(place, (then, then))
    found = {f.name: (f.state, f.reason) for f in bundles.verify()}
    here = key.machine_factors()["python"]
    assert found.pop(damaged.name)[0] == "damaged"
    assert found == {
        whole.name: ("whole", ""),
        renamed.name: ("damaged", "factors.json belongs to another entry"),
        malformed.name: ("damaged", "ValueError: sources.json is not a JSON object"),
        foreign.name: (
            "stale",
            f"made for python '2.7', and this machine has {here!r}",
        ),
        stale.name: ("stale", f"compiled from another {CATALOG}"),
        ".import-old": ("leftover", "unfinished for 25 hours; it may be removed"),
    }


def test_command(
    tmp_path: Path,
    keys: Keys,
    move: Callable[[str], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    def run(*argv: str | Path) -> tuple[int, str, str]:
        status = main(["cache", *map(str, argv)])
        return status, *capsys.readouterr()

    path, here = tmp_path / "b.tar", key.root()
    status, out, err = run("export", path)
    assert (status, out) == (1, "")
    assert err.startswith(f"vllm-mmc cache export: {path}: nothing to export: {here}")
    place = make_entry()
    foreign = make_entry("CompiledForeign", torch="1.0")
    status, out, err = run("export", path, "--signing-key", keys.private)
    assert (status, out) == (0, f"{path}: 1 entry, 0.0 MB, signed\n")
    assert err.startswith(f"WARNING: left out {foreign.name}: made for torch '1.0'")

    move("there")
    there = key.root()
    other = make_keys(tmp_path / "other")
    status, out, err = run("import", path, "--public-key", other.public)
    assert (status, out) == (1, "")
    assert err.startswith(f"vllm-mmc cache import: {path}: manifest.json is not signed")
    assert err.count("\n") == 1
    status, out, err = run("import", path)
    assert (status, out) == (0, f"{there}: 1 entry put in\n")
    assert err == "WARNING: signature not checked, no --public-key given\n"
    status, out, err = run("import", path, "--public-key", keys.public)
    assert (status, out, err) == (
        0,
        f"{there}: 0 entries put in, 1 already there\n",
        "",
    )

    assert run("verify") == (0, f"whole     {place.name}\n{there}: 1 entry\n", "")
    make_entry("CompiledForeign", torch="1.0")
    assert run("verify")[0] == 0
    (there / place.name / cache.ARTIFACT).write_bytes(b"?")
    status, out, _ = run("verify")
    assert status == 1
    assert f"damaged   {place.name}  artifact is not what was written\n" in out
