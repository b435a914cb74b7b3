# Everything that is done with this repository. `make demo` and `make test` set up what they need by themselves.
VENV ?= .venv
BIN := $(VENV)/bin
# Test processes side by side, of which half wait; a file's tests stay together, in the order of tests/running_order.py.
JOBS ?= 4
DEEP_JOBS ?= 3
export PATH := $(CURDIR)/$(BIN):$(PATH)
# Where Python is told to keep no bytecode, as in many containers, each daemon that a test starts compiles itself anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: setup demo test check check-deep proto reference docs bench clean

setup: ## the environment in .venv
	@scripts/setup_environment.sh $(VENV)

demo: setup ## two people enrolled by voice are named in a live stream, through the real daemons
	@$(BIN)/speakerd demo --out demo-out

test: setup ## static checks and all tests but the deep ones
	@$(MAKE) --no-print-directory check
	@$(BIN)/python -m pytest -m "not deep" -q -n $(JOBS) --dist loadfile --no-loadscope-reorder --reruns 1 --timeout 600 -rRs

check: setup ## linters, types, layers
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache > .lint-imports.log 2>&1 || { cat .lint-imports.log; exit 1; }

check-deep: setup ## the long runs, an hour on two cores: accuracy, faults, fuzzing, mutations, hours of streams
	@$(BIN)/python -m pytest -m deep -q -n $(DEEP_JOBS) --dist loadfile --no-loadscope-reorder --reruns 1 --timeout 3600 -rRs --durations 40

proto: setup ## generate the stubs from proto/
	@$(BIN)/python scripts/generate_stubs.py

reference: setup ## the generated pages of the documentation, from the contract, the settings, the commands, the errors
	@$(BIN)/python -m scripts.reference
	@$(BIN)/python -m scripts.generate_metrics_reference

docs: setup ## the documentation as a site, in site/
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict && echo "site/index.html; to look at it: mkdocs serve"

bench: setup ## measurements; each script tells its options with --help
	@ls benchmarks/*.py

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache
