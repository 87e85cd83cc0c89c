"""Whole studies, frame by frame: streaming, findings, decisions of a reviewer."""
