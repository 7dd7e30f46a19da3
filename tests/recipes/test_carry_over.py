"""The command of a foreign picture is one that tpusd accepts: numbers come into range, and a line says so."""

import itertools

import pytest
from support.runs import config

from tpusd.config.sampler import SamplerSettings
from tpusd.prompts.rows import run_rows
from tpusd.recipes.a1111 import carry_over
from tpusd.recipes.carry_over import nearest_steps
from tpusd.recipes.infotext import SCHEDULE_TYPES, Infotext
from tpusd.runs.prepare import prepare_run
from tpusd.samplers.registry import samplers
from tpusd.samplers.schedule import SchedulerConfig
from tpusd.samplers.table import make_table

SD15 = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
USUAL = {"Steps": "20", "Sampler": "Euler a", "CFG scale": "7", "Seed": "5", "Size": "64x64"}


def carried(prompt="a fox", **settings):
    named = {name.replace("_", " "): value for name, value in settings.items()}
    return carry_over(Infotext(prompt=prompt, negative_prompt="", settings=USUAL | named))


@pytest.mark.parametrize(
    ("settings", "field", "said"),
    [
        ({"Steps": "5000"}, "sampler.num_inference_steps=1000", "Steps: 5000: must be from 1 to 1000; "),
        ({"Steps": "0"}, "sampler.num_inference_steps=1", "Steps: 0: must be from 1 to 1000; "),
        ({"Steps": "20.0"}, "sampler.num_inference_steps=20", None),
        ({"Sampler": "LCM", "Steps": "80"}, "sampler.num_inference_steps=50", "Steps: 80: the sampler does not make"),
        ({"CFG_scale": "-3"}, "guidance_scale=0.0", "CFG scale: -3: must be from 0 to 1000; "),
        ({"CFG_scale": "inf"}, "guidance_scale=1000.0", "CFG scale: inf: must be from 0 to 1000; "),
        ({"Size": "500x768"}, "width=496", "Width: 500: is not a multiple of 8; "),
        ({"Size": "99999x4"}, "width=8192", "Width: 99999: must be from 8 to 8192; "),
        ({"Size": "99999x4"}, "height=8", "Height: 4: must be from 8 to 8192; "),
    ],
)
def test_numbers_come_into_range_and_a_line_says_so(settings, field, said):
    made = carried(**settings)
    assert field in made.overrides
    name = field.partition("=")[0]
    if said is None:
        assert not any(name in line or "Steps" in line for line in made.left_out)
    else:
        (line,) = [line for line in made.left_out if line.startswith(said)]
        value = field.replace(".0", "") if "guidance" in field else field
        assert line.endswith(f"; {value} is taken")


@pytest.mark.parametrize(
    "settings",
    [
        {"Steps": "5000", "CFG_scale": "nan", "Size": "0x0", "Seed": str(2**64)},
        {"Sampler": "LCM", "Steps": "999"},
        {"Sampler": "TCD", "Steps": "1000"},
        {"Sampler": "Unknown", "Steps": "-1", "CFG_scale": "-1e400", "Size": "12x9"},
    ],
)
def test_the_command_passes_every_check_before_devices(settings):
    made = carried("\0a \"fox\" \\ in 'snow'\n" + "x" * 300, **settings)
    words = [word for word in made.overrides if not word.startswith("model")]
    prepare_run(config("model=tiny", *words))


@pytest.mark.parametrize(
    ("settings", "noise", "said"),
    [
        ({}, "noise=torch_cuda", "RNG: GPU: the noise of a large NVIDIA GPU is taken; "),
        ({"RNG": "GPU"}, "noise=torch_cuda", "RNG: GPU: the noise of a large NVIDIA GPU is taken; "),
        ({"RNG": "NV"}, "noise=torch_cuda", None),
        ({"RNG": "CPU"}, "noise=torch_cpu", None),
        ({"RNG": "CPU", "Sampler": "DPM++ 2M SDE"}, "noise=torch_cpu", "RNG: A1111 draws the noise"),
        ({"RNG": "JAX"}, None, None),
        ({"RNG": "MPS"}, None, "RNG: MPS: from the same seed tpusd draws other noise"),
    ],
)
def test_what_drew_the_noise_carries_over(settings, noise, said):
    """A1111 writes no RNG where it is GPU, its default."""
    made = carried(**settings)
    assert [word for word in made.overrides if word.startswith("noise")] == ([] if noise is None else [noise])
    lines = [line for line in made.left_out if "noise" in line]
    assert [line[: len(said or "")] for line in lines] == ([] if said is None else [said])


