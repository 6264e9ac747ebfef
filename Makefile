# Needs Python 3.11, git and make. Everything else comes from uv.lock.

PYTHON ?= 3.11
UV_VERSION = 0.13.9
UV := $(shell command -v uv || echo .venv-tools/bin/uv)
BIN := .venv/$(if $(filter Windows_NT,$(OS)),Scripts,bin)
WORKERS ?= 2

.DEFAULT_GOAL := help
.PHONY: help setup quest test lint lab notebooks back app bench book mutants lock clean

help: ## list the commands
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /\1\t/' | expand -t 12

setup: .venv/.ready ## the environment, as uv.lock says

.venv/.ready: pyproject.toml uv.lock | $(UV)
	@$(UV) sync --frozen --inexact --python $(PYTHON) \
	    || { echo "No answer from the package index; trying what this machine has."; \
	         $(UV) sync --frozen --inexact --python $(PYTHON) --offline; }
	@touch $@

.venv-tools/bin/uv:
	python3 -m venv .venv-tools
	.venv-tools/bin/python -m pip install --quiet uv==$(UV_VERSION)

quest: setup ## the patient (offline: the phantom), every step, build/quest/index.html
	@$(BIN)/questlib fetch || echo "The quest goes on with the computed phantom."
	$(BIN)/questlib run --overwrite --out build/quest

test: setup lint ## everything: lint, unit tests, doctests, notebooks, browser
	$(BIN)/questlib fetch
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadscope --nbval --nbval-current-env \
	    --nbval-cell-timeout 300 --nbval-sanitize-with tests/nbval_sanitize.cfg \
	    questlib tests notebooks

lint: setup ## ruff, codespell, and is each notebook its source?
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	$(BIN)/python tools/build_notebooks.py --check

lab: setup ## JupyterLab at notebook 00
	$(BIN)/jupyter lab notebooks/00_start_here.ipynb

notebooks: setup ## rebuild the notebooks, or some: make notebooks NB="03 05"
	$(BIN)/python tools/build_notebooks.py $(NB)

back: setup ## edited in JupyterLab: write the source from it, make back NB=03
	$(BIN)/python tools/build_notebooks.py --back $(or $(NB),$(error name it: NB=03))

app: setup ## the sliders without any code, in a browser
	cd app && ../$(BIN)/voila sliders.ipynb

bench: setup | $(UV) ## the timings that README quotes: benchmarks/RESULTS.md
	$(UV) sync --frozen --inexact --group bench
	$(BIN)/python benchmarks/run.py

book: setup | $(UV) ## the notebooks as a site and one PDF (the PDF needs LaTeX and Chromium)
	@$(UV) sync --frozen --inexact --group book \
	    || $(UV) sync --frozen --inexact --group book --offline
	$(BIN)/python tools/build_book.py --pdf

mutants: setup ## break questlib on purpose: which test notices? (6 minutes)
	$(BIN)/python tools/mutants.py

lock: | $(UV) ## renew uv.lock and what is made from it
	$(UV) lock
	$(UV) export --quiet --frozen --format requirements-txt --no-emit-project \
	    --output-file requirements.lock
	cp environment.yml binder/environment.yml

clean: ## remove what was built
	rm -rf build .pytest_cache .ruff_cache .hypothesis
