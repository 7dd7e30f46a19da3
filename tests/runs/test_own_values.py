"""Rows with a size and a number of steps of their own, through a run's whole life."""

import json

import numpy as np
import pytest
from PIL import Image
from support.checkpoints import tiny
from support.runs import StandInPipeline, config, manifest, prepare
from support.sweeps import Loads, make

from tpusd.config.schema import saved_config
from tpusd.errors import UserError
from tpusd.plan.batches import program_key
from tpusd.plan.specs import image_sizes, make_spec, make_specs
from tpusd.recipes.command import config_overrides, image_overrides
from tpusd.recipes.own import recipe_values
from tpusd.recipes.readers import read_recipe
from tpusd.recipes.texts import read_texts
from tpusd.runs.dry_run import RunToShow, show_plan
from tpusd.runs.prepare import prepare_run
from tpusd.runs.reproduce import reproduce
from tpusd.runs.resume import resume_run
from tpusd.runs.start import start_run

pytestmark = pytest.mark.usefixtures("one_device")
ROWS = (
    'prompts.rows=[{prompt: "a fox"}, {prompt: "an owl", height: 32, width: 64}, {prompt: "a newt", width: 48},'
    ' {prompt: "a wren", height: 32, width: 64, num_inference_steps: 9, guidance_scale: 1}]'
)
SIZES = [(24, 40), (32, 64), (24, 48), (32, 64)]


class OneSize(StandInPipeline):
    """As a real pipeline: its programs are compiled for one size."""

    def __init__(self, prepared):
        super().__init__()
        self.size = prepared.config.height, prepared.config.width
        self.fingerprints = {"decode": f"{prepared.config.height:032d}{prepared.config.width:032d}"}

    def generate(self, specs, tables, **options):
        assert all((spec.height, spec.width) == self.size for spec in specs)
        assert [len(table) for table in tables] == [spec.sampler.num_inference_steps for spec in specs]
        return super().generate(specs, tables, **options)


def loading():
    made = []

    def load(prepared, devices, **shared):
        made.append(OneSize(prepared))
        return made[-1]

    return load, made


@pytest.fixture
def run(tmp_path):
    load, made = loading()
    path = start_run(config(ROWS, "num_images_per_prompt=2", f"output={tmp_path / 'run'}"), prepare=prepare, load=load)
    assert [one.size for one in made] == [(24, 40), (32, 64), (24, 48)]  # each is compiled once
    return path


@pytest.mark.slow
def test_manifest_files_and_recipes_have_the_values_of_the_row(run):
    lines = {(line["row"], line["copy"]): line for line in manifest(run)}
    assert len(lines) == 8
    for (row, _), line in lines.items():
        assert (line["height"], line["width"]) == SIZES[row]
        assert line["num_inference_steps"] == (9 if row == 3 else 50)
        with Image.open(run / line["file_name"]) as picture:
            assert picture.size == (line["width"], line["height"])
        own = recipe_values(read_texts(run / line["file_name"]))
        assert (own["height"], own["width"]) == SIZES[row]
        overrides = read_recipe(run / line["file_name"]).overrides
        alone = config(*overrides)
        (again,) = make_specs(saved_config(alone, rows=alone.prompts.rows, height=alone.height, width=alone.width))
        assert (again.height, again.width) == SIZES[row]
        assert again.sampler.num_inference_steps == line["num_inference_steps"]


@pytest.mark.slow
def test_a_run_with_own_values_resumes_reproduces_and_validates(run, tmp_path):
    from tpusd.records.validate import faults

    assert list(faults(run)) == []
    (run / "images" / "00003-001.png").unlink()
    load, made = loading()
    resume_run(run, [], prepare=prepare, load=load)
    assert [one.size for one in made] == [(32, 64)] and sum(map(len, made[0].batches)) == 1
    load, made = loading()
    assert reproduce(run, [f"output={tmp_path / 'again'}"], prepare=prepare, load=load)
    report = json.loads((tmp_path / "again" / "comparison.json").read_text())
    assert report["counts"] == {"identical": 8} and report["changed"] == []


