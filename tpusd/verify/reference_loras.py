"""LoRAs in a pipeline of diffusers, through peft: which are there, and how strong they are for an image."""

import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tpusd.checkpoints.adapters import Lora
from tpusd.config.adapters import AppliedLora
from tpusd.errors import UserError, show
from tpusd.verify.reference_files import quiet

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

UNET = "unet"


class ReferenceLoras:
    """Those of a run, in a pipeline."""

    def __init__(self, pipeline: "DiffusionPipeline", loras: Sequence[Lora]):
        """Reads the files. Raises UserError for one that diffusers does not take whole."""
        self._pipeline = pipeline
        self._names: dict[str, str] = {}  # sha256 -> the adapter's name
        for lora in loras:
            if lora.file.sha256 not in self._names:
                name = self._names[lora.file.sha256] = f"lora_{len(self._names)}"
                _add(pipeline, lora, name)

    def apply(self, applied: Sequence[AppliedLora]) -> None:
        """Gives each LoRA the strength that it has for an image; the others get none."""
        if not self._names:
            return
        unet: defaultdict[str, float] = defaultdict(float)
        text: defaultdict[str, float] = defaultdict(float)
        for one in applied:  # of a file that is named twice, the strengths add up
            unet[self._names[one.sha256]] += one.scale
            text[self._names[one.sha256]] += one.text_encoder_scale
        parts = self._pipeline.get_list_adapters()
        weights = [
            {part: unet[name] if part == UNET else text[name] for part, own in parts.items() if name in own}
            for name in self._names.values()
        ]
        self._pipeline.set_adapters(list(self._names.values()), weights)


def _add(pipeline: "DiffusionPipeline", lora: Lora, name: str) -> None:
    kinds = sorted({difference.kind.name for difference in lora.differences} - {"lora"})
    if kinds:
        raise UserError(
            f"{lora.file.where}: has differences of the kind {', '.join(kinds)}, which diffusers does not have; leave "
            "it out"
        )
    with quiet(), tempfile.TemporaryDirectory(prefix="tpusd-") as folder:
        link = Path(folder, "lora.safetensors")  # a file of the Hub's cache has no such ending
        link.symlink_to(lora.file.path.resolve())
        try:
            pipeline.load_lora_weights(
                folder, weight_name=link.name, adapter_name=name, local_files_only=True, low_cpu_mem_usage=False
            )
        except Exception as error:  # the library raises many types, for files that it does not expect
            why = show(str(error).strip() or type(error).__name__, 200)
            raise UserError(f"{lora.file.where}: diffusers cannot read it ({why}); leave it out") from error
    taken = sum(
        name in getattr(layer, "lora_A", ())
        for part in pipeline.get_list_adapters()
        for layer in getattr(pipeline, part).modules()
    )
    if taken != len(lora.differences):
        raise UserError(
            f"{lora.file.where}: diffusers takes {taken} of its {len(lora.differences)} differences; leave it out"
        )
