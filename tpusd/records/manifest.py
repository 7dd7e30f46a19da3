"""The manifest: a line for each image that is whole on disk. Every list of a line's fields follows from ImageRecord."""

import contextlib
import dataclasses
import functools
import json
import math
import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from tpusd.config.cache import CacheConfig
from tpusd.config.json_values import JsonError, parse_json
from tpusd.config.rows import Row
from tpusd.config.schema import RunConfig, SavedConfig
from tpusd.config.sizes import SIZE_FIELDS
from tpusd.errors import UserError, show, show_path
from tpusd.plan.specs import ImageSpec, PictureInput, image_name, parse_name, planned
from tpusd.records.layout import CHECK_PERMISSIONS, CONFIG, IMAGES, MANIFEST, MAX_LINE_VALUES
from tpusd.records.parts import numbered_lines
from tpusd.storage import os_errors_as_user_errors

_FILE_NAME = re.compile(re.escape(IMAGES) + r"/([-0-9]+)\.\w+")


def _decided_by_config() -> Any:
    return dataclasses.field(metadata={"decided_by_config": True})


def _not_for_datasets() -> Any:
    return dataclasses.field(metadata={"for_datasets": False})


def _only_where_set(*, decided_by_config: bool = False) -> Any:
    return dataclasses.field(default=None, metadata={"optional": True, "decided_by_config": decided_by_config})


