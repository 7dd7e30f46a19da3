import shutil

import pytest
from PIL import Image
from support.sweeps import make

from tpusd.gallery.sweep import write_sweep_results
from tpusd.records.sweep import read_sweep

pytestmark = pytest.mark.slow

AXES = ("sampler=ddim,euler,heun", "guidance_scale=1,2,3", "seed=0,1", "prompts.rows=[{prompt: x}]")


def test_grid_has_the_two_longest_axes_and_the_first_value_of_the_others(tmp_path):
    make(*AXES, f"output={tmp_path / 'sweep'}")
    with Image.open(tmp_path / "sweep" / "grid.png") as grid:
        assert grid.width > 3 * 120 and grid.height > 3 * 72
    for path in (tmp_path / "sweep").glob("*_seed=1"):
        shutil.rmtree(path)
    before = (tmp_path / "sweep" / "grid.png").read_bytes()
    write_sweep_results(tmp_path / "sweep", read_sweep(tmp_path / "sweep"))
    assert (tmp_path / "sweep" / "grid.png").read_bytes() == before


def test_sweep_without_the_grids_runs_has_no_grid(tmp_path):
    path = tmp_path / "sweep"
    make(*AXES, f"output={path}")
    (path / "grid.png").unlink()
    for run in path.glob("*_seed=0"):
        shutil.rmtree(run)
    assert write_sweep_results(path, read_sweep(path)) == path / "index.html" and not (path / "grid.png").exists()
