"""Which fields of a run are compared with diffusers, which have no effect on that, and which are refused.

Every field of a config is in one of the three lists; a field that nobody has placed fails a test.
"""

from collections.abc import Iterator
from dataclasses import MISSING, fields

from tpusd.config.schema import ModelConfig, OtherPart, RunConfig, SavedConfig
from tpusd.config.typed import plain
from tpusd.errors import UserError, show
from tpusd.plan.specs import ImageSpec, make_spec, planned

MOST = 2  # prompts that are compared where `limit` does not say how many
COVERED = (
    "model", "precision", "sampler", "prompts", "seed", "noise", "noise_batch_size", "noise_threads", "first_row",
    "first_copy", "guidance_scale", "guidance_rescale", "negative_prompt", "height", "width", "original_size", "crop",
    "target_size", "negative_original_size", "negative_crop", "negative_target_size", "on_truncate",
    "on_changed_weights", "images", "rows", "limit",
)  # fmt: skip
# Set to another value than the default, they are refused: diffusers' pipelines have no such thing, or another one.
REFUSED = (
    "loras", "embeddings", "guidance_interval", "guidance_schedule", "cache", "image", "mask", "strength", "resize",
    "paste_back", "mask_feather", "control_image", "control_images", "control_scale", "guess_mode", "safety", "dry_run",
    "shard",
)  # fmt: skip
IDLE = (
    "num_images_per_prompt", "batch_size_per_device", "image_format", "image_quality", "on_nan", "on_error", "loggers",
    "executor", "output",
)  # fmt: skip
REFUSED_OF_MODEL = ("unet", "vae", "controlnets")


def check_covered(config: RunConfig) -> None:
    """Raises UserError for what verify does not compare."""
    found = [f"{name}={show(_shown(config, name))}" for name in REFUSED if _is_set(config, name)]
    found += [
        f"model.{name}={show(_shown(config.model, name))}" for name in REFUSED_OF_MODEL if _is_set(config.model, name)
    ]
    if config.prompts.syntax != "plain":
        found.append(f"prompts.syntax={config.prompts.syntax}")
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
    return [name for name in IDLE if _is_set(config, name)]


def check_rows(specs: list[ImageSpec]) -> None:
    """Raises UserError for an image whose row has what verify does not compare."""
    for spec in specs:
        for name, given in (("image", spec.picture), ("control_image", spec.controls), ("loras", spec.loras)):
            if given:
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
        if config.limit is None and len(seen) == MOST:
            return
        if row not in seen:
            seen.add(row)
            yield make_spec(config, row, copy)


def _is_set(config: RunConfig | ModelConfig, name: str) -> bool:
    (field,) = (field for field in fields(config) if field.name == name)
    assert field.default is not MISSING, name
    return bool(getattr(config, name) != field.default)


def _shown(config: RunConfig | ModelConfig, name: str) -> object:
    value = getattr(config, name)
    if isinstance(value, OtherPart):
        return value.path or value.repo
    return getattr(value, "name", None) or plain(value)
