"""guidance_interval and guidance_schedule in a run's files, and in the command of a picture."""

import pytest
from support.runs import StandInPipeline, config, manifest, prepare

from tpusd.config.compose import compose_jobs
from tpusd.config.schema import make_config
from tpusd.errors import UserError
from tpusd.recipes.readers import read_recipe
from tpusd.records.validate import faults
from tpusd.runs.resume import resume_run
from tpusd.runs.start import start_run

FIELDS = ("guidance_interval=[0.1,0.75]", "guidance_schedule=cosine")


def start(path, *overrides):
    made = config(f"output={path}", "prompts.rows=[{prompt: a}, {prompt: b, guidance_scale: 1}]", *overrides)
    return start_run(made, prepare=prepare, load=lambda *_, **__: StandInPipeline())


@pytest.mark.slow
def test_a_run_says_where_its_guidance_is_and_goes_on(tmp_path):
    run = start(tmp_path / "run", *FIELDS)
    for line in manifest(run):
        assert line["guidance_interval"] == [0.1, 0.75] and line["guidance_schedule"] == "cosine"
    assert list(faults(run)) == []
    resume_run(run, ("num_images_per_prompt=2",), prepare=prepare, load=lambda *_, **__: StandInPipeline())
    assert len(manifest(run)) == 4 and list(faults(run)) == []
    with pytest.raises(UserError, match="guidance_interval"):
        resume_run(run, ("guidance_interval=[0,1]",), prepare=prepare, load=lambda *_, **__: StandInPipeline())


def test_a_run_of_the_usual_guidance_has_the_fields_that_it_had(tmp_path):
    for line in manifest(start(tmp_path / "run")):
        assert not {"guidance_interval", "guidance_schedule"} & set(line)


@pytest.mark.slow
@pytest.mark.parametrize("fields", [(), FIELDS])
def test_the_command_of_a_picture_has_them(tmp_path, fields):
    run = start(tmp_path / "run", *fields)
    recipe = read_recipe(run / manifest(run)[0]["file_name"])
    (job,) = compose_jobs(list(recipe.overrides))
    made, expected = make_config(job.values), config(*fields)
    assert made.guidance_interval == expected.guidance_interval
    assert made.guidance_schedule == expected.guidance_schedule


@pytest.mark.slow
@pytest.mark.parametrize("interval", ["[0.5,0.5]", "[0.6,0.5]", "[-0.1,1]", "[0,1.5]", "[0.5]", "[0,0.5,1]", "[]"])
def test_an_interval_is_two_growing_fractions(interval):
    with pytest.raises(UserError, match=r"^guidance_interval=.*: must be two fractions from 0 to 1"):
        config(f"guidance_interval={interval}")


def test_another_schedule_is_refused():
    with pytest.raises(UserError, match="guidance_schedule=parabola"):
        config("guidance_schedule=parabola")
