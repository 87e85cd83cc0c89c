# Two commands: `make demo` and `make test`. Both install what they need on first use (see bootstrap.py).
PYTHON ?= python3

.PHONY: demo test slow bench lint setup

demo:
	$(PYTHON) bootstrap.py demo $(if $(HEADLESS),--headless)

test:
	$(PYTHON) bootstrap.py test

slow:  ## the long proofs
	$(PYTHON) bootstrap.py test -m slow -n 0 -s

bench:  ## speed ratios; run on a quiet machine
	$(PYTHON) bootstrap.py test -m benchmark -n 0 -s tests/benchmarks

setup:
	$(PYTHON) bootstrap.py setup
