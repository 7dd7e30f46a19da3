"""A row of a prompt set: one prompt, and what goes with it. Parsed here, and nowhere else."""

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tpusd.config.limits import check_guidance_scale, check_seed
from tpusd.errors import UserError, show

ROW_FIELDS = ("prompt", "negative_prompt", "seed", "guidance_scale")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One prompt. `None`: the run's own value holds. `extra`: further columns, for the manifest alone."""

    prompt: str
    negative_prompt: str | None = None
    seed: int | None = None
    guidance_scale: float | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


def row_values(row: Row) -> dict[str, Any]:
    """A Row as an inline row of a config: what a saved config.yaml holds, so that it needs no other file."""
    own = {name: getattr(row, name) for name in ROW_FIELDS if getattr(row, name) is not None}
    return own | dict(row.extra)


MAX_PROMPT_CHARS = 200_000  # far beyond any text encoder's window, and short enough for a PNG text chunk


def parse_row(place: str, record: Mapping[str, Any], *, column: str = "prompt", inline: bool = True) -> Row:
    """A record of a prompt file, or an inline row of a config, as a Row. Raises UserError that begins with `place`.

    place: where the record comes from, such as `prompts.rows[3]`.
    record: column -> value.
    column: the column that holds the prompt.
    inline: whether the record is part of a config; decides the advice in messages.
    """
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
        if not isinstance(name, str):
            raise UserError(f"{place}: column {show(name)} must have a name that is text; put it in quotes")
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
