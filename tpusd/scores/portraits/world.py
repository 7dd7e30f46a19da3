"""The drawn world: which portraits there are. Knows nothing of how they are drawn or described."""

import dataclasses
import hashlib

import numpy as np
from numpy.typing import NDArray

VALUES = {
    "person": ("woman", "man"),
    "hair_style": ("short", "bob", "long", "curly", "pigtails", "spiky"),
    "hair_color": ("black", "brown", "blond", "red", "white", "blue"),
    "skin": ("pale", "tanned", "brown", "dark"),
    "eye_color": ("blue", "green", "brown", "purple"),
    "glasses": ("none", "round", "square", "sunglasses"),
    "hat": ("none", "beanie", "cap", "top hat"),
    "hat_color": ("red", "yellow", "green", "blue", "purple", "white"),
    "beard": ("none", "moustache", "full"),
    "expression": ("smiling", "serious", "sad", "surprised"),
    "clothes_color": ("red", "orange", "yellow", "green", "blue", "purple", "white", "black"),
    "clothes_pattern": ("plain", "striped"),
    "background": ("red", "orange", "yellow", "green", "teal", "blue", "purple", "pink", "gray"),
}
# How often the value "none" comes up where an attribute has it.
NONE_SHARE = {"glasses": 0.4, "hat": 0.5, "beard": 0.4}
HELD_OUT_SHARE = 16  # one combination in so many is never trained on


@dataclasses.dataclass(frozen=True, kw_only=True)
class Portrait:
    """One combination of attributes; the fields and their values are those of VALUES."""

    person: str
    hair_style: str
    hair_color: str
    skin: str
    eye_color: str
    glasses: str
    hat: str
    hat_color: str
    beard: str
    expression: str
    clothes_color: str
    clothes_pattern: str
    background: str

    @property
    def visible(self) -> tuple[str, ...]:
        """The attributes that show in the picture: behind sunglasses no eyes, without a hat no hat colour."""
        hidden = set()
        if self.glasses == "sunglasses":
            hidden.add("eye_color")
        if self.hat == "none":
            hidden.add("hat_color")
        return tuple(name for name in VALUES if name not in hidden)

    @property
    def held_out(self) -> bool:
        """Whether this combination is kept for evaluation. Decided by a hash of what shows in the picture."""
        text = ",".join(f"{name}={getattr(self, name)}" for name in self.visible)
        return hashlib.sha256(text.encode()).digest()[0] % HELD_OUT_SHARE == 0

    @property
    def labels(self) -> NDArray[np.int32]:
        """(attributes,) int32: the index of each value in VALUES, -1 where it does not show."""
        visible = self.visible
        return np.array(
            [VALUES[name].index(getattr(self, name)) if name in visible else -1 for name in VALUES], np.int32
        )


def draw_portrait(rng: np.random.Generator, *, held_out: bool = False) -> Portrait:
    """A random combination of the training set, or of the held-out one. Only men have beards."""
    while True:
        chosen = {name: _draw_value(rng, name) for name in VALUES}
        if chosen["person"] == "woman":
            chosen["beard"] = "none"
        portrait = Portrait(**chosen)
        if portrait.held_out == held_out:
            return portrait


def from_labels(labels: NDArray[np.int32]) -> Portrait:
    """The portrait of `Portrait.labels`; what does not show takes its first value."""
    return Portrait(
        **{name: values[max(int(index), 0)] for (name, values), index in zip(VALUES.items(), labels, strict=True)}
    )


def _draw_value(rng: np.random.Generator, name: str) -> str:
    values = VALUES[name]
    if name not in NONE_SHARE:
        return values[rng.integers(len(values))]
    if rng.random() < NONE_SHARE[name]:
        return "none"
    return values[1 + rng.integers(len(values) - 1)]
