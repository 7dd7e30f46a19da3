"""Config and rows -> the images to make, in order, and the batches to make them in. Pure Python.

Knows nothing of devices but their number, and nothing of how an image is made.
"""

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

from tpusd.config import MAX_ROWS, RunConfig
from tpusd.errors import UserError
from tpusd.prompts import Row
from tpusd.samplers.table import SamplerSettings


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
        """The image's name within its run: row-copy."""
        return f"{self.row:05d}-{self.copy:03d}"


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Images made together. `padded_size` is the compiled size; the last batch of a kind may hold fewer."""

    specs: tuple[ImageSpec, ...]
    padded_size: int
    uses_cfg: bool


@dataclass(frozen=True, kw_only=True)
class Plan:
    """`batches` holds what is to be made; `num_images` counts the whole run, `num_done` of it exist already."""

    batches: tuple[Batch, ...]
    num_images: int
    num_done: int

    @property
    def num_to_make(self) -> int:
        return sum(len(batch.specs) for batch in self.batches)


def make_specs(config: RunConfig, rows: Sequence[Row], *, height: int, width: int) -> Iterator[ImageSpec]:
    """Every image of the run, row by row and copy by copy. height, width: pixels, with the model's own filled in."""
    for index, row in enumerate(rows, config.first_row):
        for copy in range(config.first_copy, config.first_copy + config.num_images_per_prompt):
            yield ImageSpec(
                row=index,
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


def make_plan(
    config: RunConfig,
    rows: Sequence[Row],
    num_devices: int,
    *,
    height: int,
    width: int,
    done: Set[tuple[int, int]] = frozenset(),
) -> Plan:
    """Batches of num_devices * batch_size_per_device images. `done`: (row, copy) of images that exist and are left out.

    Images with and without classifier-free guidance go into batches of their own, for they run different programs;
    a batch stands where its first image stands, so that a run's images come out nearly in order.
    """
    if config.first_row + len(rows) > MAX_ROWS:
        raise UserError(
            f"first_row={config.first_row}: with {len(rows)} rows goes beyond {MAX_ROWS}; use a smaller one"
        )
    size = num_devices * config.batch_size_per_device
    open_batches: dict[bool, list[ImageSpec]] = {}
    batches: list[list[ImageSpec]] = []
    for spec in make_specs(config, rows, height=height, width=width):
        if (spec.row, spec.copy) in done:
            continue
        batch = open_batches.get(spec.uses_cfg)
        if batch is None or len(batch) == size:
            batch = open_batches[spec.uses_cfg] = []
            batches.append(batch)
        batch.append(spec)
    num_images = len(rows) * config.num_images_per_prompt
    return Plan(
        batches=tuple(Batch(specs=tuple(batch), padded_size=size, uses_cfg=batch[0].uses_cfg) for batch in batches),
        num_images=num_images,
        num_done=num_images - sum(map(len, batches)),
    )
