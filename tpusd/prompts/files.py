"""Prompt files: txt, csv, tsv, jsonl, json and parquet, read into records."""

import csv
import itertools
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tpusd.config.json_values import JsonError, parse_json
from tpusd.config.rows import MAX_COLUMN_DEPTH, ROW_FIELDS
from tpusd.errors import UserError, show, show_path
from tpusd.prompts.lines import MAX_LINE_CHARS, RecordLines, text_lines
from tpusd.prompts.parquet import read_parquet
from tpusd.records.layout import MAX_LINE_VALUES

KINDS = "txt, csv, tsv, jsonl, json or parquet"
MAX_FILE_BYTES = 1 << 30
MAX_JSON_BYTES = 64 << 20  # of a file that is parsed as one value, which takes many times that in memory
MAX_JSON_VALUES = 1 << 23  # of such a file
MAX_COLUMNS = 1000
MAX_HEADER_CHARS = 1 << 16


Record = Mapping[str, Any] | UserError  # any JSON values; an error is of that row alone, and the next ones are read


def read_file(given: str, column: str | None) -> Iterator[tuple[str, Record]]:
    """(place, record) of every row of the file `given`; the place says file and line. Raises UserError.

    column: the column that holds the prompts, None where the user named none.
    """
    path = Path(given)
    readers = {
        ".txt": _read_txt,
        ".csv": _read_csv,
        ".tsv": _read_csv,
        ".jsonl": _read_jsonl,
        ".json": _read_json,
        ".parquet": _read_parquet,
    }
    suffix = path.suffix.lower()
    if suffix not in readers:
        raise UserError(f"prompts.path={show(given)}: must end in {', '.join(readers)}")
    if suffix == ".txt" and column is not None:
        raise UserError(f"prompts.column={show(column)}: a txt file has no columns; leave it out")
    _check_file(path, MAX_JSON_BYTES if suffix == ".json" else MAX_FILE_BYTES)
    return readers[suffix](path, column or "prompt")


def _check_file(path: Path, most: int) -> None:
    where = f"prompts.path={show_path(path)}"
    try:
        if not path.is_file():
            raise UserError(f"{where}: {'is not a file' if path.exists() else 'no such file'}; give a {KINDS} file")
        if path.stat().st_size > most:
            raise UserError(f"{where}: is over {most >> 20} MiB; split it over several runs, or write it as jsonl")
        with open(path, "rb") as file:
            if file.read(2) in (b"\xff\xfe", b"\xfe\xff"):
                raise UserError(f"{where}: is UTF-16; save it as UTF-8")
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise UserError(f"{where}: cannot be read: {getattr(error, 'strerror', None) or error}") from None


def _read_txt(path: Path, column: str) -> Iterator[tuple[str, Record]]:
    where = f"prompts.path={show_path(path)}"
    for number, line in enumerate(text_lines(path, where), 1):
        if line.strip():
            yield f"{where} line {number}", {"prompt": line.strip()}


def _read_csv(path: Path, column: str) -> Iterator[tuple[str, Record]]:
    where = f"prompts.path={show_path(path)}"
    lines = text_lines(path, where)
    blank, first = next(((number, line) for number, line in enumerate(lines) if line.strip()), (0, ""))
    delimiter = "\t" if path.suffix.lower() == ".tsv" else _delimiter(first, column)
    csv.field_size_limit(MAX_LINE_CHARS)
    taken = RecordLines(itertools.chain([first], lines), where, blank)
    reader = csv.reader(taken, delimiter=delimiter, strict=True)
    header: list[str] | None = None
    start = blank + 1
    try:
        for cells in reader:
            place, start = f"{where} line {start}", blank + reader.line_num + 1
            taken.chars = 0
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


def _delimiter(first: str, column: str) -> str:
    """Of a csv file: a semicolon or a tab where only that makes the column of the prompts, else a comma."""
    header = first[:MAX_HEADER_CHARS]
    for delimiter in (",", ";", "\t"):
        if column in [cell.strip().strip('"') for cell in header.split(delimiter)]:
            return delimiter
    return ","


def _read_json(path: Path, column: str) -> Iterator[tuple[str, Record]]:
    """A list of objects or of texts; a group that holds one such list under any name is that list."""
    where = f"prompts.path={show_path(path)}"
    form = f'write a list of objects, as in [{{"{column}": "..."}}]'
    try:
        data = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
        found = parse_json(data, max_values=MAX_JSON_VALUES, max_depth=3 + MAX_COLUMN_DEPTH)
    except OSError as error:
        raise UserError(f"{where}: cannot be read: {error.strerror}") from None
    except JsonError as error:
        raise UserError(f"{where}: {error}; {form}") from None
    del data
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


def _read_parquet(path: Path, column: str) -> Iterator[tuple[str, Record]]:
    return read_parquet(path, f"prompts.path={show_path(path)}", MAX_COLUMNS)


def _read_jsonl(path: Path, column: str) -> Iterator[tuple[str, Record]]:
    where = f"prompts.path={show_path(path)}"
    for number, line in enumerate(text_lines(path, where), 1):
        if not line.strip():
            continue
        place = f"{where} line {number}"
        try:
            record = parse_json(line.strip(), max_values=MAX_LINE_VALUES, max_depth=1 + MAX_COLUMN_DEPTH)
        except JsonError as error:
            yield place, UserError(f'{place}: {error}; write one object a line, as in {{"prompt": "..."}}')
            continue
        if not isinstance(record, dict):
            yield place, UserError(f'{place}: must be an object, as in {{"prompt": "..."}}, not {show(record)}')
            continue
        yield place, record
