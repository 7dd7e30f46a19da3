"""`scores=[...]`: a run scores its own images; stopped, resumed, swept, in shards, and without what it needs."""

import json
import signal
from dataclasses import replace
from typing import get_args

import pytest
from support.runs import INLINE, StandInPipeline, config, manifest, prepare, saved
from support.sweeps import go_on, make

from tpusd.config.schema import config_values
from tpusd.config.scores import Metric, ScoreWeights
from tpusd.errors import IncompleteRun, UserError
from tpusd.process.signals import Interrupted
from tpusd.runs.reproduce import reproduce
from tpusd.runs.resume import resume_run
from tpusd.runs.scores import check_scores
from tpusd.runs.start import start_run
from tpusd.score import main as score_main
from tpusd.scores.base import Plain
from tpusd.scores.metrics.colorfulness import colorfulness
from tpusd.scores.registry import metrics
from tpusd.validate import main as validate_main

pytestmark = pytest.mark.usefixtures("one_device")
SCORES = "scores=[colorfulness]"


def start(path, *words):
    return start_run(config(f"output={path}", INLINE, *words), prepare=prepare, load=lambda *_: StandInPipeline())


def lines(path, name="colorfulness"):
    return [json.loads(line) for line in (path / "scores" / f"{name}.jsonl").read_text().splitlines()]


def shown(path):
    """The scores that the page, and the metadata, of a run have."""
    data = json.loads((path / "index.html").read_text().split('id="data">')[1].split("</script>")[0])
    metadata = [json.loads(line)["scores.colorfulness"] for line in (path / "metadata.jsonl").read_text().splitlines()]
    return data["scores"]["colorfulness"], metadata


def resume(path, *words):
    return resume_run(path, words, prepare=prepare, load=lambda *_: StandInPipeline())


@pytest.fixture
def stopping(monkeypatch):
    """stopping(number): colorfulness is interrupted at its picture of that number; None: never."""

    def install(number):
        seen = []

        def measure(picture):
            if len(seen) == number:
                raise Interrupted(signal.SIGINT)
            seen.append(picture.record.file_name)
            return colorfulness(picture)

        measured_by(monkeypatch, measure)
        return seen

    return install


def measured_by(monkeypatch, measure):
    """From now on `colorfulness` is this function of a picture, one picture at a time."""
    metric = replace(metrics()["colorfulness"], open=lambda places: Plain(measure), batch_size=1)
    monkeypatch.setitem(metrics(), "colorfulness", metric)


@pytest.mark.slow
def test_a_run_has_the_scores_of_the_command(tmp_path, capsys):
    path = start(tmp_path / "run", SCORES)
    out = capsys.readouterr().out
    assert "colorfulness of 3 of 3 images: mean" in out and out.endswith(f"see {path}/index.html\n")
    other = start(tmp_path / "other")
    assert score_main([str(other), "metric=colorfulness"]) == 0
    assert lines(path) == lines(other) and shown(path) == shown(other)
    assert (path / "manifest.jsonl").read_bytes() == (other / "manifest.jsonl").read_bytes()
    assert "\nscores:" not in (other / "config.yaml").read_text()
    assert "\nscores:\n- colorfulness\n" in (path / "config.yaml").read_text()


@pytest.mark.slow
def test_a_run_that_was_stopped_while_it_scored_continues(tmp_path, stopping, capsys):
    first = stopping(2)
    with pytest.raises(Interrupted) as stopped:
        start(tmp_path / "run", SCORES)
    path = tmp_path / "run"
    assert "every score so far is kept; continue with: python -m tpusd.run resume=" in stopped.value.advice
    assert len(lines(path)) == len(first) == 2
    rest = stopping(None)
    resume(path)
    assert sorted(first + rest) == sorted(line["file_name"] for line in manifest(path))
    assert None not in shown(path)[0] and None not in shown(path)[1]
    again, before = stopping(None), (path / "index.html").stat().st_mtime_ns
    resume(path)
    assert again == [] and (path / "index.html").stat().st_mtime_ns == before


@pytest.mark.slow
def test_a_finished_run_gets_scores_and_its_config_stays(tmp_path):
    path = start(tmp_path / "run")
    before = (path / "config.yaml").read_bytes()
    resume(path, SCORES)
    assert len(lines(path)) == 3 and (path / "config.yaml").read_bytes() == before


@pytest.mark.slow
def test_an_extended_run_scores_what_is_new(tmp_path, stopping):
    path = start(tmp_path / "run", SCORES)
    seen = stopping(None)
    resume(path, "num_images_per_prompt=2")
    assert len(seen) == 3 and len(lines(path)) == 6 and None not in shown(path)[0]


