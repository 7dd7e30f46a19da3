"""The prompt rows of a large run: a jsonl file beside config.yaml, which has its name and its sha256 in their place.

The file is named by its sha256 and never changed. It is whole on disk before config.yaml names it, and an older one is
removed after that, so a run directory has the rows of its config at every moment.
"""

import contextlib
import functools
import hashlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tpusd import storage
from tpusd.config.json_values import JsonError, parse_json
from tpusd.config.limits import MAX_ROWS
from tpusd.config.packed_rows import NO_SETTINGS, PackedRows, Packer, only_prompt, row_settings
from tpusd.config.rows import MAX_COLUMN_DEPTH, MAX_PROMPT_CHARS, parse_row
from tpusd.config.yaml_files import to_yaml
from tpusd.errors import UserError, show, show_path
from tpusd.records.layout import CONFIG, MAX_CONFIG_BYTES, MAX_LINE_VALUES
from tpusd.records.manifest import check_columns

_NAME = re.compile(r"prompts-([0-9a-f]{12})\.jsonl")
_TORN = re.compile(_NAME.pattern + re.escape(storage.TEMPORARY))
FIELDS = ("file", "sha256", "num_rows")


def write_config_files(path: Path, values: Mapping[str, Any]) -> None:
    """Writes config.yaml, and before it the file of its rows where they are many. Raises OSError.

    path: the run directory.
    values: the config's plain values.
    """
    rows = values.get("prompts", {}).get("rows")
    if not isinstance(rows, PackedRows):
        storage.write_file(path / CONFIG, to_yaml(values).encode())
        return
    name = f"prompts-{rows.sha256[:12]}.jsonl"
    if storage.file_size(path / name) != len(rows.data):
        storage.write_file(path / name, rows.data)
    named = dict(zip(FIELDS, (name, rows.sha256, len(rows)), strict=True))
    storage.write_file(path / CONFIG, to_yaml(dict(values) | {"prompts": values["prompts"] | {"rows": named}}).encode())
    for other in storage.list_directory(path):
        if is_prompt_file(other) and other != name:
            with contextlib.suppress(OSError):
                storage.remove_file(path / other)


def is_prompt_file(name: str) -> bool:
    """Whether a file of a run directory has this name because it holds rows."""
    return _NAME.fullmatch(name) is not None


def is_half_a_prompt_file(name: str) -> bool:
    """Whether it is what an interrupted write of such a file left."""
    return _TORN.fullmatch(name) is not None


def with_rows(path: Path, values: object) -> object:
    """The values of a config.yaml with its rows, where it has the name of their file. Raises UserError.

    path: the directory of both.
    """
    if not isinstance(values, dict):
        return values
    prompts = values.get("prompts")
    if not isinstance(prompts, dict) or not isinstance(named := prompts.get("rows"), dict):
        return values
    return values | {"prompts": prompts | {"rows": _read(path, named)}}


def _read(path: Path, named: Mapping[str, Any]) -> PackedRows:
    where = f"{show_path(path / CONFIG)}: prompts.rows"
    name, sha256, num_rows = (named.get(field) for field in FIELDS)
    found = _NAME.fullmatch(name) if isinstance(name, str) else None
    valid = isinstance(sha256, str) and re.fullmatch("[0-9a-f]{64}", sha256) and found and sha256.startswith(found[1])
    if not valid or type(num_rows) is not int or set(named) != set(FIELDS):
        raise UserError(
            f"{where}={show(dict(named))}: must be a list of rows, or the name of the run's file of rows with its "
            f"sha256 and num_rows; restore the {CONFIG} that the run wrote"
        )
    file = path / str(name)
    advice = f"{CONFIG} names it; restore the file that the run wrote"
    try:
        size = storage.file_size(file)
        if size is None:
            raise UserError(f"{show_path(file)}: no such file, and {advice}")
        if size > MAX_CONFIG_BYTES:
            raise UserError(f"{show_path(file)}: is over {MAX_CONFIG_BYTES >> 30} GiB, more than a run writes")
        data = storage.read_file(file, MAX_CONFIG_BYTES)
    except OSError as error:
        raise UserError(f"{show_path(file)}: cannot be read: {error.strerror}") from None
    own = hashlib.sha256(data).hexdigest()
    if own != sha256:
        raise UserError(f"{show_path(file)}: is not as it was: its sha256 is {own[:12]}..., and {advice}")
    last = _last_read()
    if sha256 not in last:
        last.clear()
        last[own] = _parsed(data, show_path(file))
    rows = last[own]
    if len(rows) != num_rows:
        raise UserError(f"{where}.num_rows={num_rows}: {show_path(file)} has {len(rows)}; restore both files")
    return rows


@functools.cache
def _last_read() -> dict[str, PackedRows]:
    """sha256 -> the rows of the file that was read last: a command reads a config several times."""
    return {}


def _parsed(data: bytes, where: str) -> PackedRows:
    packer = Packer()
    for number, line in enumerate(_lines(data, where), 1):
        place = f"{where} line {number}"
        if number > MAX_ROWS:
            raise UserError(f"{place}: a run has at most {MAX_ROWS} rows")
        prompt = only_prompt(line)
        if prompt is not None and len(prompt) <= MAX_PROMPT_CHARS and _is_text(prompt):
            packer.add_line(line + b"\n", NO_SETTINGS)
            continue
        try:
            values = parse_json(line, max_values=MAX_LINE_VALUES, max_depth=1 + MAX_COLUMN_DEPTH)
        except JsonError as error:
            raise UserError(f"{place}: {error}") from None
        if not isinstance(values, dict):
            raise UserError(f"{place}: must be an object, not {show(values)}")
        row = parse_row(place, values)
        check_columns([row], place)
        packer.add_line(line + b"\n", row_settings(row))
    return packer.packed()


def _is_text(prompt: bytes) -> bool:
    try:
        return bool(prompt.decode().strip())
    except UnicodeDecodeError:
        return False


def _lines(data: bytes, where: str) -> Iterator[bytes]:
    start = 0
    while start < len(data):
        end = data.find(b"\n", start)
        if end < 0:
            raise UserError(f"{where}: its last line has no end")
        yield data[start:end]
        start = end + 1
