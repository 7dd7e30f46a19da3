"""CLIP's own tokenizer, as it comes with the package, against published ids and the published rule of its merges."""

import gzip

import numpy as np
import pytest

from tpusd.checkpoints.packaged import clip_tokenizer
from tpusd.checkpoints.tokenizer import clip_vocabulary
from tpusd.config.assets import ASSETS

BOS, EOS = 49406, 49407
MERGES = gzip.decompress((ASSETS / "clip" / "merges.txt.gz").read_bytes()).decode().splitlines()


@pytest.mark.parametrize(
    "prompt, ids",
    [
        ("a photo of a cat", [320, 1125, 539, 320, 2368]),  # of the examples of OpenAI's CLIP and of transformers
        ("a photo of a dog", [320, 1125, 539, 320, 1929]),
        ("a diagram", [320, 22697]),
        ("hello world!", [3306, 1002, 256]),
        ("", []),
    ],
)
def test_ids_are_the_published_ones(prompt, ids):
    assert clip_tokenizer("<|endoftext|>")([prompt]).input_ids[0, : len(ids) + 2].tolist() == [BOS, *ids, EOS]


def test_padding_is_end_of_text_or_zero():
    assert clip_tokenizer("<|endoftext|>")(["a"]).input_ids[0, 3:].tolist() == [EOS] * 74
    assert clip_tokenizer("!")(["a"]).input_ids[0, 2:].tolist() == [EOS] + [0] * 74


def merged(word: str) -> list[str]:
    """A word's tokens by the rule of byte pair encoding (Sennrich et al. 2016): the earliest merge first."""
    ranks = {tuple(merge.split()): i for i, merge in enumerate(MERGES)}
    parts = [*word[:-1], word[-1] + "</w>"]
    while len(parts) > 1:
        pairs = list(zip(parts, parts[1:], strict=False))
        best = min(pairs, key=lambda pair: ranks.get(pair, len(ranks)))
        if best not in ranks:
            break
        at = pairs.index(best)
        parts[at : at + 2] = ["".join(best)]
    return parts


def test_words_are_merged_by_the_published_rule():
    tokens = {token: i for i, token in enumerate(clip_vocabulary(MERGES))}
    assert len(tokens) == 49408
    words = "portrait smiling woman long red hair photorealistic trending artstation zxqvj chiaroscuro 8k".split()
    (ids,) = clip_tokenizer("!")([" ".join(words)]).input_ids
    expected = [tokens[part] for word in words for part in ([*merged(word)] if word != "8k" else ["8</w>", "k</w>"])]
    np.testing.assert_array_equal(ids[: len(expected) + 2], [BOS, *expected, EOS])
