# Every target sets up what it needs: a virtual environment in .venv with the pinned packages of constraints.txt.
PYTHON ?= python3
VENV := .venv
INTEGRATIONS := .venv-integrations
BIN := $(VENV)/bin
OUT ?= runs/digits
# One thread per process: two test workers and two runs of a study share the machine's cores.
export OMP_NUM_THREADS ?= 1

.PHONY: study finish test test-all test-integrations lint docs pages bench clean

study: $(VENV)/installed
	$(BIN)/latephase study digits --out $(OUT)

# A small trained network and a minute of time: who takes it further?
finish: $(VENV)/peers
	cd examples && ../$(BIN)/latephase finish finish_digits:make --seconds 60 --out ../runs/finish

test: $(VENV)/peers
	$(BIN)/python -m pytest -n 2 --dist loadgroup -m "not slow"

test-all: $(VENV)/peers
	$(BIN)/python -m pytest -n 2 --dist loadgroup

# With Lightning, Transformers, PINA, DeepXDE, MLflow and Weights & Biases, in an environment of their own.
test-integrations: $(INTEGRATIONS)/installed
	$(INTEGRATIONS)/bin/python -m pytest tests/integrations

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

# The pages are read anew each time (-E): one that has not changed would keep its warnings to itself.
docs: $(VENV)/docs
	$(BIN)/python -m sphinx -M html docs docs/_build -W --keep-going -E -q
	@echo "docs/_build/html/index.html"

# Of the stored studies, from their scores and trials, into runs/pages.
pages: $(VENV)/installed
	$(BIN)/python benchmarks/study_pages.py

bench: $(VENV)/peers
	$(BIN)/latephase bench --out runs/bench

# torch goes in first, by its exact version, so that no other requirement decides which build is fetched.
$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip --constraint constraints.txt
	$(BIN)/python -m pip install --quiet "$$(grep '^torch==' constraints.txt)" --constraint constraints.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

# The packages that the benchmark compares with; scipy, which one of them needs, comes with scikit-learn.
$(VENV)/peers: $(VENV)/installed benchmarks/requirements.txt
	$(BIN)/python -m pip install --quiet --no-deps --constraint constraints.txt --requirement benchmarks/requirements.txt
	touch $@

# Over $(VENV), whose packages it sees: torch need not be there twice, and the pytest plugins that these packages bring
# along stay out of the other tests.
$(INTEGRATIONS)/installed: $(VENV)/peers tests/integrations/requirements.txt
	$(PYTHON) -m venv --without-pip $(INTEGRATIONS)
	$(BIN)/python -c "import site; print('import site; site.addsitedir(%r)' % site.getsitepackages()[0])" \
		> "$$($(INTEGRATIONS)/bin/python -c 'import site; print(site.getsitepackages()[0])')/below.pth"
	$(INTEGRATIONS)/bin/python -m pip install --quiet --no-deps --constraint constraints.txt \
		--requirement tests/integrations/requirements.txt
	touch $@

$(VENV)/docs: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[docs]"
	touch $@

clean:
	rm -rf $(VENV) $(INTEGRATIONS) docs/_build .pytest_cache .ruff_cache .hypothesis build dist
