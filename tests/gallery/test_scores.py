"""Scores on the page: sorted and filtered, as a heat map and as a plot; and plot.png."""

import json
import statistics

import pytest
from PIL import Image
from support.browser import MARKS, WIDE, shown_files, texts
from support.sweeps import make

from tpusd.gallery.settings import heat_map, settings
from tpusd.gallery.sweep import write_sweep_results
from tpusd.records.run_json import read_run
from tpusd.records.sweep import read_sweep
from tpusd.score import main

# (steps, guidance scale, seed, row) -> score; a setting's score is the mean over seeds and rows.
STEPS, SCALES, SEEDS = (2, 4), (1, 3, 5), (0, 1, 2)
SECONDS = {2: 0.5, 4: 1.0}  # per image


def score_of(steps, scale, seed, row):
    return steps + scale * 10 + seed * (0.5 if scale == 3 else 0.1) + row * 0.5


@pytest.fixture(scope="module")
def scored_sweep(tmp_path_factory):
    path = tmp_path_factory.mktemp("scored") / "sweep"
    make(
        "sampler.num_inference_steps=2,4",
        "guidance_scale=1,3,5",
        "seed=0,1,2",
        "prompts.rows=[{prompt: a red fox}, {prompt: an owl}]",
        f"output={path}",
    )
    lines = [json.loads(line) for line in (path / "index.jsonl").read_text().splitlines()]
    with open(path.parent / "scores.jsonl", "w") as file:
        for line in lines:
            values = {
                "file_name": line["file_name"],
                "fit": score_of(line["num_inference_steps"], int(line["guidance_scale"]), line["seed"], line["row"]),
                "rare": line["row"] if line["seed"] == 0 else None,
            }
            file.write(json.dumps(values) + "\n")
    for run in read_sweep(path).runs:
        facts = read_run(path / run.name)
        seconds = SECONDS[int(run.at["sampler.num_inference_steps"])]
        facts["sessions"][-1] |= {"num_images": 2, "seconds": {"generate": 2 * seconds, "compile": 0.0, "weights": 0.0}}
        (path / run.name / "run.json").write_text(json.dumps(facts))
    assert main([str(path), f"import={path.parent / 'scores.jsonl'}"]) == 0
    return path


class TestNumbers:
    """What the page and plot.png show, against the standard library's mean and deviation."""

    pytestmark = pytest.mark.slow

    @pytest.fixture(scope="class")
    def runs(self, scored_sweep):
        from tpusd.gallery.sweep import read_runs

        return list(read_runs(scored_sweep, read_sweep(scored_sweep)))

    def test_settings_pool_the_seeds_and_know_the_front(self, scored_sweep, runs):
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

    def test_heat_map_has_the_longest_axis_across(self, scored_sweep, runs):
        across, down, cells = heat_map(read_sweep(scored_sweep), runs, "fit")
        assert (across, down) == ("guidance_scale", "sampler.num_inference_steps") and len(cells) == 6
        values = [score_of(2, 3, seed, row) for seed in SEEDS for row in (0, 1)]
        assert cells["3", "2"].mean == pytest.approx(statistics.mean(values)) and cells["3", "2"].count == 6

    def test_plot_png_is_there_and_has_both_charts_of_each_score(self, scored_sweep):
        with Image.open(scored_sweep / "plot.png") as image:
            assert image.width > 1500 and image.height >= 1400 and len(image.getcolors(1 << 20)) > 20

    def test_a_sweep_without_scores_has_no_plot(self, tmp_path):
        make("seed=0,1", "prompts.rows=[{prompt: x}]", f"output={tmp_path / 'sweep'}")
        write_sweep_results(tmp_path / "sweep", read_sweep(tmp_path / "sweep"))
        assert not (tmp_path / "sweep" / "plot.png").exists()


