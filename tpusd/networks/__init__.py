"""The three networks of Stable Diffusion in Flax NNX: text encoder, denoising UNet, autoencoder.

Images and latents are NHWC. The attributes have the names of the PyTorch state dicts (`down_blocks`, `attn1`, `to_q`).
So a parameter's path equals its name in a checkpoint, except for the last part (`kernel`, where PyTorch has `weight`).
"""
