"""What a run says of the embedded model."""

import pytest
import support.runs

from tpusd.checkpoints import ModelSource, open_checkpoint
from tpusd.prompts.vocabulary import next_step, unknown_words, vocabulary_notes
from tpusd.runs.prepare import prepare_run
from tpusd.runs.start import start_run


@pytest.fixture(scope="module")
def tokenizer():
    return open_checkpoint(ModelSource(asset="tiny")).tokenizers[0]


def test_the_embedded_models_own_prompts_are_inside_its_vocabulary(tokenizer):
    prompts = [row.prompt for row in support.runs.config("prompts=portraits").prompts.rows]
    assert unknown_words(prompts, tokenizer) == []


def test_words_of_other_worlds_are_named_once_in_order(tokenizer):
    texts = ["A castle at night, with 2 dragons!", "portrait of a smiling woman", "the castle's café"]
    assert unknown_words(texts, tokenizer) == ["castle", "night", "dragons", "café"]


@pytest.mark.parametrize("text", ["", " ,.;", "東京", "🙂🙂", "x" * 4000, "\x00"])
def test_any_text_gives_at_most_one_bounded_line(tokenizer, text):
    notes = vocabulary_notes(support.runs.config("model=tiny").model, [text], [tokenizer])
    assert len(notes) <= 1 and all(len(note) < 600 and note.isprintable() for note in notes)


def test_other_models_get_no_note_and_no_hint(tokenizer):
    model = support.runs.config("model=sd15").model
    assert vocabulary_notes(model, ["a castle"], [tokenizer]) == () and next_step(model) is None


@pytest.mark.slow
def test_a_run_ends_with_how_to_go_on(tmp_path, capsys):
    out = {}
    for name, model in (("tiny", "model=tiny"), ("local", "model=local")):
        overrides = [model, support.runs.INLINE, f"output={tmp_path / name}", "height=8", "width=16"]
        config = support.runs.config(*overrides, *([f"model.path={tmp_path}"] if name == "local" else []))
        start_run(config, prepare=support.runs.prepare, load=lambda prepared, devices: support.runs.StandInPipeline())
        out[name] = capsys.readouterr().err
    assert "model=sd15" in out["tiny"].splitlines()[-1] and "model=sd15" not in out["local"]


@pytest.mark.slow
def test_prompts_outside_the_vocabulary_are_noted_before_anything_is_made(tokenizer):
    prepared = prepare_run(support.runs.config("model=tiny", 'prompts.rows=[{prompt: "a castle"}, {prompt: "a man"}]'))
    assert len(prepared.warnings) == 1 and "portraits only" in prepared.warnings[0] and "castle" in prepared.warnings[0]
    assert prepare_run(support.runs.config("model=tiny", "prompts=portraits")).warnings == ()
