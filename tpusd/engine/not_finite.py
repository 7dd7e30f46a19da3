"""Where NaN or infinity first appears on an image's way from prompt to pixels."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # it imports JAX
    from tpusd.families.base import ProgramName

_RESULTS: "dict[ProgramName, str]" = {
    "encode": "text embedding",
    "encode_picture": "latents of its picture",
    "embed_control": "features of its control image",
    "denoise": "latents",
    "decode": "pixels",
}


@dataclass(frozen=True, kw_only=True)
class NotFinite:
    """The first result of an image that has NaN or infinity in it.

    program: which makes that result.
    call, num_calls, timestep: of the denoiser, where it makes that result; calls count from 1.
    """

    program: "ProgramName"
    call: int | None = None
    num_calls: int | None = None
    timestep: float | None = None

    def __str__(self) -> str:
        """As a manifest line has it."""
        if self.call is None:
            return _RESULTS[self.program]
        return f"{_RESULTS[self.program]} after model call {self.call} of {self.num_calls}, timestep {self.timestep:g}"
