"""Columns of scores: made, continued, made again, imported, and shown everywhere."""

import hashlib
import json
import shutil
import signal

import pytest
from support.runs import INLINE, StandInPipeline, config, manifest, prepare
from support.sweeps import make

import tpusd
from tpusd.export import main as export_main
from tpusd.process.signals import Interrupted
from tpusd.records.manifest import read_manifest
from tpusd.records.scores import PREFIX, join_scores, read_scores
from tpusd.results import main as results_main
from tpusd.runs.resume import resume_run
from tpusd.runs.start import start_run
from tpusd.score import main
from tpusd.scores.base import Metric
from tpusd.scores.registry import metrics
from tpusd.validate import main as validate_main

pytestmark = pytest.mark.usefixtures("one_device")


@pytest.fixture(scope="module")
def made(tmp_path_factory, one_device):
    path = tmp_path_factory.mktemp("scored") / "run"
    return start_run(
        config(f"output={path}", INLINE, "num_images_per_prompt=2"), prepare=prepare, load=lambda *_: StandInPipeline()
    )


@pytest.fixture
def path(made, tmp_path):
    return shutil.copytree(made, tmp_path / "run")


class Counting:
    """A metric whose value follows from the picture's sha256.

    calls: the files that it saw. stops_at: after how many it is interrupted.
    """

    def __init__(self, weights=None, stops_at=None):
        self.weights, self.stops_at, self.calls = weights, stops_at, []

    def __call__(self, pictures):
        if self.stops_at is not None and len(self.calls) >= self.stops_at:
            raise Interrupted(signal.SIGINT)
        self.calls += [picture.record.file_name for picture in pictures]
        return [value_of(picture.record.sha256) for picture in pictures]


def value_of(sha256):
    return int(sha256[:8], 16) / 2**32


@pytest.fixture
def counting(monkeypatch):
    """counting(...) -> the scorer that `metric=counting` has from now on."""

    def install(batch_size=2, refuses_size=lambda width, height: None, check=lambda places: None, **options):
        scorer = Counting(**options)
        metric = Metric(
            name="counting",
            about="counts",
            range="0 to 1",
            better="higher",
            open=lambda places: scorer,
            refuses_size=refuses_size,
            check=check,
            batch_size=batch_size,
        )
        with_it = {**REGISTERED, "counting": metric}
        for module in ("registry", "command"):
            monkeypatch.setattr(f"tpusd.scores.{module}.metrics", lambda: with_it)
        return scorer

    return install


REGISTERED = dict(metrics())


def lines(path, name="counting"):
    return [json.loads(line) for line in (path / "scores" / f"{name}.jsonl").read_text().splitlines()]


def test_every_image_has_a_line_and_the_manifest_stays(path, counting, capsys):
    scorer = counting(weights="a" * 64)
    before = (path / "manifest.jsonl").read_bytes()
    assert main([str(path), "metric=counting"]) == 0
    records = sorted(manifest(path), key=lambda line: (line["row"], line["copy"]))
    assert lines(path) == [
        {
            "metric": "counting",
            "weights": "a" * 64,
            "file_name": record["file_name"],
            "sha256": record["sha256"],
            "value": value_of(record["sha256"]),
        }
        for record in records
    ]
    assert (path / "manifest.jsonl").read_bytes() == before and len(scorer.calls) == 6
    out = capsys.readouterr().out
    assert "counting of 6 of 6 images: mean" in out and out.endswith(f"see {path}/index.html\n")


def test_what_was_stopped_continues_where_it_was(path, counting, capsys):
    first = counting(stops_at=2)
    assert main([str(path), "metric=counting"]) == 130
    assert "interrupted (SIGINT); every score so far is kept; the same command continues" in capsys.readouterr().err
    assert len(lines(path)) == 2 == len(first.calls)
    rest = counting()
    assert main([str(path), "metric=counting"]) == 0
    assert sorted(first.calls + rest.calls) == sorted(line["file_name"] for line in manifest(path))
    again = counting()
    assert main([str(path), "metric=counting"]) == 0 and again.calls == []


