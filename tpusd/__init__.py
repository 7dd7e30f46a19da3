"""Declarative, reproducible Stable Diffusion image generation with JAX."""

__version__ = "0.1.0"
