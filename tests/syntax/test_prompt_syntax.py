"""Prompts' marks: A1111's by the examples in its documentation, compel's against its own parser, hostile ones."""

import random
import time

import pytest

from tpusd.errors import UserError
from tpusd.syntax import a1111, compel
from tpusd.syntax.chunks import lay_out
from tpusd.syntax.rules import CHUNK, MAX_CHUNKS, Fragment, TextRules

MAX_SECONDS = 5
WHOLE = TextRules(syntax="a1111", weighting="a1111", whole=True)


class Letters:
    """A tokenizer whose tokens are the signs of a text, without spaces."""

    embedded = ()

    def words(self, texts):
        return [[ord(sign) for sign in text if sign != " "] for text in texts]

    def id_of(self, token):
        return ord(token.removesuffix("</w>"))

    def ends_word(self, token):
        return chr(token) in ".,;:"


def close(made, expected):
    assert [text for text, _ in made] == [text for text, _ in expected]
    assert [weight for _, weight in made] == pytest.approx([weight for _, weight in expected])


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("normal text", [("normal text", 1)]),
        ("an (important) word", [("an ", 1), ("important", 1.1), (" word", 1)]),
        ("(unbalanced", [("unbalanced", 1.1)]),
        (r"\(literal\]", [("(literal]", 1)]),
        ("(unnecessary)(parens)", [("unnecessaryparens", 1.1)]),
        (
            "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).",
            [("a ", 1), ("house", 1.573), (" ", 1.1), ("on", 1), (" a ", 1.1), ("hill", 0.55), (", sun, ", 1.1),
             ("sky", 1.4641), (".", 1.1)],
        ),
        ("", [("", 1)]),
        ("a : b) c]", [("a : b) c]", 1)]),
        ("(a: -0.5 )", [("a", -0.5)]),
        ("a BREAK b", [("a", 1), ("BREAK", -1), ("b", 1)]),
        ("no BREAKFAST", [("no BREAKFAST", 1)]),
    ],
)  # fmt: skip
def test_a1111s_marks_mean_what_its_documentation_says(prompt, words):
    close(a1111.parse(prompt), words)


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("a cat AND a dog", "AND joins prompts in A1111"),
        ("<lora:hat:0.8> a cat", "<lora:hat:0.8> is not read in a prompt; use loras="),
        ("(a:1.2.3)", "1.2.3 is not a weight"),
        ("(a:99999)", "99999 is not a weight; write a number from -1000 to 1000"),
        ("(" * 101, "has more than 100 brackets that are open at a time"),
    ],
)
def test_marks_that_are_not_implemented_are_refused(prompt, said):
    with pytest.raises(UserError) as caught:
        a1111.parse(prompt)
    assert str(caught.value).startswith(said) and "\n" not in str(caught.value)


@pytest.mark.parametrize("prompt", ["(a b).blend(1, 2)", '("a", "b").and()', "a cat.swap(dog)", "withLora(hat, 0.8)"])
def test_operators_of_compel_that_are_not_implemented_are_refused(prompt):
    with pytest.raises(UserError, match="of compel is not implemented"):
        compel.parse(prompt)


HOSTILE = [
    "(" * 100_000 + "a" + ")" * 100_000,
    "[" * 100_000,
    "(a" * 60_000,
    "(a)" * 60_000,
    "(" * 99 + "a(b)" * 40_000,
    '"a ' * 60_000,
    '"(a' * 60_000,
    "((a)1.1 b " * 50 + "c" * 50_000,
    "(a:1" * 50_000,
    "a+" * 90_000,
    "+" * 200_000,
    "\\" * 200_000,
    "BREAK " * 30_000,
    ": 1" * 60_000,
    "[:" * 90_000 + "1]",
    "(" + " " * 199_000,
    "(a :" + " " * 199_000,
    ", " * 100_000,
    "<lora:" * 30_000,
]


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(HOSTILE)))
@pytest.mark.parametrize("syntax", ["a1111", "compel"])
def test_hostile_prompts_take_bounded_time_and_are_one_line(syntax, number):
    began = time.monotonic()
    try:
        lay_out(HOSTILE[number], TextRules(syntax=syntax, weighting=syntax, whole=True), Letters())
    except UserError as error:
        assert "\n" not in str(error) and len(str(error)) < 300
    assert time.monotonic() - began < MAX_SECONDS


def test_break_begins_a_chunk_and_long_prompts_have_many():
    made = lay_out("aa BREAK bb", WHOLE, Letters())
    assert ["".join(map(chr, chunk.ids)) for chunk in made.chunks] == ["aa", "bb"] and made.num_tokens == 6
    made = lay_out("a" * (2 * CHUNK + 1), WHOLE, Letters())
    assert [len(chunk.ids) for chunk in made.chunks] == [CHUNK, CHUNK, 1] and not made.truncated
    with pytest.raises(UserError, match=f"has 2403 tokens in 33 chunks; at most {MAX_CHUNKS} chunks are read"):
        lay_out("a" * (MAX_CHUNKS * CHUNK + 1), WHOLE, Letters())
    made = lay_out("a" * 100, TextRules(syntax="compel", weighting="compel"), Letters())
    assert [len(chunk.ids) for chunk in made.chunks] == [CHUNK] and made.truncated and made.num_tokens == 102


def test_what_follows_a_comma_moves_to_the_next_chunk_where_it_is_short():
    near, far = "a" * 54 + "," + "b" * 20 + "c", "a" * 53 + "," + "b" * 21 + "c"
    lengths = [[len(chunk.ids) for chunk in lay_out(text, WHOLE, Letters()).chunks] for text in (near, far)]
    assert lengths == [[75, 1], [75, 1]]
    near = "a" * 55 + "," + "b" * 19 + "c"
    assert [len(chunk.ids) for chunk in lay_out(near, WHOLE, Letters()).chunks] == [56, 20]


@pytest.mark.parity
@pytest.mark.slow
def test_compels_grammar_is_compels():
    """On random strings of its marks."""
    parser = pytest.importorskip("compel.prompt_parser").PromptParser()
    random.seed(2)
    parts = ["a", "bc", " ", " ", "(", ")", "+", "-", "++", ",", ".", '"', "1.3", "0.5)", "\\(", "\\)", "=", " (", ") "]
    for _ in range(300):
        prompt = "".join(random.choice(parts) for _ in range(random.randint(1, 14)))
        (flattened,) = parser.parse_conjunction(prompt).prompts or [None]
        expected = [Fragment("")] if flattened is None else [Fragment(f.text, f.weight) for f in flattened.children]
        made = compel.parse(prompt)
        assert [text.split() for text, _ in made] == [text.split() for text, _ in expected], prompt
        assert [weight for _, weight in made] == pytest.approx([weight for _, weight in expected]), prompt
