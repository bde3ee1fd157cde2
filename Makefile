# One command for each thing a newcomer or CI does. Needs Python >= 3.11 with headers and venv, a C compiler, make; no root.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := $(shell find rpi_daemon _fastpath drivers models config -type f ! -name '*.so' ! -name '*.pyc' ! -name core.c) setup.py
PEER_PACKAGES := clang debootstrap dpkg-dev gcc-aarch64-linux-gnu libc6-dev-arm64-cross libmodbus-dev libsnmp-dev prometheus-node-exporter qemu-user rt-tests smitools snmp snmpd snmptrapd stress-ng systemd systemd-container
# a module of tests goes to one worker: its simulated rack serves all of them
# three on two cores: most of a scenario is waiting
PYTEST_WORKERS ?= --numprocesses 3 --dist loadfile
PYTEST_ARGS ?=
BENCH_ARGS ?=
FUZZ_ARGS ?=

.PHONY: demo test check lint types contracts peers faults peer-packages fuzz soak bench dev clean kills

demo: $(VENV)/.installed
	$(BIN)/rpi-daemon demo

test: $(VENV)/.installed
	$(BIN)/pytest $(PYTEST_WORKERS) -m "not peers and not hil" $(PYTEST_ARGS)

check: lint types contracts test

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# From tests/, on the installed package: from the root the bare folders shadow it and a fraction is checked (it prints the count).
types: $(VENV)/.installed
	cd tests && ../$(BIN)/mypy --config-file ../pyproject.toml -p rpi_daemon

contracts: $(VENV)/.installed
	cd tests && ../$(BIN)/lint-imports --config ../pyproject.toml

# The tests that talk to other people's programs; installs them (root, Debian). One has a package and a Debian made first: minutes.
peers: peer-packages $(VENV)/.installed
	$(BIN)/pytest $(PYTEST_WORKERS) -o faulthandler_timeout=900 -m peers $(PYTEST_ARGS)

# Every fault of docs/faults.md with its figure, one after the other; keeps the figures and writes the table. An otherwise idle machine.
faults: peer-packages $(VENV)/.installed
	RPI_FIGURES=1 $(BIN)/pytest -o faulthandler_timeout=0 -m fault $(PYTEST_ARGS); failed=$$?; $(BIN)/python bench/figures.py; exit $$failed

peer-packages:
	apt-get install -y --no-install-recommends $(PEER_PACKAGES)

# A million inputs for each decoder, under sanitizers; an hour. FUZZ_ARGS="snmp_v3 --inputs 10000" for a first look. Needs clang, x86-64.
fuzz: $(VENV)/.installed
	$(BIN)/pip install -q $$($(BIN)/python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['optional-dependencies']['fuzz'])")
	PYTHONPATH=tests $(BIN)/python -P -m fuzz.run $(FUZZ_ARGS)

# 200 kills of the daemon at random, and 150 power cuts: half an hour; keeps bench/results/kills.json.
kills: $(VENV)/.installed
	RPI_KILLS=200 RPI_CUTS=150 RPI_FIGURES=1 $(BIN)/pytest -o faulthandler_timeout=0 tests/scenarios/test_faults_power.py $(PYTEST_ARGS); failed=$$?; $(BIN)/python bench/figures.py; exit $$failed

# All faults at random: an hour of virtual time in some minutes, half an hour of real time on an otherwise idle machine, then a
# self-test of the invariants. SOAK_ARGS="--seconds 600 --real 0 --seed 7" for another. As root for a disk that can be filled.
soak: $(VENV)/.installed
	$(BIN)/python bench/soak.py --keep --real 1800 $(SOAK_ARGS)
	$(BIN)/python bench/soak.py --self-test

# An hour, on an otherwise idle machine; BENCH_ARGS=--quick for a first look that keeps nothing, BENCH_ARGS=silent for one of them. See bench/README.md.
bench: $(VENV)/.installed
	$(BIN)/python bench/all.py $(BENCH_ARGS)
	$(BIN)/python bench/figures.py

# What others install: dist/*.whl, dist/*.deb (Debian bookworm, on a machine of its architecture).
wheel: $(VENV)/.dependencies
	rm -rf build/lib* build/bdist*
	$(BIN)/pip wheel -q --no-deps --no-build-isolation --wheel-dir dist .

deb: $(VENV)/.dependencies
	packaging/deb.sh $(abspath $(BIN))/python

# On this machine, as root, after `make wheel`: PREFIX=/usr/local, DESTDIR=, PYTHON=/usr/bin/python3. See docs/operations.md.
install uninstall:
	packaging/install.sh $@

# For work on the code: edits are seen at once; after touching .pyx, .pxi or .h run `python setup.py build_ext --inplace`.
dev: $(VENV)/.dependencies
	$(BIN)/pip install -q --no-deps --no-build-isolation -e .
	touch $(VENV)/.installed

$(VENV)/.dependencies: pyproject.toml
	@echo "Python packages into $(VENV): a minute or two"
	test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -U pip setuptools wheel cython
	$(BIN)/python -c "import tomllib; p = tomllib.load(open('pyproject.toml', 'rb'))['project']; print('\n'.join(p['dependencies'] + p['optional-dependencies']['dev']))" > $(VENV)/requirements.txt
	$(BIN)/pip install -q -r $(VENV)/requirements.txt
	touch $@

$(VENV)/.installed: $(VENV)/.dependencies $(SOURCES)
	@echo "Building rpi-daemon: a minute"
	rm -rf build/lib* build/bdist*
	$(BIN)/pip install -q --no-deps --no-build-isolation --force-reinstall .
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info _fastpath/core.c _fastpath/*.so
