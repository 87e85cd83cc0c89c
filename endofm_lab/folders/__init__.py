"""Folders of results: one writer at a time, hashes of what was written, provenance."""
