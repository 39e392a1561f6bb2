# Needs Python 3.10+ and make; everything else goes into $(VENV).
# TORCH chooses the build of PyTorch when the environment is made, e.g. make test TORCH=torch==2.13.0
PYTHON ?= python3
TORCH ?= torch
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: all train test docs docs-figures docs-browser soak check format lint types build clean
all: $(STAMP)

$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $(STAMP)

train: $(STAMP)  ## train an agent on CartPole and show its return before and after
	$(BIN)/python examples/01_quickstart.py

test: $(STAMP)  ## run the tests
	$(BIN)/python -m pytest -n 2

check: lint types docs test  ## all that continuous integration checks

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(STAMP)
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

build: $(STAMP)
	$(BIN)/python -m build

clean:
	rm -rf $(VENV) dist

docs: $(STAMP)  ## build the documentation site into docs/_build; warnings are errors
	$(BIN)/python -m pip install --quiet --editable ".[docs]"
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build
	$(BIN)/python docs/check.py

docs-figures: $(STAMP)  ## draw the figures of the documentation anew
	$(BIN)/python docs/figures.py

docs-browser: docs  ## look at the site in headless Chromium: formulas, width of a phone, dark mode
	$(BIN)/python docs/check.py --browser

soak: $(STAMP)  ## kill trainings at random moments, 231 times, and resume them; rows in benchmarks/soak.csv
	$(BIN)/python benchmarks/soak.py
