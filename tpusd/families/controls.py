"""ControlNets (Zhang et al. 2023) and T2I-Adapters (Mou et al. 2023) of the Stable Diffusion families.

Whether one fits, and what several of them add.
"""

import functools
import itertools
import re
from collections.abc import Iterator
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tpusd.errors import UserError
from tpusd.families.base import CONTROLNET, T2I_ADAPTER, Component, Control, Networks, OriginalNames, Rename
from tpusd.networks.controlnet import ControlNetConfig, ControlNetModel
from tpusd.networks.t2i_adapter import T2IAdapter, T2IAdapterConfig
from tpusd.networks.unet import Features, Residuals
from tpusd.networks.unet_config import UNetConfig

_LISTS = "down_blocks|attentions|resnets|transformer_blocks|downsamplers|to_out|net|controlnet_down_blocks|blocks"
CONTROLNET_COMPONENT = Component(
    program="embed_control",
    library="diffusers",
    classes=("ControlNetModel",),
    network=ControlNetModel,
    config=ControlNetConfig,
    weights="diffusion_pytorch_model",
    flax_weights="diffusion_flax_model",
    precision="unet",
    renames=(Rename("flax", re.compile(rf"(^|\.)({_LISTS})_(\d+)(?=\.)"), r"\1\2.\3"),),
    original=(OriginalNames("control_model.", "controlnet"),),
)
T2I_ADAPTER_COMPONENT = Component(
    program="embed_control",
    library="diffusers",
    classes=("T2IAdapter",),
    network=T2IAdapter,
    config=T2IAdapterConfig,
    weights="diffusion_pytorch_model",
    flax_weights="diffusion_flax_model",
    precision="unet",
    original=(OriginalNames("", "t2i_adapter"),),
)
_SAME = (  # what a ControlNet and the UNet beside it must have in common
    "block_out_channels",
    "resnets",
    "cross_attention_dim",
    "addition_embed_type",
    "projection_class_embeddings_input_dim",
)


def check_fits(config: ControlNetConfig, unet: UNetConfig, downscale: int, where: str) -> None:
    """Raises UserError for a ControlNet of another base model.

    downscale: pixels of a latent along one side.
    where: the ControlNet, as the error begins.
    """
    pairs = [(name, getattr(config.half, name), getattr(unet, name)) for name in _SAME]
    pairs += [
        ("in_channels", config.in_channels, unet.out_channels),
        ("pixels of a latent", config.downscale, downscale),
    ]
    for name, own, other in pairs:
        if own != other:
            raise UserError(
                f"{where}: is a ControlNet of another base model: {name}={own}, and the checkpoint's UNet has {other}; "
                "choose one of the same base model"
            )


def check_adapter_fits(config: T2IAdapterConfig, unet: UNetConfig, downscale: int, where: str) -> None:
    """The same for a T2I-Adapter: its feature maps must have the shapes of those that the UNet adds them to."""
    last, places = len(unet.block_out_channels) - 1, []
    for level, width in enumerate(unet.block_out_channels):
        halvings = level if unet.down_attentions(level) else min(level + 1, last)
        places.append((width, downscale * 2**halvings))
    places.append((unet.block_out_channels[-1], downscale * 2**last))
    own = list(zip(config.widths, config.downscales, strict=True))
    if own != places[: len(own)]:
        raise UserError(
            f"{where}: is a T2I-Adapter of another base model: its feature maps have {_shapes(own)}, and the "
            f"checkpoint's UNet adds {_shapes(places)}; choose one of the same base model"
        )


def _shapes(features: list[tuple[int, int]]) -> str:
    return ", ".join(f"{width} channels at 1/{downscale}" for width, downscale in features)


def residuals(
    networks: Networks,
    control: Control | None,
    x: jax.Array,
    t: jax.Array,
    text: tuple[jax.Array | None, ...],
    halves: int,
) -> Residuals | None:
    """What the ControlNets among the networks add together; None: there are none.

    control: of b images.
    x, t, text: of halves * b, as the UNet gets them: latents, timesteps, and the conditioning. With two halves, the one
        of the prompts comes second.
    """
    added = [
        _scaled(net, picture, scale, control.guess_mode, x, t, text, halves)
        for net, (picture, *_), scale in _each(networks, control)
        if control is not None and isinstance(net, ControlNetModel)
    ]
    if not added:
        return None
    total: Residuals = functools.reduce(lambda one, other: jax.tree.map(jnp.add, one, other), added)
    return total


def features(networks: Networks, control: Control | None, halves: int) -> Features:
    """What the T2I-Adapters among the networks add together, float32; an empty tuple without any.

    control: of b images; what is added is of halves * b, the same for each half.
    """

    def scaled(feature: jax.Array, scale: jax.Array) -> jax.Array:
        factors = scale[:, None, None, None]
        made = jnp.where(factors == 0, 0.0, factors * feature.astype(jnp.float32))
        return jnp.concatenate([made] * halves)

    total: list[jax.Array] = []
    for net, pictures, scale in _each(networks, control):
        if isinstance(net, T2IAdapter):
            own = [scaled(feature, scale) for feature in pictures]
            both = itertools.zip_longest(total, own)  # one may have no feature map for the mid block
            total = [two if one is None else one if two is None else one + two for one, two in both]
    return tuple(total)


def _each(networks: Networks, control: Control | None) -> Iterator[tuple[nnx.Module, Features, jax.Array]]:
    """Of each of them, in their order: the network, what `embed_control` made of its pictures, its scale (b,)."""
    if control is not None:
        parts = sorted((part for part in networks if part.startswith((CONTROLNET, T2I_ADAPTER))), key=_place)
        for i, (part, pictures) in enumerate(zip(parts, control.pictures, strict=True)):
            yield networks[part], pictures, control.scale[:, i]


def _place(part: str) -> int:
    return int(part.rpartition("_")[2])


def _scaled(
    net: ControlNetModel,
    picture: jax.Array,
    scale: jax.Array,
    guess_mode: jax.Array,
    x: jax.Array,
    t: jax.Array,
    text: tuple[jax.Array | None, ...],
    halves: int,
) -> Residuals:
    """What one of them adds, float32. It is computed only if some image has a scale here.

    picture: of b images, as `embed_control` gives it.
    scale, guess_mode: (b,).
    """
    hidden, *added = text

    def made() -> Residuals:
        pictures = jnp.concatenate([picture] * halves)
        return net(x[..., : net.config.in_channels], t, cast(jax.Array, hidden), *added, picture=pictures)

    def nothing() -> Residuals:
        shapes = jax.eval_shape(made)
        zeros: Residuals = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        return zeros

    raw = jax.lax.cond(jnp.any(scale != 0), made, nothing)
    leaves, structure = jax.tree.flatten(raw)
    # Global pooling is for the half of the prompt alone, and its layers have equal weights, as in diffusers.
    pools = net.config.global_pool_conditions
    prompt_only = jnp.ones_like(guess_mode) if pools else guess_mode
    weights = np.ones(len(leaves)) if pools else np.logspace(-1, 0, len(leaves))
    scaled = []
    for leaf, weight in zip(leaves, weights, strict=True):
        of_prompt = scale * jnp.where(guess_mode, jnp.float32(weight), 1.0)
        factors = of_prompt if halves == 1 else jnp.concatenate([jnp.where(prompt_only, 0.0, scale), of_prompt])
        factors = factors[:, None, None, None]
        scaled.append(jnp.where(factors == 0, 0.0, factors * leaf.astype(jnp.float32)))
    result: Residuals = jax.tree.unflatten(structure, scaled)
    return result
