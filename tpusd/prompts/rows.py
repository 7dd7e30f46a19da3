"""Prompt sets: inline rows, txt, csv, tsv and jsonl files -> Rows.

Knows where a row came from, so that every message can say it; knows nothing of seeds' meaning, copies or models.
"""

import csv
import difflib
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tpusd.config.schema import MAX_ROWS, PromptsConfig, check_guidance_scale, check_seed, show, show_path
from tpusd.errors import UserError

MAX_FILE_BYTES = 1 << 30
MAX_PROMPT_CHARS = 200_000  # far beyond any text encoder's window, and short enough for a PNG text chunk
ROW_FIELDS = ("prompt", "negative_prompt", "seed", "guidance_scale")
# What a manifest line holds of its own; a prompt file's further column may not take one of these names.
MANIFEST_FIELDS = frozenset(
    "file_name sha256 num_bytes row copy prompt negative_prompt seed row_seed height width sampler num_inference_steps "
    "guidance_scale guidance_rescale model precision num_tokens truncated environment trace".split()
)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One prompt. `None`: the run's own value holds. `extra`: further columns, for the manifest alone."""

    prompt: str
    negative_prompt: str | None = None
    seed: int | None = None
    guidance_scale: float | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


def read_rows(prompts: PromptsConfig) -> tuple[Row, ...]:
    """All rows of a prompt set, checked. Raises UserError with the place (file and line, or row) of the first fault."""
    if prompts.path is None:
        records = ((f"prompts.rows[{i}]", row) for i, row in enumerate(prompts.rows))
        column, source = "prompt", "prompts.rows"
    else:
        records, column, source = _read_file(prompts), prompts.column or "prompt", f"prompts.path={show(prompts.path)}"
    rows = []
    for place, record in records:
        if len(rows) == MAX_ROWS:
            raise UserError(f"{source}: more than {MAX_ROWS} prompts; split them over several runs")
        rows.append(_row(place, record, column, inline=prompts.path is None))
    if not rows:
        raise UserError(f"{source}: holds no prompt; add at least one")
    return tuple(rows)


def row_values(row: Row) -> dict[str, Any]:
    """A Row as an inline row of a config: what a saved config.yaml holds, so that it needs no other file."""
    own = {name: getattr(row, name) for name in ROW_FIELDS if getattr(row, name) is not None}
    return own | dict(row.extra)


def _row(place: str, record: Mapping[str, Any], column: str, *, inline: bool) -> Row:
    values = dict(record)
    if column not in values:
        have = [str(key) for key in values]
        near = difflib.get_close_matches(column, set(have) - set(ROW_FIELDS), n=1)
        raise UserError(
            f"{place}: has no column {show(column)}; it has {show(', '.join(have)) or 'none'}; "
            + (
                f"write {{{column}: text}}"
                if inline
                else f"choose one with prompts.column={near[0] if near else 'NAME'}"
            )
        )
    prompt = _text(place, column, values.pop(column))
    if not prompt.strip():
        raise UserError(f"{place}: {show(column)} is empty; write a prompt or take the row out")
    if column != "prompt" and "prompt" in values:
        raise UserError(
            f"{place}: has both {show(column)} and prompt, and the manifest's prompt is {show(column)}; "
            "rename the column prompt"
        )
    negative_prompt, seed, scale = (values.pop(name, None) for name in ROW_FIELDS[1:])
    for name in values:
        if not isinstance(name, str) or name in MANIFEST_FIELDS:
            raise UserError(f"{place}: column {show(name)} has the name of a manifest field; rename the column")
    return Row(
        prompt=prompt,
        negative_prompt=None if negative_prompt is None else _text(place, "negative_prompt", negative_prompt),
        seed=None if seed in (None, "") else check_seed(f"{place}: seed", _number(seed, int)),
        guidance_scale=None if scale in (None, "") else _guidance_scale(place, scale),
        extra={name: _json_value(place, name, value) for name, value in values.items()},
    )


def _text(place: str, name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise UserError(f"{place}: {show(name)}={show(value)}: must be text; put it in quotes")
    if len(value) > MAX_PROMPT_CHARS:
        raise UserError(f"{place}: {show(name)} has {len(value)} characters; at most {MAX_PROMPT_CHARS} are read")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise UserError(
            f"{place}: {show(name)} holds half a surrogate pair, which is not Unicode text; take it out"
        ) from None
    return value


def _number(value: Any, kind: type) -> Any:
    """csv gives text: '7' -> 7. What is not a number stays, for the check that follows to refuse."""
    try:
        return kind(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _guidance_scale(place: str, value: Any) -> float:
    number = _number(value, float)
    if isinstance(number, bool) or not isinstance(number, int | float):
        raise UserError(f"{place}: guidance_scale={show(value)}: must be a number")
    try:
        return check_guidance_scale(f"{place}: guidance_scale", float(number))
    except OverflowError:
        raise UserError(f"{place}: guidance_scale={show(value)}: is too large") from None


def _json_value(place: str, name: str, value: Any) -> Any:
    """Further columns travel into JSON as they are, so they must fit there."""
    try:
        json.dumps(value, allow_nan=False).encode()
        json.dumps(value, ensure_ascii=False).encode()
        json.dumps(name, ensure_ascii=False).encode()
    except (TypeError, ValueError, RecursionError):
        raise UserError(
            f"{place}: {show(name)}={show(value)}: cannot stand in the manifest; use text or a number"
        ) from None
    return value


# Files. Each reader yields (place, record).


def _read_file(prompts: PromptsConfig) -> Iterator[tuple[str, Mapping[str, Any]]]:
    path = Path(prompts.path)
    readers = {".txt": _read_txt, ".csv": _read_csv, ".tsv": _read_csv, ".jsonl": _read_jsonl}
    suffix = path.suffix.lower()
    if suffix not in readers:
        raise UserError(f"prompts.path={show(prompts.path)}: must end in {', '.join(readers)}")
    if suffix == ".txt" and prompts.column is not None:
        raise UserError(f"prompts.column={show(prompts.column)}: a txt file has no columns; leave it out")
    return readers[suffix](path, _read_text(path))


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


def _read_txt(path: Path, text: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for number, line in enumerate(_lines(text), 1):
        if line.strip():
            yield f"prompts.path={show_path(path)} line {number}", {"prompt": line.strip()}


def _read_csv(path: Path, text: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    where = f"prompts.path={show_path(path)}"
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
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
                twice = [name for i, name in enumerate(header) if name in header[:i]]
                if twice:
                    raise UserError(f"{place}: column {show(twice[0])} stands twice in the header; rename one")
            elif len(cells) != len(header):
                raise UserError(
                    f"{place}: has {len(cells)} cells and the header has {len(header)}; "
                    f"put text that holds {'tabs' if delimiter != ',' else 'commas'} in double quotes"
                )
            else:
                record = dict(zip(header, cells, strict=True))
                # An empty cell is how csv says that a row brings no value of its own.
                yield (
                    place,
                    {name: None if name in ROW_FIELDS[1:] and not cell else cell for name, cell in record.items()},
                )
    except csv.Error as error:
        raise UserError(f"{where} line {start}: is not readable ({error}); check its double quotes") from None


def _read_jsonl(path: Path, text: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
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
            raise UserError(
                f'{place}: is not JSON ({reason}); write one object a line, as in {{"prompt": "..."}}'
            ) from None
        if not isinstance(record, dict):
            raise UserError(f'{place}: must be an object, as in {{"prompt": "..."}}, not {show(record)}')
        yield place, record
