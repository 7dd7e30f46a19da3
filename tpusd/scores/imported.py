"""Scores that another program computed: a CSV, TSV or JSONL file with a line for each image -> columns of runs.

    file_name,hpsv3,vqa                            row,copy,hpsv3
    images/00003-001.png,7.5,0.92                  3,1,7.5

A line names its image by `file_name` (`images/` may be missing), or by `row` and `copy` (0 where there is no such
column); in a sweep also by `run`, or a `file_name` that begins with the run, as index.jsonl has it. With `sha256` a
line counts only for that very picture.
"""

import csv
import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tpusd.config.json_values import JsonError, parse_json
from tpusd.errors import UserError, show, show_path
from tpusd.prompts.lines import MAX_LINE_CHARS, RecordLines, text_lines
from tpusd.records.layout import IMAGES
from tpusd.records.manifest import FIELDS, OPTIONAL_FIELDS, ImageRecord
from tpusd.records.scores import MAX_COLUMNS, PREFIX, check_column, is_number

IMPORT = "import"  # what the lines of such a column name as their metric
_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_NOT_SCORES = frozenset((*FIELDS, *OPTIONAL_FIELDS, "run", "path", "overrides"))
MAX_FILE_BYTES = 1 << 30
_MAX_LINE_VALUES = 5000
NOT_FINITE = "is not a number, or is over 1e15"


@dataclass(frozen=True, kw_only=True)
class ImportedFile:
    """sha256: of the file. values: column -> (run, file name) -> value.

    left_out: a line for each line without image, and for each column that has a number and something else.
    """

    sha256: str
    values: Mapping[str, Mapping[tuple[str, str], float | None]]
    left_out: tuple[str, ...]


def read_scores_file(
    path: Path, runs: Mapping[str, Sequence[ImageRecord]], columns: Sequence[str] | None
) -> ImportedFile:
    """Reads the scores of these runs' images. Raises UserError.

    path: of the file; its suffix says what it is.
    runs: name -> manifest; the name of a single run is empty.
    columns: those to read; None: all that hold numbers and have no name of a manifest field.
    """
    where = f"import={show_path(path)}"
    images = _Images(runs)
    values: dict[str, dict[tuple[str, str], float | None]] = {name: {} for name in columns or ()}
    for name in values:
        check_column(name, f"columns={name}")
    texts: dict[str, str] = {}  # columns that hold something else than numbers -> where and what
    mixed: set[str] = set()  # those of them that hold numbers too
    seen: set[tuple[str, str]] = set()
    unknown: list[str] = []
    for place, line in _records(path, where):
        for name in values if columns is not None else ():
            if name not in line:
                raise UserError(f"{place}: has no column {show(name)}, which columns= names; check its spelling")
        image = images.find(line)
        if isinstance(image, str):
            unknown.append(f"{place}: {image}")
            continue
        if image in seen:
            raise UserError(f"{place}: {image[0]}{'/' if image[0] else ''}{image[1]} has a line already; remove one")
        seen.add(image)
        for name in columns if columns is not None else [name for name in line if name not in _NOT_SCORES]:
            value = _number(line[name])
            if isinstance(value, str):
                if columns is not None:
                    raise UserError(f"{place}: {name}={show(line[name])}: {value}; write a number, or leave it empty")
                texts.setdefault(name, f"{place}: {name}={show(line[name])}: {value}")
                if values.pop(name, None) or value == NOT_FINITE:
                    mixed.add(name)
                continue
            if name in texts:
                if value is not None:
                    mixed.add(name)
                continue
            values.setdefault(name, {})[image] = value
            if len(values) > MAX_COLUMNS:
                raise UserError(f"{where}: has over {MAX_COLUMNS} columns of numbers; name some with columns=A,B")
    unknown += [f"{texts[name]}; the column is left out: write a number there, or nothing" for name in sorted(mixed)]
    if not any(any(value is not None for value in own.values()) for own in values.values()) and mixed:
        raise UserError(unknown[-1])
    return ImportedFile(sha256=_sha256(path, where), values=_named(values, where), left_out=tuple(unknown))


