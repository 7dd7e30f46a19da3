"""Wildcards in prompts: what they choose, that the choice follows from the seed and the row alone, hostile ones."""

import collections
import time

import pytest
from support.runs import config

from tpusd.errors import UserError
from tpusd.prompts.rows import run_rows
from tpusd.prompts.wildcards import Wildcards, expand

MAX_SECONDS = 5
NO_FILES = Wildcards(root=None)


def expanded(text, seed=0, row=0, root=None):
    return expand(text, NO_FILES if root is None else Wildcards(root=root), seed=seed, row=row, field="prompt")


def all_of(text, number=200, root=None):
    return {expanded(text, seed=seed, root=root) for seed in range(number)}


@pytest.fixture
def files(tmp_path):
    (tmp_path / "animals").mkdir()
    (tmp_path / "colour.txt").write_text("# colours\nred\n\n  blue \n", encoding="utf-8-sig")
    (tmp_path / "animals/fox.txt").write_text("a __colour__ fox\n{big|small} fox\n")
    return tmp_path


def test_every_choice_is_made_and_nothing_else():
    assert all_of("{a|b|c} x") == {"a x", "b x", "c x"}
    assert all_of("{a|{b|c} d}") == {"a", "b d", "c d"}
    assert all_of("{a|}{1|2}") == {"a1", "a2", "1", "2"}
    assert all_of("{[x|y]|z}") == {"[x|y]", "z"}


@pytest.mark.parametrize("text", ["a fox", "a | b", "a } b", "snake_case __ x", "(a:1.2) [b|c]", ""])
def test_a_text_without_wildcards_stays(text):
    assert expanded(text) == text


def test_a_brace_may_be_text():
    assert expanded(r"\{a|b\}") == "{a|b}"


def test_choices_are_as_often_as_their_weights():
    counts = collections.Counter(expanded("{3::a|b|0::c}", seed=seed) for seed in range(2000))
    assert counts["c"] == 0 and 0.7 < counts["a"] / 2000 < 0.8


def test_a_line_of_a_file_is_chosen_with_the_marks_that_it_has(files):
    assert all_of("__colour__", root=files) == {"red", "blue"}
    assert all_of("x, __animals/fox__!", root=files) == {f"x, {a} fox!" for a in ("a red", "a blue", "big", "small")}


