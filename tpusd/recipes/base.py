"""What a reader of recipes is given, and what it gives back."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# Keywords of a PNG's text chunks.
PARAMETERS = "parameters"  # A1111's, and that of programs that write as it does
OWN = "tpusd"
GRAPH = "prompt"  # ComfyUI's


@dataclass(frozen=True, kw_only=True)
class PictureTexts:
    """The texts that a picture carries.

    chunks: a PNG's text chunks (tEXt, zTXt and iTXt), keyword -> text.
    user_comment: EXIF's UserComment; None if there is no such text.
    xmp: the XMP packet; None if there is none.
    """

    chunks: Mapping[str, str]
    user_comment: str | None
    xmp: str | None


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a picture was made, and what of it tpusd can make.

    source: the program that wrote the picture.
    values: the recipe in that program's own names; any JSON value.
    overrides: of `python -m tpusd.run`, as field=value.
    left_out: what the overrides cannot say, a line each.
    """

    source: str
    values: Mapping[str, Any]
    overrides: tuple[str, ...]
    left_out: tuple[str, ...]
