"""JSON from anywhere -> plain values, with bounds on what a small text can hold. The one reader of foreign JSON.

Knows nothing of what the values mean: `tpusd.config.typed` checks that.
"""

import json
import math
import re
from typing import Any, NoReturn

MAX_DEPTH = 50
MAX_VALUES = 1_000_000  # an empty list takes two bytes of text and sixty of memory
_STRING = re.compile(r'"(?:[^"\\]|\\.)*+"', re.DOTALL)
_BRACKET = re.compile(r"[\[\]{}]")
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


class JsonError(ValueError):
    """What is wrong with a text, in a few words, such as `is nested over 50 deep`."""


def parse_json(data: bytes | str, *, max_values: int = MAX_VALUES, max_depth: int = MAX_DEPTH) -> Any:
    """The plain values of a JSON text, whatever they are. Raises JsonError.

    data: bytes are UTF-8.
    max_values: numbers, texts, lists and groups together, before they are made.
    max_depth: of lists and groups in one another.

    Refused too: NaN and infinity, numbers of over 4300 digits, and half of a surrogate pair, none of which can be
    written again.
    """
    try:
        text = data if isinstance(data, str) else data.decode()
    except UnicodeDecodeError:
        raise JsonError("is not UTF-8") from None
    _check_size(text, max_values, max_depth)
    try:
        values = json.loads(text, parse_constant=_refuse_constant, parse_float=_finite)
        if _SURROGATE.search(text):
            json.dumps(values, ensure_ascii=False).encode()
    except JsonError:
        raise
    except json.JSONDecodeError as error:
        line = "" if error.lineno == 1 else f"line {error.lineno}, "
        raise JsonError(f"is not JSON ({error.msg}, {line}column {error.colno})") from None
    except UnicodeEncodeError:
        raise JsonError("holds half of a surrogate pair, which is not Unicode text") from None
    except (ValueError, RecursionError):  # of int(), which takes no more digits
        raise JsonError("holds a number with too many digits") from None
    return values


def _check_size(text: str, max_values: int, max_depth: int) -> None:
    """Counts what is outside of strings, where the quick count, strings included, is not small enough."""
    opened = text.count("[") + text.count("{")
    if opened <= max_depth and opened + text.count(",") + text.count(":") < max_values:
        return
    bare = _STRING.sub('"', text)
    if bare.count("[") + bare.count("{") + bare.count(",") + bare.count(":") >= max_values:
        raise JsonError(f"holds over {max_values} values")
    depth = 0
    for bracket in _BRACKET.finditer(bare):
        depth += 1 if bracket[0] in "[{" else -1
        if depth > max_depth:
            raise JsonError(f"is nested over {max_depth} deep")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise JsonError(f"holds the number {text[:20]}, which is too large")
    return number


def _refuse_constant(name: str) -> NoReturn:
    raise JsonError(f"holds {name}, which is not JSON")
