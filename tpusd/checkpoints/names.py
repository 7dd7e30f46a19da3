"""A stored tensor's name -> the dotted path of our parameter.

Module attributes carry the PyTorch state-dict names, so a family's components list only the names that differ. Knows no
shapes; how a leaf is transposed follows the destination's type, in fill.py.
"""

import re

from tpusd.families.base import Component, Rename

# Flax has its own names for the leaves of a convolution, a norm and an embedding.
_FLAX_LEAVES = Rename("flax", re.compile(r"\.(scale|embedding|kernel)$"), ".weight")


def destination_name(component: Component, layout: str, name: str) -> str:
    """A stored tensor's name -> the dotted path of our parameter, with PyTorch's leaf (`weight` or `bias`)."""
    for rename in (*component.renames, _FLAX_LEAVES):
        if rename.layout in (None, layout):
            name = rename.pattern.sub(rename.replacement, name)
    return name


def ignored_reason(component: Component, name: str) -> str | None:
    """Why a stored tensor is not used; None if it must be."""
    return next((ignored.reason for ignored in component.ignored if ignored.pattern.search(name)), None)
