"""What plot.png and the page make of a sweep's scores, against the standard library's mean and deviation."""

import statistics

import pytest
from PIL import Image
from support.scores import SEEDS, score_of
from support.sweeps import make

from tpusd.gallery.settings import heat_map, settings
from tpusd.gallery.sweep import read_runs, write_sweep_results
from tpusd.records.sweep import read_sweep

pytestmark = pytest.mark.slow


@pytest.fixture
def runs(scored_sweep):
    return list(read_runs(scored_sweep, read_sweep(scored_sweep)))


def test_settings_pool_the_seeds_and_know_the_front(scored_sweep, runs):
    found = settings(read_sweep(scored_sweep), runs, "fit")
    assert [one.name for one in found[:2]] == [
        "num_inference_steps 4, guidance_scale 5",
        "num_inference_steps 2, guidance_scale 5",
    ]
    assert [one.is_best for one in found] == [True, True, False, False, False, False]
    best = [[score_of(4, 5, seed, row) for row in (0, 1)] for seed in SEEDS]
    assert found[0].cell.mean == pytest.approx(statistics.mean(sum(best, [])))
    assert found[0].cell.spread == pytest.approx(statistics.stdev(map(statistics.mean, best)))
    assert found[0].seconds == pytest.approx(1.0) and found[1].seconds == pytest.approx(0.5)


def test_heat_map_has_the_longest_axis_across(scored_sweep, runs):
    across, down, cells = heat_map(read_sweep(scored_sweep), runs, "fit")
    assert (across, down) == ("guidance_scale", "sampler.num_inference_steps") and len(cells) == 6
    values = [score_of(2, 3, seed, row) for seed in SEEDS for row in (0, 1)]
    assert cells["3", "2"].mean == pytest.approx(statistics.mean(values)) and cells["3", "2"].count == 6


def test_plot_png_is_there_and_has_both_charts_of_each_score(scored_sweep):
    with Image.open(scored_sweep / "plot.png") as image:
        assert image.width > 1500 and image.height >= 1400 and len(image.getcolors(1 << 20)) > 20


def test_a_sweep_without_scores_has_no_plot(tmp_path):
    make("seed=0,1", "prompts.rows=[{prompt: x}]", f"output={tmp_path / 'sweep'}")
    write_sweep_results(tmp_path / "sweep", read_sweep(tmp_path / "sweep"))
    assert not (tmp_path / "sweep" / "plot.png").exists()
