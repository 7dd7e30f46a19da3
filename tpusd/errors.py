"""The exceptions that mean: the user can correct this. And foreign text in one printable line.

Foreign text is whatever a file, a name or a library brings: it may be long, and terminals act on control characters.
"""

import difflib
from collections.abc import Iterable
from pathlib import Path

MAX_VALUE = 80  # characters of a value in an error line
MAX_PATH = 300


class UserError(Exception):
    """A wrong value, file or environment, in one line: what is wrong, the rule, what to do.

    Entry points print it as `tpusd: <line>` on stderr and exit with status 2, without a traceback.
    """


class IncompleteRun(UserError):
    """A run that ended without some of its images. Entry points print it in the same way and exit with status 1."""


class ChangedFile(UserError):
    """A file is not the one that made what is there. A run refuses to go on with it, and so does a sweep as a whole."""


def suggest(name: str, known: Iterable[str]) -> str:
    """`; did you mean X` for the nearest known name, else an empty string. Capitals make no difference."""
    by_leaf = {leaf.lower(): full for full in known for leaf in (full.rsplit(".", 1)[-1], full)}
    name = name.lower()
    near = (
        difflib.get_close_matches(name, by_leaf, n=1)
        or [leaf for leaf in by_leaf if len(name) > 2 and name in leaf][:1]
    )
    return f"; did you mean {by_leaf[near[0]]}" if near else ""


def printable(text: str) -> str:
    """Text with control characters and line ends as escapes."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def show(value: object, limit: int = MAX_VALUE) -> str:
    """A value for an error line: printable, its beginning where it is longer than `limit` characters."""
    try:
        text = value if isinstance(value, str) else "null" if value is None else repr(value)
    except ValueError:  # Python refuses to write a number of more than 4300 digits
        text = f"<{type(value).__name__}>"
    text = printable(text[: limit + 1])
    return text if len(text) <= limit else text[: limit - 3] + "..."


def show_path(path: str | Path) -> str:
    """A path for an error line: printable, its end where it is long, because the end tells one path from another."""
    text = printable(str(path))
    return text if len(text) <= MAX_PATH else "..." + text[3 - MAX_PATH :]
