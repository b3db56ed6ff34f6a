# Everything is done in .venv, which is made on first use. `make` alone explains the targets.
.DEFAULT_GOAL := help
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:

# Any Python from 3.10 to 3.13.
PYTHON ?= python3
# For `make pack`: a file of configs/tasks, and models/model.pt of a run of either bundle.
TASK ?= phantom_mr2ct
SYNTHESIS_WEIGHTS ?=
SEGMENTATION_WEIGHTS ?=

RUN := .venv/bin/python

.PHONY: help install install-dev demo test test-deploy test-monai-deploy lint format bench pack clean

help: ## Show this list
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-17s %s\n", $$1, $$2}' Makefile
	@echo
	@echo "  Settings: PYTHON=$(PYTHON)  TASK=$(TASK)  SYNTHESIS_WEIGHTS=FILE  SEGMENTATION_WEIGHTS=FILE"

install: .venv/installed ## Make .venv with what training, inference and packing need

install-dev: .venv/installed-dev ## The same, with what tests, checks and benchmarks need

demo: .venv/installed ## The whole road on generated data: phantom, both stages, evaluation, report in runs/demo
	$(RUN) -m scripts demo --out runs/demo

test: .venv/installed-dev ## Every test that CI runs, with coverage
	$(RUN) -m pytest --numprocesses=auto --maxprocesses=4 --dist=worksteal --cov --cov-report=term

test-deploy: .venv/installed-dev .venv-deploy/installed ## The packed bundles in a real MONAI Label server on this machine (Python 3.11)
	$(RUN) -m pytest -m deploy tests/test_deploy.py

test-monai-deploy: .venv/installed-dev .venv-monai-deploy/installed ## A packed bundle in a real MONAI Deploy application (Python 3.11)
	$(RUN) -m pytest -m deploy tests/test_monai_deploy.py

lint: .venv/installed-dev ## ruff check, ruff format --check, mypy, import contracts
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy
	.venv/bin/lint-imports

format: .venv/installed-dev ## Let ruff sort, mend and format the code
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

bench: .venv/installed-dev ## Speed: each ratio against its plain form, from one run
	$(RUN) -m scripts bench

pack: .venv/installed ## Pack both bundles for TASK into dist/, with weights where they are given
	$(RUN) -m bundle pack synthesis --task $(TASK) --out dist $(if $(SYNTHESIS_WEIGHTS),--weights "$(SYNTHESIS_WEIGHTS)")
	$(RUN) -m bundle pack segmentation --task $(TASK) --out dist $(if $(SEGMENTATION_WEIGHTS),--weights "$(SEGMENTATION_WEIGHTS)")

clean: ## Remove the environments, dist/ and tool caches; runs/ and models/ stay
	rm -rf .venv .venv-deploy .venv-monai-deploy dist .pytest_cache .ruff_cache .mypy_cache .hypothesis .coverage
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +

# Prints the version and the place of a torch that can use an accelerator and is new enough for MONAI, or nothing.
define FIND_ACCELERATED_TORCH
try:
    import pathlib, torch
    recent = tuple(int(part) for part in torch.__version__.split(".")[:2]) >= (2, 8)
    if recent and (torch.version.cuda or torch.version.hip):
        print(torch.__version__, pathlib.Path(torch.__file__).resolve().parents[1])
except Exception:
    pass
endef
export FIND_ACCELERATED_TORCH

# An accelerated torch that the user's Python already has, be it in the system, in conda or in a virtual environment, is
# taken as it is: .venv looks for packages there after its own, and its version replaces the pin on torch.
.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' \
		|| { echo "error: $(PYTHON) is not Python 3.10 to 3.13; name one with make PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -m venv --clear .venv \
		|| { rm -rf .venv; echo "error: $(PYTHON) cannot make environments; install its venv package" >&2; exit 1; }
	@read -r version place < <($(PYTHON) -c "$$FIND_ACCELERATED_TORCH" 2>/dev/null) || true; \
	echo "Made .venv with $$($(RUN) --version)$${version:+; it takes the installed torch $$version}"; \
	echo "torch==$${version:-}" > .venv/torch-taken; \
	if [ -n "$${version:-}" ]; then \
		echo "$$place" > "$$($(RUN) -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/torch-taken.pth"; \
	fi

.venv/installed: .venv/bin/python requirements.txt
	$(call install_pins,requirements.txt)

.venv/installed-dev: .venv/installed requirements-export.txt requirements-dicom.txt requirements-dev.txt
	$(call install_pins,requirements.txt requirements-export.txt requirements-dicom.txt requirements-dev.txt)

# MONAI Label's packages are too old for .venv, and MONAI Deploy's bring CUDA with them.
.venv-%/installed: requirements-%.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' \
		|| { echo "error: $(PYTHON) is not Python 3.11, for which $< is pinned; name one with make PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -m venv --clear $(@D)
	@echo "Installing $< into $(@D): minutes the first time"
	@$(@D)/bin/python -m pip install --quiet --disable-pip-version-check --requirement $<
	@touch $@

define install_pins
@echo "Installing $(lastword $(1)) into .venv: minutes the first time"
@taken="$$(grep '==.' .venv/torch-taken || true)"; \
sed -e '/^-r/d' -e "$${taken:+s/^torch==.*/$$taken/}" $(1) > .venv/pins.txt
@$(RUN) -m pip install --quiet --disable-pip-version-check --requirement .venv/pins.txt
@touch $@
endef
