"""Metrics and their intervals: classes, boxes, masks, phases, calibration, and definitions of published results."""
