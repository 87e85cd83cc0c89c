"""Backbones, heads, weights and their cards: from a clip of model input to tokens and logits."""