@pytest.mark.slow
def test_a_sweep_scores_its_runs(tmp_path, stopping, capsys):
    path = tmp_path / "sweep"
    stopping(4)
    with pytest.raises(Interrupted) as stopped:
        make("seed=0,1", INLINE, SCORES, f"output={path}")
    assert f"continue with: python -m tpusd.run resume={path}" in stopped.value.advice
    seen = stopping(None)
    assert go_on(path).status == 0 and len(seen) == 2
    index = [json.loads(line) for line in (path / "index.jsonl").read_text().splitlines()]
    assert len(index) == 6 and all(line["scores.colorfulness"] > 0 for line in index)
    assert all(None not in shown(directory)[0] for directory in path.iterdir() if directory.is_dir())


@pytest.mark.slow
def test_the_last_shard_scores(tmp_path, capsys):
    path = start(tmp_path / "run", SCORES, "shard=1/2")
    assert not (path / "scores").exists()
    start(tmp_path / "run", SCORES, "shard=2/2")
    assert len(lines(path)) == 3 and None not in shown(path)[0]
    whole = start(tmp_path / "whole", SCORES)
    assert sorted(map(str, lines(path))) == sorted(map(str, lines(whole)))


@pytest.mark.slow
def test_a_reproduction_does_not_score(tmp_path, monkeypatch):
    path = start(tmp_path / "run", SCORES)
    monkeypatch.chdir(tmp_path)
    assert reproduce(path, prepare=prepare, load=lambda *_, **__: StandInPipeline())
    (again,) = (tmp_path / "runs").iterdir()
    assert not (again / "scores").exists()


def test_a_score_that_is_no_number_is_named_and_the_images_stay(tmp_path, monkeypatch, capsys):
    measured_by(monkeypatch, lambda picture: float("nan"))
    with pytest.raises(IncompleteRun, match="3 of its scores are missing, as named above; the images are whole"):
        start(tmp_path / "run", SCORES)
    assert "is not scored: its score is not a number" in capsys.readouterr().err
    assert len(manifest(tmp_path / "run")) == 3


WRONG = {
    (
        "scores=[attributes]",
    ): r"scores=\[attributes\]: attributes reads pictures of 128x128.* it is 40x24; leave it out",
    ("scores=[hpsv21]",): r"scores=\[hpsv21\]: give score_weights.hpsv21.path=DIR",
    ("scores=[aesthetic]",): r"scores=\[aesthetic\]: give score_weights.aesthetic.path=FILE.safetensors",
    (
        "scores=[clip_score]",
        "score_weights.clip.path=/nowhere",
    ): r"scores=\[clip_score\]: score_weights.clip.path=/now",
    ("scores=[fid]",): "scores.*must be one of aesthetic, attributes, clip_score",
    ("scores=[colorfulness,colorfulness]",): "names colorfulness twice; leave one out",
    ("scores=colorfulness",): "scores=colorfulness: .*list",
    (
        "score_weights.clip.path=a",
        "score_weights.clip.repo=b",
    ): "clip.path=a: score_weights.clip.repo is set too",
}


@pytest.mark.parametrize("words", WRONG)
def test_what_is_missing_is_found_before_anything_runs(words):
    with pytest.raises(UserError, match=WRONG[words]) as refused:
        check_scores(saved(INLINE, *words))
    assert "\n" not in str(refused.value)


def test_weights_that_no_metric_needs_are_a_note():
    notes = check_scores(saved(INLINE, SCORES, "score_weights.clip.path=/nowhere"))
    assert notes == ("score_weights.clip: has no effect, because no metric of `scores` needs it",)


def test_without_the_weights_offline_the_line_says_what_to_download(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=r"scores=\[clip_score\]: score_weights.clip.repo=openai/clip-vit-"):
        check_scores(saved(INLINE, "scores=[clip_score]"))


def test_a_config_without_scores_is_saved_as_before():
    values = config_values(saved(INLINE))
    assert "scores" not in values and "score_weights" not in values
    values = config_values(saved(INLINE, "scores=[clip_score]", "score_weights.clip.path=~/clip"))
    assert values["scores"] == ["clip_score"] and "~" not in values["score_weights"]["clip"]["path"]


def test_the_metrics_of_the_config_are_those_there_are():
    assert set(get_args(Metric)) == set(metrics())
    assert set(vars(ScoreWeights())) == {place for metric in metrics().values() for place in metric.places}


def test_a_sweep_over_scores_is_refused(tmp_path):
    with pytest.raises(UserError, match="scores: all runs of a sweep have the same scores; give one list"):
        make("scores=[],[colorfulness]", INLINE, f"output={tmp_path / 'sweep'}")


@pytest.mark.slow
def test_validate_knows_the_range_of_a_metric(tmp_path, capsys):
    path = start(tmp_path / "run", SCORES)
    assert validate_main([str(path)]) == 0
    first, *rest = lines(path)
    file = path / "scores" / "colorfulness.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in [first | {"value": -3.5}, *rest]))
    assert validate_main([str(path)]) == 1
    said = "scores/colorfulness.jsonl line 1: colorfulness=-3.5: must be 0 (gray) to about 110 and more"
    assert said in capsys.readouterr().out
