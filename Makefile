# `make demo` and `make test` need nothing but Python 3.11 or later; everything goes into .venv.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test soak check format docs benchmark peers clean

demo: .venv/installed
	$(BIN)/mixco demo

# A test a core; more threads in each would only be in each other's way. The tests start many processes:
# with bytecode written, also where the environment forbids it, each saves a second.
test: .venv/installed
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

# Some fifty minutes, docs/reliability.md: runs and workers that are killed again and again, thousands of
# damaged and hostile inputs, and a model of each of timm's families.
soak: .venv/installed
	$(BIN)/python tests/soak/kills.py --kills 100
	$(BIN)/python tests/soak/restarts.py --kills 20
	$(BIN)/python tests/soak/equality.py
	$(BIN)/python tests/soak/fuzz.py --examples 2000
	$(BIN)/python tests/soak/backbones.py
	$(BIN)/python tests/soak/adapting.py

check: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The site, into build/site/index.html; it needs nothing of the internet. A broken link or picture is an error.
docs: .venv/installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# With the peers too, where `make peers` was run.
benchmark: .venv/installed
	$(BIN)/python benchmarks/pretraining.py

peers: .venv-peers/installed

.venv-peers/installed: benchmarks/peers.txt pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --requirement benchmarks/peers.txt --editable .
	touch $@

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'mixco needs Python 3.11 or later')"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,docs]'
	touch $@

clean:
	rm -rf .venv .venv-peers build dist
