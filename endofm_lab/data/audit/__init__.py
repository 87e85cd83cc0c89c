"""Leakage, duplicates and confounding between the splits of manifests."""
