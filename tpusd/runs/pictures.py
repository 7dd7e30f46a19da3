"""Pixels -> the bytes of a picture that carries its recipe: the same wherever it is encoded."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from tpusd import __version__
from tpusd.config.schema import RunConfig
from tpusd.config.typed import plain
from tpusd.plan.specs import ImageSpec
from tpusd.recipes.files import encode_image
from tpusd.records.provenance import KEY_DERIVATION


def picture_file(config: RunConfig, described: Mapping[str, Any], spec: ImageSpec, pixels: np.ndarray) -> bytes:
    """The file of a picture.

    config: of the run, with the sha256 of the weights that made it.
    described: the manifest's fields that are known before the image is made.
    pixels: (H,W,3) uint8.
    """
    return encode_image(
        pixels,
        dict(described) | picture_values(config, spec),
        image_format=config.image_format,
        quality=config.image_quality,
    )


def picture_values(config: RunConfig, spec: ImageSpec) -> dict[str, Any]:
    """What a picture's own `tpusd` text says besides its manifest fields: enough to make it again from it alone."""
    rows = config.prompts.rows
    of_row = rows[spec.row - config.first_row].loras if rows else None  # a worker has rows where they have LoRAs
    lists = {"lora_settings": plain((*config.loras, *(of_row or ()))), "embedding_settings": plain(config.embeddings)}
    return {name: own for name, own in lists.items() if own} | {
        "sampler_settings": plain(spec.sampler),
        "model_settings": plain(config.model),
        "precision_settings": dataclasses.asdict(config.precision),
        "image_format": config.image_format,
        "image_quality": config.image_quality,
        "key_derivation": KEY_DERIVATION,
        "tpusd": __version__,
        "extra": dict(spec.extra),
    }
