"""The manifest: a line an image."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tpusd.config.schema import RunConfig
from tpusd.errors import UserError, show_path
from tpusd.plan.specs import ImageSpec, image_name
from tpusd.records.layout import IMAGES, MANIFEST, MAX_LINE_BYTES
from tpusd.storage import local as storage
from tpusd.storage.local import told_as_user_error

# What a manifest line holds of its own; a prompt file's further column may not take one of these names.
MANIFEST_FIELDS = frozenset(
    "file_name sha256 num_bytes row copy prompt negative_prompt seed row_seed height width sampler num_inference_steps "
    "guidance_scale guidance_rescale model precision num_tokens truncated environment trace".split()
)


def describe_image(config: RunConfig, tokens: Mapping[str, tuple[int, bool]], spec: ImageSpec) -> dict[str, Any]:
    """The manifest's fields about an image's recipe and its text."""
    num_tokens, truncated = tokens[spec.prompt]
    if spec.negative_prompt is not None:
        truncated = truncated or tokens[spec.negative_prompt][1]
    return recipe(config, spec) | {"num_tokens": num_tokens, "truncated": truncated}


def recipe(config: RunConfig, spec: ImageSpec) -> dict[str, Any]:
    """The manifest's fields that the config alone decides."""
    return {
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
    }


def line_key(record: Mapping[str, Any]) -> tuple[int, int] | None:
    """(row, copy), where they are numbers and the file is named after them, inside images/."""
    row, copy = record.get("row"), record.get("copy")
    if type(row) is not int or type(copy) is not int or row < 0 or copy < 0:
        return None
    name = re.fullmatch(IMAGES + r"/([-0-9]+)\.\w+", record["file_name"])
    return (row, copy) if name is not None and name[1] == image_name(row, copy) else None


def parse_line(line: bytes) -> dict[str, Any] | None:
    """A manifest line as a record; None for what is none."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) and isinstance(record.get("file_name"), str) else None


def manifest_lines(path: Path) -> Iterator[bytes]:
    """The manifest's whole lines, one at a time. Raises UserError where it cannot be read."""
    with told_as_user_error(path, "check the directory's permissions", "read"):
        yield from storage.read_lines(path / MANIFEST, MAX_LINE_BYTES)


def read_manifest(path: Path) -> Iterator[dict[str, Any]]:
    """Manifest lines of the run directory `path`, as a stream. A torn last line is left out. Raises UserError."""
    for number, line in enumerate(manifest_lines(path), 1):
        record = parse_line(line)
        if record is None:
            raise UserError(f"{show_path(path / MANIFEST)} line {number}: is not a manifest line; take the line out")
        yield record
