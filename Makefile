# Two commands do everything on a fresh machine: `make run` and `make test`.

# The first interpreter that the pinned packages support.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3.10 python3; do \
	$$p -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null \
	&& echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
WORKERS ?= 2

.PHONY: run test lint format train bench eval screenshots clean

run: $(VENV)/.run $(VENV)/.examples  ## open the app with the bundled model and examples
	$(BIN)/python app.py

test: $(VENV)/.dev $(VENV)/.browser  ## run every test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

lint: $(VENV)/.dev  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

train: $(VENV)/.run  ## reproduce the bundled pair from nothing, in train-run/pair; TRAIN="--minutes 60" limits it
	$(BIN)/python -m mrr train $(TRAIN) all
	$(BIN)/python -m mrr train $(TRAIN) export train-run/pair

bench: $(VENV)/.run  ## the three systems side by side at the dimensions of Qwen3-VL-2B
	$(BIN)/python -m mrr bench --dims 2b

eval: $(VENV)/.run  ## quality on the example corpus
	$(BIN)/python -m mrr eval assets/examples

screenshots: $(VENV)/.dev $(VENV)/.browser  ## retake the pictures of the README
	$(BIN)/python scripts/screenshots.py

clean:
	rm -rf $(VENV)

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "Python 3.10, 3.11, 3.12 or 3.13 is needed; none was found."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

$(VENV)/.run: requirements.txt | $(VENV)/bin/python
	$(BIN)/pip install --quiet -r requirements.txt
	touch $@

# The app would cache its examples itself, in the background; so it opens with all of them.
$(VENV)/.examples: $(wildcard assets/examples/pages/* assets/models/*/*.safetensors) | $(VENV)/.run
	@echo "Caching the example pages, about a minute, once."
	$(BIN)/python -c "import app; from ui.warming import cache_examples; bench = app.build()[1]; app.load(bench); cache_examples(bench); bench.close()"
	touch $@

$(VENV)/.dev: requirements-dev.txt $(VENV)/.run
	$(BIN)/pip install --quiet -r requirements-dev.txt
	touch $@

$(VENV)/.browser: $(VENV)/.dev
	scripts/ensure_browser.sh $(BIN)
	touch $@
