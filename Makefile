# Every target sets up what it needs, and no more: a virtual environment in .venv with the pinned packages of
# constraints.txt. `study` and `finish` need what `pip install latephase` brings; the rest comes on top.
PYTHON ?= python3
VENV := .venv
INTEGRATIONS := .venv-integrations
BIN := $(VENV)/bin
# Modules are compiled when they are first imported: most of what torch and its requirements bring never is.
INSTALL := python -m pip install --quiet --no-compile --constraint constraints.txt
OUT ?= runs/digits
# One thread per process: two test workers and two runs of a study share the machine's cores.
export OMP_NUM_THREADS ?= 1

.PHONY: study finish test test-all test-integrations lint docs pages bench wheel clean

# The study in a size that ends within so many minutes on this machine.
MINUTES ?= 5
study: $(VENV)/installed
	$(BIN)/latephase study digits --minutes $(MINUTES) --out $(OUT)

# A small trained network and a minute of time: who takes it further?
finish: $(VENV)/installed
	cd examples && ../$(BIN)/latephase finish finish_digits:make --seconds 60 --out ../runs/finish

test: $(VENV)/peers
	$(BIN)/python -m pytest -n 2 --dist loadgroup -m "not slow"

test-all: $(VENV)/peers
	$(BIN)/python -m pytest -n 2 --dist loadgroup

# With Lightning, Transformers, PINA, DeepXDE, MLflow and Weights & Biases, in an environment of their own.
test-integrations: $(INTEGRATIONS)/installed
	$(INTEGRATIONS)/bin/python -m pytest tests/integrations

lint: $(VENV)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

# The pages are read anew each time (-E): one that has not changed would keep its warnings to itself.
docs: $(VENV)/docs
	$(BIN)/python -m sphinx -M html docs docs/_build -W --keep-going -E -q
	@echo "docs/_build/html/index.html"

# Of the stored studies, from their scores and trials, into runs/pages.
pages: $(VENV)/dev
	$(BIN)/python benchmarks/study_pages.py

bench: $(VENV)/peers
	$(BIN)/latephase bench --out runs/bench

# The wheel, and whether it does what the README says in an environment that holds nothing else.
wheel: $(VENV)/installed
	rm -rf dist build/wheel
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .
	$(PYTHON) -m venv build/wheel
	build/wheel/bin/$(INSTALL) "$$(grep '^torch==' constraints.txt)" dist/latephase-*.whl
	cd build/wheel && bin/python ../../.ci/check_wheel.py

# torch by its exact version, so that no other requirement decides which build is fetched.
$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/$(INSTALL) "$$(grep '^torch==' constraints.txt)" --editable .
	touch $@

$(VENV)/dev: $(VENV)/installed
	$(BIN)/$(INSTALL) --editable ".[dev]"
	touch $@

# The packages that the benchmark compares with; scipy, which one of them needs, comes with the developers' packages.
$(VENV)/peers: $(VENV)/dev benchmarks/requirements.txt
	$(BIN)/$(INSTALL) --no-deps --requirement benchmarks/requirements.txt
	touch $@

# Over $(VENV), whose packages it sees: torch need not be there twice, and the pytest plugins that these packages bring
# along stay out of the other tests.
$(INTEGRATIONS)/installed: $(VENV)/peers tests/integrations/requirements.txt
	$(PYTHON) -m venv --without-pip $(INTEGRATIONS)
	$(BIN)/python -c "import site; print('import site; site.addsitedir(%r)' % site.getsitepackages()[0])" \
		> "$$($(INTEGRATIONS)/bin/python -c 'import site; print(site.getsitepackages()[0])')/below.pth"
	$(INTEGRATIONS)/bin/$(INSTALL) --no-deps --requirement tests/integrations/requirements.txt
	touch $@

$(VENV)/docs: $(VENV)/installed
	$(BIN)/$(INSTALL) --editable ".[docs]"
	touch $@

clean:
	rm -rf $(VENV) $(INTEGRATIONS) docs/_build .pytest_cache .ruff_cache .hypothesis build dist
