import dataclasses
from pathlib import Path

import pytest
from support.runs import config

from tpusd.config.choices import conf_directory
from tpusd.config.compose import compose_jobs
from tpusd.config.schema import config_values, field_names, make_config
from tpusd.errors import UserError, suggest

GROUPS = {
    group: sorted(file.stem for file in (conf_directory() / group).glob("*.yaml"))
    for group in ("model", "precision", "sampler", "prompts")
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("group", "choice"), [(group, choice) for group, choices in GROUPS.items() for choice in choices]
)
def test_every_choice_that_ships_is_valid_and_carries_its_name(group, choice):
    needs = {"local": ["model.path=DIR"], "file": ["prompts.path=p.txt"], "inline": ["prompts.rows=[{prompt: a}]"]}.get(
        choice, []
    )
    assert getattr(config(f"{group}={choice}", *needs), group).name == choice


def test_defaults_are_the_documented_ones():
    made = config()
    assert (made.model.name, made.precision.name, made.sampler.name, made.prompts.name) == (
        "tiny",
        "bf16",
        "pndm",
        "portraits",
    )
    assert (made.seed, made.guidance_scale, made.num_images_per_prompt, made.height, made.output) == (
        0,
        4.0,
        1,
        None,
        None,
    )
    assert len(made.prompts.rows) == 8


def test_dataclass_defaults_and_config_yaml_agree():
    made = config()
    for field in dataclasses.fields(made):
        if field.default is not dataclasses.MISSING and field.name != "guidance_scale":
            assert getattr(made, field.name) == field.default, field.name


@pytest.mark.slow
@pytest.mark.parametrize(("model", "own"), [("tiny", 4.0), ("sd15", 7.5), ("sd21", 7.5), ("sdxl", 5.0)])
def test_guidance_is_the_models_own_unless_it_is_said(model, own):
    assert config(f"model={model}").guidance_scale == own
    assert config(f"model={model}", "guidance_scale=0").guidance_scale == 0.0
    assert config(f"model={model}", "model.guidance_scale=4").guidance_scale == 4.0


def test_config_survives_the_way_through_plain_values():
    made = config("seed=4294967295", "height=24", 'prompts.rows=[{prompt: "a: b", seed: 0, id: 5}]')
    assert make_config(config_values(made)) == made


def test_zero_and_empty_are_values():
    made = config("seed=0", "guidance_scale=0", "guidance_rescale=0", "negative_prompt=''")
    assert (made.guidance_scale, made.guidance_rescale, made.negative_prompt) == (0.0, 0.0, "")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("field", "good"),
    [
        ("seed", ["0", "4294967295"]),
        ("height", ["8", "520", "8192", "null"]),
        ("guidance_scale", ["1", "1000", "3.5"]),
        ("guidance_rescale", ["1", "0.7"]),
        ("num_images_per_prompt", ["1", "4096"]),
        ("on_truncate", ["chunk", "error", "warn"]),
        ("sampler.num_inference_steps", ["1", "1000"]),
    ],
)
def test_bounds_themselves_are_allowed(field, good):
    for value in good:
        config(f"{field}={value}")


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("seed=-1", "seed=-1: must be from 0 to 4294967295"),
        ("seed=4294967296", "seed=4294967296: must be from 0 to 4294967295"),
        ("seed=abc", "seed=abc: must be a whole number, not text"),
        ("seed=1.0", "seed=1.0: must be a whole number"),
        ("seed=true", "seed=True: must be a whole number, not true or false"),
        ("seed=null", "seed=null: must be a whole number, not null"),
        ("sampler.num_inference_steps=0", "sampler.num_inference_steps=0: must be from 1 to 1000"),
        ("height=100", "height=100: must be a multiple of 8 from 8 to 8192; try height=96"),
        ("width=0", "width=0: must be a multiple of 8 from 8 to 8192; try width=8"),
        ("width=99999", "try width=8192"),
        ("guidance_scale=nan", "guidance_scale=nan: must be from 0 to 1000"),
        ("guidance_scale=inf", "guidance_scale=inf: must be from 0 to 1000"),
        ("guidance_scale=-1", "guidance_scale=-1: must be from 0 to 1000"),
        ("guidance_rescale=1.5", "guidance_rescale=1.5: must be from 0 to 1"),
        ("guidance_rescale=nan", "guidance_rescale=nan: must be from 0 to 1"),
        ("num_images_per_prompt=0", "num_images_per_prompt=0: must be from 1 to 4096"),
        ("num_images_per_prompt=4097", "num_images_per_prompt=4097: must be from 1 to 4096"),
        ("batch_size_per_device=0", "batch_size_per_device=0: must be from 1"),
        ("on_truncate=warm", "on_truncate=warm: must be one of warn, error, chunk; did you mean warn"),
        ("precision.unet.dtype=float8", "precision.unet.dtype=float8: must be one of bfloat16, float16, float32"),
        ("prompts.rows=[a]", "prompts.rows[0]=a: must be a group of fields"),
        ("prompts.rows=5", "prompts.rows=5: must be a list"),
        ("prompts.path=p.txt", "add prompts=file"),
        ("prompts.column=x", "add prompts=file"),
        ("prompts=file", "add prompts.path=FILE"),
        ("model=local", "add model.path=DIR"),
        ("model.path=x", "model.asset=tiny model.path=x: exactly one of"),
        ("model.asset=../tiny", "model.asset=../tiny: is a name, not a path"),
        ("model.revision=main", "model.revision=main: is for models from the Hub"),
        ("+model._target_=os.system", "+model._target_=os.system: no such field"),
    ],
)
def test_wrong_values_are_one_line_that_says_what_to_do(override, expected):
    with pytest.raises(UserError) as error:
        config(override)
    assert expected in str(error.value) and "\n" not in str(error.value)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"sede": 1}, "sede=1: no such field; did you mean seed"),
        ({"model": {"name": "x", "_target_": "os.system"}}, "model._target_=os.system: no such field"),
        ({"model": "tiny"}, "model=tiny: must be a group of fields"),
        ({"model": {}}, "model.name: missing"),
        ({"sampler": None}, "sampler=null: must be a group of fields"),
    ],
)
def test_saved_configs_go_through_the_same_checks(values, expected):
    (job,) = compose_jobs([])
    with pytest.raises(UserError) as error:
        make_config(job.values | values)
    assert expected in str(error.value)


def test_missing_group_is_told():
    (job,) = compose_jobs([])
    del job.values["precision"]
    with pytest.raises(UserError, match="^precision: missing"):
        make_config(job.values)


def test_suggestions_know_the_last_part_of_a_name():
    assert suggest("num_inference_step", field_names()) == "; did you mean sampler.num_inference_steps"
    assert suggest("guidence_scale", field_names()) == "; did you mean guidance_scale"
    assert suggest("zzz", field_names()) == ""


@pytest.mark.slow
def test_a_leading_tilde_is_the_home_in_every_path(monkeypatch):
    """A shell does not expand it behind `field=`."""
    monkeypatch.setenv("HOME", "/home/somebody")
    made = config("model=local", "model.path=~/m", "prompts=file", "prompts.path=~/p.txt", "output=~/o")
    assert (made.model.path, made.prompts.path, made.output) == (
        "/home/somebody/m",
        "/home/somebody/p.txt",
        "/home/somebody/o",
    )
    assert config('output="a~b"').output == "a~b"
    monkeypatch.setattr(Path, "expanduser", lambda path: (_ for _ in ()).throw(RuntimeError("no home")))
    with pytest.raises(UserError, match="output=~/o: ~ stands for a home that is not known"):
        config("output=~/o")
