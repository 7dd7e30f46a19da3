"""grid.png of a sweep: which images it has for which choice, what its labels and its caption say."""

import numpy as np
import pytest
from PIL import Image
from support.runs import manifest
from support.sweeps import make

import tpusd.gallery.grid
from tpusd.errors import UserError
from tpusd.gallery.sweep import write_sweep_grid
from tpusd.gallery.sweep_grid import MAX_GRID, GridChoice, parse_prompts
from tpusd.records.sweep import read_sweep
from tpusd.results import main

pytestmark = pytest.mark.slow

PROMPTS = ["a red fox", "an owl", "a moose"]


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    path = tmp_path_factory.mktemp("grid") / "sweep"
    rows = ", ".join(f"{{prompt: {prompt}}}" for prompt in PROMPTS)
    axes = ("sampler=ddim,euler,heun", "guidance_scale=3,7.5", "seed=0,1")
    make(*axes, f"prompts.rows=[{rows}]", "num_images_per_prompt=2", f"output={path}")
    return path


@pytest.fixture
def drawn(sweep, tmp_path, monkeypatch):
    """draw(choice) -> what is drawn: for each cell the image's run, row and copy; labels and note."""
    inner = tpusd.gallery.grid.labelled_grid
    seen = {}

    def watched(pictures, **options):
        seen.update(options, pictures=pictures)
        return inner(pictures, **options)

    monkeypatch.setattr(tpusd.gallery.grid, "labelled_grid", watched)

    def draw(path=sweep, **choice):
        write_sweep_grid(path, read_sweep(path), GridChoice(**choice), tmp_path / "grid.png")
        known = images_of(path)
        cells = [[known[np.asarray(cell).tobytes()] for cell in row] for row in seen["pictures"]]
        return seen | {"cells": cells}

    return draw


def images_of(path):
    """Pixels -> (sampler, guidance scale, seed, prompt, copy)."""
    names = ("sampler", "guidance_scale", "seed", "prompt", "copy")
    found = {}
    for run in path.glob("0*"):
        for record in manifest(run):
            with Image.open(run / record["file_name"]) as image:
                found[np.asarray(image.convert("RGB")).tobytes()] = tuple(record[name] for name in names)
    return found


def test_default_is_the_two_longest_axes_with_the_first_of_all_else(drawn):
    grid = drawn()
    assert grid["column_labels"] == ["ddim", "euler", "heun"] and grid["row_labels"] == ["3", "7.5"]
    assert grid["cells"] == [
        [(sampler, scale, 0, "a red fox", 0) for sampler in ("ddim", "euler", "heun")] for scale in (3, 7.5)
    ]
    assert grid["note"].startswith("seed = 0 · ") and grid["note"].endswith(" · prompt = a red fox")
    for fixed in ("model = tiny", "precision = bf16", "height = 24", "width = 40"):
        assert f" · {fixed}" in grid["note"]
    assert "sampler =" not in grid["note"] and "guidance_scale =" not in grid["note"]


def test_axes_prompts_and_fixed_values_are_those_chosen(drawn):
    grid = drawn(columns="seed", rows="prompt", prompts=(2, 0), at={"sampler": "heun", "guidance_scale": "7.5"})
    assert grid["cells"] == [[("heun", 7.5, seed, prompt, 0) for seed in (0, 1)] for prompt in ("a moose", "a red fox")]
    assert grid["column_labels"] == ["0", "1"] and grid["row_labels"] == ["a moose", "a red fox"]
    assert set(grid["note"].split(" · ")) >= {"guidance_scale = 7.5", "sampler = heun"}
    assert "prompt =" not in grid["note"]


def test_several_prompts_take_an_axis_of_their_own(drawn):
    grid = drawn(prompts=(0, 1, 2))
    assert grid["row_labels"] == PROMPTS and grid["column_labels"] == ["ddim", "euler", "heun"]
    grid = drawn(rows="seed", prompts=(1, 2))
    assert grid["column_labels"] == PROMPTS[1:] and grid["row_labels"] == ["0", "1"]
    assert drawn(prompts=(1,))["note"].endswith("prompt = an owl")


def test_copies_are_an_axis_too(drawn):
    grid = drawn(columns="copy", rows="prompt")
    assert grid["cells"] == [[("ddim", 3, 0, prompt, copy) for copy in (0, 1)] for prompt in PROMPTS]
    assert {cell[-1] for row in drawn(at={"copy": "1"})["cells"] for cell in row} == {1}


def test_long_axes_are_cut_and_the_caption_says_so(drawn, tmp_path):
    make(f"seed={','.join(map(str, range(MAX_GRID + 3)))}", "prompts.rows=[{prompt: x}]", f"output={tmp_path / 'long'}")
    grid = drawn(tmp_path / "long")
    assert len(grid["column_labels"]) == MAX_GRID and f"{MAX_GRID} of {MAX_GRID + 3} values of seed" in grid["note"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--grid-columns=sampler.name"], "--grid-columns=sampler.name: is no swept field; the sweep has sampler"),
        (["--grid-rows=guidance_scal"], "did you mean guidance_scale"),
        (["--grid-columns=seed", "--grid-rows=seed"], "is on the columns already"),
        (["--grid-at", "seed"], "must be FIELD=VALUE"),
        (["--grid-at", "seed=9"], "--grid-at=seed=9: the sweep has seed=0, 1"),
        (["--grid-at", "prompt=x"], "choose prompts with --grid-prompts"),
        (["--grid-columns=seed", "--grid-at", "seed=1"], "is no fixed field; remove it"),
        (["--grid-prompts=x"], "must be rows of the prompt set, such as 0,3,5-7"),
        (["--grid-prompts=5-2"], "must be rows of the prompt set"),
        (["--grid-prompts=0-999999999"], "must be rows of the prompt set"),
        (["--grid-prompts=7"], "has no image with these values"),
        (["--grid-columns=seed", "--grid-rows=sampler", "--grid-prompts=0,1"], "names 2 prompts"),
    ],
)
def test_a_choice_that_the_sweep_has_not_is_one_line(sweep, options, says, capsys):
    before = (sweep / "grid.png").read_bytes()
    assert main([str(sweep), *options]) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1
    assert (sweep / "grid.png").read_bytes() == before


def test_grid_options_write_the_grid_alone(sweep, tmp_path, capsys):
    page = (sweep / "index.html").stat().st_mtime_ns
    assert main([str(sweep), "--grid-columns=seed", f"--grid-file={tmp_path / 'a.png'}"]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "a.png") and (tmp_path / "a.png").stat().st_size > 0
    assert (sweep / "index.html").stat().st_mtime_ns == page
    run = next(path for path in sweep.glob("000*"))
    assert main([str(run), "--grid-columns=seed"]) == 2
    assert "is not a sweep" in capsys.readouterr().err


def test_rows_are_parsed():
    assert parse_prompts("0, 3,5-7,3") == (0, 3, 5, 6, 7)
    for text in ("", ",", "-1", "1-", "1 2", "1.5", "٣x"):
        with pytest.raises(UserError):
            parse_prompts(text)
