"""A dry run of anything makes and changes nothing, and says what is there and what is missing."""

import pytest
from support.runs import INLINE, StandInPipeline, config, prepare
from support.sweeps import go_on, make

from tpusd.errors import UserError
from tpusd.runs.dry_run import RunToShow, show_plan
from tpusd.runs.reproduce import reproduce
from tpusd.runs.resume import resume_run
from tpusd.runs.start import start_run

pytestmark = pytest.mark.usefixtures("one_device")


@pytest.fixture
def run(tmp_path):
    """Six images, of which one was deleted."""
    made = config(INLINE, "num_images_per_prompt=2", f"output={tmp_path / 'run'}")
    path = start_run(made, prepare=prepare, load=lambda *_: StandInPipeline())
    (path / "images" / "00001-000.png").unlink()
    return path


def tree(path):
    """Every file's bytes and time of change, and every directory."""
    return {file: (file.stat().st_mtime_ns, file.read_bytes() if file.is_file() else None) for file in path.rglob("*")}


def must_not_load(*_, **__):
    raise AssertionError("a dry run loads nothing")


def test_dry_run_of_a_resume_changes_nothing_and_says_what_is_missing(run, tmp_path, capsys):
    before = tree(tmp_path)
    resume_run(run, ["dry_run=true", "num_images_per_prompt=3"], prepare=prepare, load=must_not_load)
    out = capsys.readouterr().out.splitlines()
    assert out[0] == f"{run}: 9 images of which 5 are there and 4 are missing"
    assert "1 run, 4 images in 4 batches of 1, 3 programs" in out[1]
    assert out[2].endswith("1 load, 3 compilations; nothing was made") and tree(tmp_path) == before


@pytest.mark.slow
def test_dry_run_of_a_complete_run_loads_nothing(tmp_path, capsys):
    made = config(INLINE, f"output={tmp_path / 'run'}")
    path = start_run(made, prepare=prepare, load=lambda *_: StandInPipeline())
    before = tree(tmp_path)
    resume_run(path, ["dry_run=true"], prepare=prepare, load=must_not_load)
    assert "3 are there and 0 are missing, 0 loads, 0 compilations" in capsys.readouterr().out
    assert tree(tmp_path) == before


def test_dry_run_of_a_reproduction_makes_no_directory(run, tmp_path, capsys):
    before = tree(tmp_path)
    words = ["dry_run=true", f"output={tmp_path / 'again'}"]
    assert reproduce(run, words, sample=2, prepare=prepare, load=must_not_load)
    assert "1 run, 2 images, 1 load" in capsys.readouterr().out and tree(tmp_path) == before


@pytest.mark.slow
def test_dry_run_of_a_resumed_sweep_counts_what_is_there(tmp_path, capsys):
    path = tmp_path / "sweep"
    assert make("seed=0,1", INLINE, f"output={path}").status == 0
    before = tree(path)
    capsys.readouterr()
    done = go_on(path, "seed=0,1,2", "dry_run=true")
    out = capsys.readouterr().out.splitlines()
    assert done.status == 0 and not done.loads.pipelines and tree(path) == before
    assert out[0].endswith("3 images of which 3 are there and 0 are missing") and out[2].endswith(": 3 images")
    assert out[-1].startswith("3 runs, 9 images of which 6 are there and 3 are missing, 1 load")


def test_dry_run_reports_truncated_prompts(capsys):
    long = config("prompts.rows=[{prompt: 'one two three four five six'}]")
    show_plan([RunToShow(name="", config=long)], prepare)
    assert "their ends are left out: prompt of row 0 (8 tokens, without 'six')" in capsys.readouterr().err


@pytest.mark.slow
def test_dry_run_of_a_sweep_names_each_run_that_cannot_be_made(capsys):
    def failing(made):
        if made.seed % 2:
            raise UserError(f"seed={made.seed}: is odd")
        return prepare(made)

    runs = [RunToShow(name=f"run{seed}", config=config(INLINE, f"seed={seed}")) for seed in range(60)]
    with pytest.raises(UserError, match="dry_run: 30 of 60 runs cannot be made, of which the first 20 are named above"):
        show_plan(runs, failing)
    shown = capsys.readouterr()
    assert shown.err.count("is odd") == 20 and "tpusd: run1: seed=1: is odd" in shown.err
    assert "30 runs, 90 images" in shown.out
    with pytest.raises(UserError, match="^seed=1: is odd$"):
        show_plan(runs[1:2], failing)
