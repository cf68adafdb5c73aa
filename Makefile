# Set-up and daily commands; `make help` lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
LAB := $(BIN)/resnet-lab
QUICK := not slow and not realdata

.DEFAULT_GOAL := help
.PHONY: help install demo test test-slow lowest lint format docs bench gpu peers wheel clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 14

install: $(INSTALLED)  ## .venv with the package, editable, and what tests need

$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed: make PYTHON=python3.11") if sys.version_info < (3, 11) else 0'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --progress-bar off --editable '.[dev]'
	@touch $@

demo: $(INSTALLED)  ## depth × pretraining on drawn photographs, then the comparison (5 to 10 minutes on two cores)
	$(LAB) train -m experiment=demo_source sweep_dir=runs/demo/source
	$(LAB) train -m experiment=demo sweep_dir=runs/demo/sweep
	$(LAB) report runs/demo/sweep
	@echo "look at runs/demo/sweep/report.html, or: $(LAB) tensorboard runs"

test: $(INSTALLED)  ## the quick tests: 3 to 5 minutes on two cores, no network, no GPU
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m "$(QUICK)"

test-slow: $(INSTALLED)  ## the slow tests and those on real photographs (../shared/data)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m "slow or realdata" --durations=20

lowest:  ## the quick tests with the lowest versions that pyproject.toml allows, in .venv-lowest (needs uv)
	uv venv --clear --python 3.11 .venv-lowest
	VIRTUAL_ENV=.venv-lowest uv pip install --resolution lowest-direct --editable '.[dev]'
	OMP_NUM_THREADS=1 .venv-lowest/bin/python -m pytest -n 2 --dist worksteal -m "$(QUICK)" -W default

lint: $(INSTALLED)  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(INSTALLED)  ## fix what ruff can fix
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(INSTALLED)  ## the manual → site/, which is read without a network
	$(BIN)/python docs/tools/reference.py
	$(BIN)/zensical build --strict --clean

bench: $(INSTALLED)  ## speed and memory, coverage of intervals → docs/results/ (about an hour)
	$(BIN)/python benchmarks/speed.py --out docs/results/speed.md
	$(BIN)/python benchmarks/data_speed.py --out docs/results/data_speed.md
	$(BIN)/python benchmarks/job_cost.py --out docs/results/job_cost.md
	$(BIN)/python benchmarks/report_speed.py --out docs/results/report_speed.md
	$(BIN)/python benchmarks/intervals.py --out docs/results/intervals.md

gpu: $(INSTALLED)  ## on a GPU: its tests, then speed in two stages → docs/results/gpu.md (about 15 minutes)
	@failed=0; for stage in tests main rest; do \
	  $(BIN)/python benchmarks/gpu.py --stage $$stage --out gpu.jsonl --page docs/results/gpu.md || failed=1; \
	done; exit $$failed

peers: $(INSTALLED)  ## whole programs beside TIMM=FILE TORCHVISION=FILE → docs/results/peers.md (about an hour)
	$(BIN)/python benchmarks/peers.py $(if $(TIMM),--timm $(TIMM)) $(if $(TORCHVISION),--torchvision $(TORCHVISION)) --out docs/results/peers.md

wheel: $(INSTALLED)  ## dist/*.whl, with conf/ inside
	$(BIN)/python -m build --wheel

clean:  ## remove .venv and what was built; runs/ and data/ stay
	rm -rf $(VENV) .venv-lowest dist build site .cache .pytest_cache .ruff_cache .mypy_cache
