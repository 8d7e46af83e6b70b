# Everything a newcomer needs: `make demo` and `make test`. Both set up .venv first, once.
PYTHON ?= python3
BIN := .venv/bin
DEMO := runs/demo

.PHONY: demo test test-slow lint clean

demo: .venv/installed
	@if [ -f $(DEMO)/config.json ]; then $(BIN)/metarl train --resume $(DEMO); else \
	  $(BIN)/metarl train maml_trpo PointNavigation-v0 --iterations 60 --max-kl 0.02 --min-std 0.4 --lr-in-std --seed 0 --out $(DEMO); fi
	$(BIN)/metarl evaluate $(DEMO) --tasks 100 --episodes 40 --step-sizes 0.5 0.25 0.125
	@echo "Look at $(DEMO)/evaluation/adaptation.png"

test: .venv/installed
	$(BIN)/pytest -n auto -m "not slow"

test-slow: .venv/installed
	$(BIN)/pytest -n auto -m slow

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "metarl needs Python 3.11 or later; set PYTHON=/path/to/python3.11"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	touch $@

clean:
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
