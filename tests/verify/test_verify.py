"""tpusd.verify with PyTorch diffusers: what is the same is found to be, and what is changed is named."""

import json

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

import numpy as np  # noqa: E402
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline  # noqa: E402
from support.checkpoints import TEXT, UNET, VAE, copy, edit, edit_tensor, tiny  # noqa: E402
from support.original_files import write_original  # noqa: E402
from support.pipelines import SIZE, checkpoint, pipeline  # noqa: E402
from support.sampler_cases import NAMES  # noqa: E402
from support.scheduler_reference import make_scheduler  # noqa: E402

from tpusd.checkpoints import ModelSource, open_checkpoint  # noqa: E402
from tpusd.config.sampler import SamplerSettings  # noqa: E402
from tpusd.plan.specs import ImageSpec  # noqa: E402
from tpusd.samplers.registry import samplers  # noqa: E402
from tpusd.verify import main  # noqa: E402
from tpusd.verify.ours import make_ours, noise_of  # noqa: E402
from tpusd.verify.reference import Reference  # noqa: E402
from tpusd.verify.reference_files import CONVERTED, OWN, open_reference  # noqa: E402
from tpusd.verify.report import compare  # noqa: E402

pytestmark = [pytest.mark.parity, pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
FEW = ("sampler.num_inference_steps=6", "limit=1")


def words(path, *more):
    return ["model=local", f"model.path={path}", "prompt=a red fox", "negative_prompt=dark", *FEW, *more]


def verified(capsys, *argv, status=0):
    assert main([*argv, "--json"]) == status, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


def places(report):
    return [stage["place"] for stage in report["images"][0]["stages"]]


def test_the_embedded_model_is_the_same(capsys):
    report = verified(capsys, *FEW)
    assert report["same"] and report["first_difference"] is None and report["reader"] == OWN
    assert report["weights"]["compared"] > 500 and not report["weights"]["different"] and not report["weights"]["alone"]
    assert [place.split(" of ")[0] for place in places(report)] == [
        "tokens", "tokens", "text embedding", "text embedding", *(f"latents after call {k}" for k in range(1, 8)),
        "pixels",
    ]  # fmt: skip
    pixels = report["images"][0]["stages"][-1]
    assert pixels["largest"] < 5e-3 and pixels["mean"] < 5e-4


@pytest.mark.parametrize("layout", [pytest.param("sd2", marks=pytest.mark.long), "sdxl"])
def test_a_random_checkpoint_is_the_same(layout, capsys):
    sizes = ["original_size=[32,48]", "crop=[8,0]"] if layout == "sdxl" else []
    report = verified(capsys, *words(tiny(layout), *sizes, "sampler=euler_ancestral", "noise=torch_cpu"))
    assert report["same"] and ("text embedding of the prompt, pooled" in places(report)) == (layout == "sdxl")


@pytest.mark.parametrize(
    ("file", "name", "first", "later"),
    [
        (TEXT, "text_model.encoder.layers.1.mlp.fc1.weight", "text_encoder.text_model.encoder.layers.1.mlp.fc1.weight",
         "text embedding of the prompt"),
        (UNET, "conv_in.weight", "unet.conv_in.weight", "latents after call 1 of 7"),
        (VAE, "decoder.conv_out.bias", "vae.decoder.conv_out.bias", "pixels"),
    ],
)  # fmt: skip
def test_one_changed_weight_is_named_and_so_is_where_it_shows(file, name, first, later, tmp_path, capsys):
    changed = copy(tmp_path)

    def change(tensor):
        tensor.reshape(-1)[0] += 2

    edit_tensor(changed / file, name, change)
    report = verified(capsys, *words(tiny(), f"reference.path={changed}"), status=1)
    assert report["first_difference"] == f"weights: {first}"
    assert [one["place"] for one in report["weights"]["different"]] == [first]
    wrong = [stage["place"] for stage in report["images"][0]["stages"] if not stage["same"]]
    assert wrong[0] == later


def test_another_scheduler_shows_at_the_first_call_and_in_the_text(tmp_path, capsys):
    changed = copy(tmp_path)
    edit(changed / "scheduler/scheduler_config.json", prediction_type="v_prediction")
    assert main(words(tiny(), f"reference.path={changed}")) == 1
    shown = capsys.readouterr().out
    assert "parameters are equal" in shown
    assert "the first place that differs is image 00000-000: latents after call 1 of 7" in shown


@pytest.mark.long
def test_a_single_file_is_the_directory_that_it_was_made_of(tmp_path, capsys):
    file = write_original(tiny("sdxl"), tmp_path / "x.safetensors")
    fields = ["model=local", f"model.path={file}", f"model.config={tiny('sdxl')}", "prompt=a fox", *FEW]
    report = verified(capsys, *fields, f"reference.path={tiny('sdxl')}")
    assert report["same"] and report["reader"] == OWN


def test_a_reference_of_another_family_is_refused(capsys):
    assert main(words(tiny(), f"reference.path={tiny('sdxl')}")) == 2
    assert "is a checkpoint of sdxl, and the model is one of stable_diffusion" in capsys.readouterr().err


def test_a_directory_that_names_code_is_refused(tmp_path, capsys):
    path = copy(tmp_path)
    edit(path / "model_index.json", unet=["antigravity", "UNet2DConditionModel"])
    assert main(words(path)) == 2
    assert "unet is of the library antigravity; diffusers would import it" in capsys.readouterr().err


def test_a_reference_that_is_not_there_is_named_by_its_field(capsys):
    assert main(words(tiny(), "reference.path=/nowhere")) == 2
    assert capsys.readouterr().err.startswith("tpusd: reference.path=/nowhere: no such directory")


@pytest.mark.long
def test_clip_skip_and_no_guidance_are_the_same(capsys):
    report = verified(capsys, *FEW, "model.clip_skip=1", "guidance_scale=1")
    assert report["same"] and not any("negative" in place for place in places(report))


def spec_of(**fields):
    usual = {
        "row": 0, "copy": 0, "prompt": "a red fox", "negative_prompt": "dark", "seed": 5, "row_seed": None,
        "guidance_scale": 3.0, "guidance_rescale": 0.0, "height": SIZE, "width": SIZE,
    }  # fmt: skip
    return ImageSpec(**usual | fields)


@pytest.mark.parametrize(
    ("layout", "name"),
    [
        pytest.param(layout, name, marks=[pytest.mark.long] if layout == "sdxl" else [])
        for layout in ("sd1", "sdxl")
        for name in NAMES
    ],
)
def test_latents_after_every_call_are_those_of_every_sampler(layout, name):
    opened = checkpoint(layout)
    spec = spec_of(sampler=SamplerSettings(name=name, num_inference_steps=11), guidance_rescale=0.3)
    table = opened.family.schedule(spec.sampler, opened.scheduler_config, SIZE, SIZE)
    noise = noise_of(spec, table, (4, SIZE // 8, SIZE // 8))
    theirs = Reference(open_reference(opened)[0], 0).make(spec, noise, guided=True)
    found = compare(spec, make_ours(pipeline(layout), spec, table), theirs)
    assert found.first is None, found.first
    assert len(theirs.latents) == len(table)


@pytest.mark.parametrize("layout", ["sd1", "sdxl"])
def test_the_reference_is_diffusers_own_pipeline(layout):
    """Called with texts and options, as its users call it, and with a scheduler that the tests set up themselves."""
    opened, name = checkpoint(layout), "dpmpp_2m"
    settings = SamplerSettings(name=name, num_inference_steps=7, use_karras_sigmas=True, solver_order=3)
    spec = spec_of(sampler=settings)
    table = opened.family.schedule(settings, opened.scheduler_config, SIZE, SIZE)
    noise = noise_of(spec, table, (4, SIZE // 8, SIZE // 8))
    made = Reference(open_reference(opened)[0], 0).make(spec, noise, guided=True)
    cls = StableDiffusionXLPipeline if layout == "sdxl" else StableDiffusionPipeline
    theirs = cls.from_pretrained(str(tiny(layout)), local_files_only=True)
    theirs.scheduler = make_scheduler(name, opened.scheduler_values, {"use_karras_sigmas": True, "solver_order": 3})
    image = theirs(
        "a red fox", negative_prompt="dark", latents=torch.from_numpy(noise.initial)[None], guidance_scale=3.0,
        num_inference_steps=7, height=SIZE, width=SIZE, output_type="np",
    ).images[0]  # fmt: skip
    np.testing.assert_array_equal(made.pixels, image)


def test_the_schedulers_own_options_reach_the_reference():
    """Each option of a run that is set is in the config of the reference's scheduler."""
    reference = Reference(open_reference(checkpoint("sd1"))[0], 0)
    for name in NAMES:
        options = {"timestep_spacing": "trailing"} if "timestep_spacing" in samplers()[name].defaults else {}
        made = reference.scheduler(SamplerSettings(name=name, num_inference_steps=5, **options))
        assert type(made).__name__ == samplers()[name].diffusers
        assert all(made.config[option] == value for option, value in options.items())


def test_an_averaged_copy_is_read_by_tpusd_and_saved_for_the_reference(tmp_path):
    """diffusers' reader of single files has no such choice."""

    def add(tensors):
        own = {name: value for name, value in tensors.items() if name.startswith("model.diffusion_model.")}
        tensors |= {f"model_ema.{name.removeprefix('model.').replace('.', '')}": 2 * own[name] for name in own}

    file = write_original(tiny(), tmp_path / "x.safetensors", change=add)
    source = ModelSource(path=str(file), config=str(tiny()), use_ema=True)
    made, reader = open_reference(open_checkpoint(source))
    theirs = StableDiffusionPipeline.from_pretrained(str(tiny()), local_files_only=True)
    assert reader == CONVERTED
    assert torch.equal(made.unet.conv_in.weight, 2 * theirs.unet.conv_in.weight)
    assert torch.equal(made.vae.decoder.conv_in.weight, theirs.vae.decoder.conv_in.weight)
