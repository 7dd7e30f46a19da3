"""Bounds on config.json values, checked before a model is described from them. Knows no file.

A config from anywhere must fail quickly: block_out_channels of 10**9 or a million layers must not be built even as
shapes. The bounds are some ten times what the largest Stable Diffusion has.
"""

import dataclasses
import typing
from collections.abc import Mapping
from types import NoneType, UnionType
from typing import Any

from tpusd.checkpoints.files import shown
from tpusd.errors import UserError

MAX_LEVELS = 8  # entries of a per-level list; Stable Diffusion has 3 or 4
MAX_BLOCKS = 4096  # resnets and transformer layers of one network; SDXL's UNet has 87
MAX_NUMBER = 65536  # channels, heads, pixels
_MAX = {
    "vocab_size": 1 << 20,
    "bos_token_id": 1 << 20,
    "eos_token_id": 1 << 20,
    "layers_per_block": 32,
    "num_hidden_layers": 256,
    "transformer_layers_per_block": 128,
}
_ZERO = {"freq_shift", "eos_token_id"}  # whole numbers that may be 0


def check_values(cls, values: Mapping[str, Any], where: str) -> None:
    """Types and bounds of the fields that config dataclass `cls` reads. Raises UserError for the first one wrong."""
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        if field.name in values:
            problem = _problem(field.name, values[field.name], hints[field.name])
            if problem is not None:
                raise UserError(
                    f"{where}: {field.name}={shown(values[field.name])}: {problem}; mend it or get the checkpoint again"
                )
    blocks = (
        len(values.get("block_out_channels") or ())
        * _largest(values, "layers_per_block")
        * _largest(values, "transformer_layers_per_block")
    )
    if blocks > MAX_BLOCKS:
        raise UserError(f"{where}: describes {blocks} layers, over {MAX_BLOCKS}: not a Stable Diffusion model")


def _largest(values: Mapping[str, Any], name: str) -> int:
    value = values.get(name, 1)
    return max(value, default=1) if isinstance(value, list) else value or 1


def _problem(name: str, value: Any, hint: Any) -> str | None:
    """What is wrong with one value; None if nothing."""
    options = typing.get_args(hint) if isinstance(hint, UnionType) else (hint,)
    if value is None:
        return None if NoneType in options else "must not be null"
    if isinstance(value, list):
        item = next((typing.get_args(o)[0] for o in options if typing.get_origin(o) is tuple), None)
        if item is None:
            return "must not be a list"
        if not 1 <= len(value) <= MAX_LEVELS:
            return f"must have 1 to {MAX_LEVELS} entries"
        return next((p for v in value if (p := _problem(name, v, item)) is not None), None)
    if bool in options:
        return None if isinstance(value, bool) else "must be true or false"
    if int in options:
        low, high = 0 if name in _ZERO else 1, _MAX.get(name, MAX_NUMBER)
        whole = isinstance(value, int) and not isinstance(value, bool)
        return None if whole and low <= value <= high else f"must be a whole number from {low} to {high}"
    if float in options:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return None if number and abs(value) <= 1e9 else "must be a number within 1e9 of zero"
    if str in options:
        return None if isinstance(value, str) else "must be text"
    return "must be a list"
