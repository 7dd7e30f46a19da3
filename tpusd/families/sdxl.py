"""Stable Diffusion XL (Podell et al. 2023): two text encoders, and the sizes of the image as an input of the UNet."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from tpusd.config.schema import RunConfig
from tpusd.errors import UserError
from tpusd.families.base import Agreement, Configs, OriginalNames, Values, entry
from tpusd.families.latent_diffusion import (
    CLIP_TEXT_COMPONENT,
    CLIP_TEXT_COMPONENT_WITH_PROJECTION,
    TEXT_ENCODER,
    UNET,
    UNET_COMPONENT,
    VAE,
    VAE_COMPONENT,
    LatentDiffusion,
    TextConditioning,
)
from tpusd.networks.clip_text import CLIPTextConfig, CLIPTextOutput
from tpusd.networks.unet_config import UNetConfig

TEXT_ENCODER_2 = "text_encoder_2"
FORCE_ZEROS = "force_zeros_for_empty_prompt"  # of model_index.json: zeros where no negative prompt is given


class SDXL(LatentDiffusion):
    """Stable Diffusion XL, base models."""

    name = "sdxl"
    pipeline_classes = ("StableDiffusionXLPipeline", "StableDiffusionXLInpaintPipeline")
    reads_sizes = True
    components = {
        TEXT_ENCODER: dataclasses.replace(
            CLIP_TEXT_COMPONENT, original=(OriginalNames("conditioner.embedders.0.transformer.", "clip"),)
        ),
        TEXT_ENCODER_2: dataclasses.replace(
            CLIP_TEXT_COMPONENT_WITH_PROJECTION,
            original=(OriginalNames("conditioner.embedders.1.model.", "open_clip"),),
        ),
        UNET: UNET_COMPONENT,
        VAE: VAE_COMPONENT,
    }

    def agreements(self, configs: Configs) -> Iterable[Agreement]:
        """The UNet also gets the pooled text and six numbers of size and crop (section 2.2)."""
        unet = entry(configs, UNET, UNetConfig)
        added = unet.addition_embed_type
        yield Agreement("unet addition_embed_type", added, "SDXL's addition_embed_type", "text_time")
        yield from super().agreements(configs)
        pooled = entry(configs, TEXT_ENCODER_2, CLIPTextConfig).projection_dim
        yield Agreement(
            "unet projection_class_embeddings_input_dim",
            unet.projection_class_embeddings_input_dim,
            "6 x addition_time_embed_dim + projection_dim",
            6 * (unet.addition_time_embed_dim or 0) + pooled,
        )

    def check(self, config: RunConfig) -> None:
        """Refuses the float16 autoencoder, whose activations overflow."""
        if config.precision.vae.dtype == "float16":
            raise UserError("precision.vae.dtype=float16: SDXL's VAE overflows in float16; use float32 or bfloat16")

    def options(self, index: Values) -> dict[str, bool]:
        """diffusers' default is true."""
        return {FORCE_ZEROS: index.get(FORCE_ZEROS) is not False}

    def given(self, prompts: Sequence[str | None], options: Mapping[str, bool]) -> np.ndarray:
        """A negative prompt that is not given is zeros after encoding, where the checkpoint asks for that."""
        return np.array([prompt is not None or not options[FORCE_ZEROS] for prompt in prompts])

    def text(self, outputs: Sequence[CLIPTextOutput]) -> TextConditioning:
        """Both encoders' states before the last layer, side by side, and the second one's pooled projection."""
        hidden = jnp.concatenate([output.penultimate_hidden_state for output in outputs], axis=-1)
        return TextConditioning(hidden, outputs[-1].pooled)

    def time_ids(self, b: int, height: int, width: int) -> jax.Array:
        """Original size, top and left of the crop, target size: of a picture that was not resized and not cropped."""
        return jnp.tile(jnp.asarray((height, width, 0, 0, height, width), jnp.float32), (b, 1))
