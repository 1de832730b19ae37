# Every target sets up what it needs: .venv is made once and again only when the pins change.
#   make PYTHON=/path/to/python3.11   another interpreter (3.11 or 3.12)
#   make TORCH_INDEX=URL              where torch comes from first; TORCH_INDEX= asks only pip's own

VENV := .venv
BIN := $(VENV)/bin
WORKERS ?= 2
PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

# An interpreter counts if it runs (a pyenv shim may not) and has the right version.
RUNS := -c 'import sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))'
PYTHON := $(shell for p in python3.11 python3.12 python3 python; do \
	if $$p $(RUNS) >/dev/null 2>&1; then $$p -c 'import sys; print(sys._base_executable)'; break; fi; done)

# Without an NVIDIA GPU, PyPI's torch for Linux would bring gigabytes of CUDA libraries. The index
# of CPU builds is asked only where it answers; pip would try again and again, and say so.
CPU_INDEX := https://download.pytorch.org/whl/cpu
ifeq ($(origin TORCH_INDEX), undefined)
TORCH_INDEX = $(shell [ "$$(uname -s)" != Linux ] || nvidia-smi -L >/dev/null 2>&1 || \
	$(PYTHON) -c 'from urllib.request import urlopen; urlopen("$(CPU_INDEX)/", timeout=5)' \
	>/dev/null 2>&1 && echo $(CPU_INDEX))
endif

# The stamp's name is the hash of all that decides what is in .venv.
PINS := $(shell { cat pyproject.toml constraints.txt; $(or $(PYTHON),false) -VV 2>&1; pwd; } | \
	cksum | cut -d ' ' -f 1)
STAMP := $(VENV)/handclip-$(PINS)
# A .venv of this folder and this interpreter is brought up to date; any other is made anew.
SAME = [ "$$($(BIN)/python -VV 2>&1)" = "$$($(PYTHON) -VV)" ] && \
	head -n 1 $(BIN)/pip 2>/dev/null | grep -q "^.!$$PWD/$(VENV)/"

.PHONY: help install demo demo-full test test-slow lint golden tiny clean
.DEFAULT_GOAL := help

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s  %s\n", $$1, $$2 }' Makefile

install: $(STAMP) ## .venv with the pinned packages and `handclip`

$(STAMP):
	@[ -n "$(PYTHON)" ] && $(PYTHON) $(RUNS) || { \
		echo "HandCLIP needs Python 3.11 or 3.12 and found neither; give one: make PYTHON=/path/to/python3.11"; exit 1; }
	@echo "Installing into $(VENV) with $$($(PYTHON) -V): about 2 GB, some minutes, once."
	@rm -f $(VENV)/handclip-*
	@$(SAME) || { rm -rf $(VENV); $(PYTHON) -m venv $(VENV) >/dev/null 2>&1; } || { \
		$(PYTHON) -m venv --clear --without-pip $(VENV) && \
		$(PYTHON) -m pip --python $(BIN)/python install -qq pip; }
	@# First torch alone: the extra index is asked for these two and never for another package.
	@$(BIN)/python -m pip install -qq --no-deps -c constraints.txt torch torchvision \
		$(addprefix --extra-index-url ,$(TORCH_INDEX))
	@$(BIN)/python -m pip install -qq -c constraints.txt -e '.[all]'
	@$(BIN)/python -m pip check -q
	@touch $@
	@echo 'Installed. `source $(BIN)/activate` makes the command handclip yours.'

demo: install ## draws the demo data, runs the notebooks, writes reports/demo/index.html
	$(BIN)/handclip demo

demo-full: install ## every notebook and aspect, with the ViT and with the ResNet tower
	$(BIN)/handclip study demo
	$(BIN)/handclip study demo_rn

test: lint ## ruff, mypy, unit tests, notebooks (papermill, nbval): below 20 minutes on two cores
	$(PYTEST)

test-slow: install ## the tests marked slow: real architectures with random weights through every notebook
	$(PYTEST) -m "slow and not gpu"

lint: install ## ruff and mypy only
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

golden: install ## executes the smoke runs of tests/golden anew; look at the difference
	$(BIN)/python tests/golden/bless.py

tiny: install ## trains the shipped tiny CLIPs anew (up to two hours; they are in the repository)
	$(BIN)/python -m handclip_lib.train.tiny --tower both

clean: ## removes .venv, caches of tools and build folders; never data/ or reports/
	rm -rf $(VENV) build .pytest_cache .ruff_cache .mypy_cache .hypothesis handclip.egg-info
	find handclip_lib tests -name __pycache__ -type d -prune -exec rm -rf {} +