def test_the_choice_follows_from_the_seed_and_the_row():
    """The published rule: six bytes of SHA-256 of these words, as a share of what there is."""
    import hashlib

    for seed, row in ((0, 0), (7, 3)):
        digest = hashlib.sha256(f"tpusd wildcards {seed} {row} prompt 0".encode()).digest()
        assert expanded("{a|b|c|d}", seed=seed, row=row) == "abcd"[digest[0] // 64]
    assert len({expanded("{a|b|c|d}{a|b|c|d}", row=row) for row in range(100)}) == 16


def rows(*overrides):
    return run_rows(config(*overrides))


def prompts(*texts):
    return "prompts.rows=[" + ", ".join(f'{{prompt: "{text}"}}' for text in texts) + "]"


@pytest.mark.slow
def test_a_set_that_grows_leaves_its_rows_as_they_are():
    texts = ["{a|b|c} fox", "{a|b|c} owl", "{a|b|c} cat"]
    made = [rows(prompts(*texts[:n]), "prompts.wildcards=true") for n in (1, 2, 3)]
    assert made[2][:1] == made[0] and made[2][:2] == made[1]
    (last,) = rows(prompts(texts[2]), "prompts.wildcards=true", "first_row=2")
    assert last == made[2][2]


def test_a_seed_of_the_row_decides_alone():
    own = "prompts.rows=[{prompt: '{a|b|c|d|e|f} fox', seed: 5}]"
    assert rows(own, "prompts.wildcards=true", "seed=1", "first_row=9") == rows(own, "prompts.wildcards=true")


def test_a_row_keeps_the_texts_that_it_was_made_from():
    one, two = rows(
        "prompts.rows=[{prompt: 'a {red|blue} fox'}, {prompt: an owl, negative_prompt: dark}]",
        "negative_prompt='{blurry|dim}'",
        "prompts.wildcards=true",
    )
    assert one.prompt in ("a red fox", "a blue fox") and one.prompt_template == "a {red|blue} fox"
    assert one.negative_prompt in ("blurry", "dim") and one.negative_prompt_template == "{blurry|dim}"
    assert (two.prompt_template, two.negative_prompt, two.negative_prompt_template) == (None, "dark", None)


def test_without_the_field_braces_are_text():
    (row,) = rows("prompts.rows=[{prompt: 'a {red|blue} __x__'}]")
    assert row.prompt == "a {red|blue} __x__" and row.prompt_template is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{a|b", r"{a\|b has no closing brace; write \\{ for a brace"),
        ("{" * 100_000, "has more than 100 brackets that are open at a time"),
        ("{" * 100 + "}" * 100, None),
        ("{2$$a|b}", r"\$\$ in braces, which chooses several, is not implemented"),
        ("{0::a|0::b}", "every choice has the weight 0"),
        ("{a}" * 10_001, "has more than 10000 choices"),
        (r"\{" * 100_000, None),
        ("__nothing__", "nothing.txt: No such file or directory; __nothing__ needs this file"),
        ("__../secret__", r"__../secret__ is not the name of a file in it"),
        ("__/etc/passwd__", "is not the name of a file in it"),
        ("__a//b__", "is not the name of a file in it"),
        ("__link__", "link.txt leads out of it; copy the file into it"),
        ("__loop__", "loop.txt: .*; __loop__ needs this file"),
        ("__folder__", "folder.txt is not a file of at most 16 MiB"),
        ("__empty__", "empty.txt has no line to choose"),
        ("__binary__", "binary.txt is not UTF-8"),
        ("__one__", "files name each other: __one__ -> __two__ -> __one__; remove one name"),
        ("__self__", "files name each other: __self__ -> __self__; remove"),
        ("__grow0__", "has more than 10000 choices|has over 200000 characters"),
    ],
)
def test_what_is_wrong_or_hostile_is_one_line_in_bounded_time(tmp_path, text, said):
    root = tmp_path / "wildcards"
    root.mkdir()
    (tmp_path / "secret.txt").write_text("secret\n")
    (root / "link.txt").symlink_to(tmp_path / "secret.txt")
    (root / "loop.txt").symlink_to(root / "loop.txt")
    (root / "folder.txt").mkdir()
    (root / "empty.txt").write_text("# nothing\n\n")
    (root / "binary.txt").write_bytes(b"\xff\xfe\xfa")
    (root / "one.txt").write_text("x\n__two__\n")
    (root / "two.txt").write_text("y {__one__|z}\n")
    (root / "self.txt").write_text("__self__ __self__\n")
    for i in range(40):
        (root / f"grow{i}.txt").write_text(f"__grow{i + 1}__ __grow{i + 1}__\n")
    (root / "grow40.txt").write_text("x" * 100 + "\n")
    began = time.monotonic()
    if said is None:
        expanded(text, root=root)
    else:
        with pytest.raises(UserError, match=said) as caught:
            expanded(text, root=root)
        assert "\n" not in str(caught.value)
    assert time.monotonic() - began < MAX_SECONDS


def test_a_fault_names_its_row():
    with pytest.raises(UserError, match=r"^prompt of row 1: {b has no closing brace"):
        rows("prompts.rows=[{prompt: a}, {prompt: '{b'}]", "prompts.wildcards=true")
    with pytest.raises(UserError, match=r"^prompt of row 0: __x__ is a line of a file; add prompts.wildcards_dir=DIR"):
        rows("prompts.rows=[{prompt: a __x__}]", "prompts.wildcards=true")
