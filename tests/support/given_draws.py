"""PyTorch diffusers' pipelines with the noise of tpusd, for images of 64 pixels."""

import contextlib
import itertools

import numpy as np
import torch
from diffusers.models.autoencoders import vae as torch_vae

from support.scheduler_reference import given_noise
from tpusd.engine import noise as keys

SIZE = 64
LATENTS = (4, SIZE // 8, SIZE // 8)
PROMPTS = ("a red fox", "an owl at night")


def drawing(seed):
    """A control image (H,W,3) uint8: white rectangles on black."""
    pixels = np.zeros((SIZE, SIZE, 3), np.uint8)
    for top, left, height, width in np.random.default_rng(seed).integers(4, 30, (4, 4)):
        pixels[top : top + height, left : left + width] = 255
    return pixels


def image_keys():
    return np.stack([keys.image_key(0, row, 0) for row in range(len(PROMPTS))])


def as_torch(noise):
    return torch.from_numpy(np.asarray(noise).transpose(0, 3, 1, 2).copy())


@contextlib.contextmanager
def given_draws(pipeline, samples):
    """The samples of the autoencoder, the initial noise and the steps' noise of the reference are tpusd's.

    samples: which noise each sample has, in the order in which the reference takes them.
    """
    module = __import__(type(pipeline).__module__, fromlist=["randn_tensor"])
    before = module.randn_tensor, torch_vae.randn_tensor
    module.randn_tensor = lambda shape, **kw: as_torch(keys.initial_latents(image_keys(), LATENTS))
    wanted = iter(samples)
    torch_vae.randn_tensor = lambda shape, **kw: as_torch(keys.folded_noise(image_keys(), next(wanted), LATENTS))
    steps = itertools.count()
    try:
        with given_noise(pipeline.scheduler, lambda: as_torch(keys.step_noise(image_keys(), next(steps), LATENTS))):
            yield
    finally:
        module.randn_tensor, torch_vae.randn_tensor = before
