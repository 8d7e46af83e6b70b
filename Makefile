# Everything a newcomer needs: `make demo` and `make test`. Both set up .venv first, once.
PYTHON ?= python3
BIN := .venv/bin
DEMO := runs/demo
MUJOCO33 := .venv/mujoco33

.PHONY: demo test test-mujoco33 test-slow lint clean

demo: .venv/installed
	@if [ -f $(DEMO)/config.json ]; then $(BIN)/metarl train --resume $(DEMO); else \
	  $(BIN)/metarl train maml_trpo PointNavigation-v0 --iterations 60 --max-kl 0.02 --min-std 0.4 --lr-in-std --seed 0 --out $(DEMO); fi
	$(BIN)/metarl evaluate $(DEMO) --checkpoint latest --tasks 100 --episodes 40
	@echo "Look at $(DEMO)/evaluation/adaptation.png"

test: .venv/installed
	$(BIN)/pytest -n auto -m "not slow"

# Again with MuJoCo 3.3, which Meta-World pins; the environment proper has a newer one, and no Meta-World.
test-mujoco33: .venv/installed $(MUJOCO33)/installed
	PYTHONPATH=$(CURDIR)/$(MUJOCO33) $(BIN)/pytest -n auto -m "not slow" \
	  tests/envs/test_metaworld.py tests/vector/test_mujoco.py tests/envs/test_locomotion.py

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

$(MUJOCO33)/installed: .venv/installed Makefile
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade --no-deps --target $(MUJOCO33) \
	  metaworld==3.1.1 mujoco==3.3.0 glfw==2.11.0 PyOpenGL==3.1.10 imageio==2.38.1
	touch $@

clean:
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