def test_a_torn_line_and_lines_that_are_no_scores_are_made_again(path, counting, capsys):
    counting()
    main([str(path), "metric=counting"])
    file = path / "scores" / "counting.jsonl"
    whole = file.read_bytes()
    first, *rest = whole.splitlines(keepends=True)
    file.write_bytes(b"{}\n" + b"".join(rest)[:-20])
    assert validate_main([str(path)]) == 1
    assert "scores/counting.jsonl line 1: is not a score" in capsys.readouterr().out
    assert results_main([str(path)]) == 0  # shows what is valid
    scorer = counting()
    assert main([str(path), "metric=counting"]) == 0 and len(scorer.calls) == 2
    assert sorted(file.read_bytes().splitlines()) == sorted(whole.splitlines())
    assert validate_main([str(path)]) == 0
    file.write_bytes(whole + b"[]\n")  # and no picture lacks a score
    assert validate_main([str(path)]) == 1 and main([str(path), "metric=counting"]) == 0
    assert sorted(file.read_bytes().splitlines()) == sorted(whole.splitlines())


def test_other_weights_score_all_images_again(path, counting):
    counting(weights="a" * 64)
    main([str(path), "metric=counting"])
    scorer = counting(weights="b" * 64)
    assert main([str(path), "metric=counting"]) == 0 and len(scorer.calls) == 6
    assert main([str(path), "metric=counting", "column=second"]) == 0 and len(scorer.calls) == 12
    assert {line["weights"] for line in lines(path, "second")} == {"b" * 64}


def test_an_image_that_is_made_again_is_scored_again(path, counting):
    counting()
    main([str(path), "metric=counting"])
    manifest_file = path / "manifest.jsonl"
    values = manifest(path)
    picture = path / values[0]["file_name"]
    picture.write_bytes(picture.read_bytes() + b"x")  # as a new version of the encoder might write it
    data = picture.read_bytes()
    values[0] |= {"sha256": hashlib.sha256(data).hexdigest(), "num_bytes": len(data)}
    manifest_file.write_text("".join(json.dumps(line) + "\n" for line in values))
    scores = read_scores(path, list(read_manifest(path)))
    assert values[0]["file_name"] not in scores.columns["counting"]  # the old score is of another picture
    scorer = counting()
    assert main([str(path), "metric=counting"]) == 0 and scorer.calls == [values[0]["file_name"]]
    assert lines(path)[-1]["sha256"] == values[0]["sha256"]


