"""A run and a sweep as Python objects: their records, their pictures, and tables of them.

Opens nothing before it is asked for, and writes nothing.
"""

import html
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from tpusd.config.paths import path_argument
from tpusd.errors import UserError, show_path
from tpusd.records.layout import CONTACT_SHEET, GRID, PAGE
from tpusd.records.manifest import ImageRecord, read_manifest

if TYPE_CHECKING:
    import pandas
    from PIL import Image

    from tpusd.config.schema import SavedConfig
    from tpusd.records import sweep as records
    from tpusd.records.scores import Scores

MAX_SHOWN = 24  # pictures that a notebook shows of a run
SHOWN_PIXELS = 192  # the longer side of each
PAGE_HEIGHT = 800  # pixels


class PageView:
    """A page for a notebook, which shows it where this is the last value of a cell."""

    def __init__(self, page: str, height: int):
        self.html = page
        self.height = height

    def _repr_html_(self) -> str:
        """The page in a frame of its own, which can open nothing but what it holds."""
        return (
            f'<iframe srcdoc="{html.escape(self.html)}" sandbox="allow-scripts allow-downloads allow-modals" '
            f'allow="clipboard-write; fullscreen" style="width:100%;height:{self.height}px;border:0"></iframe>'
        )


class Images(Sequence["Image.Image"]):
    """The pictures of a run or a sweep, in the order of its records. Each is read from disk when it is asked for.

    An item is a PIL image; a slice is a list of them. Raises UserError for a file that cannot be read.
    """

    def __init__(self, paths: Sequence[Path]):
        self.paths = tuple(paths)

    def __len__(self) -> int:
        return len(self.paths)

    @overload
    def __getitem__(self, index: int) -> "Image.Image": ...
    @overload
    def __getitem__(self, index: slice) -> "list[Image.Image]": ...
    def __getitem__(self, index: int | slice) -> "Image.Image | list[Image.Image]":
        if isinstance(index, slice):
            return [_read(path) for path in self.paths[index]]
        return _read(self.paths[index])

    def __iter__(self) -> "Iterator[Image.Image]":
        return map(_read, self.paths)

    def __repr__(self) -> str:
        return f"<{len(self)} images>"


@dataclass(frozen=True)
class Run:
    """A run directory. `open_run` checks that it is one."""

    path: Path

    def __repr__(self) -> str:
        return f"tpusd.open_run({str(self.path)!r})"

    @cached_property
    def config(self) -> "SavedConfig":
        """All that making the run again needs. Raises UserError."""
        from tpusd.records.saved import read_saved

        return read_saved(self.path)

    @cached_property
    def records(self) -> tuple[ImageRecord, ...]:
        """A record for each image that is whole, by row and copy. Read once; `open_run` reads them again."""
        return tuple(sorted(read_manifest(self.path), key=lambda record: record.key))

    @cached_property
    def scores(self) -> "Scores":
        """The columns beside the manifest, which `python -m tpusd.score` writes. Raises UserError."""
        from tpusd.records.scores import read_scores

        return read_scores(self.path, self.records)

    @cached_property
    def facts(self) -> Mapping[str, Any]:
        """run.json: versions, devices, the checkpoint's identity, timings of the last session. Any JSON values.

        Raises UserError.
        """
        from tpusd.records.run_json import latest, read_run

        return latest(read_run(self.path))

    @property
    def images(self) -> Images:
        return Images([self.path / record.file_name for record in self.records])

    @cached_property
    def frame(self) -> "pandas.DataFrame":
        """A row for each image: the manifest's fields, its scores, and `path`. Needs pandas. Raises UserError."""
        return _frame(
            {**record.values(), **self.scores.fields(record), "path": str(self.path / record.file_name)}
            for record in self.records
        )

    @property
    def page(self) -> Path:
        """index.html, which shows all of it in a browser."""
        return self.path / PAGE

    def show(self, height: int = PAGE_HEIGHT) -> PageView:
        """The page within a notebook, with smaller pictures in it. height: pixels. Raises UserError."""
        from tpusd.gallery.alone import run_page_alone

        return PageView(run_page_alone(self.path), height)

    @property
    def contact_sheet(self) -> "Image.Image":
        return _read(self.path / CONTACT_SHEET)

    def _repr_html_(self) -> str:
        """What a notebook shows: the first pictures with their prompts."""
        shown = [(self.path / record.file_name, record.prompt) for record in self.records[:MAX_SHOWN]]
        return _wall(self.path, shown, len(self.records))


