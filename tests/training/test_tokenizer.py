"""The embedded model's tokenizer, and what the text encoder is taught."""

import numpy as np
import pytest

pytest.importorskip("optax")
pytest.importorskip("orbax.checkpoint")

from tpusd.checkpoints.files import Directory
from tpusd.checkpoints.tokenizer import open_tokenizer
from tpusd.scores.portraits.world import VALUES, draw_portrait
from training.captions import make_caption
from training.text_encoder import make_batch, named_labels
from training.tokenizer import write_tokenizer

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    root = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(root / "tokenizer")
    return open_tokenizer(Directory(root), "tokenizer")


def test_every_word_of_a_caption_is_one_token_and_captions_fit(tokenizer):
    rng = np.random.default_rng(3)
    portraits = [draw_portrait(rng) for _ in range(211)]
    captions = [make_caption(p, set(p.visible), rng) for p in portraits]
    tokens = tokenizer(captions)
    words = [len(caption.replace(",", " ,").split()) for caption in captions]
    np.testing.assert_array_equal(tokens.num_tokens, np.array(words) + 2)  # with begin and end of text
    assert not tokens.truncated.any()


def test_end_of_text_has_the_highest_id_as_in_clip(tokenizer):
    tokens = tokenizer(["portrait of a man"])
    assert tokens.input_ids.max() == tokenizer.vocab_size - 1
    assert tokens.input_ids[0, tokens.num_tokens[0] - 1] == tokenizer.vocab_size - 1


def test_the_same_grammar_gives_the_same_tokenizer(tokenizer, tmp_path):
    write_tokenizer(tmp_path / "tokenizer")
    for file in tokenizer.files:
        assert (tmp_path / "tokenizer" / file.name).read_bytes() == file.read_bytes()


def test_any_text_has_tokens(tokenizer):
    tokens = tokenizer(["", "a café at 7 o'clock, 東京 🙂", "x" * 500])
    assert tokens.num_tokens[0] == 2 and tokens.num_tokens[1] > 10 and tokens.truncated[2]


def test_the_text_encoder_is_taught_what_a_caption_names_alone():
    rng = np.random.default_rng(29)
    for _ in range(53):
        portrait = draw_portrait(rng)
        labels = dict(zip(VALUES, named_labels(portrait, {"hair_color", "glasses"}), strict=True))
        assert VALUES["hair_color"][labels.pop("hair_color")] == portrait.hair_color
        glasses = labels.pop("glasses")
        assert (*VALUES["glasses"][1:], "none")[glasses - 1] == portrait.glasses
        assert all(label == len(VALUES[name]) for name, label in labels.items())


def test_a_batch_knows_where_its_captions_end(tokenizer):
    input_ids, labels, ends = make_batch(tokenizer, 7, 13)
    assert input_ids.shape == (13, 77) and labels.shape == (13, len(VALUES))
    assert (input_ids[np.arange(13), ends] == tokenizer.vocab_size - 1).all()
    assert (input_ids[np.arange(13), ends - 1] != tokenizer.vocab_size - 1).all()
