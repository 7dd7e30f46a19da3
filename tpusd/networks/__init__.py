"""The three networks of Stable Diffusion in Flax NNX: text encoder, denoising UNet, autoencoder.

Images and latents are NHWC. Attribute names are those of the PyTorch state dicts (`down_blocks`, `attn1`, `to_q`), so
that a checkpoint's name is a parameter's path, except for the leaf.
"""
