"""The texts of a batch by the model call: marks of A1111 change a prompt on the way.

Such an image is made by the programs of all others: where a text changes, the next call of the denoiser gets other
embeddings. Pure Python.
"""

import bisect
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from tpusd.plan.specs import ImageSpec
from tpusd.syntax.schedules import Phase, text_at

Texts = tuple[str | None, ...]  # one of each image; None: not given


class TextsNow(NamedTuple):
    """The texts of some model calls, as numbers in `every`. negative_prompts: None where no call has guidance."""

    prompts: int
    negative_prompts: int | None


class TextsByCall:
    """every: all different texts of the batch; each is encoded once."""

    def __init__(self, specs: Sequence[ImageSpec], num_calls: Sequence[int], *, guided: bool):
        """specs: of a batch. num_calls: of each image. guided: whether any call has guidance."""
        self._num_calls = num_calls
        pairs = list(zip(specs, num_calls, strict=True))
        self._sides: list[list[tuple[Phase, ...] | None]] = [[spec.phases(spec.prompt, n) for spec, n in pairs]]
        if guided:
            negative = ((spec, spec.negative_prompt, n) for spec, n in pairs)
            self._sides.append([None if text is None else spec.phases(text, n) for spec, text, n in negative])
        ends = {phase.last for side in self._sides for own in side for phase in (own or ())[:-1]}
        self._starts = sorted({0, *(end for end in ends if end < max(num_calls))})
        known: dict[Texts, int] = {}
        self._numbers = [
            [known.setdefault(_at(side, start), len(known)) for side in self._sides] for start in self._starts
        ]
        self.every: tuple[Texts, ...] = tuple(known)

    def pieces(self, rows: range) -> Iterator[tuple[range, TextsNow]]:
        """Model calls, cut where a text of an image changes."""
        cuts = [rows.start, *(start for start in self._starts if rows.start < start < rows.stop), rows.stop]
        for start, stop in zip(cuts, cuts[1:], strict=False):
            prompts, *negative = self._numbers_at(start)
            yield range(start, stop), TextsNow(prompts, negative[0] if negative else None)

    def of_image(self, i: int) -> list[int]:
        """The texts of image i: numbers of `every`, in the order of its calls. They follow from the image alone."""
        found: list[int] = []
        for side, phases in enumerate(self._sides):
            changes = [phase.last for phase in (phases[i] or ())[:-1]]
            starts = [0, *(start for start in changes if start < self._num_calls[i])]
            found += [self._numbers_at(start)[side] for start in starts]
        return found

    def _numbers_at(self, call: int) -> list[int]:
        return self._numbers[bisect.bisect_right(self._starts, call) - 1]


def _at(side: Sequence[tuple[Phase, ...] | None], call: int) -> Texts:
    return tuple(None if own is None else text_at(own, call + 1) for own in side)
