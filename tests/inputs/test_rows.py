"""The pictures of prompt rows: whose paths, which files, and what is refused before anything runs."""

import hashlib
import json

import pytest
from PIL import Image
from support.runs import config

from tpusd.config.rows import Row
from tpusd.config.schema import config_values, make_config, saved_config
from tpusd.errors import UserError
from tpusd.inputs.rows import pinned, same_rows
from tpusd.plan.batches import pack
from tpusd.plan.specs import make_specs
from tpusd.prompts.rows import run_rows
from tpusd.samplers.schedule import SchedulerConfig
from tpusd.samplers.table import SamplerSettings, first_step, make_table


def picture(path, size=(40, 24), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size).save(path)
    return str(path)


def pin(made, rows, **fields):
    return pinned(rows, made, **{"box": (64, 64), "multiple": 8} | fields)


def line_of(act, *arguments, **fields):
    with pytest.raises(UserError) as caught:
        act(*arguments, **fields)
    line = str(caught.value)
    assert "\n" not in line and line.isprintable()
    return line


def test_paths_are_relative_to_the_prompt_file_and_rows_have_their_own(tmp_path, monkeypatch):
    file = tmp_path / "set" / "p.jsonl"
    shared = picture(tmp_path / "here" / "shared.png")
    picture(file.parent / "a.png")
    rows = [{"prompt": "a", "image": "a.png", "strength": 0.3}, {"prompt": "b"}]
    file.write_text("\n".join(map(json.dumps, rows)))
    monkeypatch.chdir(tmp_path / "here")
    made = config("prompts=file", f"prompts.path={file}", "image=shared.png", "strength=0.5")
    rows = run_rows(made)
    assert [row.image for row in rows] == [str(file.parent / "a.png"), shared]
    rows = pin(made, rows)
    assert rows[0].image_sha256 == hashlib.sha256((file.parent / "a.png").read_bytes()).hexdigest()
    specs = list(make_specs(saved_config(made, rows=rows, height=64, width=64)))
    assert [spec.picture.strength for spec in specs] == [0.3, 0.5]
    again = make_config(config_values(saved_config(made, rows=rows, height=64, width=64)))
    assert again.prompts.rows == rows


def test_a_config_without_pictures_is_saved_as_before():
    values = config_values(config("prompts.rows=[{prompt: a}]"))
    assert not {"image", "mask", "strength", "resize", "paste_back", "mask_feather"} & values.keys()
    (spec,) = make_specs(saved_config(make_config(values), rows=(Row(prompt="a"),), height=8, width=8))
    assert spec.picture is None


@pytest.mark.slow
def test_what_is_wrong_is_named_with_its_row(tmp_path):
    good, broken = picture(tmp_path / "a.png"), tmp_path / "b.png"
    broken.write_bytes((tmp_path / "a.png").read_bytes()[:50])
    made = config("prompts.rows=[{prompt: a}]")
    rows = [Row(prompt="a", image=good), Row(prompt="b", image=str(broken)), Row(prompt="c", image="/nowhere/c.png")]
    line = line_of(pin, made, rows)
    assert "row 1: image=" in line and "row 2: image=/nowhere/c.png: no such file" in line
    assert pin(made, rows, used=lambda number: number == 0)[1:] == tuple(rows[1:])
    other = [Row(prompt="a", image=good, mask=picture(tmp_path / "m.png", (24, 40), "L"))]
    assert "has 24x40 pixels and its image has 40x24" in line_of(pin, made, other)
    changed = [Row(prompt="a", image=good, image_sha256="0" * 64)]
    assert "row 0: image=" in line_of(pin, made, changed) and "another file" in line_of(pin, made, changed)
    for field in ("mask: m.png", "strength: 0.5"):
        assert "has no image to start from" in line_of(run_rows, config(f"prompts.rows=[{{prompt: a, {field}}}]"))
    assert "no image to start from" in line_of(run_rows, config("prompts.rows=[{prompt: a}]", "strength=0.5"))
    assert "no image to start from" in line_of(run_rows, config("prompts.rows=[{prompt: a}]", "resize=fit"))
    bare = config("prompts.rows=[{prompt: a}]", f"image={good}", "mask_feather=3")
    assert line_of(run_rows, bare).startswith("mask_feather=3: there is no mask")
    with pytest.raises(UserError, match="image='': must name a picture"):
        config("prompts.rows=[{prompt: a}]", "image=''")
    made = config("prompts.rows=[{prompt: a}, {prompt: b, image: a.png}]", "noise=torch_cpu")
    assert line_of(run_rows, made).startswith("noise=torch_cpu: row 1 starts from a picture")
    with pytest.raises(UserError, match="must be from 0 to 1"):
        config("prompts.rows=[{prompt: a, image: a.png, strength: 1.5}]")


def test_fit_gives_the_image_the_pictures_shape_once(tmp_path):
    made = config("prompts.rows=[{prompt: a}]", f"image={picture(tmp_path / 'a.png')}", "resize=fit")
    (row,) = pin(made, run_rows(made), box=(512, 512))
    assert (row.height, row.width) == (304, 512)
    assert pin(made, [row], box=(512, 512)) == (row,)
    assert same_rows(row, run_rows(made)[0]) and not same_rows(row, Row(prompt="b", image=row.image))


def test_strength_that_makes_no_step_is_refused_with_the_smallest_that_does():
    for steps in range(1, 1001):
        line = line_of(first_step, steps, 0.0)
        smallest = float(line.rpartition("strength=")[2].split(" ")[0])
        assert first_step(steps, smallest) == steps - 1
        assert int(steps * (smallest - 1e-4)) == 0
    assert first_step(50, 0.75) == 13 and first_step(20, 1.0) == 0


@pytest.mark.parametrize("name", ["ddim", "pndm", "heun", "euler", "dpmpp_2m", "unipc", "lcm"])
def test_table_of_a_strength_has_its_own_steps_and_levels(name):
    """Variance-preserving levels have unit length; the noise falls from row to row."""
    table = make_table(SamplerSettings(name=name, num_inference_steps=20), SchedulerConfig(), strength=0.3)
    assert len(table) == {"heun": 11, "pndm": 7}.get(name, 6)
    assert (table.levels[:-1, 1] / table.levels[:-1, 0] >= table.levels[1:, 1] / table.levels[1:, 0]).all()
    padded = table.padded_levels()
    assert (padded[len(table) - 1] == (1, 0)).all() and (padded[0] == table.levels[1].astype("f4")).all()


def test_images_from_pictures_and_from_noise_are_in_batches_of_their_own(tmp_path):
    made = config("prompts.rows=[{prompt: a}, {prompt: b, image: a.png}, {prompt: c}]")
    specs = make_specs(saved_config(made, rows=made.prompts.rows, height=8, width=8))
    batches = pack(((None, spec) for spec in specs), 4, lambda run, spec: 5)
    assert [[spec.prompt for spec in batch.specs] for batch in batches] == [["a", "c"], ["b"]]
