"""Configs and manifest lines -> the HTML page of a run or a sweep: one file that loads nothing from any network.

The page's program is in assets/page/script/, and gets its data as JSON. No part of a prompt reaches the markup, and the
page's policy runs only the script whose digest it names. Of files it knows only the names.
"""

import base64
import hashlib
import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tpusd.config.packed_rows import first_rows
from tpusd.config.rows import Row
from tpusd.config.schema import RunConfig, SavedConfig
from tpusd.config.typed import flatten
from tpusd.gallery.prompt_labels import prompt_labels
from tpusd.gallery.thumbnails import SIZE
from tpusd.inputs.row_files import has_control
from tpusd.recipes.command import config_overrides, image_overrides, shell_command
from tpusd.recipes.files import SUFFIXES
from tpusd.recipes.shell import quoted
from tpusd.records.manifest import ImageRecord
from tpusd.records.scores import NO_SCORES, Scores

ASSETS = Path(__file__).resolve().parents[1] / "assets" / "page"
# The page's program is one script of these files, in this order: a page that is opened from a disk can load no modules.
SCRIPTS = (
    "data", "numbers", "address", "captions", "board", "charts", "toolbar", "favourites", "viewer", "compare", "zoom",
    "details", "start"
)  # fmt: skip
# An image's own fields, which can differ from its run's because a row has its own.
OWN_FIELDS = ("seed", "guidance_scale", "negative_prompt", "sampler", "num_inference_steps", "width", "height")


@dataclass(frozen=True, kw_only=True)
class Axis:
    """A swept field, its values as they are on the command line, and as they are shown (empty: the same)."""

    key: str
    values: tuple[str, ...]
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class PageRun:
    """A run on a page.

    directory: "" or a name with a slash at its end.
    records: its manifest.
    created: when its first session began, as run.json has it.
    at: the index of its value on each axis of the sweep.
    """

    name: str
    directory: str
    config: SavedConfig
    records: Sequence[ImageRecord]
    has_thumbnails: bool
    created: str = ""
    at: tuple[int, ...] = ()
    state: str = "finished"
    rate: float | None = None  # images/s
    error: str | None = None
    scores: Scores = NO_SCORES


@dataclass(frozen=True, kw_only=True)
class Page:
    """All that a page shows.

    kind: run or sweep.
    facts: for the details: (title, [(name, value)]); a value is any JSON value.
    failed: (name, at, error) of the runs that made no image.
    pictures: data URL by file name, from the page's directory on, for a page that can open no file beside it.
    """

    kind: Literal["run", "sweep"]
    title: str
    summary: str
    runs: Sequence[PageRun]
    axes: tuple[Axis, ...] = ()
    facts: Sequence[tuple[str, Sequence[tuple[str, Any]]]] = ()
    failed: Sequence[tuple[str, tuple[int, ...], str]] = field(default=())
    pictures: Mapping[str, str] = field(default_factory=dict)


def render(page: Page) -> str:
    """The whole HTML file."""
    style = (ASSETS / "page.css").read_text(encoding="utf-8")
    script = "\n".join((ASSETS / "script" / f"{name}.js").read_text(encoding="utf-8") for name in SCRIPTS)
    parts = {
        "TITLE": html.escape(page.title),
        "IMAGES": "data:" if page.pictures else "'self' file:",
        "STYLE_HASH": _digest(style),
        "SCRIPT_HASH": _digest(script),
        "STYLE": style,
        "SCRIPT": script,
        "DATA": _json_in_html(page_data(page)),
    }
    pieces = (ASSETS / "page.html").read_text(encoding="utf-8").split("@")
    # The template's odd pieces are names between two @. A value is inserted as it is: no name in it is replaced.
    return "".join(parts[piece] if i % 2 else piece for i, piece in enumerate(pieces))


def page_data(page: Page) -> dict[str, Any]:
    """What the page's program reads, as JSON values."""
    rows, images = _rows_and_images(page.runs)
    pictures = {"pictures": page.pictures} if page.pictures else {}
    return pictures | {
        "kind": page.kind,
        "title": page.title,
        "summary": page.summary,
        "axes": [{"key": axis.key, "values": axis.values, "labels": axis.labels or axis.values} for axis in page.axes],
        "jobs": [_job(run) for run in page.runs],
        "failed": [{"name": name, "at": at, "error": error} for name, at, error in page.failed],
        "thumbnail_size": SIZE,
        "rows": rows,
        "prompts": list(prompt_labels((row["index"], row["prompt"]) for row in rows).items()),
        "images": images,
        "scores": _scores(page.runs),
        "facts": page.facts,
    }


