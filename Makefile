# `make demo` and `make test` set up all that they need, in .venv.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
READY := .venv/ready

.PHONY: help demo test test-slow test-kernels check fix bench gpu-check study docs figures wheel clean

help:  ## Show these targets.
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

demo: $(READY)  ## Draw a small world, train on it, judge the model, open demo/report.html.
	$(BIN)/kilopix demo demo

test: $(READY)  ## Run the tests, in one process for each core, up to four.
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

test-slow: $(READY)  ## Run the longer trials; ARGS="-k trust" runs some.
	$(BIN)/python -m pytest -m slow --timeout 7200 $(ARGS)

test-kernels: $(READY)  ## Run the tests for each kind of kernels, number of threads and locale; ONLY=a,b runs some.
	$(BIN)/python tools/test_kernels.py $(if $(ONLY),--only $(ONLY)) $(TESTS)

check: $(READY)  ## Lint, types, layers, spelling.
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/lint-imports
	$(BIN)/codespell src tests tools benchmarks docs recipes README.md Makefile

fix: $(READY)  ## Format, and mend what can be mended by itself.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY)  ## Measure speed, as ratios within one run.
	$(BIN)/python benchmarks/run.py
	$(BIN)/python benchmarks/cad_i.py
	$(BIN)/python benchmarks/steps.py
	$(BIN)/python benchmarks/evaluators.py
	$(BIN)/python benchmarks/fidelity.py
	$(BIN)/python benchmarks/engine.py
	$(BIN)/python benchmarks/generate.py
	$(BIN)/python benchmarks/step_loading.py

gpu-check: $(READY)  ## Measure and check what only a GPU can say, on one card, in some minutes.
	$(BIN)/python benchmarks/gpu_check.py runs/gpu_check $(ARGS)

docs: $(READY)  ## Build the documentation as a site: open site/index.html.
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --clean

figures: $(READY)  ## Draw the figures of the documentation anew.
	$(BIN)/python tools/figures.py

wheel: $(READY)  ## Build the package into dist/.
	$(BIN)/python -m hatchling build -d dist

study: $(READY)  ## Compare captions, CutMix and networks on the embedded world; typed again, it goes on.
	$(BIN)/python benchmarks/study/run.py runs/study

clean:  ## Delete the environment, and what was built.
	rm -rf .venv demo dist site

$(READY): pyproject.toml constraints.txt tools/install.sh
	sh tools/install.sh "$(PYTHON)" .venv
	@touch $(READY)
