"""Files that add to a model: LoRA and its relatives, which change its weights by differences, and embeddings.

source finds a file; aliases lists every name that a layer of our networks has in such files; keys splits a stored name
into a layer and what the tensor is to it; kinds computes the difference; base_model says which model a file is for;
lora opens a file and fits all of it to a model; embedding does so with the vectors of a word.
"""

from tpusd.checkpoints.adapters.embedding import Embedding, open_embedding
from tpusd.checkpoints.adapters.lora import Difference, Lora, open_lora
from tpusd.checkpoints.adapters.source import AdapterFile, find_embedding, find_lora

__all__ = [
    "AdapterFile",
    "Difference",
    "Embedding",
    "Lora",
    "find_embedding",
    "find_lora",
    "open_embedding",
    "open_lora",
]
