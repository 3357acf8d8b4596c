PYTHON ?= python3
BIN := .venv/bin
OUT ?= demo-out
DATA ?=

.PHONY: demo test chaos check setup
setup: .venv/ready

.venv/ready: pyproject.toml
	@echo "setting up .venv (torch, Ray and the rest: several minutes the first time)"
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@

# baseline and multigrid on real clips, then a table, pictures and a report page; DATA=folder takes your own videos
demo: .venv/ready
	$(BIN)/mgray demo --out $(OUT) $(if $(DATA),--data $(DATA))

test: .venv/ready
	$(BIN)/python -m pytest -q -n 2 tests/unit
	$(BIN)/python -m pytest -q -m "not slow" tests/integration tests/chaos tests/gpu

# the tests that take minutes each; kills workers, nodes, the driver, everything, three times each, and prints what it cost
chaos: .venv/ready
	$(BIN)/python -m pytest -q -m slow tests/integration
	CHAOS_TIMES=3 $(BIN)/python -m pytest -q tests/chaos

check: .venv/ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
