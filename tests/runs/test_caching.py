"""A cache in a run's files, in the command of a picture, and against the model."""

import pytest
from support.pipelines import checkpoint
from support.runs import StandInPipeline, config, manifest, prepare

from tpusd.config.compose import compose_jobs
from tpusd.config.schema import make_config
from tpusd.errors import UserError
from tpusd.recipes.readers import read_recipe
from tpusd.records.saved import override, read_saved
from tpusd.records.validate import faults
from tpusd.runs.prepare import prepare_run
from tpusd.runs.resume import resume_run
from tpusd.runs.start import start_run

INTERVAL = ("cache=deepcache", "cache.interval=5", "cache.branch=1")
MASK = ("cache=deepcache", "cache.steps=[0,1,5]")


def start(path, *overrides):
    made = config(f"output={path}", "prompts.rows=[{prompt: a}, {prompt: b}]", *overrides)
    return start_run(made, prepare=prepare, load=lambda *_, **__: StandInPipeline())


def resume(run, *words):
    return resume_run(run, words, prepare=prepare, load=lambda *_, **__: StandInPipeline())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fields", "line"),
    [
        (INTERVAL, {"cache": "deepcache", "cache_interval": 5, "cache_branch": 1}),
        (MASK, {"cache": "deepcache", "cache_branch": 0, "cache_steps": [0, 1, 5]}),
        ((), {}),
    ],
)
def test_a_run_says_what_it_reuses_and_continues(tmp_path, fields, line):
    run = start(tmp_path / "run", *fields)
    for written in manifest(run):
        assert {name: value for name, value in written.items() if name.startswith("cache")} == line
    assert ("cache" in (run / "config.yaml").read_text()) == bool(fields)
    assert list(faults(run)) == []
    resume(run, "num_images_per_prompt=2")
    assert len(manifest(run)) == 4 and list(faults(run)) == []
    with pytest.raises(UserError, match="cache"):
        resume(run, "cache=deepcache", "cache.interval=4")


@pytest.mark.slow
def test_another_interval_is_set_on_a_saved_cache(tmp_path):
    run = start(tmp_path / "run", *INTERVAL)
    saved = read_saved(run)
    assert override(saved, ["cache.interval=2"]).cache == config(*INTERVAL[::2], "cache.interval=2").cache
    assert override(saved, ["cache=none"]).cache == config().cache
    masked = override(saved, ["cache.steps=[0,9]", "cache.interval=null"]).cache
    assert (masked.steps, masked.interval, masked.branch) == ((0, 9), None, 1)


@pytest.mark.slow
@pytest.mark.parametrize("fields", [(), INTERVAL, MASK])
def test_the_command_of_a_picture_has_it(tmp_path, fields):
    run = start(tmp_path / "run", *fields)
    recipe = read_recipe(run / manifest(run)[0]["file_name"])
    assert any(word.startswith("cache") for word in recipe.overrides) == bool(fields)
    (job,) = compose_jobs(list(recipe.overrides))
    assert make_config(job.values).cache == config(*fields).cache


@pytest.mark.slow
def test_a_branch_is_one_of_the_models():
    def prepared(*fields):
        return prepare_run(config("prompt=a", *fields), open_model=lambda _: checkpoint())

    assert prepared("cache=deepcache", "cache.branch=3").config.cache.branch == 3
    with pytest.raises(
        UserError, match=r"^cache.branch=4: must be from 0 to 3, the skip connections of this model's UNet$"
    ):
        prepared("cache=deepcache", "cache.branch=4")
