"""A benchmark: encoders, tasks, label budgets and methods from one small file, with one table of the results."""
