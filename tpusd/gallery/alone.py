"""A page that holds its pictures, so that a notebook can show it where no file can be opened beside it."""

import base64
import dataclasses
import io
from pathlib import Path

from tpusd.errors import UserError, show_path
from tpusd.gallery.page import Page, render
from tpusd.gallery.run import run_page
from tpusd.gallery.sweep import sweep_page
from tpusd.records.manifest import read_manifest
from tpusd.records.run_json import latest, read_run_if_valid
from tpusd.records.saved import read_saved
from tpusd.records.scores import read_scores
from tpusd.records.sweep import Sweep
from tpusd.storage.pictures import open_picture

SIDES = {100: 512, 400: 256, 1600: 128}  # up to so many pictures -> pixels of the longer side: some 10 MB at most
QUALITY = 85


def run_page_alone(path: Path) -> str:
    """The HTML of the run at `path` with its pictures in it. Raises UserError and OSError."""
    records = list(read_manifest(path))
    scores = read_scores(path, records)
    page = run_page(path, read_saved(path), records, latest(read_run_if_valid(path)), scores)
    return render(_with_pictures(page, path))


def sweep_page_alone(path: Path, sweep: Sweep) -> str:
    """The HTML of the sweep at `path` with its pictures in it. Raises UserError and OSError."""
    return render(_with_pictures(sweep_page(path, sweep), path))


def _with_pictures(page: Page, path: Path) -> Page:
    files = [f"{run.directory}{record.file_name}" for run in page.runs for record in run.records]
    side = next((side for most, side in SIDES.items() if len(files) <= most), None)
    if side is None:
        raise UserError(
            f"{show_path(path)}: has {len(files)} images, a notebook shows {max(SIDES)} at most; open its index.html"
        )
    return dataclasses.replace(page, pictures={name: data_url(path / name, side) for name in files})


def data_url(file: Path, side: int) -> str:
    """A picture as a URL that holds it: WebP, its longer side at most `side` pixels. Raises UserError."""
    with open_picture(file) as image:
        image.thumbnail((side, side))
        buffer = io.BytesIO()
        image.convert("RGB").save(buffer, "WEBP", quality=QUALITY)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"
