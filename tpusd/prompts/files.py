"""Prompt files: txt, csv, tsv, jsonl, json and parquet, read into records."""

import csv
import io
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tpusd.config.rows import ROW_FIELDS
from tpusd.errors import UserError, show, show_path
from tpusd.prompts.parquet import read_parquet

KINDS = "txt, csv, tsv, jsonl, json or parquet"
MAX_FILE_BYTES = 1 << 30
MAX_JSON_BYTES = 64 << 20  # of a file that is parsed as one value, which takes many times that in memory
MAX_JSON_SIGNS = 1 << 24  # of a json file: commas and brackets, of which there are as many as values
MAX_COLUMNS = 1000
MAX_HEADER_CHARS = 1 << 16


Record = Mapping[str, Any] | UserError  # any JSON values; an error is of that row alone, and the next ones are read


def read_file(given: str, column: str | None) -> Iterator[tuple[str, Record]]:
    """(place, record) of every row of the file `given`; the place says file and line. Raises UserError.

    column: the column that holds the prompts, None where the user named none.
    """
    path = Path(given)
    readers = {
        ".txt": _read_txt, ".csv": _read_csv, ".tsv": _read_csv, ".jsonl": _read_jsonl, ".json": _read_json
    }  # fmt: skip
    suffix = path.suffix.lower()
    if suffix not in (*readers, ".parquet"):
        raise UserError(f"prompts.path={show(given)}: must end in {', '.join([*readers, '.parquet'])}")
    if suffix == ".txt" and column is not None:
        raise UserError(f"prompts.column={show(column)}: a txt file has no columns; leave it out")
    data = _read_bytes(path, MAX_JSON_BYTES if suffix == ".json" else MAX_FILE_BYTES)
    if suffix == ".parquet":
        return read_parquet(data, f"prompts.path={show_path(path)}", MAX_COLUMNS)
    return readers[suffix](path, _decoded(path, data), column or "prompt")


def _read_bytes(path: Path, most: int) -> bytes:
    where = f"prompts.path={show_path(path)}"
    try:
        if not path.is_file():
            raise UserError(f"{where}: {'is not a file' if path.exists() else 'no such file'}; give a {KINDS} file")
        if path.stat().st_size > most:
            raise UserError(f"{where}: is over {most >> 20} MiB; split it over several runs, or write it as jsonl")
        return path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise UserError(f"{where}: cannot be read: {getattr(error, 'strerror', None) or error}") from None


def _decoded(path: Path, data: bytes) -> str:
    where = f"prompts.path={show_path(path)}"
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise UserError(f"{where}: is UTF-16; save it as UTF-8")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(f"{where} line {line}: is not UTF-8; save the file as UTF-8") from None


def _lines(text: str) -> list[str]:
    """Lines end at \\n, \\r\\n or \\r alone: str.splitlines would also cut at form feeds and Unicode separators."""
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")


def _read_txt(path: Path, text: str, column: str) -> Iterator[tuple[str, Record]]:
    for number, line in enumerate(_lines(text), 1):
        if line.strip():
            yield f"prompts.path={show_path(path)} line {number}", {"prompt": line.strip()}


def _read_csv(path: Path, text: str, column: str) -> Iterator[tuple[str, Record]]:
    where = f"prompts.path={show_path(path)}"
    delimiter = "\t" if path.suffix.lower() == ".tsv" else _delimiter(text, column)
    csv.field_size_limit(MAX_FILE_BYTES)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    start = 1
    try:
        for cells in reader:
            place, start = f"{where} line {start}", reader.line_num + 1
            if not cells or cells == [""]:
                continue
            if header is None:
                header = [cell.strip() for cell in cells]
                if len(header) > MAX_COLUMNS:
                    raise UserError(f"{place}: has {len(header)} columns; at most {MAX_COLUMNS} are read")
                twice = [name for name, number in Counter(header).items() if number > 1]
                if twice:
                    raise UserError(f"{place}: column {show(twice[0])} is twice in the header; rename one")
            elif len(cells) != len(header):
                signs = {",": "commas", "\t": "tabs", ";": "semicolons"}[delimiter]
                found = f"has {len(cells)} cells and the header has {len(header)}"
                yield place, UserError(f"{place}: {found}; put text that holds {signs} in double quotes")
            else:
                record = dict(zip(header, cells, strict=True))
                # An empty cell is how csv says that a row brings no value of its own.
                yield (
                    place,
                    {name: None if name in ROW_FIELDS[1:] and not cell else cell for name, cell in record.items()},
                )
    except csv.Error as error:
        raise UserError(f"{where} line {start}: is not readable ({error}); check its double quotes") from None


def _delimiter(text: str, column: str) -> str:
    """Of a csv file: a semicolon or a tab where only that makes the column of the prompts, else a comma."""
    header = next((line for line in io.StringIO(text) if line.strip()), "")[:MAX_HEADER_CHARS]
    for delimiter in (",", ";", "\t"):
        if column in [cell.strip().strip('"') for cell in header.split(delimiter)]:
            return delimiter
    return ","


def _read_json(path: Path, text: str, column: str) -> Iterator[tuple[str, Record]]:
    """A list of objects or of texts; a group that holds one such list under any name is that list."""
    where = f"prompts.path={show_path(path)}"
    form = f'write a list of objects, as in [{{"{column}": "..."}}]'
    if sum(map(text.count, ",[{")) > MAX_JSON_SIGNS:
        raise UserError(f"{where}: holds more than {MAX_JSON_SIGNS} values; write it as jsonl")
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}{_json_fault(error, with_line=True)}; {form}") from None
    if isinstance(found, dict) and column not in found:
        lists = [value for value in found.values() if isinstance(value, list)]
        found = lists[0] if len(lists) == 1 else found
    if not isinstance(found, list):
        raise UserError(f"{where}: is not a list of prompts; {form}")
    for number, record in enumerate(found):
        place = f"{where} row {number}"
        if isinstance(record, str | None):
            yield place, {column: record}
        elif isinstance(record, dict):
            yield place, record
        else:
            yield place, UserError(f"{place}: must be an object or text, not {show(record)}; {form}")


def _json_fault(error: ValueError | RecursionError, *, with_line: bool) -> str:
    if not isinstance(error, json.JSONDecodeError):
        return ": is not JSON (too deep or too long)"
    return f"{f' line {error.lineno}' if with_line else ''}: is not JSON ({error.msg}, column {error.colno})"


def _read_jsonl(path: Path, text: str, column: str) -> Iterator[tuple[str, Record]]:
    for number, line in enumerate(_lines(text), 1):
        if not line.strip():
            continue
        place = f"prompts.path={show_path(path)} line {number}"
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            fault = _json_fault(error, with_line=False)
            yield place, UserError(f'{place}{fault}; write one object a line, as in {{"prompt": "..."}}')
            continue
        if not isinstance(record, dict):
            yield place, UserError(f'{place}: must be an object, as in {{"prompt": "..."}}, not {show(record)}')
            continue
        yield place, record
