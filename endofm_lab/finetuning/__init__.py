"""Fine-tuning on a manifest, and the evaluation of finished models."""
