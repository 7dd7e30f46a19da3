"""One prompt of a run."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

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
