"""Every disk operation of a run killed and failed, by tests/support/crash_harness.py; see docs/reliability.md."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]


def harness(*arguments):
    done = subprocess.run(
        [sys.executable, "tests/support/crash_harness.py", "--json", *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=900,
    )
    assert done.stdout, done.stderr
    return json.loads(done.stdout)


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("mode", ["kill", "torn", "once", "forever"])
def test_run_survives_a_fault_at_each_of_its_disk_operations(mode):
    report = harness(mode, "--random", "0")
    assert report["failures"] == []
    # Fewer would mean that the harness no longer sees what it is there to see.
    least = {"kill": 100, "torn": 14, "once": 130, "forever": 130}[mode]
    assert report[f"run {mode}"] >= least and report[f"resume {mode}"] >= least


@pytest.mark.long
@pytest.mark.slow
def test_run_survives_kills_at_random_times():
    report = harness("--random", "30", "none")
    assert report["failures"] == [] and report["random kills before the end"] >= 10
