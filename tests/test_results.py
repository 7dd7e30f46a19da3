import html.parser
import json
import os

import pytest
from PIL import Image
from support.pictures import POSTSCRIPT, forbid_programs
from support.runs import INLINE, StandInPipeline, config, manifest, prepare

from tpusd.config.grammar import hydra_value
from tpusd.results import main
from tpusd.runs.start import start_run

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)> \"quotes\" 'ticks' & @DATA@ \u202e <!--"


def make_run(path, *overrides):
    return start_run(config(f"output={path}", *overrides), prepare=prepare, load=lambda *_: StandInPipeline())


class Page(html.parser.HTMLParser):
    """The page as a browser splits it up: its elements, and the texts of its scripts."""

    def __init__(self, path):
        super().__init__()
        self.elements, self.scripts = [], []
        self.feed((path / "index.html").read_text())

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data):
        if self.elements[-1:] and self.elements[-1][0] == "script":
            self.scripts[-1] += data

    @property
    def data(self):
        return json.loads(self.scripts[0])


@pytest.mark.slow
def test_page_says_how_each_image_was_made(tmp_path):
    path = make_run(tmp_path / "run", INLINE, "num_images_per_prompt=2", "seed=5")
    data = Page(path).data
    assert [row["prompt"] for row in data["rows"]] == ["a red fox", "an owl", "a moose"]
    assert data["rows"][1]["negative_prompt"] == "dark" and data["rows"][2]["seed"] == 7
    assert (data["images"]["row"], data["images"]["copy"]) == ([0, 0, 1, 1, 2, 2], [0, 1, 0, 1, 0, 1])
    assert data["images"]["sha256"] == [record["sha256"] for record in manifest(path)]
    (job,) = data["jobs"]
    assert job["command"].startswith("python -m tpusd.run model=tiny") and " seed=5" in job["command"]
    assert data["rows"][1]["command"] == "'prompts.rows=[{prompt: \"an owl\", negative_prompt: dark}]' first_row=1"
    assert job["settings"]["sampler"] == "pndm" and data["summary"].startswith("6 images · tiny, bf16 · 40×24")
    titles = dict(data["facts"])
    assert ["state", "finished"] in titles["Run"] and any(name == "jax" for name, _ in titles["Versions"])


@pytest.mark.slow
def test_prompts_cannot_change_the_page(tmp_path):
    plain = Page(make_run(tmp_path / "plain", INLINE))
    rows = [{"prompt": HOSTILE, "negative_prompt": HOSTILE, "note": HOSTILE}]
    hostile = Page(make_run(tmp_path / "hostile", f"prompts.rows={hydra_value(rows)}"))
    assert hostile.elements == plain.elements and len(hostile.scripts) == 2
    assert hostile.scripts[1] == plain.scripts[1]
    (row,) = hostile.data["rows"]
    assert row["prompt"] == row["negative_prompt"] == row["extra"]["note"] == HOSTILE


@pytest.mark.slow
def test_page_refers_to_nothing_outside_its_directory(tmp_path):
    page = Page(make_run(tmp_path / "run", INLINE))
    for _, attributes in page.elements:
        assert not {"src", "href", "srcset", "style", "onclick", "onload", "onerror"} & set(attributes)
    policy = next(one["content"] for tag, one in page.elements if one.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; img-src 'self' file:;") and "unsafe" not in policy
    assert "http" not in page.scripts[1]


@pytest.mark.slow
def test_large_images_get_thumbnails_and_small_ones_need_none(tmp_path):
    small = make_run(tmp_path / "small", INLINE)
    assert not (small / ".thumbs").exists() and Page(small).data["jobs"][0]["thumbnails"] is False
    large = make_run(tmp_path / "large", INLINE, "height=512", "width=256")
    assert Page(large).data["jobs"][0]["thumbnails"] is True
    for record in manifest(large):
        with Image.open(large / ".thumbs" / (record["file_name"][7:-4] + ".webp")) as image:
            assert (image.format, image.size) == ("WEBP", (128, 256))


@pytest.mark.slow
def test_results_can_be_thrown_away_and_made_again(tmp_path, capsys):
    path = make_run(tmp_path / "run", INLINE, "height=264")
    names = [
        "index.html",
        "metadata.jsonl",
        "contact_sheet.png",
        *(f".thumbs/{n}" for n in os.listdir(path / ".thumbs")),
    ]
    before = {name: (path / name).read_bytes() for name in names}
    assert len(names) == 6
    for name in names:
        (path / name).unlink()
    assert main([str(path)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(path / "index.html")
    assert {name: (path / name).read_bytes() for name in names} == before


@pytest.mark.slow
def test_metadata_has_a_caption_for_every_image(tmp_path):
    path = make_run(tmp_path / "run", INLINE, "num_images_per_prompt=2")
    lines = [json.loads(line) for line in (path / "metadata.jsonl").read_text().splitlines()]
    assert [(line["file_name"], line["prompt"]) for line in lines] == [
        (record["file_name"], record["prompt"]) for record in manifest(path)
    ]
    assert not {"trace", "sha256"} & set(lines[0]) and lines[0]["seed"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("image_format", ["webp", "jpeg"])
def test_other_formats_stand_on_the_page_and_the_sheet(tmp_path, image_format):
    path = make_run(tmp_path / "run", INLINE, f"image_format={image_format}")
    suffix = Page(path).data["jobs"][0]["suffix"]
    names = {record["file_name"] for record in manifest(path)}
    assert names == {f"images/0000{row}-000{suffix}" for row in range(3)} and (path / "contact_sheet.png").exists()


def test_what_is_no_run_directory_is_one_line(tmp_path, capsys):
    assert main([str(tmp_path)]) == 2 and main([str(tmp_path / "missing")]) == 2 and main([]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 3 and "is not a run directory: it has no config.yaml" in err


@pytest.mark.slow
@pytest.mark.parametrize("height", [24, 264])  # without thumbnails, and with them
def test_image_that_is_postscript_or_a_link_is_one_line_and_starts_no_program(tmp_path, monkeypatch, capsys, height):
    path = make_run(tmp_path / "run", INLINE, f"height={height}")
    image = path / "images" / "00001-000.png"
    forbid_programs(monkeypatch)
    capsys.readouterr()
    for change, words in (
        (lambda: image.write_bytes(POSTSCRIPT), "is not a PNG, JPEG or WebP picture"),
        (lambda: (image.unlink(), image.symlink_to("/etc/hostname")), "cannot be read: is a link"),
        (lambda: (image.unlink(), os.mkfifo(image)), "cannot be read: is not a regular file"),
        (lambda: image.unlink(), "cannot be read: No such file"),
    ):
        change()
        for name in os.listdir(path / ".thumbs") if height > 256 else []:
            (path / ".thumbs" / name).unlink()
        assert main([str(path)]) == 2
        err = capsys.readouterr().err
        assert err.startswith(f"tpusd: {image}: {words}") and err.count("\n") == 1, err


@pytest.mark.slow
def test_image_outside_the_run_is_refused(tmp_path, capsys):
    """A manifest may come from a stranger, and name any file of the machine."""
    path = make_run(tmp_path / "run", INLINE)
    Image.new("RGB", (40, 24), "red").save(tmp_path / "00000-000.png")
    manifest = path / "manifest.jsonl"
    manifest.write_text(manifest.read_text().replace("images/00000-000.png", "../00000-000.png"))
    capsys.readouterr()
    assert main([str(path)]) == 2
    assert "line 1: is not a manifest line" in capsys.readouterr().err
