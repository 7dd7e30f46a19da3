"""Views of a page in a real browser: addresses, zoom, captions, hidden values, favourites, names for screen readers."""

import hashlib
import io
import json
import re

import numpy as np
import pytest
from PIL import Image
from support.browser import HOSTILE, MARKS, NARROW, ROWS, WIDE, shown_files, texts
from support.runs import StandInPipeline, config, manifest, prepare
from support.shell import arguments_of
from support.sweeps import go_on, make

from tpusd.config.compose import compose_jobs
from tpusd.config.schema import make_config, saved_config
from tpusd.plan.specs import make_specs
from tpusd.recipes.command import hydra_value
from tpusd.runs.start import start_run

sync_api = pytest.importorskip("playwright.sync_api")
pytestmark = MARKS


def make_run(path, rows, *overrides):
    made = config(f"output={path}", f"prompts.rows={hydra_value(rows)}", *overrides)
    return start_run(made, prepare=prepare, load=lambda *_: StandInPipeline()) / "index.html"


def fragment(page):
    return "#" + page.url.partition("#")[2]


def visible_state(page):
    """All that a person sees of the board and the viewer."""
    return {
        "files": shown_files(page),
        "labels": texts(page, ".column-label") + texts(page, ".row-label"),
        "tile": page.evaluate("getComputedStyle(document.documentElement).getPropertyValue('--tile')"),
        "filter": page.input_value("#filter"),
    } | (open_state(page) if page.locator("#viewer").is_visible() else {"image": None})


def open_state(page):
    return {
        "image": page.get_attribute("#image-b", "src"),
        "tags": texts(page, "#tag-a") + texts(page, "#tag-b"),
        "mode": page.evaluate("document.querySelector('input[name=mode]:checked').value"),
    }


def test_address_holds_all_that_is_shown(opened, sweep_page):
    page = opened(sweep_page)
    page.select_option("#axis-x", label="seed")
    page.select_option("#axis-y", label="prompt")
    page.get_by_label("guidance_scale", exact=True).select_option(label="12")
    page.click("#values-open")
    page.locator("#values-list label", has_text="ddim").click()
    page.locator("#values-list label", has_text="a red fox").click()
    page.keyboard.press("Escape")
    page.fill("#filter", "fox")
    sync_api.expect(page.locator("#shown")).to_have_text("2 of 36 images")
    page.locator("#size").fill("96")
    page.locator(".tile").first.click()
    page.keyboard.press("c")
    page.keyboard.press("d")
    sync_api.expect(page).to_have_url(re.compile("mode=side"))
    before = visible_state(page)
    assert before["files"] == [
        f"0{n}_sampler=pndm_guidance_scale=12_seed={n % 2}/images/00002-000.png" for n in (10, 11)
    ]
    assert before["tile"] == "96px" and before["mode"] == "side" and before["tags"] == ["seed 0", "seed 1"]
    assert visible_state(opened(sweep_page, fragment=fragment(page))) == before
    page.keyboard.press("Escape")
    page.check("input[value=wall]")
    page.select_option("#sort", "guidance_scale")
    page.check("#descending")
    before = visible_state(page)
    assert visible_state(opened(sweep_page, fragment=fragment(page))) == before and len(before["files"]) == 6


def test_address_names_values_so_that_it_holds_after_the_sweep_grew(opened, tmp_path):
    path = tmp_path / "sweep"
    make(
        "seed=5,7",
        "guidance_scale=3,7.5",
        "prompts.rows=[{prompt: a fox}]",
        "num_images_per_prompt=2",
        f"output={path}",
    )
    page = opened(path / "index.html", fragment="#x=guidance_scale&y=copy&at.seed=7&hide.guidance_scale=3")
    page.locator(".tile").nth(1).click()
    before, link = visible_state(page), fragment(page)
    assert before["image"] == "003_seed=7_guidance_scale=7.5/images/00000-001.png" and len(before["files"]) == 2
    go_on(path, "seed=1,5,6,7", "guidance_scale=1,3,7.5")
    after = visible_state(opened(path / "index.html", fragment=link))
    assert after["image"] == before["image"]
    assert after["labels"] == ["1", "7.5", "0", "1"]  # guidance scale 1 is new, 3 is hidden
    assert set(before["files"]) < set(after["files"]) and all("_seed=7_" in file for file in after["files"])