class _Images:
    """The images of the runs, by each name that a line can have for one."""

    def __init__(self, runs: Mapping[str, Sequence[ImageRecord]]):
        self._runs = runs
        self._names = {(run, record.file_name): record for run, records in runs.items() for record in records}
        self._places = {(run, *record.key): record for run, records in runs.items() for record in records}

    def find(self, line: Mapping[str, Any]) -> tuple[str, str] | str:
        """(run, file name) of a line's image, or why there is none."""
        run = line.get("run", "" if "" in self._runs else None)
        file_name = line.get("file_name")
        if isinstance(file_name, str) and file_name:
            if "" not in self._runs and file_name.count("/") == 2:
                run, _, file_name = file_name.partition("/")
            name = file_name if "/" in file_name else f"{IMAGES}/{file_name}"
            record, said = self._names.get((str(run), name)), f"file_name={show(file_name)}"
        else:
            row, copy = _whole(line.get("row")), _whole(line.get("copy", 0))
            if row is None or copy is None:
                return "names no image; give file_name, or row and copy"
            record, said = self._places.get((str(run), row, copy)), f"row={row}, copy={copy}"
        if record is None:
            if run is None:
                return f"{said}: names no run of the sweep; give run, or a file_name that begins with it"
            return f"{said}: is no image of {show(str(run)) if run else 'the run'}"
        if line.get("sha256") not in (None, "", record.sha256):
            return f"{said}: its sha256 is not the manifest's, so the score is of another picture"
        return str(run), record.file_name


def _named(values: Mapping[str, Mapping[tuple[str, str], float | None]], where: str) -> dict[str, Any]:
    """The columns with a score, by the names that they get: `scores.x`, as tpusd writes it, is x again."""
    found = {name.removeprefix(PREFIX): own for name, own in values.items() if any(v is not None for v in own.values())}
    if not found:
        raise UserError(f"{where}: has no column of numbers for images of this run; see python -m tpusd.score --help")
    for name in found:
        check_column(name, where)
    return found


def _number(value: object) -> float | None | str:
    """A cell's number; None where it is empty; else what is wrong."""
    if value is None or value == "":
        return None
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return "is not a number"
    if not is_number(value):
        return NOT_FINITE if isinstance(value, int | float) else "is not a number"
    assert isinstance(value, int | float)
    return float(value)


def _whole(value: object) -> int | None:
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 10:
        return int(value)
    if isinstance(value, float) and math.isfinite(value) and value.is_integer():
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _records(path: Path, where: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(place, cells by column) of each line. Raises UserError."""
    suffix = path.suffix.lower()
    if suffix not in (*_DELIMITERS, ".jsonl"):
        raise UserError(f"{where}: must end in .csv, .tsv or .jsonl")
    if not path.is_file():
        raise UserError(f"{where}: {'is not a file' if path.exists() else 'no such file'}")
    if path.stat().st_size > MAX_FILE_BYTES:
        raise UserError(f"{where}: is over {MAX_FILE_BYTES >> 20} MiB; split it")
    yield from _jsonl(path, where) if suffix == ".jsonl" else _csv(path, where, _DELIMITERS[suffix])


def _jsonl(path: Path, where: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for number, line in enumerate(text_lines(path, where), 1):
        if not line.strip():
            continue
        place = f"{where} line {number}"
        try:
            values = parse_json(line.strip(), max_values=_MAX_LINE_VALUES)
        except JsonError as error:
            raise UserError(f"{place}: {error}; write one object a line") from None
        if not isinstance(values, dict):
            raise UserError(f"{place}: must be an object, not {show(values)}")
        yield place, values


def _csv(path: Path, where: str, delimiter: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    csv.field_size_limit(MAX_LINE_CHARS)
    lines = RecordLines(text_lines(path, where), where, 0)
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    header: list[str] | None = None
    try:
        for cells in reader:
            lines.chars = 0
            place = f"{where} line {reader.line_num}"
            if not any(cells):
                continue
            if header is None:
                header = [cell.strip() for cell in cells]
                if len(set(header)) < len(header):
                    raise UserError(f"{place}: a column is twice in the header; rename one")
            elif len(cells) != len(header):
                raise UserError(f"{place}: has {len(cells)} cells and the header has {len(header)}; correct the line")
            else:
                yield place, dict(zip(header, (cell.strip() for cell in cells), strict=True))
    except csv.Error as error:
        raise UserError(f"{where} line {reader.line_num}: is not readable ({error}); check its double quotes") from None


def _sha256(path: Path, where: str) -> str:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{where}: cannot be read: {error.strerror}") from None