@dataclass(frozen=True, kw_only=True)
class ImageRecord:
    """One line of a manifest, in the order of its fields. Field names are those of the line.

    extra: the further columns of the image's prompt row, which stand behind the other fields of the line.
    """

    file_name: str  # images/00003-001.png
    sha256: str = _not_for_datasets()  # of the file
    num_bytes: int = _not_for_datasets()  # of the file
    row: int = _decided_by_config()
    copy: int = _decided_by_config()
    prompt: str = _decided_by_config()
    negative_prompt: str | None = _decided_by_config()
    seed: int = _decided_by_config()  # the row's own where it has one
    row_seed: int | None = _decided_by_config()
    height: int = _decided_by_config()  # pixels
    width: int = _decided_by_config()
    sampler: str = _decided_by_config()
    num_inference_steps: int = _decided_by_config()
    guidance_scale: float = _decided_by_config()
    guidance_rescale: float = _decided_by_config()
    model: str = _decided_by_config()
    precision: str = _decided_by_config()
    num_tokens: int  # of the longest of its texts, before truncation
    truncated: bool
    environment: str = _not_for_datasets()  # a key of run.json's environments
    trace: Mapping[str, Any] = _not_for_datasets()  # digests of what came before the pixels
    guidance_interval: list[float] | None = _only_where_set(decided_by_config=True)  # where it is not all steps
    guidance_schedule: str | None = _only_where_set(decided_by_config=True)  # where it is not constant
    cache: str | None = _only_where_set(decided_by_config=True)  # where some steps reuse the deep half
    cache_interval: int | None = _only_where_set(decided_by_config=True)
    cache_branch: int | None = _only_where_set(decided_by_config=True)
    cache_steps: list[int] | None = _only_where_set(decided_by_config=True)
    noise: str | None = _only_where_set(decided_by_config=True)  # where it is not threefry
    noise_batch_size: int | None = _only_where_set(decided_by_config=True)  # where it is not 1
    noise_threads: int | None = _only_where_set(decided_by_config=True)
    loras: list[dict[str, Any]] | None = _only_where_set(decided_by_config=True)  # of each, its sha256 and its scales
    embeddings: list[dict[str, Any]] | None = _only_where_set(
        decided_by_config=True
    )  # of each, its sha256 and its token
    prompt_template: str | None = _only_where_set(decided_by_config=True)  # before its wildcards and LoRAs were read
    negative_prompt_template: str | None = _only_where_set(decided_by_config=True)
    prompt_syntax: str | None = _only_where_set(decided_by_config=True)  # where it is not plain
    prompt_weighting: str | None = _only_where_set(decided_by_config=True)
    on_truncate: str | None = _only_where_set(decided_by_config=True)  # where it is chunk
    # The picture that the image starts from.
    image: str | None = _only_where_set(decided_by_config=True)
    image_sha256: str | None = _only_where_set(decided_by_config=True)
    strength: float | None = _only_where_set(decided_by_config=True)
    resize: str | None = _only_where_set(decided_by_config=True)
    mask: str | None = _only_where_set(decided_by_config=True)
    mask_sha256: str | None = _only_where_set(decided_by_config=True)
    paste_back: bool | None = _only_where_set(decided_by_config=True)
    mask_feather: int | None = _only_where_set(decided_by_config=True)
    # The pictures that ControlNets read, with an entry for each ControlNet, and how strong these are.
    control_images: list[str | None] | None = _only_where_set(decided_by_config=True)
    control_images_sha256: list[str | None] | None = _only_where_set(decided_by_config=True)
    control_scale: float | None = _only_where_set(decided_by_config=True)
    control_settings: list[dict[str, Any] | None] | None = _only_where_set(decided_by_config=True)
    guess_mode: bool | None = _only_where_set(decided_by_config=True)  # where it is set
    # Size conditioning.
    original_size: list[int] | None = _only_where_set(decided_by_config=True)
    crop: list[int] | None = _only_where_set(decided_by_config=True)
    target_size: list[int] | None = _only_where_set(decided_by_config=True)
    negative_original_size: list[int] | None = _only_where_set(decided_by_config=True)
    negative_crop: list[int] | None = _only_where_set(decided_by_config=True)
    negative_target_size: list[int] | None = _only_where_set(decided_by_config=True)
    safety: Mapping[str, Any] | None = _only_where_set()  # what the safety checker says, where there is one
    not_finite: str | None = _only_where_set()  # where NaN or infinity first appeared, with on_nan=record
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def key(self) -> tuple[int, int]:
        """(row, copy)."""
        return self.row, self.copy

    @property
    def name(self) -> str:
        """The image's name within its run, such as 00003-001."""
        return image_name(self.row, self.copy)

    @property
    def base_name(self) -> str:
        """The name of its file within images/."""
        return self.file_name.removeprefix(f"{IMAGES}/")

    def values(self) -> dict[str, Any]:
        """The line as plain values, in order."""
        optional = {name: getattr(self, name) for name in OPTIONAL_FIELDS if getattr(self, name) is not None}
        return {name: getattr(self, name) for name in FIELDS} | optional | dict(self.extra)

    def for_datasets(self) -> dict[str, Any]:
        """The line without digests, which no caption needs: a line of metadata.jsonl."""
        return {name: value for name, value in self.values().items() if name not in NOT_FOR_DATASETS}

    def to_line(self) -> bytes:
        """The line without its newline."""
        return json.dumps(self.values(), ensure_ascii=False, allow_nan=False).encode()

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> "ImageRecord | None":
        """The inverse of `values`; None where a field is missing or has a value that it cannot have."""
        if next(value_faults(values), None) is not None:
            return None
        own = {name: values[name] for name in (*FIELDS, *OPTIONAL_FIELDS) if name in values}
        return cls(**own, extra={name: value for name, value in values.items() if name not in own})

    @classmethod
    def from_line(cls, line: bytes) -> "ImageRecord | None":
        """The inverse of `to_line`; None where the line is not a manifest line."""
        values = parse_line(line)
        return None if values is None else cls.from_values(values)


OPTIONAL_FIELDS = tuple(f.name for f in dataclasses.fields(ImageRecord) if f.metadata.get("optional"))
FIELDS = tuple(f.name for f in dataclasses.fields(ImageRecord) if f.name not in (*OPTIONAL_FIELDS, "extra"))
_REQUIRED = frozenset(FIELDS)
DECIDED_BY_CONFIG = tuple(f.name for f in dataclasses.fields(ImageRecord) if f.metadata.get("decided_by_config"))
_OF_PICTURE = tuple(field.name for field in dataclasses.fields(PictureInput))
_OF_MASK = ("mask", "mask_sha256", "paste_back", "mask_feather")
NOT_FOR_DATASETS = tuple(f.name for f in dataclasses.fields(ImageRecord) if f.metadata.get("for_datasets") is False)


