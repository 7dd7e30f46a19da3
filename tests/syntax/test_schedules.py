"""A1111's marks that change a prompt by the step: the cases of its own documentation, and hostile ones."""

import time

import pytest

from tpusd.errors import UserError
from tpusd.syntax import a1111
from tpusd.syntax.schedules import Phase, phases, text_at

MAX_SECONDS = 5
# As the examples in A1111's prompt_parser have it, of 10 steps.
PUBLISHED = [
    ("test", [(10, "test")]),
    ("a [b:3]", [(3, "a "), (10, "a b")]),
    ("a [b: 3]", [(3, "a "), (10, "a b")]),
    ("a [[[b]]:2]", [(2, "a "), (10, "a [[b]]")]),
    ("[(a:2):3]", [(3, ""), (10, "(a:2)")]),
    ("a [b : c : 1] d", [(1, "a b  d"), (10, "a  c  d")]),
    ("a[b:[c:d:2]:1]e", [(1, "abe"), (2, "ace"), (10, "ade")]),
    ("a [unbalanced", [(10, "a [unbalanced")]),
    ("a [b:.5] c", [(5, "a  c"), (10, "a b c")]),
    ("a [{b|d{:.5] c", [(5, "a  c"), (10, "a {b|d{ c")]),
    ("((a][:b:c [d:3]", [(3, "((a][:b:c "), (10, "((a][:b:c d")]),
    ("[a|(b:1.1)]", [(step, "a" if step % 2 else "(b:1.1)") for step in range(1, 11)]),
    ("[fe|]male", [(step, "female" if step % 2 else "male") for step in range(1, 11)]),
    ("[fe|||]male", [(1, "female"), (4, "male"), (5, "female"), (8, "male"), (9, "female"), (10, "male")]),
]
# By the rules in its documentation: a number with a point is a fraction; `from` is there up to the step.
MORE = [
    ("[a:b:1.0]", [(10, "a")]),
    ("[a:b:0.55]", [(5, "a"), (10, "b")]),
    ("[a:b:0]", [(10, "b")]),
    ("[a:b:30]", [(10, "a")]),
    ("[a::4]", [(4, "a"), (10, "")]),
    ("([a:b:4]:1.2)", [(4, "(a:1.2)"), (10, "(b:1.2)")]),
    (r"\[a:b:4\]", [(10, r"\[a:b:4\]")]),
    (r"[a\:x:b:4]", [(4, r"a\:x"), (10, "b")]),
    ("[a] [b:c] [d|e:f]", [(10, "[a] [b:c] [d|e:f]")]),
    ("[a|b] | [c:8]", [(step, f"{'ba'[step % 2]} | {'c' if step > 8 else ''}") for step in range(1, 11)]),
    ("[a:b:c:3]", [(10, "[a:b:c:3]")]),
]


@pytest.mark.parametrize(("prompt", "expected"), PUBLISHED + MORE)
def test_a_prompt_is_at_each_step_what_a1111_makes_of_it(prompt, expected):
    assert phases(prompt, 10) == tuple(Phase(*one) for one in expected)


def test_the_text_of_a_step_stays_after_the_last_one():
    own = phases("[a:b:3]", 10)
    assert [text_at(own, step) for step in (1, 3, 4, 10, 11)] == ["a", "a", "b", "b", "b"]


def test_a_prompt_that_is_the_same_over_the_steps_is_one_text():
    assert phases("[a|a] b", 10) == (Phase(10, "a b"),)


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("[" * 100_000, "has more than 100 brackets that are open at a time"),
        ("[" * 100 + "a" + ":2]" * 100, None),
        ("[a:b:2]" * 20_000, None),
        ("[" + "|".join(map(str, range(200))) + "]", "becomes more than 64 texts over the steps"),
        ("[a" + "|" * 100_000 + "]", None),
        (":" * 100_000 + "[a:b:3]", None),
        ("[" * 99 + "]" * 100_000, None),
    ],
)
def test_hostile_prompts_take_bounded_time(prompt, said):
    began = time.monotonic()
    if said is None:
        phases(prompt, 150)
    else:
        with pytest.raises(UserError, match=said):
            phases(prompt, 150)
    assert time.monotonic() - began < MAX_SECONDS


def test_what_is_no_mark_of_a_step_is_a_weight():
    assert [fragment.text for fragment in a1111.parse("[d|e:f] g")] == ["d|e:f", " g"]
