"""Published config.json files -> config dataclasses.

A field that would change the network and is not implemented is refused.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from tpusd.errors import UserError


def read_config(cls, values: Mapping[str, Any], *, only: Mapping[str, tuple], harmless: frozenset[str], name: str):
    """Builds dataclass `cls` from a config.json's values; missing fields take the dataclass's defaults.

    only: fields that are implemented for the given values alone. harmless: fields that do not reach inference.
    Raises UserError that names every field with a value that is not implemented. Unknown fields pass when they are
    switched off (None or False): newer writers spell out every option that they know.
    """
    fields = {f.name for f in dataclasses.fields(cls)}
    wrong, taken = [], {}
    for key, value in values.items():
        if key in fields:
            taken[key] = tuple(value) if isinstance(value, list) else value
        elif key.startswith("_") or key in harmless:
            continue
        elif key in only:
            if (tuple(value) if isinstance(value, list) else value) not in only[key]:
                wrong.append(f"{key}={value!r} (implemented: {' or '.join(map(repr, only[key]))})")
        elif value is not None and value is not False:
            wrong.append(f"{key}={value!r} (unknown field)")
    if wrong:
        raise UserError(f"{name}: not implemented: {', '.join(wrong)}")
    try:
        return cls(**taken)
    except (TypeError, ValueError) as error:
        raise UserError(f"{name}: {error}") from None
