"""Stable Diffusion 1.x and 2.x (Rombach et al. 2022): one text encoder, its last hidden state."""

import dataclasses
import re
from collections.abc import Iterable, Sequence
from typing import Any

from tpusd.config.sampler import SamplerSettings
from tpusd.families.base import Agreement, Configs, OriginalNames, Values, entry
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
from tpusd.networks.unet_config import UNetConfig
from tpusd.samplers.registry import find_sampler
from tpusd.samplers.schedule import SchedulerConfig
from tpusd.samplers.table import Table

LATENT_STATISTICS = ("latents_mean", "latents_std")  # of an autoencoder


def _with_trained_size(unet: Values) -> Values:
    """StableDiffusionPipeline's correction: before diffusers 0.9 a UNet's file said 32 and meant 64."""
    version, size = unet.get("_diffusers_version"), unet.get("sample_size")
    parts = re.match(r"(\d+)\.(\d+)", version) if isinstance(version, str) else None
    if parts is not None and (int(parts[1]), int(parts[2])) < (0, 9) and isinstance(size, int) and size < 64:
        return {**unet, "sample_size": 64}
    return unet


def _is_the_files_own(settings: SamplerSettings, config: SchedulerConfig) -> bool:
    """Whether the sampler is the scheduler that scheduler_config.json names."""
    return config.class_name == find_sampler(settings.name).diffusers


def _without_latent_statistics(vae: Values) -> Values:
    """StableDiffusionPipeline does not read them."""
    return {field: value for field, value in vae.items() if field not in LATENT_STATISTICS}


class StableDiffusion(LatentDiffusion):
    """Stable Diffusion 1.x and 2.x."""

    name = "stable_diffusion"
    pipeline_classes = (
        "StableDiffusionPipeline",
        "LatentConsistencyModelPipeline",
        "StableDiffusionInpaintPipeline",
    )
    components = {
        TEXT_ENCODER: dataclasses.replace(
            CLIP_TEXT_COMPONENT,
            original=(
                OriginalNames("cond_stage_model.transformer.", "clip"),  # SD 1.x
                OriginalNames("cond_stage_model.model.", "open_clip"),  # SD 2.x
            ),
        ),
        UNET: dataclasses.replace(UNET_COMPONENT, corrected=_with_trained_size),
        VAE: dataclasses.replace(VAE_COMPONENT, corrected=_without_latent_statistics),
    }

    def agreements(self, configs: Configs) -> Iterable[Agreement]:
        """The UNet gets nothing but the text's hidden states."""
        added = entry(configs, UNET, UNetConfig).addition_embed_type
        yield Agreement("unet addition_embed_type", added, "Stable Diffusion's addition_embed_type", None)
        yield from super().agreements(configs)

    def schedule(
        self, settings: SamplerSettings, config: SchedulerConfig, height: int, width: int, *, strength: float = 1.0
    ) -> Table:
        """StableDiffusionPipeline corrects the scheduler's file: steps_offset is 1, whatever the file says.

        Where the file does not say it, the correction is lost when another scheduler replaces the file's own.
        """
        if config.steps_offset is not None or _is_the_files_own(settings, config):
            config = dataclasses.replace(config, steps_offset=1)
        return super().schedule(settings, config, height, width, strength=strength)

    def would_clip(self, settings: SamplerSettings, config: SchedulerConfig) -> bool:
        """StableDiffusionPipeline switches clip_sample off, and loses that correction in the same way."""
        corrected = config.clip_sample is not None or _is_the_files_own(settings, config)
        return not corrected and super().would_clip(settings, config)

    def saved_index(self) -> dict[str, Any]:
        """Without the safety checker, which is not implemented."""
        return super().saved_index() | {"safety_checker": [None, None], "requires_safety_checker": False}

    def text(self, outputs: Sequence[CLIPTextOutput]) -> TextConditioning:
        """The last hidden state, after the final norm."""
        (output,) = outputs
        return TextConditioning(output.last_hidden_state, None)
