"""The schema of a run: frozen dataclasses, made from plain values, with every rule that needs no file and no model.

Knows nothing of Hydra, of YAML, or of where the values come from; a saved config.yaml goes through the same door.
"""

import dataclasses
import re
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tpusd.config.limits import (
    MAX_COPIES,
    MAX_ROWS,
    MAX_STEPS,
    check_guidance_scale,
    check_seed,
    check_size,
)
from tpusd.config.rows import Row, parse_row, row_values
from tpusd.config.sampler import SamplerSettings
from tpusd.errors import UserError, show, suggest

DType = Literal["bfloat16", "float16", "float32"]


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Where the checkpoint comes from: exactly one of `asset`, `path` and `repo`."""

    name: str
    asset: str | None = None  # a checkpoint inside the package, by name
    path: str | None = None  # a diffusers directory
    repo: str | None = None  # owner/name on the Hugging Face Hub
    revision: str | None = None  # branch, tag or commit of the repo
    variant: str | None = None  # such as fp16
    sha256: str | None = None  # of all its files (tpusd.records.provenance.weights_digest): a run refuses others
    guidance_scale: float = 7.5  # what suits it, where the run says nothing else


@dataclass(frozen=True, kw_only=True)
class PartPrecision:
    """`param_dtype`: how weights are stored; `dtype`: what the layers compute in."""

    param_dtype: DType
    dtype: DType


@dataclass(frozen=True, kw_only=True)
class PrecisionConfig:
    name: str
    text_encoder: PartPrecision
    unet: PartPrecision
    vae: PartPrecision


@dataclass(frozen=True, kw_only=True)
class PromptsConfig:
    """A prompt set: either `rows`, or a file at `path` whose texts stand in `column` (unset: `prompt`)."""

    name: str
    rows: tuple[Row, ...] | None = None
    path: str | None = None
    column: str | None = None


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """A whole run. Sizes in pixels; `None` for height and width means the model's own size."""

    model: ModelConfig
    precision: PrecisionConfig
    sampler: SamplerSettings
    prompts: PromptsConfig
    seed: int = 0
    num_images_per_prompt: int = 1
    first_row: int = 0  # rows and copies count from here, so that a part of a run makes the same images
    first_copy: int = 0
    guidance_scale: float | None = None  # None: the model's own, filled in by make_config
    guidance_rescale: float = 0.0
    negative_prompt: str | None = None  # not the same as "": SDXL takes zeros where none is given
    height: int | None = None
    width: int | None = None
    batch_size_per_device: int = 1
    on_truncate: Literal["warn", "error"] = "warn"
    image_format: Literal["png", "webp", "jpeg"] = "png"
    image_quality: int | None = None  # None: WebP without loss, JPEG at 95
    on_changed_weights: Literal["error", "warn"] = "error"
    on_error: Literal["continue", "stop"] = "continue"  # of a sweep, when one of its runs fails
    dry_run: bool = False
    loggers: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ()
    images: tuple[str, ...] | None = None  # names such as 00003-001; None: all
    output: str | None = None


@dataclass(frozen=True, kw_only=True)
class SavedPrompts(PromptsConfig):
    """A prompt set whose rows are all there."""

    rows: tuple[Row, ...]


@dataclass(frozen=True, kw_only=True)
class SavedConfig(RunConfig):
    """A run whose rows and image size are known: what the config.yaml of a run directory holds."""

    prompts: SavedPrompts
    guidance_scale: float
    height: int  # pixels
    width: int


def saved_config(
    config: RunConfig,
    *,
    rows: tuple[Row, ...],
    height: int,
    width: int,
    prompts_name: str | None = None,
) -> SavedConfig:
    """`config` with its rows and its image size filled in.

    rows: all rows of the prompt set.
    height, width: pixels.
    prompts_name: a name for the prompt set; None keeps the one that it has.
    """
    assert config.guidance_scale is not None
    prompts = SavedPrompts(name=prompts_name or config.prompts.name, rows=rows)
    known = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    return SavedConfig(**known | {"prompts": prompts, "height": height, "width": width})


def make_config(values: Mapping[str, Any]) -> RunConfig:
    """Plain values (as YAML gives them) -> a checked RunConfig. Raises UserError for the first thing that is wrong."""
    config = _build(RunConfig, values, "")
    if config.guidance_scale is None:
        config = dataclasses.replace(config, guidance_scale=config.model.guidance_scale)
    _check(config)
    return config


def config_values(config: RunConfig) -> dict[str, Any]:
    """The inverse of make_config: dicts, lists and scalars that YAML and JSON can hold."""
    return _plain(config)


def field_names() -> list[str]:
    """Every dotted field that a command line can set, such as `sampler.num_inference_steps`."""
    return list(_dotted(RunConfig, ""))


