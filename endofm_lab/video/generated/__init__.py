"""Parts of the phantom: the wall of the tube, and whole examinations."""
