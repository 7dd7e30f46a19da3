"""Classifier-free guidance."""

import jax
import jax.numpy as jnp


def classifier_free_guidance(uncond: jax.Array, cond: jax.Array, scale: jax.Array, rescale: jax.Array) -> jax.Array:
    """uncond + scale * (cond - uncond): Ho & Salimans 2022, equation 6.

    Args:
        uncond: the model's output for the negative prompt, (b,h,w,c).
        cond: the model's output for the prompt, (b,h,w,c).
        scale: guidance_scale, (b,).
        rescale: the share of the output that gets cond's standard deviation, 0 to 1, (b,). Lin et al. 2023,
            section 3.4; each image has its own deviation.

    Returns:
        The guided output, (b,h,w,c) float32.
    """
    uncond, cond = uncond.astype(jnp.float32), cond.astype(jnp.float32)
    scale, rescale = scale[:, None, None, None], rescale[:, None, None, None]
    guided = uncond + scale * (cond - uncond)

    def rescaled() -> jax.Array:
        deviation = [jnp.std(x, axis=(1, 2, 3), keepdims=True) for x in (cond, guided)]
        factor = rescale * (deviation[0] / deviation[1]) + (1 - rescale)
        return jnp.where(rescale == 0, guided, guided * factor)  # a flat prediction has no deviation to divide by

    out: jax.Array = jax.lax.cond(jnp.any(rescale != 0), rescaled, lambda: guided)
    return out
