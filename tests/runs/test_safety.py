"""What a run does with the pictures that its safety checker finds: recorded, blurred or not written, and said."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from PIL import Image
from support import safety
from support.cluster import FakeHosts
from support.runs import INLINE, StandInPipeline, config, manifest, pixels
from support.sweeps import go_on, make

from tpusd.engine.not_finite import NotFinite
from tpusd.errors import ChangedFile, UserError
from tpusd.export import main as export
from tpusd.plan.specs import make_spec
from tpusd.process.exit import exit_status
from tpusd.records.manifest import ImageRecord
from tpusd.records.saved import read_config, read_saved
from tpusd.records.status import run_status
from tpusd.records.validate import faults
from tpusd.results import main as results
from tpusd.runs.executors import ray
from tpusd.runs.merge import merge
from tpusd.runs.reproduce import reproduce
from tpusd.runs.resume import resume_run
from tpusd.runs.safety import blurred, check_checker
from tpusd.runs.start import start_run

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_device")]
WORDS = (INLINE, "num_images_per_prompt=3", "batch_size_per_device=2")
DROPPED = "dropped.jsonl"


@pytest.fixture(autouse=True)
def checker(monkeypatch):
    return safety.use(monkeypatch)


def start(path, *overrides, pipeline=None):
    made = config(f"output={path}", *WORDS, *overrides)
    return start_run(made, prepare=safety.prepare, load=lambda *_, **__: pipeline or StandInPipeline())


def resume(path, *overrides, pipeline=None):
    return resume_run(path, overrides, prepare=safety.prepare, load=lambda *_, **__: pipeline or StandInPipeline())


def images(path):
    return {file.name: file.read_bytes() for file in sorted((path / "images").iterdir())}


def dropped(path):
    return [json.loads(line) for line in (path / DROPPED).read_bytes().splitlines()]


def lines(path):
    """The lines of the manifest by image, without what the checker says."""
    return {line["file_name"]: {k: v for k, v in line.items() if k != "safety"} for line in manifest(path)}


@pytest.fixture
def plain(tmp_path):
    """The run without a checker, and the names of the files that the checker would find."""
    path = start(tmp_path / "plain")
    saved = read_saved(path)
    found = {
        line["file_name"].removeprefix("images/")
        for line in manifest(path)
        if safety.verdict(pixels(make_spec(saved, line["row"], line["copy"]))).nsfw
    }
    assert 2 <= len(found) <= 7
    return path, found


def test_nobody_looks_by_default(plain, checker):
    path, _ = plain
    assert checker.checked == 0 and "safety" not in read_config(path)
    assert not (path / DROPPED).exists() and not any("safety" in line for line in manifest(path))
    assert "safety" not in json.loads((path / "run.json").read_text())


def test_record_changes_no_byte_of_a_picture_and_notes_every_score(plain, tmp_path):
    path, found = plain
    recorded = start(tmp_path / "run", "safety=record")
    assert images(recorded) == images(path) and lines(recorded) == lines(path)
    for line in manifest(recorded):
        expected = safety.FOUND if line["file_name"].removeprefix("images/") in found else safety.CLEAN
        assert line["safety"] == expected.values() and line["safety"]["nsfw"] == expected.nsfw
    assert read_config(recorded)["safety"]["sha256"] == safety.SHA256
    noted = json.loads((recorded / "run.json").read_text())["safety"]
    assert noted["sha256"] == {"safety_checker/model.safetensors": safety.SHA256} and noted["path"] == "/checker"
    assert list(faults(recorded)) == []
    captions = [json.loads(line) for line in (recorded / "metadata.jsonl").read_text().splitlines()]
    assert all(isinstance(caption["safety"]["nsfw"], bool) for caption in captions)


def test_blur_changes_the_found_pictures_alone(plain, tmp_path):
    path, found = plain
    made = start(tmp_path / "run", "safety=blur")
    assert {name for name, data in images(made).items() if data != images(path)[name]} == found
    for line in manifest(made):
        name = line["file_name"].removeprefix("images/")
        assert line["safety"].get("blurred") == (True if name in found else None)
        ours, before = (np.asarray(Image.open(root / line["file_name"])) for root in (made, path))
        np.testing.assert_array_equal(ours, blurred(before) if name in found else before)
    assert list(faults(made)) == []


def test_blur_leaves_nothing_to_recognise():
    """Of a board of fields as large as a face, no edge is left: neighbours differ by less than can be seen."""
    board = np.kron(np.indices((8, 8)).sum(0) % 2, np.ones((64, 64)))[..., None].repeat(3, 2).astype(np.uint8) * 255
    soft = blurred(board).astype(int)
    assert np.abs(np.diff(soft, axis=0)).max() <= 6 and np.abs(np.diff(soft, axis=1)).max() <= 6


def test_drop_writes_no_file_and_says_so(plain, tmp_path, capsys):
    path, found = plain
    made = start(tmp_path / "run", "safety=drop")
    said = capsys.readouterr()
    rest = {name: data for name, data in images(path).items() if name not in found}
    assert images(made) == rest and len(manifest(made)) == 9 - len(found)
    names = {f"{line['row']:05d}-{line['copy']:03d}.png" for line in dropped(made)}
    assert names == found and all(line["safety"] == safety.FOUND.values() for line in dropped(made))
    assert f"{len(found)} dropped by the safety checker (dropped.jsonl)" in said.out
    assert said.err.count("because the safety checker found it") == 1  # run.log has all of them
    assert (made / "run.log").read_text().count("because the safety checker found it") == len(found)
    assert list(faults(made)) == []
    assert f"{len(found)} dropped by the safety checker" in (made / "index.html").read_text()
    status = run_status(made, 0.0)
    assert (status.state, status.num_done, status.num_images) == ("finished", 9, 9)


def test_dropped_images_are_not_made_again(tmp_path, checker, capsys):
    made = start(tmp_path / "run", "safety=drop")
    before = images(made), (made / DROPPED).read_bytes()
    pipeline = StandInPipeline()
    resume(made, pipeline=pipeline)
    assert pipeline.batches == [] and checker.checked == 9
    assert "complete, 9 images, " in capsys.readouterr().out
    resume(made, "num_images_per_prompt=4", pipeline=pipeline)
    assert sum(len(batch) for batch in pipeline.batches) == 3 and list(faults(made)) == []
    assert (made / DROPPED).read_bytes().startswith(before[1])


@pytest.mark.parametrize("fails_at", [1, 3])
def test_interrupted_run_ends_like_an_uninterrupted_one(tmp_path, fails_at):
    whole, path = start(tmp_path / "whole", "safety=drop"), tmp_path / "run"
    with pytest.raises(UserError):
        start(path, "safety=drop", pipeline=StandInPipeline(fails_at, UserError("model: gone")))
    resume(path)
    assert images(path) == images(whole) and lines(path) == lines(whole) and list(faults(path)) == []
    assert sorted(dropped(path), key=str) == sorted(dropped(whole), key=str)


def test_a_run_of_which_everything_is_dropped_is_complete(tmp_path, monkeypatch, capsys):
    safety.use(monkeypatch, lambda pixels: safety.FOUND)
    path = start(tmp_path / "run", "safety=drop")
    assert manifest(path) == [] and len(dropped(path)) == 9 and list(faults(path)) == []
    pipeline = StandInPipeline()
    resume(path, pipeline=pipeline)
    assert pipeline.batches == [] and "complete, 9 images" in capsys.readouterr().out


def test_torn_and_foreign_lines_are_named_and_removed(tmp_path):
    path = start(tmp_path / "run", "safety=drop")
    first = dropped(path)[0]
    kept = (path / DROPPED).read_bytes()
    extra = [b"null", b'{"row": 77, "copy": 0}', b'{"row": "0", "copy": 0}', b"\xff", b'{"row": 0, "co']
    (path / DROPPED).write_bytes(kept + b"\n".join(extra))
    found = list(faults(path))
    assert len(found) == 5 and "its last line is torn" in found[-1] and all(line.startswith(DROPPED) for line in found)
    resume(path)
    assert (path / DROPPED).read_bytes() == kept and list(faults(path)) == []
    (path / DROPPED).write_bytes(b"".join(line + b"\n" for line in kept.splitlines()[1:]))
    assert ["in the plan and not in the manifest" in line for line in faults(path)] == [True]
    resume(path)
    assert first in dropped(path) and list(faults(path)) == []


def test_link_in_the_place_of_the_file_is_not_followed(tmp_path):
    path = start(tmp_path / "run", "safety=drop")
    (path / DROPPED).rename(tmp_path / "elsewhere")
    (path / DROPPED).symlink_to(tmp_path / "elsewhere")
    before = (tmp_path / "elsewhere").read_bytes()
    assert any("is a link" in line for line in faults(path))
    with pytest.raises(UserError, match="cannot be"):
        resume(path)
    assert (tmp_path / "elsewhere").read_bytes() == before


def test_reproduction_makes_what_was_written(tmp_path, capsys):
    for name in ("blur", "drop"):
        path = start(tmp_path / name, f"safety={name}")
        again = tmp_path / f"{name} again"
        assert reproduce(path, [f"output={again}"], prepare=safety.prepare, load=lambda *_, **__: StandInPipeline())
        counts = json.loads((again / "comparison.json").read_text())["counts"]
        assert counts == {"identical": len(manifest(path))}


def test_results_and_exports_are_of_the_files(tmp_path):
    path = start(tmp_path / "run", "safety=drop")
    page = (path / "index.html").read_bytes()
    (path / "index.html").unlink()
    assert results([str(path)]) == 0 and (path / "index.html").read_bytes() == page
    assert export([str(path), str(tmp_path / "out"), "--format=webdataset"]) == 0


def test_shards_end_with_the_run_of_one_process(tmp_path):
    whole = start(tmp_path / "whole", "safety=drop")
    for which in ("1/3", "2/3", "3/3"):
        start(tmp_path / "run", "safety=drop", f"shard={which}")
    path = tmp_path / "run"
    assert images(path) == images(whole) and lines(path) == lines(whole) and list(faults(path)) == []
    assert {(line["row"], line["copy"]) for line in dropped(path)} == {
        (line["row"], line["copy"]) for line in dropped(whole)
    }
    assert json.loads((path / "run.json").read_text())["state"] == "finished"


def test_merged_shards_keep_what_was_dropped(tmp_path):
    whole = start(tmp_path / "whole", "safety=drop")
    parts = [start(tmp_path / f"part{i}", "safety=drop", f"shard={i}/2") for i in (1, 2)]
    assert merge(tmp_path / "out", parts) == 0
    assert images(tmp_path / "out") == images(whole) and list(faults(tmp_path / "out")) == []
    assert len(dropped(tmp_path / "out")) == len(dropped(whole))


@pytest.mark.parametrize("name", ["record", "blur", "drop"])
def test_cluster_writes_what_one_machine_writes(tmp_path, monkeypatch, name):
    hosts = FakeHosts(2)
    monkeypatch.setattr(ray, "check_cluster", lambda address: None)
    monkeypatch.setattr(ray.RayHosts, "connect", lambda config: hosts)
    monkeypatch.setattr("tpusd.runs.safety.open_safety", lambda *_: safety.opened())
    local, there = (
        start(tmp_path / "local", f"safety={name}"),
        start(tmp_path / "there", f"safety={name}", "executor=ray"),
    )
    assert images(there) == images(local)
    key = lambda line: (line["row"], line["copy"])  # noqa: E731
    assert sorted(manifest(there), key=key) == sorted(manifest(local), key=key)
    if name == "drop":
        assert sorted(dropped(there), key=key) == sorted(dropped(local), key=key)


def test_host_with_another_checker_takes_no_part(tmp_path, monkeypatch):
    hosts = FakeHosts(1)
    monkeypatch.setattr(ray, "check_cluster", lambda address: None)
    monkeypatch.setattr(ray.RayHosts, "connect", lambda config: hosts)
    monkeypatch.setattr("tpusd.runs.safety.open_safety", lambda *_: safety.opened("6" * 64))
    with pytest.raises(UserError, match="another safety checker than the driver's"):
        start(tmp_path / "run", "safety=record", "executor=ray")


def test_runs_of_a_sweep_have_their_own_choice_in_one_batch(tmp_path):
    done = make(
        INLINE, "num_images_per_prompt=3", "batch_size_per_device=9", "safety=off,record,drop",
        f"output={tmp_path / 's'}", prepare=safety.prepare,
    )  # fmt: skip
    assert done.status == 0
    off, record, drop = sorted(path for path in (tmp_path / "s").iterdir() if path.is_dir() and path.name[0] != ".")
    assert images(off) == images(record) and set(images(drop)) < set(images(off))
    assert [any("safety" in line for line in manifest(path)) for path in (off, record, drop)] == [False, True, True]


def test_runs_that_join_a_sweep_need_its_checker(tmp_path, monkeypatch):
    words = [INLINE, f"output={tmp_path / 's'}", "safety=record"]
    assert make(*words, "seed=0", prepare=safety.prepare).status == 0
    monkeypatch.setattr(safety, "SHA256", "6" * 64)
    with pytest.raises(ChangedFile, match="/checker/config.json: has changed: sha256 666666666666..., not 5555"):
        go_on(tmp_path / "s", "seed=0,1", prepare=safety.prepare)


def test_image_that_is_not_finite_is_tried_again_and_not_dropped(tmp_path, monkeypatch):
    class Overflowing(StandInPipeline):
        def generate(self, specs, tables, **options):
            made = super().generate(specs, tables, **options)
            for image in made:
                image.not_finite = NotFinite(program="decode")
            return made

    safety.use(monkeypatch, lambda pixels: safety.FOUND)
    path = tmp_path / "run"
    with exit_status() as status:
        start(path, "safety=drop", pipeline=Overflowing())
    assert status == [1] and not (path / DROPPED).exists() and manifest(path) == []
    resume(path)
    assert len(dropped(path)) == 9


def test_run_continues_with_the_checker_and_the_choice_that_it_has(tmp_path):
    path = start(tmp_path / "run", "safety=drop")
    with pytest.raises(UserError, match="safety.name=record: the run was made with drop"):
        resume(path, "safety=record", "num_images_per_prompt=4")
    saved = read_saved(path)
    assert check_checker(saved, safety.opened()) == ()
    with pytest.raises(ChangedFile, match="has changed: sha256 666666666666..., not 555555555555"):
        check_checker(saved, safety.opened("6" * 64))
    accepted = dataclasses.replace(saved, on_changed_weights="warn")
    assert len(check_checker(accepted, safety.opened("6" * 64))) == 1


def test_line_is_read_as_it_was_written(tmp_path):
    path = start(tmp_path / "run", "safety=blur")
    for line in (path / "manifest.jsonl").read_bytes().splitlines():
        record = ImageRecord.from_line(line)
        assert record.to_line() == line
        assert ImageRecord.from_values(record.values() | {"safety": [1]}) is None


@pytest.mark.parametrize(
    ("words", "rule"),
    [
        (["safety.path=/x"], "safety.path=/x: is for a run with a safety checker; add safety=record"),
        (["safety=blur", "safety.path=/x", "safety.repo=a/b"], "safety.repo is set too"),
        (["safety=blur", "safety.revision=main"], "is for a checker from the Hub"),
        (["safety=blur", "safety.sha256=x"], "must be 64 hexadecimal digits"),
        (["safety=blur", "safety.path=' '"], "must name a directory"),
        (["safety=black"], "safety=black"),
    ],
)
def test_fields_that_do_not_fit_are_one_line(words, rule):
    with pytest.raises(UserError, match=rule):
        config(*words)


def test_run_from_elsewhere_that_never_had_a_checker_is_not_touched(tmp_path):
    path = start(tmp_path / "run")
    shutil.copyfile(start(tmp_path / "other", "safety=drop") / DROPPED, path / DROPPED)
    assert all("lets drop" in line for line in faults(path)) and list(faults(path))
    resume(path)
    assert (path / DROPPED).read_bytes() == b"" and list(faults(path)) == []
