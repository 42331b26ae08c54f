# make quickstart [TEXT='FILE_OR_GLOB'] [WORKDIR=DIR]   train, fine-tune, measure and generate, in minutes
# make test                                             install what the tests need and run them
# make lint                                             ruff
# make pictures                                         redraw the pictures of README and docs

PYTHON ?= python3
VENV := .venv
WORKDIR ?= work/quickstart
TEXT ?=

# Large arrays come from huge pages where glibc can: page faults otherwise take a fifth of a CPU step.
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1

.PHONY: quickstart test lint pictures

# Made anew whenever the requirements change; half-made environments have no stamp.
$(VENV)/.installed: setup.py pyproject.toml
	@$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11)' || { \
	  echo "error: armd_jax needs Python 3.11 or newer; run make PYTHON=python3.12" >&2; exit 1; }
	@begin=$$(date +%s); \
	$(PYTHON) -m venv $(VENV) && \
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -e '.[test]' && \
	touch $@ && echo "installed in $$(( $$(date +%s) - begin )) s"

quickstart: $(VENV)/.installed
	@$(VENV)/bin/python -m armd_jax.quickstart --workdir=$(WORKDIR) $(if $(TEXT),--text='$(TEXT)')

test: $(VENV)/.installed
	$(VENV)/bin/python -m pytest

lint: $(VENV)/.installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

pictures: $(VENV)/.installed
	$(VENV)/bin/python -c "import pathlib; from armd_jax import plots; \
	  plots.orders_and_masks(pathlib.Path('docs/orders.png'))"
