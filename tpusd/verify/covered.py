"""Which fields of a run are compared with diffusers, and which have no effect on that. All others are refused.

So a field that is new is refused until somebody compares it, and no field is ignored without a word.
"""

from collections.abc import Iterator, Sequence
from dataclasses import MISSING, Field, fields
from typing import Any

from tpusd.config.schema import ModelConfig, PromptsConfig, RunConfig, SavedConfig
from tpusd.config.typed import plain
from tpusd.errors import UserError, show
from tpusd.plan.specs import ImageSpec, make_spec, planned

MOST = 2  # prompts that are compared where `limit` does not say how many
COVERED = (
    "model", "precision", "sampler", "prompts", "seed", "noise", "noise_batch_size", "noise_threads", "first_row",
    "first_copy", "guidance_scale", "guidance_rescale", "negative_prompt", "height", "width", "original_size", "crop",
    "target_size", "negative_original_size", "negative_crop", "negative_target_size", "on_truncate",
    "on_changed_weights", "images", "rows", "limit", "loras",
)  # fmt: skip
IDLE = (
    "num_images_per_prompt", "batch_size_per_device", "image_format", "image_quality", "on_nan", "on_error", "loggers",
    "executor", "output", "scores", "score_weights",
)  # fmt: skip
COVERED_OF_MODEL = (
    "name", "asset", "path", "repo", "revision", "variant", "sha256", "guidance_scale", "file", "config",
    "prediction_type", "use_ema", "clip_skip",
)  # fmt: skip
COVERED_OF_PROMPTS = ("name", "rows", "path", "column", "on_empty", "replace", "wildcards", "wildcards_dir")
_COVERED_OF_IMAGES = (
    "row", "copy", "prompt", "negative_prompt", "seed", "row_seed", "guidance_scale", "guidance_rescale", "height",
    "width", "sampler", "noise", "prompt_template", "negative_prompt_template", "extra", "sizes", "loras",
)  # fmt: skip
_FIELDS_OF_ROWS = {"picture": "image", "controls": "control_image"}  # what a prompt row calls them


def check_covered(config: RunConfig) -> None:
    """Raises UserError for what verify does not compare."""
    found = [
        *_others(config, "", (*COVERED, *IDLE)),
        *_others(config.model, "model.", COVERED_OF_MODEL),
        *_others(config.prompts, "prompts.", COVERED_OF_PROMPTS),
    ]
    if config.on_truncate == "chunk":
        found.append("on_truncate=chunk")
    if found:
        raise UserError(f"{', '.join(found)}: verify does not compare this with diffusers; leave it out")
    precision = config.precision
    for part in (precision.text_encoder, precision.unet, precision.vae):
        if (part.param_dtype, part.dtype) != ("float32", "float32"):
            raise UserError(
                f"precision={show(precision.name)}: verify compares float32 with float32; leave out precision="
            )


def idle_fields(config: RunConfig) -> list[str]:
    """The fields that are set and that have no effect: verify makes an image at a time, and writes no file."""
    return [field.name for field in fields(config) if field.name in IDLE and _is_set(config, field)]


def check_rows(specs: Sequence[ImageSpec]) -> None:
    """Raises UserError for an image whose row has what verify does not compare."""
    for spec in specs:
        for field in fields(spec):
            if field.name not in _COVERED_OF_IMAGES and _is_set(spec, field):
                name = _FIELDS_OF_ROWS.get(field.name, field.name)
                raise UserError(
                    f"row {spec.row}: {name}: verify does not compare this with diffusers; choose other rows, as in "
                    "rows=0:1"
                )


def compared(config: SavedConfig) -> list[ImageSpec]:
    """The first image of each row: of MOST rows, or of as many as `limit` says."""
    return list(_first_of_each_row(config))


def _first_of_each_row(config: SavedConfig) -> Iterator[ImageSpec]:
    seen: set[int] = set()
    for row, copy in planned(config):
        if config.limit is None and len(seen) == MOST and row not in seen:
            return
        if row not in seen:
            seen.add(row)
            yield make_spec(config, row, copy)


def _others(group: RunConfig | ModelConfig | PromptsConfig, prefix: str, covered: Sequence[str]) -> Iterator[str]:
    """`field=value` for each field of the group that is set and that is not covered."""
    for field in fields(group):
        if field.name not in covered and _is_set(group, field):
            value = getattr(group, field.name)
            shown = getattr(value, "name", None) or getattr(value, "path", None) or plain(value)
            yield f"{prefix}{field.name}={show(shown)}"


def _is_set(group: object, field: "Field[Any]") -> bool:
    default = field.default if field.default_factory is MISSING else field.default_factory()
    return bool(getattr(group, field.name) != default)