def test_address_that_names_nothing_known_shows_the_page(opened, sweep_page):
    page = opened(
        sweep_page, fragment="#view=x&x=none&y=seed&at.seed=99&hide.seed=0&hide.seed=1&size=NaN&image=../x&sort=q"
    )
    assert len(shown_files(page)) > 0 and not page.locator("#viewer").is_visible()


def test_back_closes_the_image_and_forward_opens_it(opened, sweep_page):
    page = opened(sweep_page)
    page.locator(".tile").nth(2).click()
    page.keyboard.press("ArrowRight")
    page.go_back()
    sync_api.expect(page.locator("#viewer")).not_to_be_visible()
    page.go_forward()
    sync_api.expect(page.locator("#viewer")).to_be_visible()
    page.keyboard.press("Escape")
    sync_api.expect(page.locator("#viewer")).not_to_be_visible()
    sync_api.expect(page).to_have_url(re.compile(r"^((?!image=).)*$"))
    page.go_forward()  # to close is to go back
    sync_api.expect(page.locator("#viewer")).to_be_visible()


def image_box(page, name="image-b"):
    return page.locator(f"#{name}").bounding_box()


@pytest.mark.parametrize("density", [1, 2])
def test_zoom_by_keys_and_one_to_one(opened, sweep_page, density):
    page = opened(sweep_page, device_scale_factor=density)
    page.locator(".tile").first.click()
    fitted = image_box(page)
    page.keyboard.press("1")
    pixels = [image_box(page)[side] * density for side in ("width", "height")]
    assert pixels == pytest.approx([40, 24], abs=0.01)
    assert page.inner_text("#zoom-text") == "100 %"
    page.keyboard.press("0")
    assert image_box(page) == fitted
    page.keyboard.press("+")
    assert image_box(page)["width"] == pytest.approx(1.25 * fitted["width"])
    page.keyboard.press("ArrowRight")  # the next image, and the same detail of it
    assert image_box(page)["width"] == pytest.approx(1.25 * fitted["width"])
    for _ in range(60):
        page.keyboard.press("+")
    before = image_box(page)
    page.keyboard.press("Shift+ArrowLeft")
    assert image_box(page)["x"] == pytest.approx(before["x"] + 60, abs=0.5)
    assert image_box(page)["width"] * density <= max(16 * 40, 8 * density * fitted["width"]) * 1.001
    page.keyboard.press("Escape")
    page.locator(".tile").first.click()
    assert image_box(page) == fitted


def test_wheel_zooms_where_it_points_and_a_drag_moves_the_image(opened, sweep_page):
    page = opened(sweep_page)
    page.locator(".tile").first.click()
    before, stage = image_box(page), page.locator("#pane-b").bounding_box()
    x, y = before["x"] + before["width"] / 4, before["y"] + before["height"] / 3
    page.mouse.move(x, y)
    page.mouse.wheel(0, -600)
    page.wait_for_function("() => document.getElementById('frame').classList.contains('pannable')")
    after = image_box(page)
    pointed = ((x - after["x"]) / after["width"], (y - after["y"]) / after["height"])
    assert pointed == pytest.approx((1 / 4, 1 / 3), abs=0.01)
    page.mouse.down()
    page.mouse.move(x + 40, y + 25, steps=4)
    page.mouse.up()
    moved = image_box(page)
    assert (moved["x"] - after["x"], moved["y"] - after["y"]) == pytest.approx((40, 25), abs=0.5)
    page.mouse.down()
    page.mouse.move(5000, 5000, steps=4)
    page.mouse.up()
    assert image_box(page)["x"] == pytest.approx(stage["x"], abs=0.5)  # it stays in sight
    page.mouse.dblclick(x, y)
    assert image_box(page) == before