def test_loras_of_the_prompt_stay_in_it_and_the_command_makes_the_picture_with_them(tmp_path):
    """Through the run's own reader of rows, once the directory is named."""
    made = carried("a fox <lora:ink:0.8>, <lora:old/hat:0.5:1>", Lora_hashes="ink: 0a1b2c3d4e5f, x: 1")
    assert {"prompts.syntax=a1111", "prompts.lora_dir=LORA_DIRECTORY"} <= set(made.overrides)
    (line,) = [line for line in made.left_out if "LORA_DIRECTORY" in line]
    assert "holds ink.safetensors (hash 0a1b2c3d4e5f), old/hat.safetensors in the place of" in line
    assert not any("networks" in line or "Lora hashes" in line for line in made.left_out)
    (tmp_path / "old").mkdir()
    for name in ("ink", "old/hat"):
        (tmp_path / f"{name}.safetensors").write_bytes(b"")
    words = [word.replace("LORA_DIRECTORY", str(tmp_path)) for word in made.overrides if not word.startswith("model")]
    (row,) = run_rows(config("model=tiny", *words))
    assert row.prompt == "a fox , " and row.prompt_template == "a fox <lora:ink:0.8>, <lora:old/hat:0.5:1>"
    assert [(lora.path, lora.scale, lora.text_encoder_scale) for lora in row.loras] == [
        (str(tmp_path / "ink.safetensors"), 0.8, None),
        (str(tmp_path / "old/hat.safetensors"), 1.0, 0.5),
    ]


@pytest.mark.parametrize(
    ("prompt", "settings"),
    [
        ("a fox <hypernet:x:1>", {}),
        ("a fox <lora:x:much>", {}),
        ("a fox <lora:x:1:2:3>", {}),
        ("a fox <lora:x:1000>", {}),
        ("a fox " + "<lora:x:0.1>" * 65, {}),
        ("<lora:x:1>", {}),  # no words beside it
        ("a fox <lora:x:1>", {"Emphasis": "None"}),  # read as plain text
    ],
)
def test_networks_that_a_run_would_not_read_are_taken_out_and_said(prompt, settings):
    made = carried(prompt, **settings)
    assert not any("<" in word or word.startswith("prompts.lora_dir") for word in made.overrides)
    assert any("networks are files" in line for line in made.left_out)
    words = [word for word in made.overrides if not word.startswith("model")]
    run_rows(config("model=tiny", *words))


def test_a_lora_of_the_negative_prompt_is_taken_out():
    texts = {"prompt": "a fox <lora:x:1>", "negative_prompt": "dark <lora:y:1>"}
    made = carry_over(Infotext(**texts, settings=USUAL))
    (row,) = [word for word in made.overrides if word.startswith("prompts.rows")]
    assert "<lora:x:1>" in row and "<lora:y:1>" not in row
    assert any(line.startswith("<lora:y:1>: networks are files") for line in made.left_out)


@pytest.mark.slow
def test_every_sampler_and_schedule_gives_a_number_of_steps_that_it_makes():
    """On the schedule of Stable Diffusion 1.5, which is that of the published models."""
    schedule = SchedulerConfig.from_dict(SD15)
    types = ["Automatic", *SCHEDULE_TYPES.values()]
    for sampler, kind, steps in itertools.product(samplers().values(), types, ("1", "5000")):
        made = carried(Sampler=sampler.a1111, Schedule_type=kind, Steps=steps)
        make_table(made.sampler(), schedule)


def test_the_nearest_number_of_steps_is_the_same_number_where_that_works():
    for sampler in samplers():
        assert nearest_steps(SamplerSettings(name=sampler), 4) == 4
