"""Trains the embedded model's tokenizer: CLIP's format and its bytes, with the merges that the captions' words need.

    python -m training.tokenizer DIR

The same grammar gives the same files. Any text can be tokenized; words that captions do not have fall into pieces.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from tpusd.checkpoints.tokenizer import write_byte_tokenizer
from tpusd.scores.portraits.world import draw_portrait
from training.captions import draw_named, make_caption

SEED = 5
CAPTIONS = 20000
MERGES = 400  # more than the words of the grammar need: training stops when every word is one token
WORDS = Regex(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")  # CLIP's


def train_merges(texts) -> list[tuple[str, str]]:
    """Byte pairs to join, in order."""
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(WORDS, behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    alphabet = 2 * len({letter for text in texts for letter in text})
    trainer = trainers.BpeTrainer(vocab_size=alphabet + MERGES, end_of_word_suffix="</w>", show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return [tuple(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]


def write_tokenizer(folder: Path) -> int:
    """Writes vocab.json, merges.txt and the special tokens; returns the vocabulary's size."""
    rng = np.random.default_rng(SEED)
    portraits = [draw_portrait(rng) for _ in range(CAPTIONS)]
    merges = train_merges([make_caption(portrait, draw_named(portrait, rng), rng) for portrait in portraits])
    write_byte_tokenizer(folder)
    tokens = list(json.loads((folder / "vocab.json").read_text(encoding="utf-8")))
    tokens = [*tokens[:-2], *("".join(pair) for pair in merges), *tokens[-2:]]  # begin and end of text stay last
    text = json.dumps({token: i for i, token in enumerate(tokens)}, ensure_ascii=False, indent=1)
    (folder / "vocab.json").write_text(text + "\n", encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return len(tokens)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path)
    folder = parser.parse_args().directory / "tokenizer"
    print(f"{folder}: {write_tokenizer(folder)} tokens")


if __name__ == "__main__":
    main()
