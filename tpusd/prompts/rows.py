"""Prompt sets: inline rows, txt, csv, tsv and jsonl files -> Rows.

Knows where a row came from, so that every message can say it; knows nothing of seeds' meaning, copies or models.
"""

import difflib
import json
from collections.abc import Mapping
from typing import Any

from tpusd.config.rows import ROW_FIELDS, Row
from tpusd.config.schema import MAX_ROWS, PromptsConfig, check_guidance_scale, check_seed
from tpusd.errors import UserError, show
from tpusd.prompts.files import _read_file
from tpusd.records.manifest import MANIFEST_FIELDS

MAX_PROMPT_CHARS = 200_000  # far beyond any text encoder's window, and short enough for a PNG text chunk


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
