"""A run and a sweep that tpusd 0.1.0 made (tests/data/runs-0.1.0.tar.gz) work with every command of today.

The embedded model made them at 64 px in 2 steps: portraits with euler, and a sweep over ddim and dpmpp_2m. Each command
is a process with one device: for the eight devices of conftest.py XLA compiles programs that round differently.
"""

import json
import os
import shutil
import subprocess
import sys
import tarfile
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.slow

ARCHIVE = Path(__file__).parents[1] / "data" / "runs-0.1.0.tar.gz"
IMAGES = ("images/00000-000.png", "images/00001-000.png")
RUNS_OF_SWEEP = ("000_sampler=ddim", "001_sampler=dpmpp_2m")
PACKAGES = {"jax", "jaxlib", "pillow", "tpusd"}
LARGEST_DIFFERENCE = 36  # of 255, if the machine rounds differently: docs/reproducibility.md


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    path = tmp_path_factory.mktemp("archive")
    with tarfile.open(ARCHIVE) as file:
        file.extractall(path, filter="data")
    return path


@pytest.fixture
def old(archive, tmp_path):
    """A copy of the archive that the test may change: `old / "run"` and `old / "sweep"`."""
    return shutil.copytree(archive, tmp_path / "old")


def tpusd(command: str, *arguments: object) -> str:
    """What `python -m tpusd.COMMAND` prints. Fails if its exit status is not 0."""
    argv = [sys.executable, "-m", f"tpusd.{command}", *map(str, arguments)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=300, env=os.environ | {"XLA_FLAGS": ""})
    assert done.returncode == 0, done.stderr
    return done.stdout


def contents(path: Path) -> dict[str, bytes]:
    """Every file but those that tell about a session: name -> bytes."""
    logs = ("run.log", "sweep.log", "run.json", "index.html")
    files = (file for file in path.rglob("*") if file.is_file() and file.name not in logs)
    return {str(file.relative_to(path)): file.read_bytes() for file in files}


def lines(path: Path) -> dict[str, dict]:
    """Manifest lines by file name, without `environment`: an image that is made again has another."""
    records = map(json.loads, (path / "manifest.jsonl").read_text().splitlines())
    return {record["file_name"]: record | {"environment": None} for record in records}


@pytest.fixture(scope="module")
def equal(archive):
    """What must equal the archive exactly on this machine: `pixels`, `files`. Else pixels are near to it.

    Pixels depend on JAX and on the CPU (the archive's: two cores, AVX-512), a file's bytes on Pillow and tpusd as well.
    """
    (environment,) = json.loads((archive / "run" / "run.json").read_text())["environments"].values()
    same = {name for name, text in environment["versions"].items() if name in PACKAGES and text == version(name)}
    cpu = Path("/proc/cpuinfo")
    same_cpu = cpu.exists() and "avx512f" in cpu.read_text() and os.cpu_count() == 2
    pixels = same_cpu and {"jax", "jaxlib"} <= same
    return SimpleNamespace(pixels=pixels, files=pixels and same == PACKAGES)


def assert_same_images(archive: Path, path: Path, equal: SimpleNamespace) -> None:
    largest = 0 if equal.pixels else LARGEST_DIFFERENCE
    for name in IMAGES:
        left, right = (np.asarray(Image.open(root / name), np.int16) for root in (path, archive))
        assert left.shape == right.shape == (64, 64, 3) and np.abs(left - right).max() <= largest, name
        assert not equal.files or (path / name).read_bytes() == (archive / name).read_bytes(), name


def test_they_are_whole(old):
    assert tpusd("validate", old / "run", old / "sweep").count(": whole\n") == 3


@pytest.mark.parametrize("name", ["run", "sweep"])
def test_resuming_a_complete_one_changes_no_file(old, archive, name):
    """A sweep's results are always made again, and the caption of grid.png says more than that of 0.1.0."""
    tpusd("run", f"resume={old / name}")
    after, before = contents(old / name), contents(archive / name)
    assert after.keys() == before.keys()
    assert {file for file in after if after[file] != before[file]} <= {"grid.png"}


@pytest.mark.long
@pytest.mark.slow
def test_a_damaged_run_resumes_to_the_same_images(old, archive, equal):
    (old / "run" / IMAGES[1]).unlink()
    with open(old / "run" / "manifest.jsonl", "ab") as manifest:
        manifest.write(b'{"file_name": "images/000')
    tpusd("run", f"resume={old / 'run'}")
    assert_same_images(archive / "run", old / "run", equal)
    before, after = lines(archive / "run"), lines(old / "run")
    for name in IMAGES:
        assert list(after[name]) == list(before[name])
        may_differ = set() if equal.files else {"sha256", "num_bytes"} | (set() if equal.pixels else {"trace"})
        assert all(after[name][field] == value for field, value in before[name].items() if field not in may_differ)
    tpusd("validate", old / "run")


@pytest.mark.long
@pytest.mark.slow
def test_a_run_grows_and_keeps_its_images(old, archive):
    tpusd("run", f"resume={old / 'run'}", "num_images_per_prompt=2")
    before, after = lines(archive / "run"), lines(old / "run")
    assert len(after) == 4 and {name: after[name] for name in before} == before
    assert all((old / "run" / name).read_bytes() == (archive / "run" / name).read_bytes() for name in IMAGES)
    tpusd("validate", old / "run")


@pytest.mark.long
@pytest.mark.slow
def test_a_sweep_grows_and_keeps_its_runs(old, archive):
    tpusd("run", f"resume={old / 'sweep'}", "sampler=ddim,dpmpp_2m,euler")
    assert [path.name for path in sorted((old / "sweep").glob("0*"))] == [*RUNS_OF_SWEEP, "002_sampler=euler"]
    for name in RUNS_OF_SWEEP:
        assert contents(old / "sweep" / name) == contents(archive / "sweep" / name)
    assert tpusd("validate", old / "sweep").count(": whole\n") == 3


def test_a_run_is_reproduced(old, archive, equal, tmp_path):
    verdict = tpusd("reproduce", old / "run", f"output={tmp_path / 'again'}")
    if equal.pixels:
        assert "2 identical" in verdict
    assert_same_images(archive / "run", tmp_path / "again", equal)


@pytest.mark.long
@pytest.mark.slow
def test_the_results_can_be_made_again(old, archive):
    made = ("metadata.jsonl", "contact_sheet.png")
    for name in (*made, "index.html"):
        (old / "run" / name).unlink()
    tpusd("results", old / "run")
    tpusd("results", old / "sweep")
    assert (old / "run" / "index.html").stat().st_size > 10_000
    assert all((old / "run" / name).read_bytes() == (archive / "run" / name).read_bytes() for name in made)
    assert (old / "sweep" / "index.jsonl").read_bytes() == (archive / "sweep" / "index.jsonl").read_bytes()


def test_an_image_says_the_command_that_makes_it(old):
    command = tpusd("recipe", old / "run" / IMAGES[1], "--format=command")
    assert command.startswith("python -m tpusd.run ") and "sampler=euler" in command and "a man with a beard" in command
