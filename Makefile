# `make demo` and `make test` need nothing but Python 3.11 or later; everything goes into .venv.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test soak check format docs benchmark evidence peers carry clean

demo: .venv/installed
	$(BIN)/mixco demo

# A test a core; more threads in each would only be in each other's way. The tests start many processes:
# with bytecode written, also where the environment forbids it, each saves a second. A worker that crashes is not
# started again: the scheduler may then wait forever.
test: .venv/installed
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder --max-worker-restart 0

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

# In the background and at the lowest priority: the runs of experiments/evidence.toml, which go on where they were
# stopped. OPTIONS: --minutes 60, --row NAME, --seed 0. Twice, for two runs at once.
evidence: .venv/installed
	test -d "$(DATA)" || { echo "give DATA=FOLDER, the folder of the data sets"; exit 2; }
	mkdir -p runs/evidence
	setsid nohup $(BIN)/python experiments/evidence.py run --data-path "$(DATA)" $(OPTIONS) >> runs/evidence/log 2>&1 < /dev/null &
	@echo "look: tail runs/evidence/log; stop: pkill -f evidence.py; how far: $(BIN)/python experiments/evidence.py state"

peers: .venv-peers/installed

# What benchmarks/gpu.py needs on a machine without internet, in carry/, which git ignores: the wheels that a
# usual image for deep learning lacks, for Python 3.12 on Linux, and a folder of data in three slices. There:
#     pip install --no-index --no-deps --target site carry/wheels/*.whl && export PYTHONPATH=site:src
#     cat carry/slice-* | tar -xz
WHEELS := tyro typeguard docstring-parser
carry: .venv/installed
	test -d "$(DATA)" || { echo "give DATA=FOLDER, such as a folder with cifar10/train and cifar10/test"; exit 2; }
	rm -rf carry && mkdir -p carry
	$(BIN)/python -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.12 \
		--platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 --constraint constraints.txt --dest carry/wheels $(WHEELS)
	tar -czf carry/all -C "$(dir $(abspath $(DATA)))" "$(notdir $(abspath $(DATA)))"
	cd carry && split -n 3 -d -a 1 all slice- && rm all
	du -sh carry/*

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
