"""What `tpusd.status` says of runs that are at work, stopped, silent and finished, and that it changes nothing."""

import json
import os
import time

import pytest
from support.runs import INLINE, StandInPipeline
from support.shards import shard, sweep_shard
from support.sweeps import make

from tpusd.records.status import run_status
from tpusd.status import main

pytestmark = pytest.mark.usefixtures("one_device")


def said(capsys, *paths):
    capsys.readouterr()
    assert main([str(path) for path in paths]) == 0
    return capsys.readouterr().out.splitlines()


def tree(path):
    return {file: (file.stat().st_mtime_ns, file.stat().st_size) for file in path.rglob("*")}


def aged(path, seconds):
    """All that was done so far happened earlier."""
    for file in path.rglob("*"):
        os.utime(file, times=(file.stat().st_atime - seconds, file.stat().st_mtime - seconds))


def stopped(path, which, after):
    with pytest.raises(KeyboardInterrupt):
        shard(path, which, pipeline=StandInPipeline(after, KeyboardInterrupt()))


def test_a_run_at_work_stopped_silent_and_finished(tmp_path, capsys):
    path, seen = tmp_path / "run", []

    class Watched(StandInPipeline):
        def generate(self, specs, tables, **options):
            seen.append(run_status(path, time.time()))
            time.sleep(0.01)  # so that images have different times
            return super().generate(specs, tables, **options)

    with pytest.raises(KeyboardInterrupt):
        shard(path, None, pipeline=Watched(6, KeyboardInterrupt()))
    assert {one.state for one in seen} == {"at work"} and seen[0].num_images == 9 and seen[-1].num_done > 0
    assert said(capsys, path) == [f"{path}: 6 of 9 images, stopped"]
    log = path / "run.log"
    log.write_bytes(b"".join(line for line in log.read_bytes().splitlines(True) if b"stopped" not in line))
    assert said(capsys, path)[0].startswith(f"{path}: 6 of 9 images, at work, ")
    aged(path, 3600)
    before = tree(path)
    lines = said(capsys, path)
    assert (
        lines[0] == f"{path}: 6 of 9 images, silent" and "its process: 6 of 9, silent, last active 1:00:0" in lines[1]
    )
    assert tree(path) == before


def test_rate_and_time_left_follow_from_the_times_of_the_newest_images(tmp_path):
    path = tmp_path / "run"
    stopped(path, None, 5)
    log = path / "run.log"
    log.write_bytes(b"".join(line for line in log.read_bytes().splitlines(True) if b"stopped" not in line))
    for number, name in enumerate(sorted(os.listdir(path / "images"))):
        os.utime(path / "images" / name, times=(1000 + 10 * number,) * 2)
    os.utime(log, times=(1000, 1000))
    status = run_status(path, 1060.0)  # five images in 40 s
    assert status.state == "at work" and status.rate == pytest.approx(0.1) and status.seconds_left == pytest.approx(40)
    assert run_status(path, 1040.0 + 121).state == "silent"


@pytest.mark.slow
def test_shards(tmp_path, capsys):
    path = tmp_path / "run"
    shard(path, "1/3")
    stopped(path, "2/3", 2)
    lines = said(capsys, path)
    assert lines[0] == f"{path}: 5 of 9 images, stopped"
    assert lines[1].startswith("  shard 1/3: 3 of 3, finished, last active 0:0")
    assert (
        lines[2].startswith("  shard 2/3: 2 of 3, stopped, last active") and lines[3] == "  1 of 3 shards not started"
    )
    shard(path, "2/3")
    shard(path, "3/3")
    assert said(capsys, path) == [f"{path}: 9 of 9 images, finished"]


@pytest.mark.slow
def test_a_sweep_in_shards_and_one_that_failed(tmp_path, capsys):
    sweep_shard(tmp_path / "sweep", "1/2")
    lines = said(capsys, tmp_path / "sweep")
    assert lines[0] == f"{tmp_path / 'sweep'}: 6 runs, 0 finished, 9 of 18 images" and len(lines) == 7
    failing = make(
        *("seed=0,1", INLINE, f"output={tmp_path / 'failed'}"), make=lambda: StandInPipeline(4, RuntimeError("broken"))
    )
    assert failing.status == 1
    capsys.readouterr()
    lines = said(capsys, tmp_path / "failed")
    assert "2 runs, 1 finished, 1 failed" in lines[0] and "failed: RuntimeError: broken" in lines[1]


@pytest.mark.slow
def test_json_has_all_of_it(tmp_path, capsys):
    shard(tmp_path / "run", "1/2")
    sweep_shard(tmp_path / "sweep", None)
    capsys.readouterr()
    assert main([str(tmp_path / "run"), str(tmp_path / "sweep"), "--json"]) == 0
    run, sweep = map(json.loads, capsys.readouterr().out.splitlines())
    assert (run["num_done"], run["num_images"], run["state"]) == (5, 9, "incomplete")
    assert [worker["shard"] for worker in run["workers"]] == ["1/2"] and run["num_not_started"] == 1
    assert sweep["num_runs"] == 6 and {one["state"] for one in sweep["runs"]} == {"finished"}


def test_what_is_no_run_is_one_line(tmp_path, capsys):
    assert main([str(tmp_path)]) == 2
    assert "is not a run directory" in capsys.readouterr().err
