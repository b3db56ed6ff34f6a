# Everything runs in .venv, which is created on first use. `make` without a target lists the targets.
.DEFAULT_GOAL := help
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:

# Any Python from 3.10 to 3.13.
PYTHON ?= python3
# For `make pack`: the name of a file in configs/tasks, and the models/model.pt of a run of each bundle.
TASK ?= phantom_mr2ct
SYNTHESIS_WEIGHTS ?=
SEGMENTATION_WEIGHTS ?=
# For `make gpu`: of configs/comparison.yaml, and a folder of datalists instead of the generated phantom.
SIZE ?= full
DATASET_DIR ?=
# For `make results` and `make results-check`: a folder with the evaluations that docs/results names.
RUNS ?=

# cpu: the build of torch without gigabytes of CUDA. The default where Linux has no driver of a GPU; TORCH=default takes PyPI's.
TORCH ?= $(shell [ "$$(uname -s)" != Linux ] || command -v nvidia-smi rocm-smi >/dev/null || echo cpu)
CPU_WHEELS := https://download.pytorch.org/whl/cpu

RUN := .venv/bin/python

# Several test processes share the cores: one thread each, and none that spins while it waits.
PYTEST := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(RUN) -m pytest
PARALLEL := --numprocesses=auto --maxprocesses=4 --dist=worksteal

.PHONY: help install install-dev demo test coverage test-fast test-deploy test-monai-deploy lint format bench results results-check gpu faults pack clean

help: ## Show this list
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-17s %s\n", $$1, $$2}' Makefile
	@echo
	@echo "  Settings: PYTHON=$(PYTHON)  TORCH=$(TORCH)  TASK=$(TASK)  SYNTHESIS_WEIGHTS=FILE  SEGMENTATION_WEIGHTS=FILE"

install: .venv/installed ## Create .venv for training, inference and packing

install-dev: .venv/installed-dev ## Add what tests, linters and benchmarks need

demo: .venv/installed ## The whole method on generated data: both stages, evaluation, report in runs/demo
	$(RUN) -m scripts demo --out runs/demo

test: .venv/installed-dev ## All tests that CI runs
	$(PYTEST) $(PARALLEL)

coverage: .venv/installed-dev ## The same tests with branch coverage, which takes longer; fails below 80 %
	$(PYTEST) $(PARALLEL) --cov --cov-report=term

test-fast: .venv/installed-dev ## The unit tests only, without training and subprocesses
	$(PYTEST) $(PARALLEL) -m "not slow and not deploy"

test-deploy: .venv/installed-dev .venv-deploy/installed ## Packed bundles in a real MONAI Label server (Python 3.11)
	$(PYTEST) -m deploy tests/test_deploy.py tests/test_deploy_tasks.py

test-monai-deploy: .venv/installed-dev .venv-monai-deploy/installed ## A packed bundle in a real MONAI Deploy application (Python 3.11)
	$(PYTEST) -m deploy tests/test_monai_deploy.py

lint: .venv/installed-dev ## ruff check, ruff format --check, mypy, import contracts
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy
	.venv/bin/lint-imports

format: .venv/installed-dev ## Format the code and apply ruff's fixes
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

bench: .venv/installed-bench ## Measure the speed of each optimised part against its plain form, and of inference against nnU-Net
	$(RUN) -m scripts bench

results: .venv/installed ## Write the numbers of README and docs/results.md from docs/results; RUNS=FOLDER fills empty cells
	$(RUN) -m scripts results $(if $(RUNS),--runs "$(RUNS)")

results-check: .venv/installed ## Fail where README, docs/results.md, docs/results and, if given, the runs in RUNS disagree
	$(RUN) -m scripts results --check $(if $(RUNS),--runs "$(RUNS)")

gpu: $(if $(filter .venv/bin/python,$(RUN)),.venv/installed-dev) ## On a GPU: its tests, the benchmark and the recommended recipe for TASK at full SIZE; in runs/gpu
	$(RUN) -m pytest --no-cov -m gpu
	$(RUN) -m scripts bench $(if $(filter-out full,$(SIZE)),--quick) --out runs/gpu/benchmark.json
	$(RUN) -m scripts compare --task $(TASK) --methods recommended_untranslated --size $(SIZE) $(if $(DATASET_DIR),--dataset_dir "$(DATASET_DIR)") --out runs/gpu/$(TASK)

faults: .venv/installed-dev ## Inject faults for 15 minutes (files, settings, kills, full disks, pairs) and count what comes
	PYTHONPATH=. $(RUN) tests/fault_campaign.py

