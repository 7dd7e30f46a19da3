import json
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin
from support.pictures import POSTSCRIPT, forbid_programs
from support.runs import INLINE, StandInPipeline, config, manifest, prepare
from support.shell import arguments_of

from tpusd.config.compose import compose_jobs
from tpusd.config.grammar import hydra_value
from tpusd.config.rows import Row
from tpusd.config.schema import config_values, make_config, saved_config
from tpusd.errors import UserError
from tpusd.plan.specs import make_specs
from tpusd.recipe import main
from tpusd.recipes.command import config_overrides, image_overrides
from tpusd.recipes.readers import read_recipe
from tpusd.runs.start import start_run

HARD = 'a, b: {c} [d] \'e\' "f" \\\\ \\" =g ${h} \\${i} $HOME `j` 日本 \u202e <script> 7 null \\'


def composed(overrides):
    (job,) = compose_jobs(overrides)
    return make_config(job.values)


def parsed(command):
    words = arguments_of(command)
    assert words[:2] == ["-m", "tpusd.run"]
    return composed(words[2:])


@pytest.mark.long
@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=30))
def test_any_text_survives_the_command_line(text):
    values = {"negative_prompt": text, "prompts.rows": [{"prompt": "x" + text, "negative_prompt": text}]}
    made = composed([f"{name}={hydra_value(value)}" for name, value in values.items()])
    assert made.negative_prompt == text and made.prompts.rows == (Row(prompt="x" + text, negative_prompt=text),)


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("model=sd15", "precision=fp32", "sampler=ddim", "sampler.num_inference_steps=7", "sampler.eta=0.5", "seed=9"),
        (
            "model=local",
            "model.path=/some dir/x",
            "precision.unet.dtype=float32",
            "image_format=webp",
            "image_quality=90",
        ),
        ("height=64", "width=128", "guidance_scale=1", "guidance_rescale=0.7", 'negative_prompt=""'),
    ],
)
def test_command_of_a_config_makes_the_same_pixels(overrides):
    made = config(INLINE, *overrides)
    again = composed([*config_overrides(made), INLINE])
    assert config_values(again) == config_values(made)


@pytest.mark.slow
def test_command_of_a_config_of_the_users_own_needs_no_directory_of_theirs():
    made = make_config(
        config_values(config(INLINE))
        | {"model": {"name": "ours", "repo": "a/b", "revision": "c"}, "precision": {"name": "odd"} | dict.fromkeys(
            ("text_encoder", "unet", "vae"), {"param_dtype": "bfloat16", "dtype": "float32"}
        )}
    )  # fmt: skip
    values = config_values(made)
    values["model"]["name"], values["precision"]["name"] = "local", "fp32"
    assert config_values(composed([*config_overrides(made), INLINE])) == values


@pytest.mark.slow
def test_command_of_an_image_makes_that_image_alone():
    made = config(INLINE, "num_images_per_prompt=3", "first_row=2", "negative_prompt=plain", "seed=5")
    for spec in make_specs(saved_config(made, rows=made.prompts.rows, height=24, width=40)):
        row = made.prompts.rows[spec.row - 2]
        alone = composed(config_overrides(made) + image_overrides(row, spec.row, spec.copy))
        (again,) = make_specs(saved_config(alone, rows=alone.prompts.rows, height=24, width=40))
        assert again == spec


@pytest.mark.slow
def test_rows_and_copies_that_count_from_elsewhere_are_refused_beyond_the_last():
    for line, rule in (
        ("first_copy=4096", "first_copy=4096: must be"),
        ("first_row=1048576", "first_row=1048576: must be"),
    ):
        with pytest.raises(UserError, match=rule):
            config(line)


@pytest.fixture(scope="module")
def run_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("recipe") / "run"
    rows = f"prompts.rows=[{{prompt: x}}, {hydra_value({'prompt': HARD, 'negative_prompt': HARD, 'id': 7})}]"
    made = config(f"output={path}", rows, "num_images_per_prompt=2", "sampler=ddim", "sampler.eta=0.25", "seed=3")
    return start_run(made, prepare=prepare, load=lambda *_: StandInPipeline())


def test_picture_alone_gives_the_command_that_makes_it_again(run_path, tmp_path):
    """The command is run with its own output, and gives the very file."""
    record = list(manifest(run_path))[3]
    recipe = read_recipe(run_path / record["file_name"])
    again = composed([*recipe.overrides, f"output={tmp_path / 'again'}"])
    path = start_run(again, prepare=prepare, load=lambda *_: StandInPipeline())
    (made,) = manifest(path)
    assert made["file_name"] == record["file_name"] == "images/00001-001.png"
    pixels = [np.asarray(Image.open(where / record["file_name"])) for where in (path, run_path)]
    assert np.array_equal(*pixels)
    assert {**made, "sha256": 0, "num_bytes": 0, "id": 7} == {**record, "sha256": 0, "num_bytes": 0}


