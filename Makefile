# make study | quick | test | docs | bench | reference | lab | export | clean
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
export MPLBACKEND ?= agg
export OMP_WAIT_POLICY ?= PASSIVE
# Compiled once, not by every process that a test starts. Two at a time, one thread each: two cores are enough.
TEST := $(BIN)/python -m compileall -q deepfake_nb && OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: study quick test docs bench reference lab export clean

study: $(INSTALLED)
	@# What the other sections found is worth a site even when one of them failed.
	$(BIN)/deepfake-nb study --profile demo; status=$$?; $(BIN)/python docs/build.py --profile demo && exit $$status

test: $(INSTALLED)
	$(TEST)

quick:
	@# Between two edits: nothing is installed, and what is marked slow is left out.
	@test -f $(INSTALLED) || { echo "There is no environment in $(VENV) yet; make test creates it."; exit 1; }
	$(TEST) -m "not slow"

docs: $(INSTALLED)
	$(BIN)/python docs/build.py --profile demo --library

bench: $(INSTALLED)
	$(BIN)/deepfake-nb bench --json out/bench.json

reference: $(INSTALLED)
	$(BIN)/python scripts/keep_reference.py demo
	$(BIN)/python scripts/readme_table.py

lab: $(INSTALLED)
	$(BIN)/jupyter lab nbs

export: $(INSTALLED)
	$(BIN)/python scripts/export.py

clean:
	rm -rf $(VENV) build dist *.egg-info docs/_build docs/pages .pytest_cache .ruff_cache
	find reports -mindepth 1 -maxdepth 1 ! -name reference ! -name detectors -exec rm -rf {} +

$(INSTALLED): settings.ini constraints.txt setup.py pyproject.toml
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" || \
		{ echo "deepfake-nb needs Python 3.11 or newer; run: make PYTHON=python3.11"; exit 1; }
	@echo "Installing into $(VENV): about 3 minutes and 7 GB, once."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	@# Two wheels bring the same cv2; the headless one, which needs no libGL, has to be the last.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
		--force-reinstall --no-deps opencv-python-headless
	@touch $(INSTALLED)