pack: .venv/installed ## Pack both bundles for TASK into dist/, with weights if given
	$(RUN) -m bundle pack synthesis --task $(TASK) --out dist $(if $(SYNTHESIS_WEIGHTS),--weights "$(SYNTHESIS_WEIGHTS)")
	$(RUN) -m bundle pack segmentation --task $(TASK) --out dist $(if $(SEGMENTATION_WEIGHTS),--weights "$(SEGMENTATION_WEIGHTS)")

clean: ## Remove environments, dist/ and tool caches; keep runs/ and models/
	rm -rf .venv .venv-deploy .venv-monai-deploy dist .pytest_cache .ruff_cache .mypy_cache .hypothesis .coverage
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +

# Prints version and folder of an installed torch that supports an accelerator and is new enough for MONAI, or nothing.
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

# An accelerated torch that PYTHON already has (system, conda or virtual environment) is used as it is: .venv searches
# that folder after its own, and the installed version replaces the pin on torch.
.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' \
		|| { echo "error: $(PYTHON) is not Python 3.10 to 3.13; name one with make PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -m venv --clear .venv \
		|| { rm -rf .venv; echo "error: $(PYTHON) cannot make environments; install its venv package" >&2; exit 1; }
	@read -r version place < <($(PYTHON) -c "$$FIND_ACCELERATED_TORCH" 2>/dev/null) || true; \
	echo "Made .venv with $$($(RUN) --version)$${version:+; using the installed torch $$version}"; \
	echo "torch==$${version:-}" > .venv/torch-taken; \
	if [ -n "$${version:-}" ]; then \
		echo "$$place" > "$$($(RUN) -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/torch-taken.pth"; \
	fi

.venv/installed: .venv/bin/python requirements.txt
	$(if $(filter cpu,$(TORCH)),$(call install_torch_for_cpu,$(RUN),requirements.txt))
	$(call install_pins,requirements.txt)

.venv/installed-dev: .venv/installed requirements-export.txt requirements-dicom.txt requirements-dev.txt
	$(call install_pins,requirements.txt requirements-export.txt requirements-dicom.txt requirements-dev.txt)

.venv/installed-bench: .venv/installed-dev requirements-bench.txt
	$(call install_pins,requirements.txt requirements-export.txt requirements-dicom.txt requirements-dev.txt requirements-bench.txt)

# Separate environments: MONAI Label needs older packages, and MONAI Deploy installs CUDA. What pip builds from source, such
# as MONAI Label's sam2, gets the same torch to build with: left alone, pip downloads the newest one, with CUDA, for that.
.venv-%/installed: requirements-%.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' \
		|| { echo "error: $(PYTHON) is not Python 3.11, for which $< is pinned; name one with make PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -m venv --clear $(@D)
	@echo "Installing $< into $(@D): minutes the first time"
	$(if $(filter cpu,$(TORCH)),$(call install_torch_for_cpu,$(@D)/bin/python,$<))
	@$(@D)/bin/python -m pip freeze | grep '^torch==' > $(@D)/torch.txt || grep '^torch==' $< > $(@D)/torch.txt
	@PIP_CONSTRAINT=$(@D)/torch.txt PIP_BUILD_CONSTRAINT=$(@D)/torch.txt $(@D)/bin/python -m pip install --quiet \
		--disable-pip-version-check $$(grep -q '+cpu' $(@D)/torch.txt && echo --extra-index-url $(CPU_WHEELS)) --requirement $<
	@touch $@

# Without dependencies, as the other index has torch alone; where it cannot be reached, the pins install PyPI's build.
define install_torch_for_cpu
@grep -qs '==.' $(dir $(1))../torch-taken || $(1) -m pip install --quiet --disable-pip-version-check --retries 1 --no-deps \
	--index-url $(CPU_WHEELS) "$$(sed -n 's/^torch==.*/&+cpu/p' $(2))" || echo "No CPU build of torch at $(CPU_WHEELS): installing the default one"
endef

define install_pins
@echo "Installing $(lastword $(1)) into .venv: minutes the first time"
@taken="$$(grep '==.' .venv/torch-taken || true)"; \
sed -e '/^-r/d' -e "$${taken:+s/^torch==.*/$$taken/}" $(1) > .venv/pins.txt
@$(RUN) -m pip install --quiet --disable-pip-version-check --requirement .venv/pins.txt
@touch $@
endef
