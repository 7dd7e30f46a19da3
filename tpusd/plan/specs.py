"""Config and rows -> the images to make, in order, and the batches to make them in. Pure Python.

Knows nothing of devices but their number, and nothing of how an image is made.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tpusd.config.rows import Row
from tpusd.config.schema import MAX_ROWS, RunConfig
from tpusd.errors import UserError, show
from tpusd.samplers.table import SamplerSettings

_NAME = re.compile(r"(\d{5,7})-(\d{3,4})")


def image_name(row: int, copy: int) -> str:
    """An image's name within its run: row-copy, as in 00003-001."""
    return f"{row:05d}-{copy:03d}"


def parse_name(name: str) -> tuple[int, int]:
    """The inverse of image_name. Raises UserError for what is no such name."""
    match = _NAME.fullmatch(name)
    if match is None or image_name(int(match[1]), int(match[2])) != name:
        raise UserError(f"images={show(name)}: must be names such as 00003-001 (row 3, copy 1)")
    return int(match[1]), int(match[2])


@dataclass(frozen=True, kw_only=True)
class ImageSpec:
    """All that decides an image's pixels beside checkpoint and precision. Sizes in pixels."""

    row: int
    copy: int
    prompt: str
    negative_prompt: str | None  # None: not given, which SDXL tells from an empty one
    seed: int
    row_seed: int | None
    guidance_scale: float
    guidance_rescale: float
    height: int
    width: int
    sampler: SamplerSettings
    extra: Mapping[str, Any] = field(default_factory=dict)  # further columns: to the manifest, not to the pixels

    @property
    def uses_cfg(self) -> bool:
        """At guidance scale 1 the unconditional half cancels out, so it is not computed."""
        return self.guidance_scale != 1

    @property
    def name(self) -> str:
        return image_name(self.row, self.copy)


def make_spec(config: RunConfig, rows: Sequence[Row], number: int, copy: int, *, height: int, width: int) -> ImageSpec:
    """One image: copy `copy` of row `number`, which is rows[number - first_row]. height, width: pixels."""
    row = rows[number - config.first_row]
    return ImageSpec(
        row=number,
        copy=copy,
        prompt=row.prompt,
        negative_prompt=config.negative_prompt if row.negative_prompt is None else row.negative_prompt,
        seed=config.seed,
        row_seed=row.seed,
        guidance_scale=config.guidance_scale if row.guidance_scale is None else row.guidance_scale,
        guidance_rescale=config.guidance_rescale,
        height=height,
        width=width,
        sampler=config.sampler,
        extra=row.extra,
    )


def planned(config: RunConfig, num_rows: int) -> Iterator[tuple[int, int]]:
    """(row, copy) of every image of the run, in order: row by row and copy by copy. Raises UserError at once.

    The UserError: `images` names one that the run does not have.
    """
    rows = range(config.first_row, config.first_row + num_rows)
    copies = range(config.first_copy, config.first_copy + config.num_images_per_prompt)
    if rows.stop > MAX_ROWS:
        raise UserError(f"first_row={config.first_row}: with {num_rows} rows goes beyond {MAX_ROWS}; use a smaller one")
    if config.images is None:
        return ((row, copy) for row in rows for copy in copies)
    keys = sorted(set(map(parse_name, config.images)))
    for row, copy in keys:
        if row not in rows or copy not in copies:
            raise UserError(
                f"images={image_name(row, copy)}: the run has rows {rows.start} to {rows[-1]} and copies "
                f"{copies.start} to {copies[-1]}; name one of them"
            )
    return iter(keys)


def make_specs(config: RunConfig, rows: Sequence[Row], *, height: int, width: int) -> Iterator[ImageSpec]:
    """Every image of the run, in order. height, width: pixels, with the model's own filled in."""
    for row, copy in planned(config, len(rows)):
        yield make_spec(config, rows, row, copy, height=height, width=width)
