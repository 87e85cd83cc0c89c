"""The program that writes `docs/leaks.md`: `python -m docs.experiments.leaks`."""
