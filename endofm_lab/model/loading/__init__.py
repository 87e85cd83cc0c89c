"""Every known file of weights: what it holds, where it is, and how a network is filled from it."""