def test_both_images_of_a_comparison_have_one_zoom(opened, sweep_page):
    page = opened(sweep_page)
    page.locator(".tile").first.click()
    page.keyboard.press("d")
    page.keyboard.press("+")
    page.keyboard.press("+")
    panes = [page.locator(f"#pane-{one}").bounding_box() for one in "ab"]
    boxes = [image_box(page, f"image-{one}") for one in "ab"]
    assert boxes[0]["width"] == boxes[1]["width"] > panes[0]["width"]
    assert [box["x"] - pane["x"] for box, pane in zip(boxes, panes, strict=True)] == pytest.approx(
        [boxes[0]["x"] - panes[0]["x"]] * 2
    )
    page.keyboard.press("s")
    page.keyboard.press("0")
    handle = page.locator("#handle").bounding_box()["x"]
    page.mouse.move(handle, 300)
    page.mouse.down()
    page.mouse.move(handle - 100, 300, steps=3)
    page.mouse.up()
    assert page.locator("#handle").bounding_box()["x"] == pytest.approx(handle - 100, abs=1)


def test_two_fingers_zoom_and_one_swipes(opened, run_page):
    page = opened(run_page, NARROW, has_touch=True)
    page.locator(".tile").first.click()
    box, session = image_box(page), page.context.new_cdp_session(page)

    def touch(kind, *points):
        session.send(
            "Input.dispatchTouchEvent",
            {"type": kind, "touchPoints": [{"x": x, "y": y, "id": i} for i, (x, y) in enumerate(points)]},
        )

    middle = box["y"] + box["height"] / 2
    touch("touchStart", (180, middle))
    touch("touchStart", (180, middle), (210, middle))
    touch("touchMove", (150, middle), (240, middle))
    touch("touchEnd")
    assert image_box(page)["width"] == pytest.approx(3 * box["width"], rel=0.05)
    page.click("#zoom-fit")
    touch("touchStart", (300, middle))
    touch("touchMove", (200, middle))
    touch("touchMove", (120, middle))
    touch("touchEnd")
    sync_api.expect(page.locator("#name")).to_have_text("2 / 6")
    assert image_box(page) == box


def test_captions_say_what_differs(opened, sweep_page, tmp_path):
    page = opened(sweep_page, fragment="#view=wall&hide.seed=1&hide.prompt=1&hide.prompt=2")
    assert texts(page, ".caption")[:2] == [
        "sampler\xa0ddim · guidance_scale\xa03",
        "sampler\xa0ddim · guidance_scale\xa07.5",
    ]
    shared = "a portrait in oil of a person who wears"
    rows = [{"prompt": f"{shared} a hat"}, {"prompt": f"{shared} nothing", "seed": 9}]
    page = opened(make_run(tmp_path / "run", rows, "seed=3"))
    assert texts(page, ".words") == ["… a hat", "… nothing"] and texts(page, ".meta") == ["seed\xa03", "seed\xa09"]
    page = opened(make_run(tmp_path / "one", [{"prompt": "a hat"}]))
    assert texts(page, ".caption") == ["a hat"]


def test_captions_are_whole_on_a_narrow_wall(opened, sweep_page):
    page = opened(sweep_page, {"width": 400, "height": 800}, fragment="#view=wall", has_touch=True)
    page.locator(".caption").first.wait_for()
    cut = "all => all.filter((one) => one.scrollHeight > one.clientHeight + 1).length"
    assert page.eval_on_selector_all(".caption", cut) == 0 and page.eval_on_selector_all(".meta", cut) == 0


