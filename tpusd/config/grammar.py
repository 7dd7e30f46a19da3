"""Plain values in the grammar of Hydra's command line."""

import re
from collections.abc import Mapping

_BARE = re.compile(r"[A-Za-z_][A-Za-z0-9_./-]*")
_WORDS = {"null", "true", "false", "nan", "inf", "yes", "no", "on", "off"}  # which Hydra or YAML read as other values


def hydra_value(value: object) -> str:
    """A plain value in the grammar of Hydra's command line."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {hydra_value(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(hydra_value, value)) + "]"
    if isinstance(value, str):
        return value if _BARE.fullmatch(value) and value.lower() not in _WORDS else in_quotes(value)
    return repr(value)


def in_quotes(text: str) -> str:
    """In double quotes only a backslash before a quote is doubled. `${` is escaped, so that it stays text.

    Each expression begins where a row of backslashes does, so that the time is in proportion to the text.
    """
    text = re.sub(r'(?<!\\)(\\*)"', lambda found: found[1] * 2 + r"\"", text)
    text = re.sub(r"(?<!\\)(\\+)\Z", lambda found: found[1] * 2, text)
    return '"' + re.sub(r"(?<!\\)(\\*)\$\{", lambda found: found[1] * 2 + r"\${", text) + '"'


def unescaped(text: str) -> str:
    """A text as Hydra's grammar gives it, without the escapes of `${`."""
    return re.sub(r"(?<!\\)(\\*)\\\$\{", lambda found: found[1][: len(found[1]) // 2] + "${", text)
