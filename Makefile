# `make` alone lists the targets. PYTHON=/path/to/python chooses the interpreter.
.DEFAULT_GOAL := help
.PHONY: help environment petsc demo test lint campaign bench bench-budgets bench-scaling image clean
BIN := .venv/bin
BENCHMARKS := linear quadratic conic roots batches

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-13s %s\n", $$1, $$2}' Makefile

environment: ## make .venv and install backsolve and the tools into it
	@docker/bootstrap.sh main

petsc: environment ## add PETSc to .venv, compiled the first time
	@docker/bootstrap.sh petsc

demo: environment ## run examples/quickstart.py
	@echo "==> examples/quickstart.py"
	@$(BIN)/python examples/quickstart.py

test: lint petsc ## the checks, every test, and again what depends on the versions of JAX and PETSc
	@docker/bootstrap.sh slurm
	@echo "==> pytest"
	@$(BIN)/pytest -n logical --maxprocesses 8 --dist loadfile -p no:benchmark
	@docker/bootstrap.sh versions

lint: environment ## ruff, pyright, import-linter, shellcheck, hadolint
	@echo "==> ruff check"
	@$(BIN)/ruff check --quiet .
	@echo "==> ruff format --check"
	@$(BIN)/ruff format --check --quiet .
	@echo "==> pyright"
	@$(BIN)/pyright --pythonpath $(BIN)/python
	@echo "==> lint-imports"
	@$(BIN)/lint-imports --no-logo
	@echo "==> shellcheck"
	@$(BIN)/shellcheck $(wildcard docker/*.sh docker/*/*.sh)
	@echo "==> hadolint"
	@$(BIN)/hadolint $(wildcard docker/Dockerfile*)

campaign: petsc ## random problems, and whether each verdict on their gradients is right (hours)
	@echo "==> tests/campaign/run.py"
	@OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1 $(BIN)/python tests/campaign/run.py --workers 2 --resume

bench: bench-budgets ## all that is compared with other packages, in .venv-peers, and its report (two hours)
	@docker/bootstrap.sh peers
	@set -e; for name in $(BENCHMARKS); do \
	    echo "==> tests/benchmarks/bench_$$name.py"; \
	    rm -f tests/benchmarks/results/$$name.jsonl; \
	    .venv-peers/bin/python tests/benchmarks/bench_$$name.py; \
	done
	@echo "==> tests/benchmarks/memory.py"
	@.venv-peers/bin/python tests/benchmarks/memory.py
	@echo "==> tests/benchmarks/report.py"
	@.venv-peers/bin/python tests/benchmarks/report.py

bench-budgets: petsc ## how much ours may take more than the bare library, BLAS on one thread
	@echo "==> benchmarks"
	@mkdir -p tests/benchmarks/results
	@OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1 $(BIN)/pytest tests/benchmarks -o timeout=0 -s \
	    --benchmark-json=tests/benchmarks/results/latest.json

bench-scaling: petsc ## solves over one, two and four MPI ranks, and a projection to many (ten minutes)
	@echo "==> tests/benchmarks/scaling.py"
	@$(BIN)/python tests/benchmarks/scaling.py

image: ## build and test the image backsolve:cpu, with docker, podman or buildah
	@docker/build.sh

clean: ## remove the environments, caches and build products
	@echo "==> clean"
	@rm -rf .venv .venv-oldest .venv-newest .venv-peers build dist src/backsolve.egg-info \
	    .benchmarks .hypothesis .import_linter_cache .pytest_cache .ruff_cache \
	    examples/output tests/benchmarks/results/*.json
	@find . -path ./.git -prune -o -name __pycache__ -prune -exec rm -rf {} +