BROKEN = {
    "missing": (lambda file: file.unlink(), "cannot be read: No such file"),
    "changed": (lambda file: file.write_bytes(file.read_bytes() + b"x"), "its sha256 is not the manifest's"),
    "a link": (
        lambda file: (file.rename(file.with_suffix(".x")), file.symlink_to(file.with_suffix(".x"))),
        "is a link",
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_picture_is_named_and_the_others_are_scored(path, counting, kind, capsys):
    harm, said = BROKEN[kind]
    harm(path / "images" / "00001-000.png")
    scorer = counting()
    assert main([str(path), "metric=counting"]) == 1
    error = capsys.readouterr().err
    assert "images/00001-000.png: is not scored: " in error and said in error
    assert len(scorer.calls) == 5 == len(lines(path))


def test_a_picture_that_is_no_picture_is_named(path, counting, capsys):
    file = path / "images" / "00001-000.png"
    file.write_bytes(b"GIF89a")
    values = manifest(path)
    for line in values:
        if line["file_name"] == "images/00001-000.png":
            line |= {"sha256": hashlib.sha256(b"GIF89a").hexdigest(), "num_bytes": 6}
    (path / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in values))
    counting()
    assert main([str(path), "metric=counting"]) == 1
    assert "images/00001-000.png: is not scored: is not a PNG, JPEG or WebP picture" in capsys.readouterr().err


def test_a_picture_that_the_metric_refuses_is_named(path, counting, capsys):
    counting(refuses_size=lambda width, height: f"is {width}x{height}")
    assert main([str(path), "metric=counting"]) == 1
    error = capsys.readouterr().err
    assert error.count("is not scored: is 40x24") == 6 and lines(path) == []


def test_scores_are_in_metadata_export_and_frame(path, counting, tmp_path):
    pandas = pytest.importorskip("pandas")
    counting()
    main([str(path), "metric=counting"])
    wanted = {line["file_name"]: value_of(line["sha256"]) for line in manifest(path)}
    for line in (path / "metadata.jsonl").read_text().splitlines():
        values = json.loads(line)
        assert values["scores.counting"] == wanted[values["file_name"]]
    frame = tpusd.open_run(path).frame
    assert isinstance(frame, pandas.DataFrame)
    assert dict(zip(frame["file_name"], frame["scores.counting"], strict=True)) == wanted
    assert export_main([str(path), str(tmp_path / "out"), "--format=webdataset"]) == 0


def test_merged_runs_keep_the_scores_of_their_pictures(path, made, counting, tmp_path):
    counting()
    main([str(path), "metric=counting"])
    out = shutil.copytree(made, tmp_path / "out")
    lost = path / "scores" / "counting.jsonl"
    lost.write_text("".join(lost.read_text().splitlines(keepends=True)[:4]))
    for _ in range(2):  # what is there is not added again
        join_scores(out, path, read_manifest(out))
    assert lines(out) == lines(path) and len(lines(out)) == 4


def test_a_finished_run_with_scores_is_whole_for_resume(path, counting, capsys):
    counting()
    main([str(path), "metric=counting"])
    before = (path / "index.html").stat().st_mtime_ns
    resume_run(path, [], prepare=prepare, load=lambda *_: StandInPipeline())
    assert (path / "index.html").stat().st_mtime_ns == before


@pytest.mark.slow
def test_a_sweep_has_the_scores_of_its_runs(tmp_path, counting, capsys):
    path = tmp_path / "sweep"
    make("seed=0,1", INLINE, f"output={path}")
    counting()
    assert main([str(path), "metric=counting"]) == 0
    index = [json.loads(line) for line in (path / "index.jsonl").read_text().splitlines()]
    assert len(index) == 6 and all(line["scores.counting"] == value_of(line["sha256"]) for line in index)
    imported = tmp_path / "scores.jsonl"
    imported.write_text("".join(json.dumps({"file_name": line["file_name"], "x": 1.5}) + "\n" for line in index[:4]))
    assert main([str(path), f"import={imported}"]) == 0
    index = [json.loads(line) for line in (path / "index.jsonl").read_text().splitlines()]
    assert [line[f"{PREFIX}x"] for line in index] == [1.5] * 4 + [None] * 2
    assert "x of 4 of 6 images: mean 1.5" in capsys.readouterr().out
    data = json.loads((path / "index.html").read_text().split('id="data">')[1].split("</script>")[0])
    assert data["scores"]["x"] == [1.5] * 4 + [None] * 2 and set(data["scores"]) == {"counting", "x"}


WRONG = {
    "metric=clipscore": "metric=clipscore: no such metric",
    "metrik=x": "metrik=x: no such field; did you mean metric",
    "attributes": "attributes: is not field=value; write metric=attributes",
    "columns=a": "give metric=NAME or import=FILE",
    "metric=": "metric=: has no value",
    "import=/nowhere.csv": "import=/nowhere.csv: no such file",
    "clip.path=x": "give metric=NAME",
    "import=/nowhere.txt": "must end in .csv, .tsv or .jsonl",
}


@pytest.mark.parametrize("word", WRONG)
def test_a_wrong_word_is_one_line(path, word, capsys):
    assert main([str(path), word]) == 2
    error = capsys.readouterr().err
    assert WRONG[word] in error and error.count("\n") == 1
    assert not (path / "scores").exists()


def test_a_directory_that_is_no_run_is_one_line(tmp_path, capsys):
    assert main([str(tmp_path), "metric=colorfulness"]) == 2
    assert "is not a run directory" in capsys.readouterr().err
    assert main([str(tmp_path / "gone"), "metric=colorfulness"]) == 2
    assert "no such directory" in capsys.readouterr().err
