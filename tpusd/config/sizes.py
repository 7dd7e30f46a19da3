"""Size conditioning (Podell et al. 2023, section 2.2): the sizes that a model takes for those of its pictures."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Interval, Len

from tpusd.errors import UserError, show

Pixels = Annotated[int, Interval(ge=0, le=65536)]
Pair = Annotated[tuple[Pixels, ...], Len(2, 2)]  # height and width, or top and left
SIZE_FIELDS = (
    "original_size",
    "crop",
    "target_size",
    "negative_original_size",
    "negative_crop",
    "negative_target_size",
)  # of a run and of a row


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What the model reads of sizes, where a run or a row sets any of it. None: it follows from the image's size."""

    original_size: tuple[int, ...] | None = None
    crop: tuple[int, ...] | None = None
    target_size: tuple[int, ...] | None = None
    negative_original_size: tuple[int, ...] | None = None
    negative_crop: tuple[int, ...] | None = None
    negative_target_size: tuple[int, ...] | None = None

    @classmethod
    def of(cls, values: Mapping[str, tuple[int, ...] | None]) -> "Sizes | None":
        """None where nothing is set."""
        return cls(**values) if any(value is not None for value in values.values()) else None

    def check(self) -> None:
        """Raises UserError: the negative sizes go together, as in diffusers."""
        sizes = ("negative_original_size", "negative_target_size")
        lacking = [name for name in sizes if getattr(self, name) is None]
        for name in (*sizes, "negative_crop"):
            if (value := getattr(self, name)) is not None and lacking:
                raise UserError(f"{name}={show(list(value))}: needs {lacking[0]} beside it; add it")

    def numbers(self, height: int, width: int) -> tuple[list[int], list[int]]:
        """The six numbers of the prompt, and those of the negative prompt. height, width: of the image."""
        size, corner = (height, width), (0, 0)
        own = [*(self.original_size or size), *(self.crop or corner), *(self.target_size or size)]
        if self.negative_original_size is None or self.negative_target_size is None:
            return own, own
        return own, [*self.negative_original_size, *(self.negative_crop or corner), *self.negative_target_size]
