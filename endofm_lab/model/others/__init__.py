"""Video encoders of other libraries behind the contract of `model.encoder`."""
