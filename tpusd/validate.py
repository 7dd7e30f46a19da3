"""`python -m tpusd.validate runs/DIR ...`: whether run directories, or all of a sweep's, are whole, without a model.

Every line, file, hash, size and picture, and the plan complete. A line on stdout for each fault. Exit status: 0 none,
1 some, 2 what is no run directory.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tpusd.config.rows import Row
from tpusd.config.schema import RunConfig
from tpusd.errors import UserError, show
from tpusd.plan.specs import image_name, make_spec, planned
from tpusd.process.arguments import Parser
from tpusd.process.exit import exit_status
from tpusd.prompts.rows import read_rows
from tpusd.records.manifest import MANIFEST_FIELDS
from tpusd.records.sweep import is_sweep, read_sweep
from tpusd.storage import local as storage

EXIT_FAULTS = 1


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns the exit status."""
    parser = Parser(
        prog="python -m tpusd.validate",
        description="Checks run directories without a model: every line, file, hash and size, and the plan complete.",
        epilog="Exit status: 0 no fault, 1 faults, a line each, 2 not a run directory.",
    )
    parser.add_argument("directories", nargs="+", type=Path, metavar="directory", help="run directories, or sweeps'")
    with exit_status() as status:
        for path in map_sweeps(parser.parse_args(argv).directories):
            number = 0
            for fault in faults(path) if storage.exists(path) or not is_sweep(path.parent) else ["was never made"]:
                print(f"{path}: {fault}")
                number += 1
            if number:
                status[0] = EXIT_FAULTS
            else:
                print(f"{path}: whole")
    return status[0]


def map_sweeps(directories: Sequence[Path]) -> Iterator[Path]:
    """Run directories as they are, and of a sweep all that it should hold."""
    for path in directories:
        yield from (path / run.name for run in read_sweep(path).runs) if is_sweep(path) else (path,)


def faults(path: Path) -> Iterator[str]:
    """One line a fault, in the order in which they are found. Raises UserError for what is no run directory."""
    from tpusd.records.directory import read_run
    from tpusd.records.layout import RUN
    from tpusd.records.saved import read_saved

    config = read_saved(path)
    rows = read_rows(config.prompts)
    try:
        facts = read_run(path)
        if facts.get("state") != "finished":
            yield f"{RUN}: the run is not finished; go on with: python -m tpusd.run resume={path}"
    except UserError as error:
        facts = {}
        yield str(error)
    seen: dict[tuple[int, int], str] = {}
    yield from _line_faults(path, config, rows, facts, seen)
    missing = [key for key in planned(config, len(rows)) if key not in seen]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        yield f"{image_name(*missing[0])}{more}: in the plan and not in the manifest"
    yield from _other_files(path, set(seen.values()))


def _line_faults(
    path: Path, config: RunConfig, rows: Sequence[Row], facts: Mapping[str, Any], seen: dict[tuple[int, int], str]
) -> Iterator[str]:
    """Faults of the manifest's lines and of their images. Fills `seen`: (row, copy) -> file name."""
    from tpusd.records.layout import MANIFEST
    from tpusd.records.manifest import line_key, manifest_lines, parse_line

    wanted = set(planned(config, len(rows)))
    environments = facts.get("environments")
    for number, line in enumerate(manifest_lines(path), 1):
        where = f"{MANIFEST} line {number}"
        record = parse_line(line)
        key = None if record is None else line_key(record)
        if key is None:
            yield f"{where}: is no line of an image"
            continue
        if key in seen:
            yield f"{where}: {image_name(*key)} stands in it twice"
            continue
        seen[key] = record["file_name"]
        if key not in wanted:
            yield f"{where}: {image_name(*key)} is not in the plan of config.yaml"
            continue
        yield from (f"{where}: {fault}" for fault in _recipe_faults(config, rows, key, record))
        if not isinstance(environments, dict) or record.get("environment") not in environments:
            yield f"{where}: run.json does not know the environment {show(record.get('environment'))}"
        yield from (f"{record['file_name']}: {fault}" for fault in _file_faults(path, record))
    if _torn(path):
        yield f"{MANIFEST}: its last line is torn"


def _recipe_faults(
    config: RunConfig, rows: Sequence[Row], key: tuple[int, int], record: Mapping[str, Any]
) -> Iterator[str]:
    from tpusd.records.manifest import recipe

    spec = make_spec(config, rows, *key, height=config.height, width=config.width)
    for name, value in (recipe(config, spec) | dict(spec.extra)).items():
        if record.get(name) != value:
            yield f"{name}={show(record.get(name))}, and config.yaml says {show(value)}"
    for name in sorted(MANIFEST_FIELDS - record.keys()):
        yield f"has no {name}"


def _file_faults(path: Path, record: Mapping[str, Any]) -> Iterator[str]:
    """The image of one line."""
    from PIL import Image

    from tpusd.storage import local as storage

    file = path / record["file_name"]
    try:
        size = storage.file_size(file)
        if size is None:
            yield "is a link or no regular file" if storage.exists(file) else "is missing"
            return
        if size != record.get("num_bytes"):
            yield f"has {size} bytes, and the manifest says {show(record.get('num_bytes'))}"
        if storage.file_sha256(file) != record.get("sha256"):
            yield "its sha256 is not the manifest's"
            return
        with Image.open(file, formats=("PNG", "JPEG", "WEBP")) as image:
            if image.size != (record.get("width"), record.get("height")):
                yield f"is {image.width}x{image.height}, and the manifest says otherwise"
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        yield f"cannot be read: {show(str(error))}"


def _other_files(path: Path, known: set[str]) -> Iterator[str]:
    """Files in images/ that no line names, and what an interrupted write left."""
    from tpusd.records.layout import IMAGES
    from tpusd.storage import local as storage
    from tpusd.storage.local import told_as_user_error

    with told_as_user_error(path, "check the directory's permissions", "read"):
        names = storage.list_directory(path / IMAGES) if storage.exists(path / IMAGES) else []
        for name in names:
            if f"{IMAGES}/{name}" not in known:
                yield f"{IMAGES}/{show(name)}: is in no line of the manifest"
        for name in storage.list_directory(path):
            if name.endswith(storage.TEMPORARY):
                yield f"{show(name)}: is what an interrupted write left"


def _torn(path: Path) -> bool:
    from tpusd.records.layout import MANIFEST
    from tpusd.storage import local as storage
    from tpusd.storage.local import told_as_user_error

    with told_as_user_error(path, "check the directory's permissions", "read"):
        return storage.ends_torn(path / MANIFEST)


if __name__ == "__main__":
    sys.exit(main())
