"""Where words with vectors of their own are in a text, and that their vectors stay in one chunk."""

import random

import numpy as np
import pytest

from tpusd.syntax.chunks import lay_out
from tpusd.syntax.embeddings import TokenVectors, units
from tpusd.syntax.rules import CHUNK, TextRules


class Letters:
    """A tokenizer whose tokens are the signs of a text, without spaces."""

    def __init__(self, **numbers):
        self.embedded = [TokenVectors(token=name, vectors=np.zeros((n, 4), np.float32)) for name, n in numbers.items()]

    def words(self, texts):
        return [[ord(sign) for sign in text if sign != " "] for text in texts]

    def normalized(self, text):
        return text.lower()

    def id_of(self, token):
        return ord(token.removesuffix("</w>"))

    def ends_word(self, token):
        return chr(token) in ".,;:"


def shown(found):
    """Letters as they are, an embedding as the number of its first vector and how many it has."""
    return ["".join(chr(i) for i in unit) if unit[0] >= 0 else (-1 - unit[0], len(unit)) for unit in found]


TWO = Letters(toy=3, toyx=2)


@pytest.mark.parametrize("syntax", ["plain", "compel", "a1111"])
def test_the_longest_word_that_fits_is_found(syntax):
    (found,) = units(["a toyx, toyb toy"], syntax, TWO)
    assert shown(found) == ["a", (3, 2), ",", (0, 3), "b", (0, 3)]


def test_capitals_are_letters_for_the_search_in_the_text():
    (found,) = units(["TOY Toy"], "plain", TWO)
    assert shown(found) == [(0, 3), (0, 3)]


def test_texts_without_the_word_have_their_tokens_alone():
    for syntax in ("plain", "a1111"):
        assert units(["to y"], syntax, Letters()) == [[(116,), (111,), (121,)]]
    assert shown(units(["t"], "a1111", TWO)[0]) == ["t"]


def runs_of(ids):
    """The embeddings of a chunk: (first vector, how many of its vectors are there)."""
    found = []
    for i in ids:
        if i < 0 and found and found[-1] is not None and found[-1][0] - found[-1][1] == i and i not in (-1, -4):
            found[-1][1] += 1
        else:
            found.append([i, 1] if i < 0 else None)
    return [one for one in found if one is not None]


@pytest.mark.parametrize(
    "rules",
    [
        TextRules(syntax="a1111", weighting="a1111", whole=True, embedded=True),
        TextRules(syntax="plain", whole=True, embedded=True),
        TextRules(syntax="compel", weighting="compel", whole=True, embedded=True),
    ],
)
def test_no_embedding_is_cut_by_a_chunk(rules):
    random.seed(0)
    for _ in range(60):
        text = " ".join(random.choice(["ab", "c,", "toy", "toyx", "d."]) for _ in range(random.randint(1, 150)))
        laid_out = lay_out(text, rules, TWO)
        every = [one for chunk in laid_out.chunks for one in runs_of(chunk.ids)]
        assert all(one == ([-1, 3] if one[0] == -1 else [-4, 2]) for one in every), text
        assert len(every) == sum(word.startswith("toy") for word in text.split())
        assert all(len(chunk.ids) == len(chunk.weights) <= CHUNK for chunk in laid_out.chunks)
        assert laid_out.num_tokens == 2 + sum(len(chunk.ids) for chunk in laid_out.chunks)


def test_a_text_that_is_cut_keeps_the_vectors_that_fit():
    laid_out = lay_out("a" * 74 + " toy", TextRules(embedded=True), TWO)
    assert laid_out.chunks[0].ids[-2:] == [ord("a"), -1]
    assert (laid_out.num_tokens, laid_out.truncated) == (79, True)


def test_every_vector_has_the_weight_of_its_word():
    rules = TextRules(syntax="a1111", weighting="a1111", whole=True, embedded=True)
    (chunk,) = lay_out("a (toy:1.5)", rules, TWO).chunks
    assert chunk.ids == [97, -1, -2, -3] and chunk.weights == [1, 1.5, 1.5, 1.5]
