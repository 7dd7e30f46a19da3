"""What a metric is: a number for each picture. A new one is a file in metrics/; the registry finds it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from tpusd.records.manifest import ImageRecord

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True, kw_only=True)
class Picture:
    """An image of a run. image: decoded, in its own mode and size. record: its manifest line."""

    image: "Image.Image"
    record: ImageRecord


class Scorer(Protocol):
    """A metric that is ready: its weights are loaded."""

    @property
    def weights(self) -> str | None:
        """The sha256 of its weights; None where it has none."""
        ...

    def __call__(self, pictures: Sequence[Picture], /) -> Sequence[float | None]:
        """A value for each picture; None where the metric says nothing of it, as for a prompt without what it reads."""
        ...


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where weights are: on disk, or a repository on the Hub at a revision."""

    path: Path | None = None
    repo: str | None = None
    revision: str | None = None
    prefix: str = field(default="", compare=False)  # of its fields, as in score_weights.clip.path


@dataclass(frozen=True, kw_only=True)
class Metric:
    """All that tpusd knows of a metric.

    name: as in metric=NAME; the name of its column too.
    about: what it measures, in a few words.
    range: the lowest and the highest value, as text.
    better: which values are better; None: neither.
    needs: what must be there, in a few words; empty: nothing.
    paper: where it was published, in Markdown.
    places: the weights that it needs, by the name that the user's words have for them (`clip.path=DIR`), and where
        they are by default.
    open: these places, or those of the user's words -> the scorer. Raises UserError.
    check: raises UserError where `open` would, as far as that is known without devices and without reading weights.
    refuses_size: why it cannot read pictures of a width and a height, or None.
    batch_size: pictures of one call.
    """

    name: str
    about: str
    range: str
    better: Literal["higher", "lower"] | None
    needs: str = ""
    paper: str = ""
    places: Mapping[str, Place] = field(default_factory=dict)
    open: Callable[[Mapping[str, Place]], Scorer]
    check: Callable[[Mapping[str, Place]], object] = lambda places: None
    refuses_size: Callable[[int, int], str | None] = lambda width, height: None
    batch_size: int = 16


@dataclass(frozen=True)
class Plain:
    """A scorer without weights, from a function of one picture."""

    measure: Callable[[Picture], float | None]
    weights: None = None

    def __call__(self, pictures: Sequence[Picture], /) -> Sequence[float | None]:
        return [self.measure(picture) for picture in pictures]
