"""Files that change a model's weights by differences: LoRA and its relatives.

source finds a file; aliases lists every name that a layer of our networks has in such files; keys splits a stored name
into a layer and what the tensor is to it; kinds computes the difference; base_model says which model a file is for;
lora opens a file and fits all of it to a model.
"""

from tpusd.checkpoints.adapters.lora import Difference, Lora, open_lora
from tpusd.checkpoints.adapters.source import AdapterFile, find_lora

__all__ = ["AdapterFile", "Difference", "Lora", "find_lora", "open_lora"]