def test_values_are_hidden_and_shown_again(opened, sweep_page):
    page = opened(sweep_page)
    page.locator(".column-label").nth(1).hover()
    page.get_by_role("button", name="Hide guidance_scale 7.5").click()
    assert texts(page, ".column-label bdi") == ["3", "12"] and page.inner_text("#values-open") == "Values (1 hidden)"
    page.locator(".tile").first.click()
    page.get_by_role("button", name="Next guidance_scale").click()
    assert texts(page, "#steppers .value")[1] == "12"  # steps over what is hidden
    page.keyboard.press("Escape")
    page.click("#values-open")
    seeds = page.locator("#values-list fieldset", has_text="seed").locator("label")
    seeds.first.click()  # at which the grid was: it goes to the seed that is left
    assert page.get_by_label("seed", exact=True).locator("option").all_inner_texts() == ["1"]
    assert all("_seed=1/" in file for file in shown_files(page))
    seeds.nth(1).click()
    assert seeds.nth(1).locator("input").is_checked()  # the last one stays
    page.click("#values-all")
    assert texts(page, ".column-label bdi") == ["3", "7.5", "12"] and page.inner_text("#values-open") == "Values"


def downloaded(page, kind, tmp_path):
    with page.expect_download() as started:
        page.click(f"[data-export={kind}]")
    path = tmp_path / started.value.suggested_filename
    started.value.save_as(path)
    return path


def test_favourites_are_kept_exported_and_loaded(opened, sweep_page, tmp_path):
    page = opened(sweep_page)
    page.locator(".tile").first.focus()
    page.keyboard.press("f")
    page.get_by_label("prompt", exact=True).select_option(index=1)
    page.locator(".cell").last.hover()
    page.locator(".cell .star").last.click()
    assert page.inner_text("#favourites-open") == "★ 2"
    page.reload()
    assert page.inner_text("#favourites-open") == "★ 2"
    page.check("input[value=wall]")
    page.check("#only-favourites")
    files = shown_files(page)
    assert files == [
        "000_sampler=ddim_guidance_scale=3_seed=0/images/00000-000.png",
        "010_sampler=pndm_guidance_scale=12_seed=0/images/00001-000.png",
    ]
    page.click("#favourites-open")
    assert downloaded(page, "names", tmp_path).read_text().splitlines() == files
    lines = [json.loads(line) for line in downloaded(page, "lines", tmp_path).read_text().splitlines()]
    records = [manifest(sweep_page.parent / file.split("/")[0])[row] for file, row in zip(files, (0, 1), strict=True)]
    for line, record in zip(lines, records, strict=True):
        same = set(line) & set(record) - {"file_name"}
        assert {"sha256", "seed", "sampler", "guidance_scale", "width", "negative_prompt"} <= same
        assert {name: line[name] for name in same} == {name: record[name] for name in same}
    rows = [json.loads(line) for line in downloaded(page, "prompts", tmp_path).read_text().splitlines()]
    assert rows == ROWS[:2]
    names = downloaded(page, "names", tmp_path)
    other = opened(sweep_page)
    assert other.inner_text("#favourites-open") == "★ 0"  # another browser
    other.click("#favourites-open")
    other.set_input_files("#mark-from", str(names))
    sync_api.expect(other.locator("#marked")).to_have_text("2 marked")
    assert other.inner_text("#favourites-open") == "★ 2"
    other.click("#unmark-all")
    assert other.inner_text("#favourites-open") == "★ 0"


def test_exported_commands_make_the_favourites(opened, run_page, tmp_path):
    page = opened(run_page)
    for number in (1, 3, 4):  # a copy, a hostile prompt, a row with its own seed
        page.locator(".tile").nth(number).focus()
        page.keyboard.press("f")
    page.click("#favourites-open")
    script = downloaded(page, "commands", tmp_path).read_text()
    commands = [arguments_of(line) for line in script.splitlines() if line.startswith("python -m tpusd.run ")]
    assert len(commands) == 3
    for words, number in zip(commands, (1, 3, 4), strict=True):
        (job,) = compose_jobs(words[2:])
        alone = make_config(job.values)
        (spec,) = make_specs(saved_config(alone, rows=alone.prompts.rows, height=24, width=40))
        record = manifest(run_page.parent)[number]
        assert (spec.row, spec.copy, spec.prompt, spec.row_seed) == tuple(
            record[name] for name in ("row", "copy", "prompt", "row_seed")
        )