def test_command_prints_recipe_and_command(run_path, capsys):
    path = str(run_path / "images" / "00001-000.png")
    assert main([path]) == 0
    out = capsys.readouterr().out
    assert out.startswith("Made by tpusd.\n") and "\nsampler " in out and "\u202e" not in out.split("\n\n")[1]
    command = out.rstrip("\n").splitlines()[-1]
    assert parsed(command).sampler.eta == 0.25
    assert main([path, "--format=command"]) == 0
    assert capsys.readouterr().out == command + "\n"
    assert main([path, "--format=json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["command"] == command and shown["recipe"]["prompt"] == HARD


def saved(path, **texts):
    info = PngImagePlugin.PngInfo()
    for name, text in texts.items():
        info.add_itxt(name, text)
    Image.new("RGB", (8, 8)).save(path, pnginfo=info)
    return path


A1111 = (
    "a (cat:1.2), <lora:hat:1>\nNegative prompt: ugly\n"
    "Steps: 20, Sampler: DDIM, CFG scale: 7, Seed: 965400086, Size: 512x768, "
    "Model hash: 6ce0161689, Model: v1-5-pruned-emaonly, Clip skip: 2, Version: v1.10.1"
)


def test_a1111_picture_becomes_a_config_and_a_list_of_what_does_not_carry_over(tmp_path, capsys):
    path = saved(tmp_path / "a.png", parameters=A1111)
    assert main([str(path), "--format=command"]) == 0
    out, err = capsys.readouterr()
    made = parsed(out)
    assert (made.model.name, made.sampler.num_inference_steps, made.guidance_scale) == ("sd15", 20, 7.0)
    assert (made.seed, made.height, made.width) == (965400086, 768, 512)
    assert made.prompts.rows == (Row(prompt="a (cat:1.2), <lora:hat:1>", negative_prompt="ugly"),)
    assert made.prompts.lora_dir == "LORA_DIRECTORY"
    assert (made.prompts.syntax, made.prompts.weighting, made.noise) == ("a1111", None, "torch_cuda")
    lines = err.splitlines()
    assert all(line.startswith("tpusd: cannot carry over: ") for line in lines)
    for word in (
        "put the directory that holds hat.safetensors in the place of LORA_DIRECTORY",
        "Clip skip: 2: has no",
        "RNG: GPU: the noise of a large NVIDIA GPU",
    ):
        assert any(word in line for line in lines), word


@pytest.mark.parametrize(
    ("words", "sampler", "option"),
    [
        ("DPM++ 2M Karras", "dpmpp_2m", "use_karras_sigmas"),  # as before version 1.9
        ("DPM++ 2M, Schedule type: Karras", "dpmpp_2m", "use_karras_sigmas"),
        ("Euler, Schedule type: Exponential", "euler", "use_exponential_sigmas"),
        ("DPM++ 2M SDE, Schedule type: Beta", "dpmpp_2m_sde", "use_beta_sigmas"),
        ("Euler a, Schedule type: Automatic", "euler_ancestral", None),
    ],
)
def test_a1111_samplers_and_schedules_are_known_by_both_of_their_spellings(tmp_path, words, sampler, option):
    recipe = read_recipe(saved(tmp_path / "a.png", parameters=A1111.replace("Sampler: DDIM", f"Sampler: {words}")))
    made = composed(recipe.overrides).sampler
    assert made.name == sampler and (option is None or getattr(made, option) is True)
    assert not any(line.startswith(("Sampler", "Schedule")) for line in recipe.left_out)


MODEL = "Model hash: 6ce0161689, Model: v1-5-pruned-emaonly"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "line"),
    [
        (("Sampler: DDIM", "Sampler: Restart"), "Sampler: Restart: is not one of"),
        (("DDIM", "PLMS, Schedule type: Turbo"), "Schedule type: Turbo: sampler=pndm has no such"),
        (("DDIM", "PLMS Karras"), "Schedule type: Karras: sampler=pndm has no such"),
        (("Seed: 965400086", "Seed: 99999999999"), "Seed: 99999999999: must be from 0 to 4294967295"),
        ((MODEL, "Model: dream, Model hash: 12ab"), "Model: dream (hash 12ab): put"),
        (("Size: 512x768, ", ""), "Size: is not given"),
        (("CFG scale: 7", "CFG scale: lots"), "CFG scale: lots: is not a number"),
        (("CFG scale: 7", "CFG scale: nan"), "CFG scale: nan: must be from 0 to 1000"),
        (("Steps: 20", "Steps: 5000"), "Steps: 5000: must be from 1 to 1000"),
        (("Steps: 20", "Steps: 20.5"), "Steps: 20.5: is not a whole number"),
        (("Size: 512x768", "Size: 500x768"), "Width: 500: is not a multiple of 8; width=496 is taken"),
        (("Size: 512x768", "Size: 512x99999"), "Height: 99999: must be from 8 to 8192"),
        (("a (cat:1.2), <lora:hat:1>", ""), "prompt: is empty; put one in the place of PROMPT"),
    ],
)
def test_what_cannot_carry_over_is_said(tmp_path, change, line):
    recipe = read_recipe(saved(tmp_path / "a.png", parameters=A1111.replace(*change)))
    assert any(text.startswith(line) for text in recipe.left_out), recipe.left_out
    composed(recipe.overrides)


