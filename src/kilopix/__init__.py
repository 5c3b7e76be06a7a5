"""kilopix: text-to-image diffusion training that anyone can afford and repeat."""
