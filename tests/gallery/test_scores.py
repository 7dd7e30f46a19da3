"""Scores on the page: sorted and filtered, as a heat map and as a plot."""

import statistics

import pytest
from support.browser import MARKS, WIDE, shown_files, texts
from support.scores import SCALES, SEEDS, STEPS, score_of

sync_api = pytest.importorskip("playwright.sync_api")
pytestmark = MARKS


@pytest.fixture
def page(opened, scored_sweep):
    return opened(scored_sweep / "index.html")


def test_wall_sorts_by_a_score_with_what_has_none_last(page):
    page.check("input[value=wall]", force=True)
    page.select_option("#sort", "scores.fit")
    page.locator("#size").fill("64")
    files = shown_files(page)
    assert "guidance_scale=1_seed=0/images/00000" in files[0] and "guidance_scale=5_seed=2/images/00001" in files[-1]
    page.select_option("#sort", "scores.rare")
    for descending in (False, True):
        page.set_checked("#descending", descending)
        files = shown_files(page)
        assert all("seed=0" in file for file in files[:12]) and not any("seed=0" in file for file in files[12:])
        assert all(f"0000{int(descending)}-000" in file for file in files[:6])


def test_only_images_in_the_range_are_shown(page, opened, scored_sweep):
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


def test_heat_map_has_means_and_spreads_of_any_two_axes(page):
    page.check("input[value=heat]", force=True)
    assert "standard deviation over seed" in page.inner_text(".chart .note")
    page.select_option("#axis-x", label="guidance_scale")
    page.select_option("#axis-y", label="sampler.num_inference_steps")
    means = [[statistics.mean(score_of(a, 3, seed, row) for row in (0, 1)) for seed in SEEDS] for a in STEPS]
    cells = texts(page, ".heat tbody tr:first-child td")
    assert cells[1] == f"{statistics.mean(means[0]):.4g} ± {statistics.stdev(means[0]):.2g}"
    page.fill("#filter", "owl")
    sync_api.expect(page.locator("#shown")).to_have_text("18 of 36 images")
    owls = [score_of(2, 3, seed, 1) for seed in SEEDS]
    assert texts(page, ".heat tbody tr:first-child td")[1].startswith(f"{statistics.mean(owls):.4g} ")
    page.fill("#filter", "")
    sync_api.expect(page.locator("#shown")).to_have_text("36 images")
    page.select_option("#axis-y", label="seed")
    assert "over the images" in page.inner_text(".chart .note") and len(texts(page, ".heat tbody tr")) == 3


def test_plot_shows_the_best_settings(page):
    page.check("input[value=plot]", force=True)
    assert page.locator(".point").count() == 6 and page.locator(".point.best").count() == 2
    best = texts(page, ".settings tr.best")
    assert len(best) == 2 and "num_inference_steps 4, guidance_scale 5" in best[0]
    assert page.locator(".chart svg").get_attribute("aria-label").startswith("fit against seconds per image")


def test_an_image_has_its_scores_in_its_recipe(page):
    page.locator(".tile").first.click()
    recipe = dict(zip(texts(page, "#recipe dt"), texts(page, "#recipe dd"), strict=True))
    assert recipe["fit"] == "12" and recipe["rare"] == "0"


@pytest.mark.parametrize("viewport", [WIDE, {"width": 400, "height": 800}])
@pytest.mark.parametrize("view", ["heat", "plot", "wall"])
def test_views_fit_the_window(opened, scored_sweep, viewport, view):
    page = opened(scored_sweep / "index.html", viewport, fragment=f"#view={view}")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.locator("#least").is_visible()
