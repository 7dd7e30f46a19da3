"""Images in batches, and which runs share programs and weights."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from dataclasses import dataclass
from typing import Any

from tpusd.config.rows import Row
from tpusd.config.schema import RunConfig
from tpusd.plan.specs import ImageSpec, make_specs, planned


def program_key(config: RunConfig) -> tuple[Any, ...]:
    """Runs with equal keys are made by the same compiled programs. config: a prepared run's."""
    return weights_key(config), config.height, config.width, config.batch_size_per_device


def weights_key(config: RunConfig) -> tuple[Any, ...]:
    """Runs with equal keys use the same weights on the devices."""
    return dataclasses.replace(config.model, sha256=None), config.precision


def packed(
    images: Iterable[tuple[Any, ImageSpec]], size: int, rows: Callable[[Any, ImageSpec], int]
) -> Iterator[list[tuple[Any, ImageSpec]]]:
    """Full batches of `size` images, and what is left over at the end. images: (its run, spec).

    rows(run, spec): model calls that the image takes. A batch takes as long as its longest, so equals go together.
    """
    open_batches: dict[tuple[bool, int], list[tuple[Any, ImageSpec]]] = {}
    for run, spec in images:
        kind = (spec.uses_cfg, rows(run, spec))
        batch = open_batches.setdefault(kind, [])
        batch.append((run, spec))
        if len(batch) == size:
            yield open_batches.pop(kind)
    # What is left over is packed across lengths: idle steps cost less than a batch that is mostly padding.
    for guided in (True, False):
        rest = [entry for kind in sorted(open_batches) if kind[0] == guided for entry in open_batches[kind]]
        yield from (rest[i : i + size] for i in range(0, len(rest), size))


def num_programs(uses_cfg: Iterable[bool]) -> int:
    """Encode and decode, and a denoise with guidance, without it, or both."""
    return 2 + len(set(uses_cfg))


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Images made together. `padded_size` is the compiled size; the last batch of a kind may hold fewer."""

    specs: tuple[ImageSpec, ...]
    padded_size: int
    uses_cfg: bool


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is to be made, in batches. `num_images` counts the whole run, `num_done` of it exist already.

    Batches are made as they are asked for, so that a run of a million images takes no more memory than one of ten.
    """

    config: RunConfig
    rows: Sequence[Row]
    height: int
    width: int
    batch_size: int  # over all devices
    done: Set[tuple[int, int]]
    num_images: int
    num_done: int
    num_batches: int

    @property
    def num_to_make(self) -> int:
        return self.num_images - self.num_done

    @property
    def batches(self) -> Iterator[Batch]:
        """Images with and without guidance go into batches of their own, for they run different programs.

        A batch comes when it is full, and those that stay open at the end, so that images come out nearly in order.
        """
        open_batches: dict[bool, list[ImageSpec]] = {}
        for spec in make_specs(self.config, self.rows, height=self.height, width=self.width):
            if (spec.row, spec.copy) in self.done:
                continue
            batch = open_batches.setdefault(spec.uses_cfg, [])
            batch.append(spec)
            if len(batch) == self.batch_size:
                yield self._batch(open_batches.pop(spec.uses_cfg))
        for batch in open_batches.values():
            yield self._batch(batch)

    def _batch(self, specs: list[ImageSpec]) -> Batch:
        return Batch(specs=tuple(specs), padded_size=self.batch_size, uses_cfg=specs[0].uses_cfg)


def make_plan(
    config: RunConfig,
    rows: Sequence[Row],
    num_devices: int,
    *,
    height: int,
    width: int,
    done: Set[tuple[int, int]] = frozenset(),
) -> Plan:
    """Batches of num_devices * batch_size_per_device images. `done`: (row, copy) of images to leave out: they exist."""
    size = num_devices * config.batch_size_per_device
    num_images = num_done = 0
    to_make = {True: 0, False: 0}  # with and without guidance
    for row, copy in planned(config, len(rows)):
        num_images += 1
        if (row, copy) in done:
            num_done += 1
        else:
            scale = rows[row - config.first_row].guidance_scale
            to_make[(config.guidance_scale if scale is None else scale) != 1] += 1
    return Plan(
        config=config,
        rows=rows,
        height=height,
        width=width,
        batch_size=size,
        done=done,
        num_images=num_images,
        num_done=num_done,
        num_batches=sum(-(-number // size) for number in to_make.values()),
    )
