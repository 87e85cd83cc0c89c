"""The demo model: one `tiny` video transformer with four heads, trained on the phantom, tested on held-out patients."""
