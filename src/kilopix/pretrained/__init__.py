"""Frozen third-party networks behind protocols: text encoders, autoencoders, image features, the judge."""
