"""Stable Diffusion 1.x and 2.x (Rombach et al. 2022): one text encoder, its last hidden state."""

from collections.abc import Iterable, Sequence
from typing import Any

from tpusd.families.base import Agreement, Configs, entry
from tpusd.families.latent_diffusion import (
    CLIP_TEXT_COMPONENT,
    TEXT_ENCODER,
    UNET,
    UNET_COMPONENT,
    VAE,
    VAE_COMPONENT,
    LatentDiffusion,
    TextConditioning,
)
from tpusd.networks.clip_text import CLIPTextOutput
from tpusd.networks.unet import UNetConfig


class StableDiffusion(LatentDiffusion):
    """Stable Diffusion 1.x and 2.x."""

    name = "stable_diffusion"
    pipeline_classes = ("StableDiffusionPipeline",)
    components = {TEXT_ENCODER: CLIP_TEXT_COMPONENT, UNET: UNET_COMPONENT, VAE: VAE_COMPONENT}

    def agreements(self, configs: Configs) -> Iterable[Agreement]:
        """The UNet gets nothing but the text's hidden states."""
        added = entry(configs, UNET, UNetConfig).addition_embed_type
        yield Agreement("unet addition_embed_type", added, "Stable Diffusion's addition_embed_type", None)
        yield from super().agreements(configs)

    def saved_index(self) -> dict[str, Any]:
        """Without the safety checker, which is not implemented."""
        return super().saved_index() | {"safety_checker": [None, None], "requires_safety_checker": False}

    def text(self, outputs: Sequence[CLIPTextOutput]) -> TextConditioning:
        """The last hidden state, after the final norm."""
        (output,) = outputs
        return TextConditioning(output.last_hidden_state, None)
