"""Directories that shards made on separate disks, joined."""

import json
import shutil

import pytest
from support.runs import INLINE
from support.shards import content, shard, sweep_content, sweep_shard
from support.sweeps import make

from tpusd.merge import main
from tpusd.records.run_json import read_run
from tpusd.records.validate import faults

pytestmark = pytest.mark.usefixtures("one_device")


@pytest.fixture(scope="module")
def disks(tmp_path_factory, one_device):
    folder = tmp_path_factory.mktemp("disks")
    for which in (1, 2, 3):
        shard(folder / str(which), f"{which}/3")
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory, one_device):
    path = tmp_path_factory.mktemp("whole") / "run"
    shard(path, None)
    return content(path)


@pytest.mark.slow
def test_merged_directories_are_the_run_of_one_process(disks, tmp_path, whole, capsys):
    before = {file: file.stat().st_mtime_ns for file in disks.rglob("*")}
    out = tmp_path / "out"
    assert main([str(out), *(str(disks / name) for name in "312")]) == 0
    assert content(out) == whole and list(faults(out)) == []
    assert len(read_run(out)["sessions"]) == 3 and capsys.readouterr().out.endswith("complete, 9 images\n")
    assert {file: file.stat().st_mtime_ns for file in disks.rglob("*")} == before
    again = {file: file.read_bytes() for file in out.rglob("*") if file.is_file() and file.name != "run.log"}
    assert main([str(out), *(str(disks / name) for name in "123")]) == 0
    assert {file: file.read_bytes() for file in again} == again


def test_a_merge_grows_by_further_directories_and_makes_nothing_up(disks, tmp_path, whole, capsys):
    out = tmp_path / "out"
    damaged = shutil.copytree(disks / "2", tmp_path / "2")
    (damaged / "images" / "00000-001.png").write_bytes((disks / "1" / "images" / "00000-000.png").read_bytes())
    assert main([str(out), str(disks / "1"), str(damaged)]) == 1
    said = capsys.readouterr()
    assert "00000-001.png: is left out" in said.err and "00000-001 and 3 more of 9 images missing" in said.out
    assert read_run(out)["state"] == "running"
    assert main([str(out), str(disks / "2"), str(disks / "3")]) == 0
    assert content(out) == whole


def test_directories_of_other_runs_are_one_line(disks, tmp_path, capsys):
    shard(tmp_path / "other", "2/3", "seed=5")
    assert main([str(tmp_path / "out"), str(disks / "1"), str(tmp_path / "other")]) == 2
    assert "seed=0" in (said := capsys.readouterr().err) and f"{tmp_path / 'other'} has 5" in said
    assert not (tmp_path / "out").exists()
    assert main([str(tmp_path / "other"), str(disks / "1")]) == 2
    assert main([str(tmp_path / "out"), str(tmp_path)]) == 2
    assert not (tmp_path / "out").exists() and "is not a run directory" in capsys.readouterr().err


@pytest.mark.slow
def test_merged_sweeps_are_the_sweep_of_one_process(tmp_path):
    assert sweep_shard(tmp_path / "whole", None).status == 0
    for which in ("1", "2"):
        assert sweep_shard(tmp_path / which, f"{which}/2").status == 0
    assert main([str(tmp_path / "out"), str(tmp_path / "1"), str(tmp_path / "2")]) == 0
    assert sweep_content(tmp_path / "out") == sweep_content(tmp_path / "whole")
    make("seed=0,1", INLINE, f"output={tmp_path / 'other'}")
    assert main([str(tmp_path / "out2"), str(tmp_path / "1"), str(tmp_path / "other")]) == 2
    assert json.loads((tmp_path / "out" / "sweep.json").read_text())["runs"][0]["error"] is None
