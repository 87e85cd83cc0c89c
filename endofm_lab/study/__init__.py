"""Whole studies, frame by frame: streaming, findings, and the decisions of a reader."""
