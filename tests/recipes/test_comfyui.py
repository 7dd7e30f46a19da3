"""ComfyUI's pictures: a PNG whose chunk `prompt` is the graph, as its SaveImage writes it (nodes.py)."""

import json
import time

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin
from support.shell import arguments_of

from tpusd.config.compose import compose_jobs
from tpusd.config.rows import Row
from tpusd.config.schema import make_config
from tpusd.errors import UserError
from tpusd.recipe import main
from tpusd.recipes.base import PictureTexts
from tpusd.recipes.comfyui import SAMPLERS, SCHEDULERS, read_comfyui
from tpusd.recipes.graph import read_graph
from tpusd.samplers.schedule import SchedulerConfig
from tpusd.samplers.table import SamplerSettings, make_table

# Of Stable Diffusion XL's scheduler_config.json; its timesteps are others than ComfyUI's.
SDXL = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012,
        "timestep_spacing": "leading", "steps_offset": 1}  # fmt: skip
MAX_SECONDS = 20  # of what takes about one on an idle core


def node(class_type, **inputs):
    return {"class_type": class_type, "inputs": inputs, "_meta": {"title": class_type}}


def graph(**changes):
    """The graph that ComfyUI opens with. changes: inputs of its sampler."""
    sampler = {
        "model": ["4", 0],
        "positive": ["6", 0],
        "negative": ["7", 0],
        "latent_image": ["5", 0],
        "seed": 8566257,
        "steps": 23,
        "cfg": 6.5,
        "sampler_name": "euler",
        "scheduler": "normal",
        "denoise": 1,
    }
    return {
        "3": node("KSampler", **sampler | changes),
        "4": node("CheckpointLoaderSimple", ckpt_name="v1-5-pruned-emaonly.safetensors"),
        "5": node("EmptyLatentImage", width=512, height=768, batch_size=1),
        "6": node("CLIPTextEncode", text="a red fox", clip=["4", 1]),
        "7": node("CLIPTextEncode", text="blurry", clip=["4", 1]),
        "8": node("VAEDecode", samples=["3", 0], vae=["4", 2]),
        "9": node("SaveImage", filename_prefix="ComfyUI", images=["8", 0]),
    }


def advanced(**changes):
    made = graph(
        add_noise="enable", noise_seed=5, start_at_step=0, end_at_step=10000, return_with_leftover_noise="disable"
    )
    inputs = {name: value for name, value in made["3"]["inputs"].items() if name not in ("seed", "denoise")}
    return made | {"3": node("KSamplerAdvanced", **inputs | changes)}


def picture(path, made):
    info = PngImagePlugin.PngInfo()
    info.add_text("prompt", json.dumps(made))
    info.add_text("workflow", json.dumps({"nodes": []}))
    Image.new("RGB", (8, 8)).save(path, pnginfo=info)
    return path


def read(made):
    return read_comfyui(PictureTexts(chunks={"prompt": json.dumps(made)}, user_comment=None, xmp=None))


def config(made):
    (job,) = compose_jobs(read(made).overrides)
    return make_config(job.values)


def said(made, line):
    return any(text.startswith(line) for text in read(made).left_out)


def test_standard_graph_becomes_a_config(tmp_path, capsys):
    assert main([str(picture(tmp_path / "x.png", graph())), "--format=command"]) == 0
    out, err = capsys.readouterr()
    words = arguments_of(out)
    assert words[:2] == ["-m", "tpusd.run"]
    (job,) = compose_jobs(words[2:])
    made = make_config(job.values)
    assert (made.model.name, made.seed, made.guidance_scale, made.width, made.height) == (
        "sd15",
        8566257,
        6.5,
        512,
        768,
    )
    assert (made.sampler.name, made.sampler.num_inference_steps) == ("euler", 23)
    assert made.prompts.rows == (Row(prompt="a red fox", negative_prompt="blurry"),)
    lines = err.splitlines()
    assert len(lines) == 2 and all(line.startswith("tpusd: cannot carry over: ") for line in lines)
    assert "only this name says that it is model=sd15" in lines[0] and "other noise" in lines[1]


def test_recipe_is_shown_in_comfyuis_names(tmp_path, capsys):
    path = str(picture(tmp_path / "x.png", graph()))
    assert main([path]) == 0 and capsys.readouterr().out.startswith("Made by ComfyUI.\n\nsampler_name  euler\n")
    assert main([path, "--format=json"]) == 0
    shown = json.loads(capsys.readouterr().out)["recipe"]
    assert (shown["steps"], shown["positive"], shown["ckpt_name"]) == (
        23,
        "a red fox",
        "v1-5-pruned-emaonly.safetensors",
    )


