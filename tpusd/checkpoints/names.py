"""A stored tensor's name -> the dotted path of our parameter.

Module attributes carry the PyTorch state-dict names, so a family's components list only the names that differ. Knows no
shapes; how a leaf is transposed follows the destination's type, in fill.py.
"""

import re
from typing import Protocol

from tpusd.families.base import Ignored, Rename

# Flax has its own names for the leaves of a convolution, a norm and an embedding.
_FLAX_LEAVES = Rename("flax", re.compile(r"\.(scale|embedding|kernel)$"), ".weight")


class Naming(Protocol):
    """How the files of a network name its tensors: a family's Component says it, among other things.

    renames: applied in this order to a stored tensor's name.
    ignored: tensors that have no use here.
    """

    @property
    def renames(self) -> tuple[Rename, ...]: ...
    @property
    def ignored(self) -> tuple[Ignored, ...]: ...


def destination_name(component: Naming, layout: str, name: str) -> str:
    """A stored tensor's name -> the dotted path of our parameter, with PyTorch's leaf (`weight` or `bias`)."""
    for rename in (*component.renames, _FLAX_LEAVES):
        if rename.layout in (None, layout):
            name = rename.pattern.sub(rename.replacement, name)
    return name


def ignored_reason(component: Naming, name: str) -> str | None:
    """Why a stored tensor is not used; None if it must be."""
    return next((ignored.reason for ignored in component.ignored if ignored.pattern.search(name)), None)
