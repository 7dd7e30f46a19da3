"""A thousand images, scored by processes that are killed."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.runs import StandInPipeline, config, manifest, prepare

from tpusd.records.manifest import read_manifest
from tpusd.records.scores import read_scores
from tpusd.runs.start import start_run
from tpusd.score import main

ROOT = Path(__file__).resolve().parents[2]
COMMAND = (sys.executable, "-m", "tpusd.score")
FILE = "scores/colorfulness.jsonl"


def num_lines(path):
    return (path / FILE).read_bytes().count(b"\n") if (path / FILE).exists() else 0


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.usefixtures("one_device")
def test_scores_of_a_thousand_images_survive_kills(tmp_path):
    rows = ", ".join(f"{{prompt: p{number}}}" for number in range(250))
    made = config(
        f"output={tmp_path / 'run'}", f"prompts.rows=[{rows}]", "num_images_per_prompt=4", "height=8", "width=8"
    )
    path = start_run(made, prepare=prepare, load=lambda *_: StandInPipeline())
    assert len(manifest(path)) == 1000
    for at_least in (1, 200, 450, 700):
        process = subprocess.Popen([*COMMAND, str(path), "metric=colorfulness"], cwd=ROOT, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while num_lines(path) < at_least and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        process.kill()
        process.wait()
        assert at_least <= num_lines(path) < 1000
    before = dict.fromkeys((path / FILE).read_bytes().splitlines())
    assert main([str(path), "metric=colorfulness"]) == 0
    after = (path / FILE).read_bytes().splitlines()
    assert len(after) == len(set(after)) == 1000 and set(before) <= set(after)
    records = list(read_manifest(path))
    killed = read_scores(path, records).columns["colorfulness"]
    assert main([str(path), "metric=colorfulness", "column=whole"]) == 0
    assert read_scores(path, records).columns["whole"] == killed
