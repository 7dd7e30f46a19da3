"""What a run says of images that are not finite: which, where it began, and what to do."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from tpusd.config.schema import PartPrecision, PrecisionConfig
from tpusd.engine.not_finite import NotFinite
from tpusd.errors import IncompleteRun, show_path

if TYPE_CHECKING:  # it imports JAX
    from tpusd.families.base import ProgramName

LISTED = 10  # images that the line names; run.log has all of them
# In PrecisionConfig.
_PARTS: "dict[ProgramName, str]" = {
    "encode": "text_encoder",
    "encode_picture": "vae",
    "embed_control": "unet",
    "denoise": "unet",
    "decode": "vae",
}


class ImagesNotFinite(IncompleteRun):
    """A run whose images are made except those with NaN or infinity. path: of the run."""

    def __init__(self, path: Path, left_out: Mapping[str, NotFinite], num_images: int, precision: PrecisionConfig):
        """left_out: name of an image -> where it is not finite first. num_images: of the run."""
        listed = ", ".join(f"{name} (first in the {place})" for name, place in list(left_out.items())[:LISTED])
        more = f" and {len(left_out) - LISTED} more" if len(left_out) > LISTED else ""
        advice = what_to_do(next(iter(left_out.values())), precision)
        super().__init__(
            f"{show_path(path)}: {len(left_out)} of {num_images} images have NaN or infinity and are not written: "
            f"{listed}{more}; {advice}; to keep such images, marked in the manifest: "
            f"python -m tpusd.run resume={shlex.quote(str(path))} on_nan=record"
        )
        self.path = path


def what_to_do(place: NotFinite, precision: PrecisionConfig) -> str:
    """Advice for a new run without such images."""
    name = _PARTS[place.program]
    part: PartPrecision = getattr(precision, name)
    other_vae = ", or a checkpoint with another VAE" if name == "vae" else ""
    if part.dtype == "float16":
        return (
            f"float16 ends at 65504: in a new run set precision.{name}.dtype=float32, or choose precision=bf16 or "
            f"precision=fp32{other_vae}"
        )
    wider = "" if part.dtype == "float32" else " choose precision=fp32, and if that does not help,"
    return (
        f"{part.dtype} has room for every value of a sound checkpoint: in a new run{wider} check the weights of the "
        f"checkpoint's {name}{other_vae}"
    )
