import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.checkpoints import copy, opened, tiny

from tpusd.checkpoints.files import Directory
from tpusd.checkpoints.tokenizer import open_tokenizer, write_byte_tokenizer
from tpusd.errors import UserError

BOS, EOS = 512, 513


@pytest.fixture(scope="module")
def tokenizer():
    return opened(tiny()).tokenizers[0]


def test_ids_are_begin_bytes_end_and_padding(tokenizer):
    ids, num_tokens, truncated = tokenizer(["Ab c", ""])
    # Letters count from `!`; the last of a word is 256 higher; case is folded.
    assert ids[0, :6].tolist() == [BOS, ord("a") - 33, 256 + ord("b") - 33, 256 + ord("c") - 33, EOS, EOS]
    assert ids[1].tolist() == [BOS] + [EOS] * 76
    assert ids.shape == (2, 77) and ids.dtype == np.int32
    assert num_tokens.tolist() == [5, 2] and truncated.tolist() == [False, False]


@pytest.mark.slow
def test_padding_is_what_the_checkpoint_says():
    assert opened(tiny("sd1")).tokenizers[0](["x"]).input_ids[0, -1] == EOS
    assert opened(tiny("sd2")).tokenizers[0](["x"]).input_ids[0, -1] == 0
    first, second = opened(tiny("sdxl")).tokenizers
    assert (first(["x"]).input_ids[0, -1], second(["x"]).input_ids[0, -1]) == (EOS, 0)


def test_long_prompts_are_counted_whole_cut_and_marked(tokenizer):
    prompts = ["x " * n for n in (74, 75, 76, 50_000)]
    ids, num_tokens, truncated = tokenizer(prompts)
    assert num_tokens.tolist() == [76, 77, 78, 50_002]
    assert truncated.tolist() == [False, False, True, True]
    x = 256 + ord("x") - 33
    assert ids[1].tolist() == ids[2].tolist() == ids[3].tolist() == [BOS] + [x] * 75 + [EOS]


@given(st.lists(st.text(max_size=300), max_size=3))
@settings(max_examples=60, deadline=None)
def test_any_text_gives_77_valid_ids(prompts):
    ids, num_tokens, truncated = opened_tokenizer()(prompts)
    assert ids.shape == (len(prompts), 77)
    assert ((ids >= 0) & (ids < 514)).all()
    assert (ids[:, 0] == BOS).all() and (ids == EOS).any(axis=1).all()
    assert (truncated == (num_tokens > 77)).all()


def opened_tokenizer(cache=[]):  # noqa: B006  hypothesis cannot share a fixture between examples
    return cache[0] if cache else cache.append(opened(tiny()).tokenizers[0]) or cache[0]


@pytest.mark.parametrize(
    "prompt", ["\0", "a\0b", "\x01\x1b[2J", "\u202eabc\u202c", "😀👩‍👩‍👧", "é" * 40_000, "\ufeff", "x" * 100_000]
)
def test_odd_text_is_no_error(tokenizer, prompt):
    assert tokenizer([prompt]).input_ids.shape == (1, 77)


def test_text_that_is_not_unicode_is_refused(tokenizer):
    with pytest.raises(UserError, match="surrogate"):
        tokenizer(["fine", "a\ud800b"])


def test_a_prompt_alone_or_among_others_has_the_same_ids(tokenizer):
    prompts = ["a cat", "x " * 100, "", "two dogs"]
    together = tokenizer(prompts)
    for i, prompt in enumerate(prompts):
        for alone, among in zip(tokenizer([prompt]), together, strict=True):
            np.testing.assert_array_equal(alone[0], among[i])


def test_tokenizer_json_alone_is_enough(tmp_path, tokenizer):
    root = copy(tmp_path)
    tokenizer.backend.save_pretrained(str(tmp_path / "saved"))
    folder = root / "tokenizer"
    (folder / "vocab.json").unlink()
    (folder / "merges.txt").unlink()
    (folder / "tokenizer.json").write_bytes((tmp_path / "saved" / "tokenizer.json").read_bytes())
    prompts = ["A cat, two dogs!", "", "x " * 90]
    for ours, theirs in zip(opened(root).tokenizers[0](prompts), tokenizer(prompts), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_merges_join_letters(tmp_path):
    size = write_byte_tokenizer(tmp_path / "tokenizer")
    vocab = tmp_path / "tokenizer/vocab.json"
    vocab.write_text(
        vocab.read_text().rstrip().rstrip("}").rstrip() + f',\n "ca": {size},\n "cat</w>": {size + 1}\n}}\n'
    )
    (tmp_path / "tokenizer/merges.txt").write_text("#version: 0.2\nc a\nca t</w>\n")
    tokenizer = open_tokenizer(Directory(tmp_path), "tokenizer")
    assert tokenizer.vocab_size == size + 2
    assert tokenizer(["cat"]).input_ids[0, :3].tolist() == [BOS, size + 1, EOS]


def test_an_empty_list_of_prompts_is_empty(tokenizer):
    assert tokenizer([]).input_ids.shape == (0, 77)
