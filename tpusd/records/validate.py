"""Whether a run directory is whole: every line, file, hash, size and picture, and the plan complete. Needs no model."""

import shlex
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tpusd import storage
from tpusd.config.schema import SavedConfig
from tpusd.errors import UserError, show
from tpusd.plan.specs import image_name, planned
from tpusd.records.dropped import dropped_faults, read_dropped
from tpusd.records.layout import CHECK_PERMISSIONS, IMAGES, MANIFEST, RUN
from tpusd.records.manifest import key_of, key_of_name, manifest_lines, parse_line, value_faults
from tpusd.records.recipes import Recipes
from tpusd.records.run_json import read_run
from tpusd.records.saved import read_saved
from tpusd.records.scores import score_faults
from tpusd.records.set_scores import set_score_faults
from tpusd.storage import os_errors_as_user_errors
from tpusd.storage.pictures import PictureError, open_picture


def faults(path: Path, *, only_sizes: bool = False) -> Iterator[str]:
    """One line a fault, in the order in which they are found. Raises UserError where `path` is not a run directory.

    only_sizes: of the images' files, only their sizes are looked at, and no file is read.
    """
    config = read_saved(path)
    try:
        facts = read_run(path)
        if facts.get("state") != "finished":
            command = f"python -m tpusd.run {shlex.quote(f'resume={path}')}"
            yield f"{RUN}: the run is not finished; continue it with: {command}"
    except UserError as error:
        facts = {}
        yield str(error)
    seen: dict[tuple[int, int], str] = {}
    yield from _line_faults(path, config, facts, seen, only_sizes)
    images = planned(config)
    dropped = read_dropped(path, config) - seen.keys()
    missing = len(images) - sum(key in images for key in seen) - len(dropped)
    if missing:
        first = next(key for key in images if key not in seen and key not in dropped)
        more = f" and {missing - 1} more" if missing > 1 else ""
        yield f"{image_name(*first)}{more}: in the plan and not in the manifest"
    yield from dropped_faults(path, config, frozenset(seen))
    yield from _other_files(path, seen)
    yield from score_faults(path)
    yield from set_score_faults(path)


def _line_faults(
    path: Path, config: SavedConfig, facts: Mapping[str, Any], seen: dict[tuple[int, int], str], only_sizes: bool
) -> Iterator[str]:
    """Faults of the manifest's lines and of their images.

    facts: of run.json.
    seen: is filled with (row, copy) -> suffix of the file.
    """
    images, recipes = planned(config), Recipes(config)
    environments = facts.get("environments")
    for file, number, line in manifest_lines(path):
        where = f"{file} line {number}"
        values = parse_line(line)
        key = None if values is None else key_of(values)
        if values is None or key is None:
            yield f"{where}: is not a line of an image"
            continue
        if key in seen:
            yield f"{where}: {image_name(*key)} is listed twice"
            continue
        seen[key] = sys.intern(values["file_name"].rpartition(".")[2])
        if key not in images:
            yield f"{where}: {image_name(*key)} is not in the plan of config.yaml"
            continue
        yield from (f"{where}: {fault}" for fault in _recipe_faults(recipes, key, values))
        environment = values.get("environment")
        if not (isinstance(environments, dict) and isinstance(environment, str) and environment in environments):
            yield f"{where}: run.json does not know the environment {show(environment)}"
        yield from (f"{values['file_name']}: {fault}" for fault in _file_faults(path, values, only_sizes))
    with os_errors_as_user_errors(path, CHECK_PERMISSIONS, operation="read"):
        if storage.ends_torn(path / MANIFEST):
            yield f"{MANIFEST}: its last line is torn"


def _recipe_faults(recipes: Recipes, key: tuple[int, int], values: Mapping[str, Any]) -> Iterator[str]:
    """Fields that are not what the config says, and then fields that are missing or can have no such value."""
    differing = set()
    extra = recipes.extra(key[0])
    wanted = recipes.of(*key) if extra or recipes.difference(values, *key) is not None else {}
    for name, value in (wanted | dict(extra)).items():
        if values.get(name) != value:
            differing.add(name)
            yield f"{name}={show(values.get(name))}, and config.yaml says {show(value)}"
    for fault in value_faults(values):
        if not any(fault.startswith(f"{name}=") for name in differing):
            yield fault


def _file_faults(path: Path, values: Mapping[str, Any], only_sizes: bool) -> Iterator[str]:
    """The image of one line."""
    file = path / values["file_name"]
    try:
        size = storage.file_size(file)
        if size is None:
            yield "is a link or not a regular file" if storage.exists(file) else "is missing"
            return
        if size != values.get("num_bytes"):
            yield f"has {size} bytes, and the manifest says {show(values.get('num_bytes'))}"
        if only_sizes:
            return
        if storage.file_sha256(file) != values.get("sha256"):
            yield "its sha256 is not the manifest's"
            return
        with open_picture(file) as image:
            if image.size != (values.get("width"), values.get("height")):
                yield f"is {image.width}x{image.height}, and the manifest says otherwise"
    except PictureError as error:
        yield error.reason
    except OSError as error:
        yield f"cannot be read: {show(str(error))}"


def _other_files(path: Path, seen: Mapping[tuple[int, int], str]) -> Iterator[str]:
    """Files in images/ that no line names, and what an interrupted write left."""
    with os_errors_as_user_errors(path, CHECK_PERMISSIONS, operation="read"):
        names = storage.list_directory(path / IMAGES) if storage.exists(path / IMAGES) else []
        for name in names:
            key = key_of_name(name)
            if key is None or seen.get(key) != name.rpartition(".")[2]:
                yield f"{IMAGES}/{show(name)}: is in no line of the manifest"
        for name in storage.list_directory(path):
            if name.endswith(storage.TEMPORARY):
                yield f"{show(name)}: is a file that an interrupted write left"
