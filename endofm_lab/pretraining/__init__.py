"""Self-supervised pre-training: views, objectives, health, trainer."""
