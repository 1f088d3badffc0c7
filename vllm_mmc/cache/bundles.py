# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Carry the compile cache to another machine in one file, and check what is in it.

A bundle is an uncompressed tar:

    manifest.json       {"format": ..., "entries": {entry: {file: SHA-256}}}
    manifest.sig        optional: Ed25519 signature of the bytes of manifest.json
    <entry>/<file>      every file of every entry, as `entry` describes them

A cache entry is code, so a bundle is read as data: nothing in it is unpickled or
run, everything is unpacked into a hidden directory, and no entry gets its name
before all of them are checked. A refusal leaves the cache as it was.
"""

import contextlib
import functools
import io
import json
import os
import re
import tarfile
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vllm_mmc.cache.entry import DIGESTS, FACTORS, changed_sources, damage
from vllm_mmc.cache.key import machine_factors, root, sha256

FORMAT = "vllm_mmc bundle 1"
MANIFEST = "manifest.json"
SIGNATURE = "manifest.sig"
ENTRY_NAME = re.compile(r"\w[\w.]*-[0-9a-f]{16}")
# Bytes. A manifest of ours has about 150 per file, and some dozens of files per entry.
LARGEST_MANIFEST = 16 << 20
LEFT_OVER_HOURS = 24

Files = Mapping[str, str]  # file, relative to its entry -> SHA-256


class BundleError(ValueError):
    """A bundle that cannot be written, or is refused; the message is one line."""


@dataclass(frozen=True)
class Summary:
    """What was carried.

    Attributes:
        entries: Names of the entries written to the bundle, or put into the cache.
        left_out: Name of another entry -> why it was not.
        signed: Whether the bundle has a signature. Importing checked it only if a
            public key was given.
    """

    entries: tuple[str, ...]
    left_out: Mapping[str, str]
    signed: bool


@dataclass(frozen=True)
class EntryState:
    """What `verify` found out about one directory of the cache.

    Attributes:
        name: The directory's name.
        state: "whole"; "stale" is whole and of no use on this machine; "damaged" is
            not what was written; "leftover" belongs to a process that is gone.
        reason: One line, empty for "whole".
    """

    name: str
    state: Literal["whole", "stale", "damaged", "leftover"]
    reason: str = ""


def export_bundle(path: Path, *, signing_key: Path | None = None) -> Summary:
    """Write all entries of the cache that are of use on this machine to `path`.

    Equal entries give equal bytes. `path` is replaced only by a complete bundle.

    Args:
        path: The bundle.
        signing_key: PEM file with an unencrypted Ed25519 private key.

    Raises:
        BundleError: There is nothing to export, the key is no such key, or `path`
            cannot be written.
    """
    try:
        entries, left_out = _entries_to_export()
        content = {"format": FORMAT, "entries": entries}
        manifest = json.dumps(content, indent=1, sort_keys=True).encode()
        files = {MANIFEST: manifest}
        if signing_key is not None:
            files[SIGNATURE] = _sign(manifest, signing_key)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            with tarfile.open(temporary, "x") as bundle:
                for name, data in files.items():
                    _add(bundle, name, data)
                for entry in entries:
                    for file in sorted(entries[entry]):
                        name = f"{entry}/{file}"
                        _add(bundle, name, (root() / name).read_bytes())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except (OSError, ValueError) as error:
        raise BundleError(f"{path}: {error}") from error
    return Summary(tuple(entries), left_out, signing_key is not None)


def import_bundle(path: Path, *, public_key: Path | None = None) -> Summary:
    """Put all entries of a bundle into the cache, or none.

    An entry that the cache has already stays if it is of use, and is replaced if not.

    Args:
        path: The bundle.
        public_key: PEM file with the Ed25519 public key that must have signed it;
            None accepts any bundle.

    Raises:
        BundleError: It is refused: not a bundle, not signed with `public_key`, not
            exactly the files its manifest lists, an entry that is damaged or was
            made for another machine. Or the cache cannot be written.
    """
    try:
        with tarfile.open(path, "r:") as bundle:
            members = _members(bundle)
            read = functools.partial(_read, bundle, members)
            manifest = read(MANIFEST)
            if public_key is not None:
                _check_signature(manifest, read(SIGNATURE), public_key)
            entries = _parse(manifest)
            listed = {f"{entry}/{file}" for entry in entries for file in entries[entry]}
            if extra := members.keys() - listed - {MANIFEST, SIGNATURE}:
                raise ValueError(f"{MANIFEST} does not list {min(extra)!r}")
            root().mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".import-", dir=root()) as at:
                for entry, files in entries.items():
                    _unpack(read, entry, files, Path(at))
                left_out = _put_in_place(entries, Path(at))
    except tarfile.TarError as error:
        raise BundleError(f"{path}: not a whole, uncompressed tar: {error}") from error
    except (OSError, ValueError, ArithmeticError, RecursionError) as error:
        raise BundleError(f"{path}: {error}") from error
    put = tuple(sorted(entries.keys() - left_out.keys()))
    return Summary(put, left_out, SIGNATURE in members)


def verify() -> list[EntryState]:
    """Compute every key and digest of the cache again; nothing is unpickled."""
    findings = [_examine(directory) for directory in _entries()]
    for directory in sorted(root().glob(".*")):
        with contextlib.suppress(FileNotFoundError):  # it was finished just now
            hours = (time.time() - directory.lstat().st_mtime) / 3600
            if hours > LEFT_OVER_HOURS:
                reason = f"unfinished for {hours:.0f} hours; it may be removed"
                findings.append(EntryState(directory.name, "leftover", reason))
    return findings


def _entries() -> list[Path]:
    return [p for p in sorted(root().glob("*")) if ENTRY_NAME.fullmatch(p.name)]


def _examine(directory: Path) -> EntryState:
    try:
        if reason := damage(directory):
            return EntryState(directory.name, "damaged", reason)
        if reason := _misfit(directory):
            return EntryState(directory.name, "stale", reason)
    except (OSError, ValueError) as error:
        return EntryState(directory.name, "damaged", f"{type(error).__name__}: {error}")
    try:
        if changed := changed_sources(directory):
            reason = f"compiled from another {changed[0]}"
            return EntryState(directory.name, "stale", reason)
    except ValueError as error:
        return EntryState(directory.name, "damaged", f"{type(error).__name__}: {error}")
    except (OSError, ImportError) as error:
        reason = f"its sources cannot be read: {type(error).__name__}: {error}"
        return EntryState(directory.name, "stale", reason)
    return EntryState(directory.name, "whole")


def _misfit(directory: Path) -> str | None:
    """How this machine differs from the one a whole entry was made for."""
    factors = json.loads((directory / FACTORS).read_text())
    for name, here in machine_factors().items():
        there = factors.get(name)
        if name == "instructions" and there is not None:
            there, here = _set_apart(there, here)
        if there != here:
            return f"made for {name} {there!r}, and this machine has {here!r}"
    return None


def _set_apart(there: str, here: str) -> tuple[str, str]:
    """The words that only one of two lists has."""
    a, b = set(there.split()), set(here.split())
    return " ".join(sorted(a - b)), " ".join(sorted(b - a))


def _entries_to_export() -> tuple[dict[str, dict[str, str]], dict[str, str]]:
    """Entry -> file -> SHA-256, and entry that is left out -> why; sorted by name."""
    entries, left_out = {}, {}
    for directory in _entries():
        finding = _examine(directory)
        if finding.state == "whole":
            digests = (directory / DIGESTS).read_bytes()
            files: dict[str, str] = json.loads(digests)
            entries[directory.name] = files | {DIGESTS: sha256(digests)}
        else:
            left_out[directory.name] = finding.reason
    if not entries:
        raise ValueError(
            f"nothing to export: {root()} has no entry that is of use on this "
            "machine; make some with `vllm-mmc cache warm MODEL`"
        )
    return entries, left_out


def _add(bundle: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)  # nobody's, of 1970, mode 0644
    member.size = len(data)
    bundle.addfile(member, io.BytesIO(data))


def _members(bundle: tarfile.TarFile) -> dict[str, tarfile.TarInfo]:
    members: dict[str, tarfile.TarInfo] = {}
    for member in bundle:
        # Sparse files too are refused: no member is larger than the bundle.
        if member.type != tarfile.REGTYPE or member.issparse():
            raise ValueError(f"{member.name!r} is not a plain file")
        if member.name in members:
            raise ValueError(f"holds {member.name!r} twice")
        members[member.name] = member
    return members


def _read(
    bundle: tarfile.TarFile, members: Mapping[str, tarfile.TarInfo], name: str
) -> bytes:
    if name not in members:
        raise ValueError(f"lacks {name!r}")
    if name == MANIFEST and members[name].size > LARGEST_MANIFEST:
        raise ValueError(f"{MANIFEST} has more than {LARGEST_MANIFEST} bytes")
    file = bundle.extractfile(members[name])
    assert file is not None, "a plain file"
    with file:
        return file.read()


def _parse(manifest: bytes) -> dict[str, dict[str, str]]:
    """Entry -> file -> SHA-256; every name is safe to join to a directory."""
    content: Any = json.loads(manifest)
    found = content.get("format") if isinstance(content, dict) else None
    if found != FORMAT:
        raise ValueError(f"its format is {found!r}; this release reads {FORMAT!r}")
    entries = content.get("entries")
    if not isinstance(entries, dict) or not entries:
        raise ValueError(f"{MANIFEST} lists no entries")
    for entry, files in entries.items():
        if not ENTRY_NAME.fullmatch(entry):
            raise ValueError(f"{entry!r} is not <Region>-<16 hexadecimal digits>")
        if not isinstance(files, dict) or DIGESTS not in files:
            raise ValueError(f"{MANIFEST} does not list {entry}/{DIGESTS}")
        for file in files:
            if not file.isprintable() or {"", ".", ".."} & set(file.split("/")):
                raise ValueError(f"{file!r} is not a plain relative path")
    return entries


def _unpack(
    read: Callable[[str], bytes], entry: str, files: Files, staging: Path
) -> None:
    """Write one entry to the directory `staging`, and check it there."""
    directory = staging / entry
    for file, digest in files.items():
        data = read(f"{entry}/{file}")
        if sha256(data) != digest:
            raise ValueError(f"{entry}/{file} is not what {MANIFEST} lists")
        (directory / file).parent.mkdir(parents=True, exist_ok=True)
        (directory / file).write_bytes(data)
    listed = {file: files[file] for file in files if file != DIGESTS}
    if json.loads((directory / DIGESTS).read_text()) != listed:
        raise ValueError(f"{MANIFEST} and {entry}/{DIGESTS} differ")
    if reason := damage(directory) or _misfit(directory):
        raise ValueError(f"{entry}: {reason}")
    for path in (directory, *directory.rglob("*")):  # whatever the umask: it is code
        path.chmod(0o755 if path.is_dir() else 0o644)


def _put_in_place(entries: Mapping[str, Files], staging: Path) -> dict[str, str]:
    """Move checked entries into the cache; returns those already there -> why not."""
    left_out = {}
    for entry in entries:
        directory = root() / entry
        if os.path.lexists(directory):
            if _examine(directory).state == "whole":
                left_out[entry] = "already there"
                continue
            directory.rename(staging / f"replaced-{entry}")
        (staging / entry).rename(directory)
    return left_out


def _sign(manifest: bytes, path: Path) -> bytes:
    return _key(path, "private").sign(manifest)


def _check_signature(manifest: bytes, signature: bytes, path: Path) -> None:
    key = _key(path, "public")
    from cryptography.exceptions import InvalidSignature

    try:
        key.verify(signature, manifest)
    except InvalidSignature:
        raise ValueError(f"{MANIFEST} is not signed with the key of {path}") from None


def _key(path: Path, kind: Literal["private", "public"]) -> Any:
    try:
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError as error:
        reason = "signatures need `pip install 'vllm-mmc[sign]'`"
        raise ValueError(reason) from error
    data = path.read_bytes()
    key: Any = None
    expected: Any
    with contextlib.suppress(ValueError, TypeError, UnsupportedAlgorithm):
        if kind == "private":
            expected = ed25519.Ed25519PrivateKey
            key = serialization.load_pem_private_key(data, password=None)
        else:
            expected = ed25519.Ed25519PublicKey
            key = serialization.load_pem_public_key(data)
    if not isinstance(key, expected):
        raise ValueError(f"{path} is not an unencrypted Ed25519 {kind} key (PEM)")
    return key
