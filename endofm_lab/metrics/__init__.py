"""Numbers and their intervals: classes, boxes, masks, phases, calibration, published conventions."""