def test_advanced_sampler_is_read_too():
    assert config(advanced()).seed == 5
    assert len(read(advanced()).left_out) == len(read(graph()).left_out)
    for name, value in (
        ("add_noise", "disable"),
        ("start_at_step", 12),
        ("end_at_step", 12),
        ("return_with_leftover_noise", "enable"),
    ):
        assert said(advanced(**{name: value}), f"{name}: {value}: tpusd ")


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_every_sampler_and_scheduler_makes_a_table(sampler, scheduler):
    recipe = read(graph(sampler_name=sampler, scheduler=scheduler))
    fields = dict(text.split("=", 1) for text in recipe.overrides)
    options = {name[8:]: yaml.safe_load(value) for name, value in fields.items() if name.startswith("sampler.")}
    assert fields["sampler"] == SAMPLERS[sampler][0] and options["num_inference_steps"] == 23
    refused = any(line.startswith(f"scheduler: {scheduler}: sampler=") for line in recipe.left_out)
    assert refused != (SCHEDULERS[scheduler].items() <= options.items())
    make_table(SamplerSettings(name=fields["sampler"], **options), SchedulerConfig(**SDXL))


@pytest.mark.parametrize(
    ("scheduler", "timesteps"),
    [  # comfy/samplers.py: normal_scheduler, simple_scheduler, ddim_scheduler; karras runs from end to end
        ("normal", np.linspace(999, 0, 20)),
        ("simple", 999 - 50 * np.arange(20)),
        ("sgm_uniform", np.linspace(999, 0, 21)[:-1]),
        ("ddim_uniform", 951 - 50 * np.arange(20)),
        ("karras", [999, 0]),
        ("exponential", [999, 0]),
    ],
)
def test_scheduler_gives_comfyuis_timesteps(scheduler, timesteps):
    settings = config(graph(scheduler=scheduler, steps=20)).sampler
    table = make_table(settings, SchedulerConfig(**SDXL | {"steps_offset": 0}))
    found = table.timesteps if len(timesteps) == 20 else table.timesteps[[0, -1]]
    assert np.abs(found - timesteps).max() < (0.01 if scheduler == "ddim_uniform" else 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"sampler_name": "dpm_fast"}, "sampler_name: dpm_fast: is not one of euler, "),
        ({"sampler_name": 7}, "sampler_name: 7: is not one of"),
        ({"scheduler": "kl_optimal"}, "scheduler: kl_optimal: is not one of normal, "),
        ({"scheduler": "beta"}, "scheduler: beta: ComfyUI spreads the timesteps"),
        ({"denoise": 0.6}, "denoise: 0.6: tpusd begins with noise alone"),
        ({"seed": 2**64 - 1}, "seed: 18446744073709551615: must be from 0 to 4294967295"),
        ({"seed": "7"}, "seed: 7: is not a whole number"),
        ({"steps": 0}, "steps: 0: must be from 1 to 1000"),
        ({"steps": True}, "steps: True: is not a whole number"),
        ({"cfg": float("nan")}, "cfg: nan: must be from 0 to 1000"),
        ({"cfg": [1, 2, 3]}, "cfg: is neither text nor a number"),
        ({"seed": ["9", 0]}, "seed: is worked out by SaveImage 9, which is not read"),
        ({"seed": ["99", 0]}, "seed: is not given"),
        ({"positive": ["99", 0]}, "positive: leads to no CLIPTextEncode"),
        ({"latent_image": ["4", 0]}, "latent_image: is not from an EmptyLatentImage"),
        ({"model": None}, "ckpt_name: is not given: put"),
    ],
)
def test_what_cannot_carry_over_is_said(changes, line):
    config(graph(**changes))  # which raises if it is not valid
    assert said(graph(**changes), line), read(graph(**changes)).left_out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("nodes", "line"),
    [
        ({"5": node("EmptyLatentImage", width=500, height=768)}, "width: 500: is not a multiple of 8; width=496"),
        ({"5": node("EmptyLatentImage", width=512, height=16384)}, "height: 16384: must be from 8 to 8192"),
        ({"5": node("EmptyLatentImage", width=512, height=768, batch_size=4)}, "batch_size: 4: the picture does not"),
        ({"5": node("EmptyLatentImage", width=8, height=8, batch_size=0)}, "batch_size: 0: must be a whole number"),
        ({"4": node("CheckpointLoaderSimple", ckpt_name="a/dream.ckpt")}, "ckpt_name: a/dream.ckpt: put the directory"),
        ({"6": node("CLIPTextEncode", text="(fox:1.2) in \\(snow\\)")}, "(fox:1.2): brackets weigh"),
        ({"6": node("CLIPTextEncode", text="embedding:bad.pt, fox")}, "embedding:bad.pt: embeddings are not"),
        ({"6": node("CLIPTextEncode", text=" ")}, "prompt: is empty; put one in the place of PROMPT"),
        ({"6": node("CLIPTextEncode", text="a\0b\ud800c")}, "prompt: holds characters that are not text"),
        ({"6": node("CLIPTextEncode", text="x" * 300_000)}, "prompt: has 300000 characters, more than a command"),
        ({"6": node("CLIPTextEncode", text=["5", 0])}, "positive: EmptyLatentImage 5 makes its text"),
        ({"8": node("VAEDecode", samples=["3", 0], vae=["12", 0]), "12": node("VAELoader", vae_name="b.pt")},
         "VAELoader: b.pt: has no counterpart"),
        ({"10": node("PreviewImage", images=["8", 0])}, "2 nodes save pictures: SaveImage 9 is taken"),
    ],
)  # fmt: skip
def test_what_other_nodes_say_cannot_carry_over_is_said(nodes, line):
    config(graph() | nodes)
    assert said(graph() | nodes, line), read(graph() | nodes).left_out


