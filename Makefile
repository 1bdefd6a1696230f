# Two commands: `make demo` and `make test`. Each sets up what it needs in .venv, once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
PARTS := pyproject.toml constraints.txt
PACKAGES := gym_longvideo agents benchmarks

.PHONY: demo test slow fuzz lint format types clean

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

$(VENV)/python.stamp:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV) || { $(PYTHON) -m pip install -q --target build/virtualenv virtualenv \
		&& PYTHONPATH=build/virtualenv $(PYTHON) -m virtualenv -q --clear $(VENV); }
	touch $@

$(VENV)/demo.stamp: $(VENV)/python.stamp $(PARTS)
	$(PIP) install -q -c constraints.txt -e ".[agents]"
	touch $@

$(VENV)/dev.stamp: $(VENV)/python.stamp $(PARTS)
	$(PIP) install -q -c constraints.txt -e ".[dev,agents,benchmarks,study,sb3,decord,torchcodec]"
	touch $@

clean:
	rm -rf $(VENV) runs build dist *.egg-info
