"""`shard=i/n`: shards that share a directory end with the very run that one process makes, whatever stops them."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from support.runs import INLINE, StandInPipeline, config, manifest, prepare
from support.shards import content, shard, sweep_content, sweep_shard
from support.sweeps import go_on, make

from tpusd.errors import UserError
from tpusd.gallery.run import write_results
from tpusd.records.directory import RunDir, refuse_taken
from tpusd.records.manifest import read_manifest
from tpusd.records.run_json import read_run
from tpusd.records.shards import shared_files
from tpusd.records.sweep import read_sweep
from tpusd.records.validate import faults
from tpusd.runs.reproduce import reproduce
from tpusd.runs.resume import resume_run
from tpusd.runs.start import start_run

pytestmark = pytest.mark.usefixtures("one_device")

ROOT = Path(__file__).resolve().parents[2]


def resumed(path, *argv):
    pipeline = StandInPipeline()
    resume_run(path, argv, prepare=prepare, load=lambda *_: pipeline)
    return pipeline


def stopped(path, which, after):
    with pytest.raises(KeyboardInterrupt):
        shard(path, which, pipeline=StandInPipeline(after, KeyboardInterrupt()))


@pytest.fixture(scope="module")
def whole(tmp_path_factory, one_device):
    path = tmp_path_factory.mktemp("whole") / "run"
    shard(path, None)
    return content(path)


def test_shards_of_one_directory_end_with_the_run_of_one_process(tmp_path, whole, capsys):
    path = tmp_path / "run"
    for which, said in (("2/3", "6 images of other shards"), ("1/3", "3 images of other shards"), ("3/3", "see ")):
        assert sum(map(len, shard(path, which).batches)) == 3
        assert said in capsys.readouterr().out
    assert content(path) == whole and list(faults(path)) == []
    facts = read_run(path)
    assert [one["num_images"] for one in facts["sessions"]] == [3, 3, 3] and facts["num_images"] == 9
    assert sorted(os.listdir(path / "shards")) == ["1-of-3.log", "2-of-3.log", "3-of-3.log", "lock"]


@pytest.mark.slow
def test_shards_that_are_started_again_make_what_is_missing_and_nothing_twice(tmp_path, whole, capsys):
    path = tmp_path / "run"
    stopped(path, "1/3", 1)
    stopped(path, "3/3", 2)
    shard(path, "2/3")
    assert len(list(read_manifest(path))) == 6 and read_run(path)["state"] == "running"
    assert sum(map(len, shard(path, "1/3").batches)) == 2
    assert sum(map(len, shard(path, "3/3").batches)) == 1
    assert content(path) == whole
    before = content(path)
    capsys.readouterr()
    assert not shard(path, "1/3").batches and "complete, 9 images" in capsys.readouterr().out
    assert content(path) == before and sorted(os.listdir(path / "shards"))[0] == "1-of-3.log"
    assert not any(name.endswith(".jsonl") for name in os.listdir(path / "shards"))


def test_whole_run_takes_up_what_shards_have_left(tmp_path, whole):
    path = tmp_path / "run"
    stopped(path, "1/2", 2)
    stopped(path, "2/2", 1)
    assert sum(map(len, resumed(path).batches)) == 9 - 3
    assert {**content(path), "manifest.jsonl": 0, "metadata.jsonl": 0} == {
        **whole,
        "manifest.jsonl": 0,
        "metadata.jsonl": 0,
    }
    assert sorted((path / "manifest.jsonl").read_bytes().splitlines()) == sorted(whole["manifest.jsonl"].splitlines())
    assert [name for name in os.listdir(path / "shards") if not name.endswith(".log")] == ["lock"]


@pytest.mark.slow
def test_shard_takes_up_a_whole_run_that_stopped(tmp_path, whole):
    path = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        shard(path, None, pipeline=StandInPipeline(4, KeyboardInterrupt()))
    made = [sum(map(len, resumed(path, f"shard={index}/2").batches)) for index in (1, 2)]
    assert sum(made) == 5 and content(path) == whole


@pytest.mark.slow
def test_shards_extend_a_run_that_shards_have_made(tmp_path, whole):
    path = tmp_path / "run"
    for which in ("1/2", "2/2"):
        shard(path, which, "limit=2", "num_images_per_prompt=2")
    assert len(manifest(path)) == 4
    for which in ("2/2", "1/2"):
        resumed(path, f"shard={which}", "limit=null", "num_images_per_prompt=3")
    assert content(path) == whole


@pytest.mark.slow
def test_damage_of_a_shard_is_mended_by_that_shard(tmp_path, whole):
    path = tmp_path / "run"
    for which in ("1/2", "2/2"):
        shard(path, which)
    (path / "images" / "00001-001.png").write_bytes(b"short")
    (path / "images" / "00000-000.png.tmp").write_bytes(b"of 1/2")
    assert not shard(path, "2/2").batches
    assert (path / "images" / "00000-000.png.tmp").exists()
    assert sum(map(len, shard(path, "1/2").batches)) == 1
    assert content(path) == whole


@pytest.mark.parametrize(
    ("which", "overrides", "expected"),
    [
        ("2/3", ["seed=5"], "seed=5: {path} has 0; give all shards one command"),
        ("2/3", ["limit=2"], "limit=2: {path} has null"),
        ("2/3", ["sampler.num_inference_steps=3"], "sampler.num_inference_steps=3: {path} has 50"),
        (
            "2/3",
            ['prompts.rows=[{prompt: "a red fox"}]'],
            "prompts: row 1 is nothing, and in {path} an owl",
        ),
        ("2/4", [], "shard=2/4: {path} is being made in 3 shards; use shard=i/3, or complete it as one run"),
        (None, [], "output={path}: holds a run; continue it with resume={path}"),
    ],
)
def test_a_command_that_does_not_fit_is_one_line_and_changes_nothing(tmp_path, which, overrides, expected):
    path = tmp_path / "run"
    stopped(path, "1/3", 1)
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    with pytest.raises(UserError) as error:
        shard(path, which, *overrides)
    assert expected.format(path=path) in str(error.value) and "\n" not in str(error.value)
    assert {file: file.read_bytes() for file in path.rglob("*") if file.is_file()} == before


@pytest.mark.parametrize(("which", "expected"), [("4/3", "shard=4/3: the parts of 3"), ("x", "shard=x: must be i/n")])
def test_a_wrong_shard_leaves_nothing(tmp_path, which, expected):
    with pytest.raises(UserError, match=expected):
        shard(tmp_path / "a" / "run", which)
    assert not os.listdir(tmp_path)


def test_a_shard_needs_an_output(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"shard=1/2: needs output=DIR"):
        start_run(config(INLINE, "shard=1/2"), prepare=prepare, load=lambda *_: StandInPipeline())
    assert not os.listdir(tmp_path)


def test_a_directory_that_holds_something_else_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="exists and is not empty"):
        shard(tmp_path, "1/2")
    assert os.listdir(tmp_path) == ["notes.txt"]


@pytest.mark.slow
def test_locks_keep_a_second_process_and_the_whole_run_off(tmp_path):
    path = tmp_path / "run"

    class Meanwhile(StandInPipeline):
        def generate(self, specs, tables, **options):
            for act in (lambda: shard(path, "1/3"), lambda: RunDir.open(path)):
                with pytest.raises(UserError, match="another process is working on this") as error:
                    act()
                refused.append(str(error.value))
            shard(path, "2/3")
            return super().generate(specs, tables, **options)

    refused = []
    shard(path, "1/3", pipeline=Meanwhile())
    assert "this shard 1/3 of this run" in refused[0] and "this run;" in refused[1]
    run_dir = RunDir.open(path)
    with pytest.raises(UserError, match="another process is working on this whole run"):
        shard(path, "3/3")
    run_dir.close()
    shard(path, "3/3")
    assert read_run(path)["state"] == "finished"


def test_shards_with_other_weights_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "run"
    shard(path, "1/2")
    monkeypatch.setattr("support.runs.SHA256", {"unet/weights.safetensors": "1" * 64})
    with pytest.raises(UserError, match="its files have changed"):
        shard(path, "2/2")
    assert len(list(read_manifest(path))) == 5


def test_a_shard_begins_while_another_makes_the_directory(tmp_path, monkeypatch):
    path = tmp_path / "run"
    path.mkdir()

    def another_is_faster(path):
        (path / "shards").mkdir()
        refuse_taken(path)

    monkeypatch.setattr("tpusd.records.shards.refuse_taken", another_is_faster)
    shard(path, "1/2")
    monkeypatch.undo()
    shard(path, "2/2")
    assert list(faults(path)) == []


def test_weights_that_differ_between_shards_at_work_are_refused_before_an_image_is_written(tmp_path, monkeypatch):
    path = tmp_path / "run"

    class Meanwhile(StandInPipeline):
        def generate(self, specs, tables, **options):
            with monkeypatch.context() as patch:
                patch.setattr("support.runs.SHA256", {"unet/weights.safetensors": "1" * 64})
                shard(path, "2/2")
            return super().generate(specs, tables, **options)

    with pytest.raises(UserError, match="has other files here than for the shards before"):
        shard(path, "1/2", pipeline=Meanwhile())
    assert len(list(read_manifest(path))) == 4


@pytest.mark.slow
def test_reproduce_makes_all_that_it_compares(tmp_path):
    path = tmp_path / "run"
    shard(path, None)
    with pytest.raises(UserError, match=r"shard=1/2: reproduce makes all"):
        reproduce(path, ["shard=1/2", f"output={tmp_path / 'again'}"], prepare=prepare, load=None)


def test_page_of_an_unfinished_set_of_shards(tmp_path):
    path = tmp_path / "run"
    shard(path, "1/2")
    assert write_results(path).exists()
    (fault, *others) = faults(path)
    assert "the run is not finished" in fault and "and 3 more: in the plan and not in the manifest" in others[0]
    assert len(others) == 1
    lines = [json.loads(line) for line in (path / "shards" / "1-of-2.jsonl").read_bytes().splitlines()]
    assert {(line["row"] + line["copy"]) % 2 for line in lines} == {0}


@pytest.mark.parametrize("name", ["shards", "shards/1-of-2.jsonl", "shards/1-of-2.json", "shards/lock"])
def test_links_in_place_of_a_shards_files_are_not_followed(tmp_path, name):
    path, behind = tmp_path / "run", tmp_path / "behind"
    stopped(path, "1/2", 2)
    (path / name).rename(behind)
    (path / name).symlink_to(behind)
    before = {file: file.read_bytes() for file in behind.rglob("*") if file.is_file()} or behind.read_bytes()
    for act in (lambda: shard(path, "1/2"), lambda: shard(path, "2/2"), lambda: resumed(path)):
        try:
            act()
        except UserError as error:
            assert "\n" not in str(error)
    assert ({file: file.read_bytes() for file in behind.rglob("*") if file.is_file()} or behind.read_bytes()) == before
    assert behind.exists()


@pytest.mark.slow
def test_a_shard_waits_for_what_all_share(tmp_path):
    path = tmp_path / "run"
    shard(path, "1/2")
    order = []
    with shared_files(path):
        thread = threading.Thread(target=lambda: (shard(path, "2/2"), order.append("shard")))
        thread.start()
        thread.join(0.3)
        order.append("held")
    thread.join(20)
    assert order == ["held", "shard"]


@pytest.fixture(scope="module")
def whole_sweep(tmp_path_factory, one_device):
    path = tmp_path_factory.mktemp("sweep") / "sweep"
    assert sweep_shard(path, None).status == 0
    return path


@pytest.mark.long
@pytest.mark.slow
def test_shards_of_a_sweep_end_with_the_sweep_of_one_process(tmp_path, whole_sweep, capsys):
    path = tmp_path / "sweep"
    made = [sweep_shard(path, f"{index}/4") for index in (3, 1, 2)]
    assert "6 runs of other shards not finished" in capsys.readouterr().out and not (path / "index.html").exists()
    made.append(sweep_shard(path, "4/4"))
    assert [sum(map(len, one.loads.batches)) for one in made] == [5, 4, 5, 4] and {one.status for one in made} == {0}
    assert sweep_content(path) == sweep_content(whole_sweep) and (path / "index.html").exists()
    assert read_sweep(path).overrides == (*read_sweep(whole_sweep).overrides[:-1], f"output={path}")
    again = sweep_shard(path, "2/4")
    assert again.status == 0 and not again.loads.batches
    assert sweep_content(path) == sweep_content(whole_sweep)


@pytest.mark.slow
def test_shards_of_a_sweep_are_resumed_and_extended(tmp_path, whole_sweep):
    path = tmp_path / "sweep"
    with pytest.raises(KeyboardInterrupt):
        make(
            *("seed=0,1", "guidance_scale=1,4", INLINE, "height=8", "width=8", f"output={path}", "shard=1/2"),
            make=lambda: StandInPipeline(2, KeyboardInterrupt()),
        )
    for which in ("2/2", "1/2"):
        assert go_on(path, "seed=0,1,2", f"shard={which}").status == 0
    images = {name: data for name, data in sweep_content(path).items() if name.endswith("images/00001-000.png")}
    assert len(images) == 6 and set(images.values()) == {
        data for name, data in sweep_content(whole_sweep).items() if name.endswith("images/00001-000.png")
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["shard=2/2", "seed=0,1"], "holds a sweep of other runs; give all shards one command"),
        (["shard=1/2,2/2", "seed=0"], "shard: a process makes one shard of all runs of a sweep"),
        (["shard=3/2", "seed=0"], "shard=3/2: the parts of 2"),
    ],
)
def test_a_wrong_shard_of_a_sweep_is_one_line(tmp_path, overrides, expected):
    path = tmp_path / "sweep"
    make("seed=0", INLINE, f"output={path}", "shard=1/2")
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    with pytest.raises(UserError, match=expected):
        make(INLINE, f"output={path}", *overrides)
    assert {file: file.read_bytes() for file in path.rglob("*") if file.is_file()} == before


@pytest.mark.long
@pytest.mark.slow
def test_shards_survive_kills_at_random_times():
    done = subprocess.run(
        [sys.executable, "tests/support/shard_harness.py", "--json", "--runs", "4", "--mean", "0.1"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=300,
    )
    assert done.stdout, done.stderr
    report = json.loads(done.stdout)
    assert report["failures"] == [] and report["kills"] >= 4, done.stderr