def test_batch_makes_as_many_copies():
    assert config(graph() | {"5": node("EmptyLatentImage", width=8, height=8, batch_size=4)}).num_images_per_prompt == 4


@pytest.mark.slow
def test_networks_between_the_nodes_are_named_and_passed():
    made = graph(model=["12", 0], positive=["14", 0], negative=["14", 1]) | {
        "10": node("LoraLoader", lora_name="hat.safetensors", strength_model=1.0, model=["4", 0], clip=["4", 1]),
        "11": node("LoraLoader", lora_name="hat.safetensors", strength_model=0.5, model=["10", 0], clip=["10", 1]),
        "12": node("FreeU", model=["11", 0]),
        "13": node("ControlNetLoader", control_net_name="canny.pth"),
        "14": node("ControlNetApplyAdvanced", positive=["6", 0], negative=["7", 0], control_net=["13", 0]),
    }
    assert config(made).prompts.rows == config(graph()).prompts.rows and config(made).model.name == "sd15"
    for line in (
        "LoraLoader: hat.safetensors (2 nodes): has no counterpart",
        "FreeU: has no counterpart",
        "ControlNetApplyAdvanced: has no counterpart",
        "ControlNetLoader: canny.pth: has no counterpart",
    ):
        assert said(made, line), line


def test_zeroed_conditioning_is_no_negative_prompt():
    made = graph(negative=["10", 0]) | {"10": node("ConditioningZeroOut", conditioning=["6", 0])}
    assert config(made).prompts.rows == (Row(prompt="a red fox"),)
    assert said(made, "ConditioningZeroOut: has no counterpart")


@pytest.mark.slow
def test_of_several_samplers_the_one_that_begins_with_noise_carries_over():
    made = graph() | {
        "10": node("LatentUpscaleBy", samples=["3", 0], scale_by=2),
        "11": node("KSampler", **graph(seed=1, steps=9, denoise=0.5, latent_image=["10", 0])["3"]["inputs"]),
        "8": node("VAEDecode", samples=["11", 0], vae=["4", 2]),
    }
    assert (config(made).seed, config(made).sampler.num_inference_steps) == (8566257, 23)
    assert said(made, "2 samplers: only KSampler 3 carries over") and said(made, "LatentUpscaleBy: has no")


def test_nodes_that_the_picture_was_not_made_with_do_not_count():
    other = {"20": node("KSampler", seed=1), "21": node("LoraLoader", lora_name="x"), "22": node("SaveImage", images=0)}
    assert read(graph() | other).overrides == read(graph()).overrides
    assert not said(graph() | other, "LoraLoader") and not said(graph() | other, "2 samplers")


def test_values_come_through_reroutes_and_primitives():
    made = graph(seed=["12", 0], positive=["10", 0], steps=["13", 0]) | {
        "10": node("Reroute", **{"": ["11", 0]}),
        "11": node("Reroute (rgthree)", any=["6", 0]),
        "12": node("PrimitiveInt", value=["14", 0]),
        "13": node("Reroute", **{"": ["14", 0]}),
        "14": node("PrimitiveNode", value=17),
    }
    found = config(made)
    assert (found.seed, found.sampler.num_inference_steps) == (17, 17)
    assert found.prompts.rows[0].prompt == "a red fox" and len(read(made).left_out) == len(read(graph()).left_out)