def _check(config: RunConfig) -> None:
    check_seed("seed", config.seed)
    check_guidance_scale("guidance_scale", config.guidance_scale)
    check_guidance_scale("model.guidance_scale", config.model.guidance_scale)
    if not 0 <= config.guidance_rescale <= 1:
        raise UserError(f"guidance_rescale={config.guidance_rescale:g}: must be from 0 to 1; 0 switches it off")
    _check_range("num_images_per_prompt", config.num_images_per_prompt, 1, MAX_COPIES, "use more rows or another seed")
    _check_range("first_row", config.first_row, 0, MAX_ROWS - 1, "rows count from 0")
    last_first = MAX_COPIES - config.num_images_per_prompt
    _check_range("first_copy", config.first_copy, 0, last_first, f"a row has at most {MAX_COPIES} copies")
    _check_range("batch_size_per_device", config.batch_size_per_device, 1, 4096, "1 needs the least memory")
    for name, size in (("height", config.height), ("width", config.width)):
        check_size(name, size)
    if config.image_quality is not None:
        if config.image_format == "png":
            raise UserError(f"image_quality={config.image_quality}: PNG loses nothing; use image_format=webp or jpeg")
        _check_range("image_quality", config.image_quality, 1, 100, "90 or more is hard to tell from the original")
    steps = config.sampler.num_inference_steps
    _check_range("sampler.num_inference_steps", steps, 1, MAX_STEPS, "20 to 50 are usual")
    _check_model(config.model)
    prompts = config.prompts
    if prompts.path is not None and prompts.rows is not None:
        raise UserError(
            f"prompts.path={show(prompts.path)}: prompts={prompts.name} brings its own rows; "
            "add prompts=file to read the file"
        )
    if prompts.rows is not None and not prompts.rows:
        raise UserError("prompts.rows: holds no prompt; add at least one")
    if prompts.rows is not None and len(prompts.rows) > MAX_ROWS:
        raise UserError(f"prompts.rows: more than {MAX_ROWS} prompts; split them over several runs")
    if prompts.path is None and prompts.rows is None:
        raise UserError("prompts.path=null: prompts=file reads a file; add prompts.path=FILE")
    if prompts.column is not None and prompts.path is None:
        raise UserError(f"prompts.column={show(prompts.column)}: is for files; add prompts=file prompts.path=FILE")


def _check_range(name: str, value: int, low: int, high: int, advice: str) -> None:
    if not low <= value <= high:
        raise UserError(f"{name}={value}: must be from {low} to {high}; {advice}")


def _check_model(model: ModelConfig) -> None:
    sources = [name for name in ("asset", "path", "repo") if getattr(model, name) is not None]
    if model.name == "local" and not sources:
        raise UserError("model.path=null: model=local reads a directory; add model.path=DIR")
    if len(sources) != 1:
        given = " ".join(f"model.{name}={show(getattr(model, name))}" for name in sources) or "model.repo=null"
        raise UserError(
            f"{given}: exactly one of model.asset, model.path and model.repo must be set; "
            "use model=local model.path=DIR for a directory"
        )
    if model.asset is not None and not model.asset.isidentifier():
        raise UserError(f"model.asset={show(model.asset)}: is a name, not a path; use model=local model.path=DIR")
    if model.repo is None and model.revision is not None:
        raise UserError(f"model.revision={show(model.revision)}: is for models from the Hub; leave it out")
    if model.sha256 is not None and not re.fullmatch("[0-9a-f]{64}", model.sha256):
        raise UserError(f"model.sha256={show(model.sha256)}: must be 64 hexadecimal digits, as a saved config.yaml has")
    if model.path is not None and not model.path.strip():
        raise UserError("model.path='': must name a directory")


# Plain values -> dataclasses.

_GROUP = "a group of fields, as in {prompt: text}"


def _build(cls: type, values: Any, where: str) -> Any:
    """where: dotted prefix such as `sampler.`, for messages."""
    if not isinstance(values, Mapping):
        raise UserError(f"{where[:-1] or 'config'}={show(values)}: must be a group of fields, not one value")
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for key in values:
        if key not in fields:
            raise UserError(
                f"{where}{show(key)}={show(values[key])}: no such field"
                f"{suggest(str(key), fields) or '; the fields are ' + ', '.join(fields)}"
            )
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if name not in values and required:
            raise UserError(f"{where}{name}: missing; set {where}{name}=...")
    return cls(**{name: _convert(hints[name], values[name], where + name) for name in fields if name in values})


def _convert(hint: Any, value: Any, where: str) -> Any:
    """`value` as type `hint`. A whole number passes for float; nothing else is turned into something else."""
    if hint is Row:
        return parse_row(where, value) if isinstance(value, Mapping) else _wrong(where, value, _GROUP)
    if dataclasses.is_dataclass(hint):
        return _build(hint, value, where + ".")
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        kinds = [arg for arg in args if arg is not type(None)]
        if len(kinds) > 1:
            return value if type(value) in kinds else _wrong(where, value, " or ".join(kind.__name__ for kind in kinds))
        return _convert(kinds[0], value, where)
    if origin is Literal:
        if value not in args:
            raise UserError(
                f"{where}={show(value)}: must be one of {', '.join(map(str, args))}"
                f"{suggest(str(value), [str(arg) for arg in args])}"
            )
        return value
    if origin in (tuple, list):
        if not isinstance(value, list | tuple):
            _wrong(where, value, "a list, as in [a, b]")
        return tuple(_convert(args[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    words = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
    return value if type(value) is hint else _wrong(where, value, words[hint])


def _wrong(where: str, value: Any, rule: str) -> typing.NoReturn:
    kind = {
        "str": "text",
        "NoneType": "null",
        "bool": "true or false",
        "int": "a whole number",
        "float": "a number with a point",
        "dict": "a group",
        "list": "a list",
    }.get(type(value).__name__, type(value).__name__)
    hint = f"; quote it as '{where}=\"{value}\"'" if rule == "text" and isinstance(value, int | float) else ""
    raise UserError(f"{where}={show(value)}: must be {rule}, not {kind}{hint}")


def _plain(value: Any) -> Any:
    if isinstance(value, Row):
        return _plain(row_values(value))
    if dataclasses.is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _dotted(cls: type, prefix: str) -> Iterable[str]:
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        yield prefix + field.name
        if dataclasses.is_dataclass(hints[field.name]):
            yield from _dotted(hints[field.name], f"{prefix}{field.name}.")
