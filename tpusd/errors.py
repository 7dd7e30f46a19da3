"""The one exception that means: the user can mend this."""

import difflib
from collections.abc import Iterable
from typing import Any


class UserError(Exception):
    """A wrong value, file or environment, told in one line: what, the rule, what to do.

    Entry points print it as `tpusd: <line>` on stderr and exit with status 2, without a traceback.
    """


def suggest(name: str, known: Iterable[str]) -> str:
    """`; did you mean X` for the nearest known name, else an empty string."""
    by_leaf = {leaf: full for full in known for leaf in (full.rsplit(".", 1)[-1], full)}
    near = (
        difflib.get_close_matches(name, by_leaf, n=1)
        or [leaf for leaf in by_leaf if len(name) > 2 and name in leaf][:1]
    )
    return f"; did you mean {by_leaf[near[0]]}" if near else ""


def show(value: Any) -> str:
    """A value as it stands in an error line: one line, not too long."""
    text = value if isinstance(value, str) else "null" if value is None else repr(value)
    text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text[:200])
    return text if len(text) <= 80 else text[:77] + "..."


def show_path(path: Any) -> str:
    """A path as it stands in an error line: its end, which is what tells one from another, is always there."""
    text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(path))
    return text if len(text) <= 300 else "..." + text[-297:]