@pytest.mark.parametrize(
    "links",
    [
        {"seed": ["10", 0]},
        {"positive": ["10", 0], "model": ["10", 0]},
        {"latent_image": ["3", 0]},
        {"positive": ["12", 0]},
        {"model": ["3", 0], "seed": ["3", 0]},
    ],
)
def test_links_that_loop_end(links):
    loops = {
        "10": node("Reroute", a=["11", 0]),
        "11": node("Reroute", a=["10", 0]),
        "12": node("ConditioningSetArea", conditioning=["13", 0]),
        "13": node("PrimitiveInt", value=["13", 0], conditioning=["12", 0]),
    }
    assert len(read(graph(**links) | loops).left_out) > 2
    config(graph(**links) | loops)


@pytest.mark.parametrize(
    "text", ["", "null", "7", "[]", "{}", "{", '{"1": 2}', '{"1": {"class_type": 3}}', "[" * 99_999]
)
def test_text_that_is_not_a_graph_is_no_recipe(text):
    assert read_comfyui(PictureTexts(chunks={"prompt": text}, user_comment=None, xmp=None)) is None


def test_graph_without_a_known_sampler_is_refused():
    with pytest.raises(UserError, match="its ComfyUI graph has no KSampler or KSamplerAdvanced"):
        read({"1": node("SamplerCustomAdvanced", noise=["2", 0]), "9": node("SaveImage", images=["1", 0])})


def wide(count):
    many = {str(100 + i): node(f"Odd{i}", a=["4", 0]) for i in range(count)}
    return graph(**{f"x{i}": [str(100 + i), 0] for i in range(count)}) | many


def chain(count):
    links = {str(100 + i): node("Reroute", a=[str(101 + i), 0]) for i in range(count)}
    ends = {str(100 + count): node("PrimitiveInt", value=3)}
    return (
        graph(**dict.fromkeys(("seed", "steps", "cfg", "positive", "latent_image", "model"), ["100", 0])) | links | ends
    )


def savers(count):
    made = {str(100 + i): node("SaveImage", images=["99", 0]) for i in range(count)} | {"99": node("VAEDecode")}
    return made | graph()


def samplers(count):
    return graph() | {
        str(100 + i): node("KSampler", latent_image=[str(101 + i), 0]) for i in range(count)
    } | {"8": node("VAEDecode", samples=["100", 0])}  # fmt: skip


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("make", [wide, chain, savers, samplers])
def test_large_graph_takes_bounded_time_and_few_lines(make):
    text = json.dumps(make(100_000))
    started = time.monotonic()
    recipe = read_comfyui(PictureTexts(chunks={"prompt": text}, user_comment=None, xmp=None))
    assert time.monotonic() - started < MAX_SECONDS and len(recipe.left_out) < 40
    assert sum(map(len, recipe.left_out)) < 10_000


@pytest.mark.parametrize("text", ["(" * 200_000, "(\\" * 100_000, "embedding:" * 20_000])
def test_hostile_prompt_takes_bounded_time(text):
    started = time.monotonic()
    assert read(graph() | {"6": node("CLIPTextEncode", text=text)}).overrides
    assert time.monotonic() - started < MAX_SECONDS


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9)
    | st.sampled_from(["KSampler", "Reroute", "PrimitiveInt", "SaveImage", "EmptyLatentImage", "CLIPTextEncode"])
    | st.tuples(st.sampled_from("3456789"), st.integers(-1, 9)).map(list),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)  # fmt: skip


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("3456789"), st.text(max_size=9), json_values), max_size=6), json_values)
def test_any_graph_is_a_recipe_or_one_line(changes, entry):
    made = graph() | {"10": entry}
    for place, name, value in changes:
        keys = [*made[place]["inputs"], "class_type", name]
        key = keys[len(name) % len(keys)]
        if key == "class_type":
            made[place] |= {"class_type": value}
        else:
            made[place]["inputs"][key] = value
    try:
        recipe = read(made)
    except UserError as error:
        assert "\n" not in str(error)
        return
    assert recipe is not None and all("\n" not in line and len(line) < 500 for line in recipe.left_out)
    json.dumps(recipe.values)


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(json_values)
def test_any_json_is_a_graph_or_none(value):
    assert read_graph(json.dumps(value)) is None or isinstance(value, dict)
