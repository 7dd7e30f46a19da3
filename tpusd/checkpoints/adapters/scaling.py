"""alpha where a file has no tensor of it: diffusers and peft write it into the header's metadata, as JSON."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tpusd.errors import UserError, show

KEY = "lora_adapter_metadata"
_MAX_CHARS = 1 << 20


@dataclass(frozen=True)
class AdapterScaling:
    """values: `lora_alpha`, `alpha_pattern` and `use_rslora`, with the part before them, such as `unet.lora_alpha`."""

    values: Mapping[str, Any]

    def factor(self, part: str, path: str, rank: int) -> float:
        """alpha / rank, or alpha over the root of rank for rsLoRA; 1 where the file says nothing.

        part: of the model.
        path: of the layer in it.
        """
        alpha = self._of(part, "lora_alpha")
        pattern = self._of(part, "alpha_pattern")
        if isinstance(pattern, Mapping):
            names = (path, path.removeprefix("text_model."))
            alpha = next((a for key, a in pattern.items() if any(_ends(name, key) for name in names)), alpha)
        if alpha is None:
            return 1.0
        return float(alpha) / (math.sqrt(rank) if self._of(part, "use_rslora") else rank)

    def _of(self, part: str, name: str) -> Any:
        return self.values.get(f"{part}.{name}", self.values.get(name))


def read_scaling(metadata: Mapping[str, str], where: str) -> AdapterScaling:
    """From the metadata of a file's header. Raises UserError for values that are not numbers."""
    text = metadata.get(KEY)
    if text is None:
        return AdapterScaling({})
    try:
        values = json.loads(text) if len(text) <= _MAX_CHARS else None
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise UserError(f"{where}: its metadata {KEY} is not a JSON object; save the file again")
    for name, value in values.items():
        alphas = [value] if name.endswith("lora_alpha") else []
        if name.endswith("alpha_pattern") and isinstance(value, dict):
            alphas = list(value.values())
            for key in value:
                if not key.replace(".", "").replace("_", "").isalnum():
                    raise UserError(f"{where}: {show(name)} has the expression {show(key)}, which is not read")
        for alpha in alphas:
            if isinstance(alpha, bool) or not isinstance(alpha, int | float | None) or not math.isfinite(alpha or 0):
                raise UserError(f"{where}: {show(name)}={show(alpha)} must be a number; save the file again")
    return AdapterScaling(values)


def _ends(path: str, key: str) -> bool:
    return path == key or path.endswith(f".{key}")
