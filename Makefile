# The main commands are `make demo` and `make test`. On first use they install everything that they need (bootstrap.py).
PYTHON ?= python3

.PHONY: demo test slow bench lint setup

demo:
	$(PYTHON) bootstrap.py demo $(if $(HEADLESS),--headless)

test:
	$(PYTHON) bootstrap.py test

slow:  ## long tests
	$(PYTHON) bootstrap.py test -m slow -n 0 -s

bench:  ## benchmarks of speed; nothing else may run on the machine
	$(PYTHON) bootstrap.py test -m benchmark -n 0 -s tests/benchmarks

setup:
	$(PYTHON) bootstrap.py setup
