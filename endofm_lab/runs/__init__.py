"""Finished runs: what they hold, how they compare, class by class and beside the published numbers."""
