"""Checkpoints that people have -> our parameters, completely or not at all (contract 5), and back.

source finds a checkpoint's directory; architecture reads its configs; formats/ read weight files; names and fill map
stored tensors to parameters; tokenizer reads the tokenizer; checkpoint opens all of it; save writes a directory in the
layout of diffusers. single_file describes a checkpoint that is one file of the original code, and ldm_names has its
names.
"""

from tpusd.checkpoints.checkpoint import load_weights, match_weights, open_checkpoint
from tpusd.checkpoints.copies import weights_digest
from tpusd.checkpoints.fill import fill
from tpusd.checkpoints.opened import Checkpoint, Identity
from tpusd.checkpoints.save import save_checkpoint
from tpusd.checkpoints.source import ModelSource
from tpusd.checkpoints.tokenizer import TokenizedPrompts, Tokenizer

__all__ = [
    "Checkpoint",
    "Identity",
    "ModelSource",
    "TokenizedPrompts",
    "Tokenizer",
    "fill",
    "load_weights",
    "match_weights",
    "open_checkpoint",
    "save_checkpoint",
    "weights_digest",
]