@dataclass(frozen=True)
class Sweep:
    """A sweep directory. `open_sweep` checks that it is one."""

    path: Path

    def __repr__(self) -> str:
        return f"tpusd.open_sweep({str(self.path)!r})"

    @cached_property
    def axes(self) -> Mapping[str, tuple[str, ...]]:
        """Swept field -> its values, as the command line has them."""
        return self._sweep.axes

    @cached_property
    def runs(self) -> Mapping[str, Run]:
        """Name -> run, for the runs that have images."""
        from tpusd.records.sweep import run_directories

        return {name: Run(path) for name, path in run_directories(self.path)}

    @property
    def failed(self) -> Mapping[str, str]:
        """Name -> error, for the runs that made nothing or not everything."""
        return {run.name: run.error for run in self._sweep.runs if run.error is not None}

    @property
    def images(self) -> Images:
        """All pictures, in the order of `frame`."""
        return Images([path for run in self.runs.values() for path in run.images.paths])

    @cached_property
    def frame(self) -> "pandas.DataFrame":
        """A row for each image: `run`, the manifest's fields, the swept fields that these lack, scores, and `path`.

        Needs pandas. Raises UserError.
        """
        return _frame(self._rows())

    @property
    def page(self) -> Path:
        """index.html, which shows all of it in a browser."""
        return self.path / PAGE

    def show(self, height: int = PAGE_HEIGHT) -> PageView:
        """The page within a notebook, with smaller pictures in it. height: pixels. Raises UserError."""
        from tpusd.gallery.alone import sweep_page_alone

        return PageView(sweep_page_alone(self.path, self._sweep), height)

    @property
    def grid(self) -> "Image.Image":
        """The labelled picture of two axes. Raises UserError where no run has images."""
        return _read(self.path / GRID)

    def _repr_html_(self) -> str:
        """What a notebook shows: the grid, or the first pictures where there is no grid."""
        if (self.path / GRID).is_file():
            return _wall(self.path, [(self.path / GRID, "")], len(self.images), pixels=1600)
        return _wall(self.path, [(path, "") for path in self.images.paths[:MAX_SHOWN]], len(self.images))

    @cached_property
    def _sweep(self) -> "records.Sweep":
        from tpusd.records.sweep import read_sweep

        return read_sweep(self.path)

    def _rows(self) -> Iterator[dict[str, Any]]:
        at = {run.name: run.at for run in self._sweep.runs}
        for name, run in self.runs.items():
            for record in run.records:
                values = {"run": name, **record.values()}
                values |= {key: value for key, value in at[name].items() if key not in values}
                values |= run.scores.fields(record)
                yield values | {"path": str(run.path / record.file_name)}


def open_run(directory: str | PathLike[str]) -> Run:
    """The run in a directory. Raises UserError where it is not one."""
    from tpusd.records.directory import check_run_directory
    from tpusd.records.sweep import is_sweep

    path = path_argument(directory)
    if is_sweep(path):
        raise UserError(f"{show_path(path)}: is a sweep; open it with tpusd.open_sweep")
    check_run_directory(path)
    return Run(path)


def open_sweep(directory: str | PathLike[str]) -> Sweep:
    """The sweep in a directory. Raises UserError where it is not one."""
    from tpusd.records.sweep import is_sweep

    path = path_argument(directory)
    if not is_sweep(path):
        raise UserError(f"{show_path(path)}: is not a sweep; open a run with tpusd.open_run")
    return Sweep(path)


def _read(path: Path) -> "Image.Image":
    from tpusd.storage.pictures import open_picture

    with open_picture(path) as image:
        image.load()
        return image.copy()


def _frame(rows: Iterator[dict[str, Any]]) -> "pandas.DataFrame":
    try:
        import pandas
    except ImportError:
        raise UserError("frame: needs pandas; install it with: pip install pandas") from None
    return pandas.DataFrame(list(rows))


def _wall(path: Path, shown: Sequence[tuple[Path, str]], total: int, pixels: int = SHOWN_PIXELS) -> str:
    """HTML that needs no other file: pictures, what is under each, and what is not shown."""
    from tpusd.gallery.alone import data_url

    figures = "".join(
        f'<figure style="margin:4px;max-width:{pixels}px;display:inline-block;vertical-align:top">'
        f'<img src="{data_url(file, pixels)}" style="max-width:100%">'
        f'<figcaption style="font-size:11px">{html.escape(words[:120])}</figcaption></figure>'
        for file, words in shown
    )
    more = f", {total - len(shown)} more" if 1 < len(shown) < total else ""
    return f"<div><code>{html.escape(str(path))}</code>: {total} image{'' if total == 1 else 's'}{more}</div>{figures}"
