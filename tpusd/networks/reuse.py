"""What a call of a denoiser takes over from an earlier one (DeepCache: Ma et al. 2024)."""

from typing import NamedTuple

import jax

REUSED = "reused_deep_half"  # the name of the conditional in the compiled program


class Reuse(NamedTuple):
    """The deep half of a denoiser, and whether this call computes it.

    branch: a skip connection, counted from 0 for the shallowest. Its layers and those above are computed in every call.
    full: bool scalar; whether the layers below are computed too.
    deep: (b,h,w,c), what the layers below gave in the last call that computed them; not used where `full`.
    """

    branch: int
    full: jax.Array
    deep: jax.Array