def test_a_runs_page_shares_its_favourites_with_the_sweeps(opened, sweep_page):
    page = opened(sweep_page)
    page.locator(".tile").first.focus()
    page.keyboard.press("f")
    run = sweep_page.parent / "000_sampler=ddim_guidance_scale=3_seed=0" / "index.html"
    assert opened(run, context=page.context).inner_text("#favourites-open") == "★ 1"
    other = sweep_page.parent / "001_sampler=ddim_guidance_scale=3_seed=1" / "index.html"
    assert opened(other, context=page.context).inner_text("#favourites-open") == "★ 0"


def test_prompts_that_a_sweep_changes_are_in_one_line(opened, tmp_path):
    rows = [hydra_value([{"prompt": f"a {animal} on a mat"}, {"prompt": "a tree"}]) for animal in ("cat", "dog")]
    make(f"prompts.rows={','.join(rows)}", f"output={tmp_path / 'sweep'}")
    page = opened(tmp_path / "sweep" / "index.html")
    assert texts(page, ".row-label") == ["a {cat | dog} on a mat", "a tree"] and len(shown_files(page)) == 4
    page.fill("#filter", "dog")
    sync_api.expect(page.locator("#shown")).to_have_text("1 of 4 images")
    assert page.locator(".missing").count() == 0
    page.fill("#filter", "")
    sync_api.expect(page.locator("#shown")).to_have_text("4 images")
    assert texts(page, ".column-label") == ["a cat on a mat | a tree", "a dog on a mat | a tree"]


UNNAMED = """() => [...document.querySelectorAll('button, input, select, a[href], [role=group], dialog')]
  .filter((one) => one.checkVisibility() && !(one.ariaLabel || one.textContent.trim()
    || one.labels?.[0]?.textContent.trim() || document.getElementById(one.getAttribute('aria-labelledby') ?? '')))
  .map((one) => one.outerHTML.slice(0, 90))"""


@pytest.mark.parametrize("viewport", [WIDE, {"width": 400, "height": 800}])
def test_all_controls_have_names_and_dialogs_fit(opened, sweep_page, viewport):
    page = opened(sweep_page, viewport)
    assert page.evaluate(UNNAMED) == []
    assert (
        page.locator(".tile").first.get_attribute("aria-label") == "sampler ddim, guidance_scale 3, seed 0, a red fox"
    )
    for button, dialog in (
        ("#values-open", "#values"),
        ("#favourites-open", "#favourites-sheet"),
        ("#about-open", "#about"),
    ):
        page.click(button)
        assert page.evaluate(UNNAMED) == []
        box = page.locator(dialog).bounding_box()
        assert (
            box["x"] >= 0
            and box["x"] + box["width"] <= viewport["width"]
            and box["y"] + box["height"] <= viewport["height"]
        )
        assert page.locator(dialog).evaluate("one => one.scrollWidth <= one.clientWidth")
        page.get_by_role("button", name="Close").click()
    page.locator(".tile").first.click()
    assert page.evaluate(UNNAMED) == [] and page.evaluate("document.activeElement.id") == "stage"
    page.keyboard.press("ArrowRight")
    assert "guidance_scale 7.5" in page.inner_text("#spoken")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth") and HOSTILE not in page.title()