class TestPage:
    pytestmark = MARKS

    @pytest.fixture
    def page(self, opened, scored_sweep):
        return opened(scored_sweep / "index.html")

    def test_wall_sorts_by_a_score_with_what_has_none_last(self, page):
        page.check("input[value=wall]", force=True)
        page.select_option("#sort", "scores.fit")
        page.locator("#size").fill("64")
        files = shown_files(page)
        assert (
            "guidance_scale=1_seed=0/images/00000" in files[0] and "guidance_scale=5_seed=2/images/00001" in files[-1]
        )
        page.select_option("#sort", "scores.rare")
        for descending in (False, True):
            page.set_checked("#descending", descending)
            files = shown_files(page)
            assert all("seed=0" in file for file in files[:12]) and not any("seed=0" in file for file in files[12:])
            assert all(f"0000{int(descending)}-000" in file for file in files[:6])

    def test_only_images_in_the_range_are_shown(self, page, opened, scored_sweep):
        page.check("input[value=wall]", force=True)
        page.fill("#least", "32")
        page.press("#least", "Enter")
        page.fill("#most", "33.5")
        page.press("#most", "Enter")
        values = [score_of(a, b, c, d) for a in STEPS for b in SCALES for c in SEEDS for d in (0, 1)]
        wanted = sum(32 <= value <= 33.5 for value in values)
        assert page.inner_text("#shown") == f"{wanted} of 36 images" and len(shown_files(page)) == wanted
        again = opened(scored_sweep / "index.html", fragment="#" + page.url.partition("#")[2])
        assert shown_files(again) == shown_files(page) and again.input_value("#least") == "32"
        page.select_option("#score", "rare")  # another score has another range
        assert page.inner_text("#shown") == "36 images" and page.input_value("#least") == ""

    def test_heat_map_has_means_and_spreads_of_any_two_axes(self, page):
        page.check("input[value=heat]", force=True)
        assert "standard deviation over seed" in page.inner_text(".chart .note")
        page.select_option("#axis-x", label="guidance_scale")
        page.select_option("#axis-y", label="sampler.num_inference_steps")
        means = [[statistics.mean(score_of(a, 3, seed, row) for row in (0, 1)) for seed in SEEDS] for a in STEPS]
        cells = texts(page, ".heat tbody tr:first-child td")
        assert cells[1] == f"{statistics.mean(means[0]):.4g} ± {statistics.stdev(means[0]):.2g}"
        page.fill("#filter", "owl")
        page.wait_for_function("document.querySelector('#shown').textContent.startsWith('18')")
        owls = [score_of(2, 3, seed, 1) for seed in SEEDS]
        assert texts(page, ".heat tbody tr:first-child td")[1].startswith(f"{statistics.mean(owls):.4g} ")
        page.fill("#filter", "")
        page.select_option("#axis-y", label="seed")
        assert "over the images" in page.inner_text(".chart .note") and len(texts(page, ".heat tbody tr")) == 3

    def test_plot_shows_the_best_settings(self, page):
        page.check("input[value=plot]", force=True)
        assert page.locator(".point").count() == 6 and page.locator(".point.best").count() == 2
        best = texts(page, ".settings tr.best")
        assert len(best) == 2 and "num_inference_steps 4, guidance_scale 5" in best[0]
        assert page.locator(".chart svg").get_attribute("aria-label").startswith("fit against seconds per image")

    def test_an_image_has_its_scores_in_its_recipe(self, page):
        page.locator(".tile").first.click()
        recipe = dict(zip(texts(page, "#recipe dt"), texts(page, "#recipe dd"), strict=True))
        assert recipe["fit"] == "12" and recipe["rare"] == "0"

    @pytest.mark.parametrize("viewport", [WIDE, {"width": 400, "height": 800}])
    @pytest.mark.parametrize("view", ["heat", "plot", "wall"])
    def test_views_fit_the_window(self, opened, scored_sweep, viewport, view):
        page = opened(scored_sweep / "index.html", viewport, fragment=f"#view={view}")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert page.locator("#least").is_visible()
