"""Checkpoints that people have -> our parameters, completely or not at all (contract 5), and back.

source finds a directory, architecture reads its configs, tensors and msgpack read weight files, names and fill map
them, checkpoint puts it together, save writes a diffusers directory, tokenizer makes ids of prompts.
"""

from tpusd.checkpoints.checkpoint import Checkpoint, Identity, load_weights, open_checkpoint
from tpusd.checkpoints.save import save_checkpoint
from tpusd.checkpoints.source import ModelSource
from tpusd.checkpoints.tokenizer import TokenizedPrompts, Tokenizer

__all__ = [
    "Checkpoint",
    "Identity",
    "ModelSource",
    "TokenizedPrompts",
    "Tokenizer",
    "load_weights",
    "open_checkpoint",
    "save_checkpoint",
]