def test_the_viewer_shows_what_an_image_starts_from(opened, tmp_path):
    class Pipeline(StandInPipeline):
        def generate(self, specs, tables, *, inputs=None, **options):
            return super().generate(specs, tables, **options)

    row = {"prompt": "a hat"}
    for name, mode in (("image", "RGB"), ("mask", "L")):
        Image.new(mode, (80, 48)).save(tmp_path / f"{name}.png")
        row |= {name: str(tmp_path / f"{name}.png")}
        row |= {f"{name}_sha256": hashlib.sha256((tmp_path / f"{name}.png").read_bytes()).hexdigest()}
    rows = f"prompts.rows={hydra_value([row, {'prompt': 'an owl'}])}"
    path = start_run(config(f"output={tmp_path / 'run'}", rows), prepare=prepare, load=lambda *_: Pipeline())
    page = opened(path / "index.html", fragment="#image=00000-000")
    inputs = page.locator("#inputs img")
    sync_api.expect(inputs).to_have_count(2)
    page.wait_for_function(
        "() => [...document.querySelectorAll('#inputs img')].every((one) => one.naturalWidth === 40)"
    )
    titles = [page.locator("#inputs button").nth(i).get_attribute("title") for i in range(2)]
    assert [title.removesuffix(": press to compare") for title in titles] == [row["image"], row["mask"]]
    recipe = page.locator("#recipe").inner_text().split("\n")
    assert recipe[recipe.index("strength") + 1] == "0.8" and row["mask"] in recipe
    page.keyboard.press("ArrowRight")
    sync_api.expect(page.locator("#prompt")).to_have_text("an owl")
    sync_api.expect(inputs).to_have_count(0)
    assert "strength" not in page.locator("#recipe").inner_text()


def middle(page):
    """The colour in the middle of the image that the viewer shows."""
    box = page.locator("#image-b").bounding_box()
    point = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2, "width": 1, "height": 1}
    return np.asarray(Image.open(io.BytesIO(page.screenshot(clip=point))).convert("RGB"), int)[0, 0]


def test_an_input_lies_over_its_image(opened, tmp_path):
    """The colours of overlay and difference are computed here from those of the two files."""

    class Pipeline(StandInPipeline):
        def generate(self, specs, tables, *, inputs=None, **options):
            made = super().generate(specs, tables, **options)
            for one in made:
                one.pixels = np.full((24, 40, 3), (200, 40, 90), np.uint8)
            return made

    rows = []
    for number, colour in enumerate([(180, 60, 90), (20, 140, 250)]):
        Image.new("RGB", (40, 24), colour).save(tmp_path / f"{number}.png")
        sha256 = hashlib.sha256((tmp_path / f"{number}.png").read_bytes()).hexdigest()
        rows.append({"prompt": f"hat {number}", "image": str(tmp_path / f"{number}.png"), "image_sha256": sha256})
    rows.append({"prompt": "an owl"})
    made = config(f"output={tmp_path / 'run'}", f"prompts.rows={hydra_value(rows)}")
    path = start_run(made, prepare=prepare, load=lambda *_: Pipeline())
    page = opened(path / "index.html", fragment="#image=00000-000")
    button = page.locator("#inputs button")
    button.click()
    page.keyboard.press("e")
    sync_api.expect(page).to_have_url(re.compile("input=0&mode=difference"))
    assert texts(page, "#tag-a") + texts(page, "#tag-b") == ["The picture that it starts from", "The image"]
    page.wait_for_timeout(200)
    assert abs(middle(page) - (20, 20, 0)).max() <= 3
    page.keyboard.press("ArrowRight")  # the next image, with its own picture
    sync_api.expect(page).to_have_url(re.compile("image=00001-000.*input=0"))
    page.wait_for_timeout(200)
    assert abs(middle(page) - (180, 100, 160)).max() <= 3
    page.keyboard.press("o")
    page.wait_for_timeout(200)
    assert abs(middle(page) - (110, 90, 170)).max() <= 3
    again = opened(path / "index.html", fragment=fragment(page))
    assert open_state(again) == open_state(page) and again.locator("#pane-a").is_visible()
    page.keyboard.press("ArrowRight")  # an image without inputs stands alone
    sync_api.expect(page.locator("#pane-a")).to_be_hidden()
    assert "input=" not in fragment(page)
    page.keyboard.press("ArrowLeft")
    page.locator("#inputs button").focus()
    page.keyboard.press("Enter")
    sync_api.expect(page.locator("#inputs button")).to_have_attribute("aria-pressed", "true")
    page.keyboard.press("Enter")  # the focus is still there
    sync_api.expect(page.locator("#pane-a")).to_be_hidden()