def recipe_values(config: RunConfig, spec: ImageSpec) -> dict[str, Any]:
    """The fields of a line that the config alone decides, in order. Optional ones are None where they are not set."""
    values = {
        "row": spec.row,
        "copy": spec.copy,
        "prompt": spec.prompt,
        "negative_prompt": spec.negative_prompt,
        "seed": spec.seed if spec.row_seed is None else spec.row_seed,
        "row_seed": spec.row_seed,
        "height": spec.height,
        "width": spec.width,
        "sampler": spec.sampler.name,
        "num_inference_steps": spec.sampler.num_inference_steps,
        "guidance_scale": spec.guidance_scale,
        "guidance_rescale": spec.guidance_rescale,
        "model": config.model.name,
        "precision": config.precision.name,
        "guidance_interval": None if spec.guidance_interval == (0, 1) else list(spec.guidance_interval),
        "guidance_schedule": None if spec.guidance_schedule == "constant" else spec.guidance_schedule,
        **_cache_values(spec.cache),
        "noise": spec.noise.name if spec.noise.is_torch else None,
        "noise_batch_size": None if spec.noise.batch_size == 1 else spec.noise.batch_size,
        "noise_threads": spec.noise.threads,
        "loras": [dataclasses.asdict(lora) for lora in spec.loras] or None,
        "embeddings": [dataclasses.asdict(one) for one in spec.embeddings] or None,
        "prompt_template": spec.prompt_template,
        "negative_prompt_template": spec.negative_prompt_template,
        "prompt_syntax": None if spec.text.syntax == "plain" else spec.text.syntax,
        "prompt_weighting": spec.text.weighting,
        "on_truncate": "chunk" if config.on_truncate == "chunk" else None,
    }
    picture = {} if spec.picture is None else dataclasses.asdict(spec.picture)
    without = _OF_MASK if spec.picture is not None and spec.picture.mask is None else ()
    values |= {name: None if name in without else picture.get(name) for name in _OF_PICTURE}
    values |= _control_values(config, spec)
    own_sizes = {} if spec.sizes is None else dataclasses.asdict(spec.sizes)
    values |= {name: None if own_sizes.get(name) is None else list(own_sizes[name]) for name in SIZE_FIELDS}
    if values["resize"] is None and spec.controls:
        values["resize"] = spec.controls[0].resize
    assert tuple(values) == DECIDED_BY_CONFIG
    return values


def _control_values(config: RunConfig, spec: ImageSpec) -> dict[str, Any]:
    """The lists have an entry for each ControlNet: None for one that reads no picture."""
    names = ("control_images", "control_images_sha256", "control_scale", "control_settings", "guess_mode")
    if not spec.controls:
        return dict.fromkeys(names)
    own = {control.net: control for control in spec.controls}
    each = [own.get(place) for place in range(len(config.model.controlnets))]
    settings = [
        None if one is None else {"scale": one.scale, "start": one.start, "end": one.end} for one in each
    ]  # the scale with the factor of `control_scale`
    values = (
        [None if one is None else one.image for one in each],
        [None if one is None else one.image_sha256 for one in each],
        spec.control_scale,
        settings,
        True if spec.controls[0].guess_mode else None,
    )
    return dict(zip(names, values, strict=True))


def _cache_values(cache: CacheConfig) -> dict[str, Any]:
    used = cache.name != "none"
    return {
        "cache": cache.name if used else None,
        "cache_interval": cache.interval,
        "cache_branch": cache.branch if used else None,
        "cache_steps": None if cache.steps is None else list(cache.steps),
    }


def described_values(config: RunConfig, tokens: Mapping[str, tuple[int, bool]], spec: ImageSpec) -> dict[str, Any]:
    """The fields of a line that are known before the image is made.

    tokens: text -> (number of tokens before truncation, whether it was truncated).
    """
    num_tokens, truncated = tokens[spec.prompt]
    if spec.negative_prompt is not None:
        truncated = truncated or tokens[spec.negative_prompt][1]
    values = recipe_values(config, spec) | {"num_tokens": num_tokens, "truncated": truncated}
    return {name: value for name, value in values.items() if name not in OPTIONAL_FIELDS or value is not None}


def check_columns(rows: Iterable[Row], place: str | None = None) -> None:
    """Refuses further columns of prompt rows that have the name of a manifest field. Raises UserError.

    place: where a single row comes from; None: the rows are those of a config.
    """
    for index, row in enumerate(rows):
        for name in row.extra:
            if name in FIELDS or name in OPTIONAL_FIELDS:
                where = f"prompts.rows[{index}]" if place is None else place
                raise UserError(f"{where}: column {show(name)} has the name of a manifest field; rename the column")


