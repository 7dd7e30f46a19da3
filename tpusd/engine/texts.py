"""The texts of a batch by the model call: marks of A1111 change a prompt on the way.

Such an image is made by the programs of all others: where a text changes, the next call of the denoiser gets other
embeddings. Pure Python.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from tpusd.plan.specs import ImageSpec
from tpusd.syntax.schedules import Phase, text_at

Texts = tuple[str | None, ...]  # one of each image; None: not given


class TextsNow(NamedTuple):
    """The texts of some model calls. negative_prompts: empty where no call of the batch has guidance."""

    prompts: Texts
    negative_prompts: Texts


@dataclass(frozen=True)
class TextsByCall:
    """prompts, negative_prompts: for each image, what the text is by the call; None: not given.

    num_calls: of each image.
    """

    prompts: tuple[tuple[Phase, ...] | None, ...]
    negative_prompts: tuple[tuple[Phase, ...] | None, ...]
    num_calls: tuple[int, ...]

    @classmethod
    def of(cls, specs: Sequence[ImageSpec], num_calls: Sequence[int], *, guided: bool) -> "TextsByCall":
        """num_calls: of each image. guided: whether any call has guidance."""
        pairs = list(zip(specs, num_calls, strict=True))
        negative = (None if s.negative_prompt is None else s.phases(s.negative_prompt, n) for s, n in pairs)
        return cls(tuple(s.phases(s.prompt, n) for s, n in pairs), tuple(negative) if guided else (), tuple(num_calls))

    def pieces(self, rows: range) -> Iterator[tuple[range, TextsNow]]:
        """Model calls, cut where a text of an image changes."""
        every = [*self.prompts, *self.negative_prompts]
        changes = {phase.last for own in every if own is not None for phase in own[:-1]}
        cuts = [rows.start, *sorted(call for call in changes if rows.start < call < rows.stop), rows.stop]
        for start, stop in zip(cuts, cuts[1:], strict=False):
            yield range(start, stop), self._at(start)

    def every(self) -> list[Texts]:
        """All different ones, those of the prompts first."""
        now = [one for _, one in self.pieces(range(max(self.num_calls)))]
        found = dict.fromkeys([*(one.prompts for one in now), *(one.negative_prompts for one in now)])
        return [texts for texts in found if texts]

    def of_image(self, i: int) -> list[Texts]:
        """For each text of image i, in the order of its calls, texts of the batch that have it at the place i."""
        found = [self._at(start).prompts for start in self._starts(i, self.prompts[i])]
        if self.negative_prompts:
            found += [self._at(start).negative_prompts for start in self._starts(i, self.negative_prompts[i])]
        return found

    def _starts(self, i: int, own: tuple[Phase, ...] | None) -> list[int]:
        """The calls of image i with which a text of it begins."""
        changes = [] if own is None else [phase.last for phase in own[:-1]]
        return [0, *(call for call in changes if call < self.num_calls[i])]

    def _at(self, call: int) -> TextsNow:
        return TextsNow(
            *(
                tuple(None if own is None else text_at(own, call + 1) for own in side)
                for side in (self.prompts, self.negative_prompts)
            )
        )