def _rows_and_images(runs: Sequence[PageRun]) -> tuple[list[dict[str, Any]], dict[str, list[Any]]]:
    """The different prompt rows of all runs, and a column for each field of the images: 10,000 of them stay small."""
    rows: dict[str, int] = {}
    row_values: list[dict[str, Any]] = []
    images: dict[str, list[Any]] = {name: [] for name in ("job", "row", "copy", "tokens", "truncated", "sha256")}
    for number, run in enumerate(runs):
        own_rows = run.config.prompts.rows
        known: dict[int, int] = {}  # row of the run -> row of the page
        for record in sorted(run.records, key=lambda record: record.key):
            index = record.row
            if index not in known:
                values = _row(own_rows[index - run.config.first_row], index)
                key = json.dumps(values, sort_keys=True)
                if key not in rows:
                    rows[key] = len(row_values)
                    row_values.append(values)
                known[index] = rows[key]
            images["job"].append(number)
            images["row"].append(known[index])
            images["copy"].append(record.copy)
            images["tokens"].append(record.num_tokens)
            images["truncated"].append(int(record.truncated))
            images["sha256"].append(record.sha256)
    return row_values, images | _own_values(runs)


def _own_values(runs: Sequence[PageRun]) -> dict[str, list[Any]]:
    """A column for each field in which an image differs from its run's config."""
    columns: dict[str, list[Any]] = {}
    settings = [_settings(run.config) for run in runs]
    for name in OWN_FIELDS:
        usual = [one[name] for one in settings]
        own = [[getattr(record, name) for record in sorted(run.records, key=lambda one: one.key)] for run in runs]
        if any(value != setting for setting, values in zip(usual, own, strict=True) for value in values):
            columns[name] = [value for values in own for value in values]
    return columns


def _scores(runs: Sequence[PageRun]) -> dict[str, list[float | None]]:
    """Column -> the score of each image, in the order of the images."""
    names = sorted({name for run in runs for name in run.scores.columns})
    found: dict[str, list[float | None]] = {name: [] for name in names}
    for run in runs if names else ():
        for record in sorted(run.records, key=lambda record: record.key):
            for name, value in run.scores.of(record, names).items():
                found[name].append(value)
    return found


def facts_of(run: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, Any]]]]:
    """run.json as the details show it: a title for each group; dots join nested names."""
    groups: dict[str, list[tuple[str, Any]]] = {"Run": []}
    for name, value in run.items():
        if isinstance(value, Mapping):
            groups[name.replace("_", " ").capitalize()] = list(flatten(value))
        else:
            groups["Run"].append((name, value))
    return [(title, lines) for title, lines in groups.items() if lines]


def _job(run: PageRun) -> dict[str, Any]:
    """A run, as the page's program reads it."""
    config = run.config
    return {
        "name": run.name,
        "id": f"{run.name} {run.created}".strip(),
        "directory": run.directory,
        "suffix": SUFFIXES[config.image_format],
        "thumbnails": run.has_thumbnails,
        "at": run.at,
        "state": run.state,
        "rate": run.rate,
        "error": run.error,
        "num_images": len(run.records),
        "command": shell_command(config_overrides(config)),
        "settings": _settings(config),
    }


def _settings(config: SavedConfig) -> dict[str, Any]:
    rows = [row for _, row in first_rows(config.prompts.rows)]
    return {
        "seed": config.seed,
        "guidance_scale": config.guidance_scale,
        "negative_prompt": config.negative_prompt,
        "width": config.width,
        "height": config.height,
        "model": config.model.name,
        "precision": config.precision.name,
        "sampler": config.sampler.name,
        "sampler_text": _sampler_text(config),
        "num_inference_steps": config.sampler.num_inference_steps,
        **({"strength": config.strength} if any(row.image is not None for row in rows) else {}),
        **({"control_scale": config.control_scale} if any(map(has_control, rows)) else {}),
    }


def _sampler_text(config: RunConfig) -> str:
    """The sampler, and its options that differ from its choice in conf/."""
    options = [line.removeprefix("sampler.") for line in config_overrides(config) if line.startswith("sampler.")]
    return ", ".join([config.sampler.name, *(line for line in options if not line.startswith("num_inference_steps="))])


def _row(row: Row, index: int) -> dict[str, Any]:
    """A prompt row, as the page's program reads it. index: its place in the prompt set."""
    values: dict[str, Any] = {"index": index, "prompt": row.prompt, "command": quoted(image_overrides(row, index, 0))}
    values |= row.own_values()
    return values | ({"extra": dict(row.extra)} if row.extra else {})


def _json_in_html(values: object) -> str:
    """JSON in which an HTML parser finds no end tag and no comment."""
    return json.dumps(values, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
