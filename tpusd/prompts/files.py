"""Prompt files: txt, csv, tsv and jsonl, read into records."""

import csv
import io
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tpusd.config.rows import ROW_FIELDS
from tpusd.errors import UserError, show, show_path

MAX_FILE_BYTES = 1 << 30
MAX_COLUMNS = 1000
MAX_HEADER_CHARS = 1 << 16


Record = Mapping[str, Any] | UserError  # any JSON values; an error is of that row alone, and the next ones are read


def read_file(given: str, column: str | None) -> Iterator[tuple[str, Record]]:
    """(place, record) of every row of the file `given`; the place says file and line. Raises UserError.

    column: the column that holds the prompts, None where the user named none.
    """
    path = Path(given)
    readers = {".txt": _read_txt, ".csv": _read_csv, ".tsv": _read_csv, ".jsonl": _read_jsonl}
    suffix = path.suffix.lower()
    if suffix not in readers:
        raise UserError(f"prompts.path={show(given)}: must end in {', '.join(readers)}")
    if suffix == ".txt" and column is not None:
        raise UserError(f"prompts.column={show(column)}: a txt file has no columns; leave it out")
    return readers[suffix](path, _read_text(path), column or "prompt")


def _read_text(path: Path) -> str:
    where = f"prompts.path={show_path(path)}"
    try:
        if not path.is_file():
            raise UserError(
                f"{where}: {'is not a file' if path.exists() else 'no such file'}; give a txt, csv, tsv or jsonl file"
            )
        if path.stat().st_size > MAX_FILE_BYTES:
            raise UserError(f"{where}: is over {MAX_FILE_BYTES >> 30} GiB; split it over several runs")
        data = path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise UserError(f"{where}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
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


def _read_jsonl(path: Path, text: str, column: str) -> Iterator[tuple[str, Record]]:
    for number, line in enumerate(_lines(text), 1):
        if not line.strip():
            continue
        place = f"prompts.path={show_path(path)} line {number}"
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            reason = (
                f"{error.msg}, column {error.colno}"
                if isinstance(error, json.JSONDecodeError)
                else "too deep or too long"
            )
            fault = f'{place}: is not JSON ({reason}); write one object a line, as in {{"prompt": "..."}}'
            yield place, UserError(fault)
            continue
        if not isinstance(record, dict):
            yield place, UserError(f'{place}: must be an object, as in {{"prompt": "..."}}, not {show(record)}')
            continue
        yield place, record