def test_pictures_without_a_recipe_or_with_a_hostile_one_are_one_line(tmp_path, run_path, capsys):
    own = json.loads(Image.open(run_path / "images" / "00000-000.png").text["tpusd"])
    for texts, words in (
        ({}, "carries no recipe"),
        ({"parameters": "a fox"}, "carries no recipe"),
        ({"tpusd": "{}"}, "its recipe lacks"),
        ({"tpusd": json.dumps(own | {"seed": -1})}, "seed=-1"),
        ({"tpusd": json.dumps(own | {"prompt": ["x"]})}, "must be"),
        ({"tpusd": json.dumps(own | {"prompt": None})}, "must be"),
        ({"tpusd": json.dumps(own | {"model_settings": {"_target_": "os.system"}})}, "no such field"),
        ({"tpusd": json.dumps(own | {"sampler_settings": {"name": "turbo"}})}, "sampler.name=turbo: no such sampler"),
        ({"tpusd": json.dumps(own | {"row_seed": "a"})}, "must be"),
        ({"tpusd": json.dumps(own | {"row": 10**30})}, "first_row"),
        ({"prompt": json.dumps({"3": {"class_type": "SamplerCustom", "inputs": {}}})}, "has no KSampler"),
        ({"prompt": "[1]"}, "carries no recipe"),
    ):
        assert main([str(saved(tmp_path / "x.png", **texts))]) == 2
        err = capsys.readouterr().err
        assert err.startswith("tpusd: ") and err.count("\n") == 1 and words in err, err


def test_picture_that_is_postscript_starts_no_program(tmp_path, monkeypatch, capsys):
    forbid_programs(monkeypatch)
    (tmp_path / "x.png").write_bytes(POSTSCRIPT)
    assert main([str(tmp_path / "x.png")]) == 2
    assert capsys.readouterr().err == f"tpusd: {tmp_path / 'x.png'}: is not a PNG, JPEG or WebP picture\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    "text",
    [
        "a fox\n" + "a" * 500_000,
        "a fox\n" + "a b" * 300_000 + ": c",
        "a fox\n" + ":" * 500_000,
        "a fox\n" + " " * 500_000 + ":",
        'a fox\nab: "' + 'c\\", ab: "' * 50_000,
        "(" * 500_000 + "\nSteps: 1, Sampler: DDIM, Seed: 2",
        "<a:" * 200_000 + "\nSteps: 1, Sampler: DDIM, Seed: 2",
        "".join(f"<lora:x{i}:1>" for i in range(30_000)) + "\nSteps: 1, Sampler: DDIM, Seed: 2",
        "x\n" + ", ".join(f"Key {i}: 1" for i in range(30_000)),
    ],
)
def test_long_parameters_take_bounded_time_and_few_lines(tmp_path, text):
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", text)
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png", pnginfo=info)
    started = time.monotonic()
    try:
        assert len(read_recipe(tmp_path / "x.png").left_out) < 40
    except UserError as error:
        assert "carries no recipe" in str(error)
    assert time.monotonic() - started < 20  # about 0.1 on an idle core


def test_own_recipe_with_odd_fields_can_be_printed(tmp_path, run_path, capsys):
    own = json.loads(Image.open(run_path / "images" / "00000-000.png").text["tpusd"])
    path = str(saved(tmp_path / "x.png", tpusd=json.dumps(own | {"\x1b[2J\u202e": "\x1b", "x" * 9999: 1})))
    assert main([path]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out and "\\x1b[2J\\u202e" in out and max(map(len, out.splitlines())) < 11_000
    assert main([path, "--format=json"]) == 0
    assert json.loads(capsys.readouterr().out)["recipe"]["\x1b[2J\u202e"] == "\x1b"
    for odd in (float("inf"), "\ud800"):  # which no text can hold again
        path = str(saved(tmp_path / "y.png", tpusd=json.dumps(own | {"x": odd})))
        assert main([path]) == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_recipe_starts_without_jax():
    code = "import sys, tpusd.recipe, tpusd.recipes.command, tpusd.recipes.files; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
