# Every target first sets up what it needs (scripts/setup.sh), and does so only once.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help setup bpf images demo check test test-fast test-vm bench lock clean

PYTEST := .venv/bin/pytest
ARGS ?=
ONLY ?=

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' Makefile

setup: ## install everything that any other target needs
	@scripts/setup.sh run build check test bench

bpf: ## compile the identity filter
	@scripts/setup.sh build
	@$(MAKE) --no-print-directory -C bpf

images: ## build the images that hops run from
	@scripts/setup.sh run
	@.venv/bin/chainctl images build

demo: need-root ## show a three-hop chain at work in a small fake internet
	@scripts/setup.sh run build
	@$(MAKE) --no-print-directory -C bpf
	@.venv/bin/chainctl images build
	@.venv/bin/chainctl demo

check: ## lint, types, import directions, form of the C code, what may not be committed
	@scripts/setup.sh check
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy
	.venv/bin/lint-imports
	clang-format --dry-run -Werror $$(git ls-files '*.c' '*.h')
	.venv/bin/python scripts/check_tree.py

test: need-root ## run all tests, those with real namespaces too (ARGS= for pytest, -n0 for one at a time)
	@scripts/setup.sh run build test
	@$(MAKE) --no-print-directory -C bpf
	@.venv/bin/chainctl images build
	@$(PYTEST) -m 'not vm' -n 2 --dist loadfile $(ARGS)

test-fast: ## run the tests that need no root (ARGS= for pytest)
	@scripts/setup.sh
	@$(PYTEST) -m 'not root and not vm' $(ARGS) tests/unit

test-vm: need-root ## run the tests that need another kernel, in an emulated machine
	@scripts/setup.sh run build test vm
	@scripts/vm_kernel.sh
	@$(MAKE) --no-print-directory -C bpf
	@.venv/bin/chainctl images build
	@.venv/bin/python -m tests.vm.machine $(PYTEST) -m vm $(ARGS)

bench: need-root ## measure what we claim into bench/results.json (ONLY=name,... for some rows)
	@scripts/setup.sh run build bench
	@$(MAKE) --no-print-directory -C bpf
	@.venv/bin/chainctl images build
	@.venv/bin/python -m bench $(if $(ONLY),--only $(ONLY))

lock: ## renew the hashed locks from pyproject.toml
	@scripts/setup.sh
	@scripts/lock.sh

clean: ## remove what was built here, the environment too
	@$(MAKE) --no-print-directory -C bpf clean
	rm -rf .venv .make dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

.PHONY: need-root
need-root:
	@test "$$(id -u)" = 0 || { echo 'It makes network namespaces, which needs root: sudo make $(MAKECMDGOALS)' >&2; exit 1; }
