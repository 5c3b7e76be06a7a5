"""The networks: noisy latents, times and text in, predictions of the latents' shape out."""
