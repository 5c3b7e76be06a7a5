"""Diffusion: paths from data to noise, the training objective, guidance and samplers.

It knows a network only as a callable that predicts from noisy latents and times.
"""
