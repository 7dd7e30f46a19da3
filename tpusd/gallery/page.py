"""Configs and manifest lines -> the HTML page of a run or a sweep: one file that asks nothing of any network.

The page's program is assets/page/; here is what it is told, as JSON. Nothing of a prompt reaches the markup, and the
page's own policy runs no script but the one whose digest it names. Knows nothing of where files are but for names.
"""

import base64
import hashlib
import html
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tpusd.config.rows import Row
from tpusd.config.schema import RunConfig, SavedConfig
from tpusd.recipes.command import config_overrides, image_overrides, quoted, shell_command
from tpusd.recipes.files import SUFFIXES
from tpusd.records.manifest import ImageRecord

ASSETS = Path(__file__).resolve().parents[1] / "assets" / "page"


@dataclass(frozen=True, kw_only=True)
class Axis:
    """A swept field, and its values as the command line says them."""

    key: str
    values: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class PageRun:
    """A run as it stands on a page. `at`: its value's index on each axis; `directory`: "" or ending in a slash."""

    name: str
    directory: str
    config: SavedConfig
    records: Sequence[ImageRecord]
    has_thumbnails: bool
    at: tuple[int, ...] = ()
    state: str = "finished"
    rate: float | None = None  # images/s
    error: str | None = None


@dataclass(frozen=True, kw_only=True)
class Page:
    """`facts`: (title, [(name, value)]) for the details; `failed`: (name, at, error) of runs that made nothing."""

    kind: str  # run | sweep
    title: str
    summary: str
    runs: Sequence[PageRun]
    axes: tuple[Axis, ...] = ()
    facts: Sequence[tuple[str, Sequence[tuple[str, Any]]]] = ()
    failed: Sequence[tuple[str, tuple[int, ...], str]] = field(default=())


def render(page: Page) -> str:
    """The whole HTML file."""
    style, script = ((ASSETS / f"page.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    parts = {
        "TITLE": html.escape(page.title),
        "STYLE_HASH": _digest(style),
        "SCRIPT_HASH": _digest(script),
        "STYLE": style,
        "SCRIPT": script,
        "DATA": _json_in_html(page_data(page)),
    }
    pieces = (ASSETS / "page.html").read_text(encoding="utf-8").split("@")
    # The template's odd pieces are the names between two @; values are never looked into again.
    return "".join(parts[piece] if i % 2 else piece for i, piece in enumerate(pieces))


def page_data(page: Page) -> dict[str, Any]:
    """What the page's program reads. Images are columns, so that 10,000 of them stay small."""
    rows: dict[str, int] = {}
    row_values: list[dict[str, Any]] = []
    images: dict[str, list[Any]] = {name: [] for name in ("job", "row", "copy", "tokens", "truncated", "sha256")}
    for number, run in enumerate(page.runs):
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
    return {
        "kind": page.kind,
        "title": page.title,
        "summary": page.summary,
        "axes": [{"key": axis.key, "values": axis.values} for axis in page.axes],
        "jobs": [_job(run) for run in page.runs],
        "failed": [{"name": name, "at": at, "error": error} for name, at, error in page.failed],
        "rows": row_values,
        "images": images,
        "facts": page.facts,
    }


def facts_of(run: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, Any]]]]:
    """run.json as the details show it: a title a group, nested names joined by dots."""
    groups: dict[str, list[tuple[str, Any]]] = {"Run": []}
    for name, value in run.items():
        if isinstance(value, Mapping):
            groups[name.replace("_", " ").capitalize()] = list(_flat(value, ""))
        else:
            groups["Run"].append((name, value))
    return [(title, lines) for title, lines in groups.items() if lines]


def _job(run: PageRun) -> dict[str, Any]:
    config = run.config
    steps = config.sampler.num_inference_steps
    return {
        "name": run.name,
        "directory": run.directory,
        "suffix": SUFFIXES[config.image_format],
        "thumbnails": run.has_thumbnails,
        "at": run.at,
        "state": run.state,
        "rate": run.rate,
        "error": run.error,
        "num_images": len(run.records),
        "command": shell_command(config_overrides(config)),
        "settings": {
            "seed": config.seed,
            "guidance_scale": config.guidance_scale,
            "negative_prompt": config.negative_prompt,
            "width": config.width,
            "height": config.height,
            "model": config.model.name,
            "precision": config.precision.name,
            "sampler": config.sampler.name,
            "sampler_text": _sampler_text(config),
            "num_inference_steps": steps,
        },
    }


def _sampler_text(config: RunConfig) -> str:
    """The sampler and the options that its choice in conf/ has otherwise."""
    options = [line.removeprefix("sampler.") for line in config_overrides(config) if line.startswith("sampler.")]
    return ", ".join([config.sampler.name, *(line for line in options if not line.startswith("num_inference_steps="))])


def _row(row: Row, index: int) -> dict[str, Any]:
    values = {"index": index, "prompt": row.prompt, "command": quoted(image_overrides(row, index, 0))}
    own = {"negative_prompt": row.negative_prompt, "seed": row.seed, "guidance_scale": row.guidance_scale}
    values |= {name: value for name, value in own.items() if value is not None}
    return values | ({"extra": dict(row.extra)} if row.extra else {})


def _flat(values: Mapping[str, Any], prefix: str) -> Iterable[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _json_in_html(values: Any) -> str:
    """JSON that no HTML parser sees an end tag or a comment in."""
    return json.dumps(values, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
