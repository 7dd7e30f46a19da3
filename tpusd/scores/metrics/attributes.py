"""Whether a picture of the embedded model shows what its prompt says."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from tpusd.scores.base import Metric, Picture, Place, Plain, Scorer

if TYPE_CHECKING:
    from tpusd.scores.portraits.world import Portrait

SIZE = 128  # pixels: what the embedded model draws


def attributes(picture: Picture) -> float | None:
    """The share of the attributes that the prompt names, such as `red hair`, that the picture shows; 0..1.

    The picture is read by drawing: the portrait whose drawing comes nearest to it. None where the prompt names none.
    """
    import numpy as np

    from tpusd.scores.portraits.measure import read_portrait
    from tpusd.scores.portraits.prompts import named_attributes

    named = named_attributes(picture.record.prompt)
    if not named:
        return None
    seen = read_portrait(np.asarray(picture.image.convert("RGB")))
    return sum(_shows(seen, name, value) for name, value in named.items()) / len(named)


def _shows(portrait: "Portrait", name: str, value: str) -> bool:
    return name in portrait.visible and getattr(portrait, name) == value


def _open(places: Mapping[str, Place]) -> Scorer:
    from tpusd.scores.portraits.measure import prepare  # brings Pillow and NumPy with it

    prepare()
    return Plain(attributes)


def _refused(width: int, height: int) -> str | None:
    if (width, height) == (SIZE, SIZE):
        return None
    return f"attributes reads pictures of {SIZE}x{SIZE}, such as the embedded model's, and it is {width}x{height}"


METRICS = (
    Metric(
        name="attributes",
        about="the share of what the prompt of a portrait names that the embedded model's picture shows",
        range="0 to 1",
        better="higher",
        open=_open,
        refuses_size=_refused,
        batch_size=1,  # a picture takes a second or more
    ),
)
