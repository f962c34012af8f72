# The interpreter that .venv is made from: `make test PYTHON=python3.12`
PYTHON ?= python3
# Passed on to the demo or to pytest: `make demo ARGS="--data wine"`, `make test ARGS="-k guide"`
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip --disable-pip-version-check install -qq -c constraints.txt

# These ask for torchvision, which they do not import, and which is compiled for one build of torch.
WITHOUT_TORCHVISION := tyxe laplace-torch asdfghjkl==0.1a4 bayesian-torch backpack-for-pytorch \
	curvlinops-for-pytorch unfoldNd

# ArviZ 1.x needs Python 3.12. PYENV_VERSION lets pyenv's commands run, and is nothing to others.
ARVIZ_1_PYTHON ?= $(shell for v in 3.14 3.13 3.12; do PYENV_VERSION=$$v \
	python$$v -c 'import sys; print(sys.executable)' 2>/dev/null && break; done)
ARVIZ_1_VENV := .venv-arviz-1

# The lowest versions of pyproject.toml want one of the Pythons that they were built for.
LOWEST_PYTHON ?= $(shell for v in 3.10 3.11; do PYENV_VERSION=$$v \
	python$$v -c 'import sys; print(sys.executable)' 2>/dev/null && break; done)
LOWEST_VENV := .venv-lowest
# What touches torch, Pyro, NumPy, SciPy and ArviZ, but not the documentation and the demo.
LOWEST_TESTS := $(addprefix tests/,permanent symmetry density estimators rescaling program discovery \
	functional compiled networks training posterior saving test_guide.py test_elbo.py test_closed_form.py \
	test_initialization.py test_rescaled_draws.py test_rescaled_guides.py test_serialization.py \
	test_verification.py)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test test-arviz-1 test-lowest lint types docs notebooks

help:
	@echo 'make demo          compare two guides on real data; options in ARGS="--data wine"'
	@echo 'make test          run the tests; options in ARGS="-k guide"'
	@echo 'make test-arviz-1  run those that need no torch with ArviZ 1.x'
	@echo 'make test-lowest   run the quick ones with the lowest versions that are promised'
	@echo 'make lint          check style and formatting'
	@echo 'make types         check types'
	@echo 'make docs          build the site in docs/_build/html'
	@echo 'make notebooks     execute the tutorials; one of them: ARGS=tutorials/01_quickstart.py'

demo: $(VENV)/.demo
	@$(BIN)/python -m pyro_perm $(ARGS)

# One thread a worker: two workers with a thread pool each fight for the cores. Whoever is done takes
# over half of what the other has left. Bytecode is kept even where Python is told not to: it saves each
# worker seconds of rewriting assertions at the next run.
test: $(VENV)/.dev
	@OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n 2 --dist worksteal $(ARGS)

# The tests' set-up imports torch, which would be a large download for these few.
test-arviz-1:
	@if [ -z '$(ARVIZ_1_PYTHON)' ]; then \
		echo 'Skipped the tests with ArviZ 1.x: no Python 3.12 or newer was found.'; \
	else \
		$(MAKE) --no-print-directory $(ARVIZ_1_VENV)/.ready && \
		$(ARVIZ_1_VENV)/bin/python -m pytest --noconftest tests/posterior/export/test_assembly.py; \
	fi

# A second environment: downloads torch anew, where PyPI has it with CUDA: gigabytes on Linux.
test-lowest:
	@if [ -z '$(LOWEST_PYTHON)' ]; then \
		echo 'Skipped the lowest versions: no Python 3.10 or 3.11 was found.'; \
	else \
		$(MAKE) --no-print-directory $(LOWEST_VENV)/.ready && \
		OMP_NUM_THREADS=1 $(LOWEST_VENV)/bin/python -m pytest -n 2 --dist worksteal -m 'not slow' \
			$(LOWEST_TESTS) $(ARGS); \
	fi

lint: $(VENV)/.dev
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: $(VENV)/.dev
	@$(BIN)/mypy

docs: $(VENV)/.docs
	@$(BIN)/python -m sphinx -q -a -W --keep-going docs docs/_build/html
	@echo 'The site: docs/_build/html/index.html'

notebooks: $(VENV)/.docs
	@$(BIN)/python docs/notebooks.py $(ARGS)

$(VENV)/.created:
	@$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.demo: pyproject.toml constraints.txt | $(VENV)/.created
	@echo 'Installing pyro_perm[demo] into $(VENV); the first time takes a few minutes ...'
	@$(PIP_INSTALL) -e '.[demo]'
	@touch $@

# The docs and dev extras include the demo's.
$(VENV)/.docs: pyproject.toml constraints.txt | $(VENV)/.created
	@echo 'Installing pyro_perm[docs] into $(VENV); the first time takes a few minutes ...'
	@$(PIP_INSTALL) -e '.[docs]'
	@$(PIP_INSTALL) --no-deps $(WITHOUT_TORCHVISION)
	@touch $(VENV)/.demo $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(VENV)/.created
	@echo 'Installing pyro_perm[dev] into $(VENV); the first time takes a few minutes ...'
	@$(PIP_INSTALL) -e '.[dev]'
	@$(PIP_INSTALL) --no-deps $(WITHOUT_TORCHVISION)
	@touch $(VENV)/.demo $@

$(LOWEST_VENV)/.ready: constraints-lowest.txt pyproject.toml
	@echo 'Installing the lowest versions into $(LOWEST_VENV); the first time takes a while ...'
	@$(LOWEST_PYTHON) -m venv $(LOWEST_VENV)
	@$(LOWEST_VENV)/bin/python -m pip --disable-pip-version-check install -qq \
		-c constraints-lowest.txt -e . matplotlib scikit-learn pytest pytest-xdist hypothesis thewalrus
	@touch $@

$(ARVIZ_1_VENV)/.ready: constraints.txt
	@echo 'Installing ArviZ 1.x into $(ARVIZ_1_VENV) ...'
	@$(ARVIZ_1_PYTHON) -m venv $(ARVIZ_1_VENV)
	@$(ARVIZ_1_VENV)/bin/python -m pip --disable-pip-version-check install -qq -c constraints.txt \
		'arviz>=1,<2' matplotlib h5netcdf h5py pytest
	@touch $@