def value_faults(values: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with the plain values of a line: a field that is missing, or has a value that it cannot have."""
    for name, allowed in {} if _are_valid(values) else _allowed().items():
        if name not in values:
            if name in FIELDS:
                yield f"has no {name}"
        elif not _is_one_of(values[name], allowed):
            yield f"{name}={show(values[name])} is not a valid value"
    if "file_name" in values and key_of(values) is None:
        yield f"file_name={show(values['file_name'])} is not the name of this image's file"


def _are_valid(values: Mapping[str, Any]) -> bool:
    """Whether each field is there and has a value that it can have: the quick answer for a line of a million."""
    allowed_of = _allowed()
    for name, value in values.items():
        if name in allowed_of and not _is_one_of(value, allowed_of[name]):
            return False
    return values.keys() >= _REQUIRED


def key_of(values: Mapping[str, Any]) -> tuple[int, int] | None:
    """(row, copy) of a line's plain values; None where they are not numbers, or the file is not named after them."""
    row, copy, file_name = values.get("row"), values.get("copy"), values.get("file_name")
    if not _is_whole(row) or not _is_whole(copy) or row < 0 or copy < 0 or not isinstance(file_name, str):
        return None
    name = _FILE_NAME.fullmatch(file_name)
    return (row, copy) if name is not None and name[1] == image_name(row, copy) else None


def key_of_name(name: str) -> tuple[int, int] | None:
    """(row, copy) of an image by the name of its file in images/; None of another file."""
    found = _FILE_NAME.fullmatch(f"{IMAGES}/{name}")
    with contextlib.suppress(UserError):
        return None if found is None else parse_name(found[1])
    return None


def parse_line(line: bytes) -> dict[str, Any] | None:
    """The plain values of a manifest line; None where it is not a JSON object that names a file."""
    try:
        values = parse_json(line, max_values=MAX_LINE_VALUES)
    except JsonError:
        return None
    return values if isinstance(values, dict) and isinstance(values.get("file_name"), str) else None


def manifest_lines(path: Path) -> Iterator[tuple[str, int, bytes]]:
    """(file, number, line) of the whole lines of a run's manifest, one at a time. Raises UserError.

    path: the run directory.
    """
    with os_errors_as_user_errors(path, CHECK_PERMISSIONS, operation="read"):
        yield from numbered_lines(path)


def read_manifest(path: Path) -> Iterator[ImageRecord]:
    """The records of the run directory `path`, as a stream. A torn last line is left out. Raises UserError."""
    yield from records_of(path, manifest_lines(path))


def records_of(path: Path, lines: Iterable[tuple[str, int, bytes]]) -> Iterator[ImageRecord]:
    """Lines as `manifest_lines` gives them -> records. Raises UserError."""
    for file, number, line in lines:
        record = ImageRecord.from_line(line)
        if record is None:
            raise UserError(f"{show_path(path / file)} line {number}: is not a manifest line; remove the line")
        yield record


def read_images(path: Path, config: SavedConfig) -> Iterator[ImageRecord]:
    """`read_manifest`, where each record is of an image that `config`, the run's saved one, plans. Raises UserError."""
    images = planned(config)
    for record in read_manifest(path):
        if record.key not in images:
            raise UserError(
                f"{show_path(path / MANIFEST)}: {record.name} is not in the run that {CONFIG} describes; "
                f"restore the {CONFIG} that it was made from"
            )
        yield record


@functools.cache
def _allowed() -> dict[str, tuple[type, ...]]:
    """Field -> the types that its value in JSON may have."""
    hints = typing.get_type_hints(ImageRecord)
    allowed = {}
    for name in (*FIELDS, *OPTIONAL_FIELDS):
        options = typing.get_args(hints[name]) if isinstance(hints[name], types.UnionType) else (hints[name],)
        origins = [typing.get_origin(option) or option for option in options]
        allowed[name] = tuple(dict if origin is Mapping else origin for origin in origins)
    return allowed


def _is_one_of(value: object, allowed: tuple[type, ...]) -> bool:
    kind = type(value)
    if kind in allowed:
        return kind is not float or math.isfinite(value)  # type: ignore[arg-type]
    return float in allowed and kind is int


def _is_whole(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)
