"""Which files a row has, and which of them are the run's own. Reads none of them."""

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from tpusd.config.packed_rows import first_rows
from tpusd.config.rows import CONTROL_IMAGE, Row
from tpusd.config.schema import RunConfig
from tpusd.errors import UserError, show

PICTURES = (("image", "image_sha256"), ("mask", "mask_sha256"))
CONTROLS = ("control_images", "control_images_sha256")
CONTROL_FIELDS = frozenset((CONTROL_IMAGE, "control_images"))  # of a run
PINS = (*(pin for _, pin in PICTURES), CONTROLS[1])


class RowFile(NamedTuple):
    """A file of a row. column: `image`, `mask` or `control_image`. sha256: None where it is not known."""

    column: str
    path: str
    sha256: str | None


def files_of(row: Row) -> Iterator[RowFile]:
    """The files that a row has, in order."""
    for name, pin in PICTURES:
        if (path := getattr(row, name)) is not None:
            yield RowFile(name, path, getattr(row, pin))
    if row.control_images is not None:
        sums = row.control_images_sha256 or itertools.repeat(None)
        for path, sha256 in zip(row.control_images, sums, strict=False):
            if path is not None:
                yield RowFile(CONTROL_IMAGE, path, sha256)


def has_control(row: Row) -> bool:
    """Whether the row has a control image."""
    return any(path is not None for path in row.control_images or ())


def shared_controls(config: RunConfig) -> tuple[str, ...]:
    """The run's own control images, one for each ControlNet."""
    return config.control_images if config.control_image is None else (config.control_image,)


def is_of_run(row: Row, saved: RunConfig, name: str) -> bool:
    """Whether a row's files are the run's. The row has whole paths, and the run the paths as they were given.

    name: `image`, `mask` or `control_images`.
    """
    several = name == CONTROLS[0]
    given = shared_controls(saved) if several else (getattr(saved, name),)
    paths = row.control_images or () if several else (getattr(row, name),)
    return len(paths) == len(given) and all(map(_ends_with, paths, given))


def _ends_with(path: str | None, given: str) -> bool:
    end = Path(given).parts
    return path is not None and Path(path).parts[-len(end) :] == end


def check_controls(rows: Sequence[Row], config: RunConfig) -> None:
    """Raises UserError where control images and ControlNets do not go together. rows: with the run's own pictures."""
    nets = len(config.model.controlnets)
    for index, row in first_rows(rows):
        number, images = config.first_row + index, row.control_images
        if not has_control(row):
            if row.control_scale is not None:
                raise UserError(
                    f"row {number}: control_scale={show(row.control_scale)}: has no control image; add "
                    "control_image=FILE"
                )
        elif not nets:
            raise UserError(
                f"row {number}: control_image={show(next(filter(None, images or ())))}: there is no ControlNet to read "
                "it; add model.controlnets=[{path: DIR}]"
            )
        elif images is not None and len(images) != nets:
            raise UserError(
                f"row {number}: has {len(images)} control images for {nets} ControlNets; write control_images=[A,B], "
                "one for each, in the order of model.controlnets"
            )
    if _any_control(rows):
        return
    for name in ("control_scale", "guess_mode"):
        if (value := getattr(config, name)) != getattr(RunConfig, name):
            raise UserError(f"{name}={show(value)}: there is no control image; add control_image=FILE")


def _any_control(rows: Sequence[Row]) -> bool:
    return any(has_control(row) for _, row in first_rows(rows))


def control_notes(rows: Sequence[Row], config: RunConfig, num_calls: int) -> tuple[str, ...]:
    """A line where ControlNets have no effect. num_calls: model calls of the run's sampler."""
    nets = config.model.controlnets
    if not nets or not _any_control(rows):
        idle = "model.controlnets: have no effect, because no row has a control image; add control_image=FILE"
        return (idle,) if nets else ()
    return tuple(
        f"model.controlnets[{place}]: has no effect, because none of the {num_calls} model calls is whole between "
        f"start={net.start:g} and end={net.end:g}; widen them, or take more steps"
        for place, net in enumerate(nets)
        if not any(net.steps(num_calls))
    )