@pytest.mark.slow
def test_the_page_and_its_commands_know_the_values_of_the_row():
    made = config(ROWS)
    whole = saved_config(made, rows=made.prompts.rows, height=24, width=40)
    for number, row in enumerate(made.prompts.rows):
        alone = config(*config_overrides(whole), *image_overrides(row, number, 0))
        again = saved_config(alone, rows=alone.prompts.rows, height=24, width=40)
        assert make_spec(again, number, 0) == make_spec(whole, number, 0)


def test_the_dry_run_counts_sizes_and_compilations(capsys):
    show_plan([RunToShow(name="", config=config(ROWS))], prepare)
    out = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0].split()[-1] for line in out[:-1]] == ["40x24", "64x32", "48x24"]
    # encode, decode and denoise for each; at 64x32 an image without guidance needs a denoise of its own
    assert out[-1] == "1 run, 4 images, 3 sizes, 1 load, 10 compilations; nothing was made"


@pytest.mark.slow
def test_runs_of_a_sweep_share_the_programs_of_a_size(tmp_path):
    done = make("seed=0,1", ROWS, f"output={tmp_path / 'sweep'}")
    assert done.status == 0 and len(done.loads.pipelines) == 3
    shown = [{(spec.height, spec.width) for spec in batch} for batch in done.loads.batches]
    assert all(len(sizes) == 1 for sizes in shown)
    alone = Loads()
    for seed in (0, 1):
        start_run(config(ROWS, f"seed={seed}", f"output={tmp_path / str(seed)}"), prepare=prepare, load=alone)
        (swept,) = (tmp_path / "sweep").glob(f"*seed={seed}")
        mine = {line["file_name"]: line["sha256"] for line in manifest(tmp_path / str(seed))}
        assert mine == {line["file_name"]: line["sha256"] for line in manifest(swept)}


def test_values_that_the_checkpoint_cannot_make_are_listed_with_their_rows():
    rows = "[{prompt: a, num_inference_steps: 51}, {prompt: b}, {prompt: c, num_inference_steps: 60}]"
    with pytest.raises(UserError) as caught:
        prepare_run(config("sampler=lcm", "sampler.num_inference_steps=4", f"prompts.rows={rows}"))
    assert "prompts: row 0: " in str(caught.value) and "; row 2: " in str(caught.value)


def test_sizes_of_rows_are_said_before_anything_runs():
    rows = "[{prompt: portrait}, {prompt: portrait, height: 64}]"
    prepared = prepare_run(config(f"prompts.rows={rows}"))
    assert image_sizes(prepared.config) == ((128, 128), (64, 128))
    assert any("images of 2 sizes, and programs are compiled for each: 128x128, 128x64" in w for w in prepared.warnings)


@pytest.mark.long
@pytest.mark.slow
def test_an_image_with_own_values_is_the_image_of_a_run_with_these_values(tmp_path):
    """On a real pipeline: alone, and among images of other sizes and numbers of steps."""
    from tpusd.runs.executors.local import load_pipeline

    kept = {}

    def load(prepared, devices, **shared):
        key = program_key(prepared.config)
        return kept[key] if key in kept else kept.setdefault(key, load_pipeline(prepared, devices, **shared))

    model = ("model=local", f"model.path={tiny('sd1')}", "precision=fp32", "sampler=euler", "batch_size_per_device=2")
    rows = (
        'prompts.rows=[{prompt: "a fox"}, {prompt: "an owl", height: 32, width: 64, num_inference_steps: 3},'
        ' {prompt: "a newt", num_inference_steps: 3}]'
    )
    size = ("height=48", "width=48", "sampler.num_inference_steps=5")

    def made(name, *overrides):
        path = start_run(config(*model, *overrides, f"output={tmp_path / name}"), load=load)
        lines = {line["row"]: line for line in manifest(path)}
        return {row: np.asarray(Image.open(path / line["file_name"])) for row, line in lines.items()}

    whole = made("whole", rows, *size)
    own = ("height=32", "width=64", "sampler.num_inference_steps=3")
    owl = made("owl", 'prompts.rows=[{prompt: "an owl"}]', "first_row=1", *own)
    newt = made("newt", 'prompts.rows=[{prompt: "a newt"}]', "first_row=2", "height=48", "width=48", own[2])
    np.testing.assert_array_equal(whole[1], owl[1])
    np.testing.assert_array_equal(whole[2], newt[2])
    assert whole[1].shape == (32, 64, 3) and whole[0].shape == (48, 48, 3)
