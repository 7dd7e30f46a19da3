"""Weights of an exported checkpoint, to go on training from where no training checkpoint is left."""

from pathlib import Path

import jax.numpy as jnp
from flax import nnx

from tpusd.checkpoints import ModelSource, load_weights, open_checkpoint


def load_exported(directory: Path, part: str) -> nnx.State:
    """One part's parameters ("unet", "vae", "text_encoder") as float32. directory: what training.export wrote."""
    return load_weights(open_checkpoint(ModelSource(path=str(directory))), part, param_dtype=jnp.float32)
