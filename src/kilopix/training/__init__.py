"""Training: optimizers, averaged weights, checkpoints."""
