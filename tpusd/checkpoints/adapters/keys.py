"""The name of a stored tensor -> the layer's name in the file, and what the tensor is to that layer.

Knows no network and no shapes.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

UP, DOWN, MID, ALPHA, DIFF, BIAS = "up", "down", "mid", "alpha", "diff", "bias"
DORA = "dora_scale"  # the norms of outputs, or, in some files of LyCORIS, of inputs
MAGNITUDE = "magnitude"  # peft's name for the norms of outputs
_HALVES = {"up": UP, "down": DOWN, "lora_B": UP, "lora_A": DOWN}
_SAME_NAME = (
    *(f"hada_{name}" for name in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")),
    *(f"lokr_{name}" for name in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")),
)
# The end of a stored name -> what the tensor is.
_ENDS: dict[str, str] = {
    ".lora_mid.weight": MID,
    ".alpha": ALPHA,
    ".dora_scale": DORA,
    ".lora_magnitude_vector": MAGNITUDE,
    ".lora_magnitude_vector.weight": MAGNITUDE,
    ".lora_magnitude_vector.default": MAGNITUDE,
    ".lora_magnitude_vector.default.weight": MAGNITUDE,
    ".diff": DIFF,
    ".diff_b": BIAS,
    ".w_norm": DIFF,  # LyCORIS' names for norms
    ".b_norm": BIAS,
    **{f".{name}": name for name in _SAME_NAME},
}
for _half in ("up", "down"):
    # kohya; diffusers, of four ages
    for _end in (".lora_{}.weight", ".lora.{}.weight", "_lora.{}.weight", ".lora_linear_layer.{}.weight"):
        _ENDS[_end.format(_half)] = _HALVES[_half]
for _half in ("lora_A", "lora_B"):  # peft
    for _end in (".{}.weight", ".{}.default.weight", ".{}"):
        _ENDS[_end.format(_half)] = _HALVES[_half]
_LONGEST = sorted(_ENDS, key=len, reverse=True)


@dataclass(kw_only=True)
class StoredLayer:
    """The tensors of one layer. roles: what a tensor is -> its stored name. twice: names of a role that is taken."""

    roles: dict[str, str] = field(default_factory=dict)
    twice: list[str] = field(default_factory=list)


def stored_layers(names: Iterable[str]) -> tuple[dict[str, StoredLayer], list[str]]:
    """Layer's name -> its tensors; and the stored names that have no end that is known."""
    layers: dict[str, StoredLayer] = {}
    unknown = []
    for name in names:
        end = next((end for end in _LONGEST if name.endswith(end)), None)
        if end is None:
            unknown.append(name)
            continue
        layer = layers.setdefault(name[: -len(end)], StoredLayer())
        if _ENDS[end] in layer.roles:
            layer.twice.append(name)
        else:
            layer.roles[_ENDS[end]] = name
    return layers, unknown
