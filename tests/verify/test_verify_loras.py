"""LoRAs in tpusd.verify: merged into the weights here, beside them in diffusers with peft."""

import dataclasses
import json

import pytest

pytest.importorskip("torch")
pytest.importorskip("diffusers")
pytest.importorskip("peft")

from support.checkpoints import tiny
from support.loras import layers, random, weight_shapes, write

from tpusd.verify import main
from tpusd.verify.reference_loras import ReferenceLoras

pytestmark = [pytest.mark.parity, pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
PARTS = {"sd1": ("unet", "text_encoder"), "sdxl": ("unet", "text_encoder", "text_encoder_2")}


def lora_file(path, layout, *, parts, seed):
    """Of the attention, in the names of peft."""
    tensors = {}
    for part in parts:
        for layer in layers(layout, part, "attn"):
            o, i = weight_shapes(layout, part)[layer]
            tensors[f"{part}.{layer}.lora_B.weight"] = random(o, 2, seed=seed, size=0.3)
            tensors[f"{part}.{layer}.lora_A.weight"] = random(2, i, seed=seed + 1, size=0.3)
    return write(path, tensors)


def words(layout, *more):
    model = ["model=local", f"model.path={tiny(layout)}"]
    return [*model, "sampler=euler", "sampler.num_inference_steps=4", "negative_prompt=dark", *more]


def verified(capsys, *argv, status=0):
    assert main([*argv, "--json"]) == status, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


@pytest.fixture(scope="module", params=["sd1", pytest.param("sdxl", marks=pytest.mark.long)])
def files(request, tmp_path_factory):
    folder, layout = tmp_path_factory.mktemp("loras"), request.param
    return layout, [
        lora_file(folder / "all.safetensors", layout, parts=PARTS[layout], seed=1),
        lora_file(folder / "unet.safetensors", layout, parts=["unet"], seed=5),
    ]


def test_loras_of_a_run_and_of_a_row_are_the_same(files, capsys):
    """The second image has none of the row's."""
    layout, (both, unet) = files
    rows = f"prompts.rows=[{{prompt: a fox, loras: [{{path: {unet}, scale: -0.5}}]}}, {{prompt: an owl}}]"
    report = verified(capsys, *words(layout, rows, f"loras=[{{path: {both}, scale: 0.7, text_encoder_scale: 0.4}}]"))
    assert report["same"] and len(report["images"]) == 2


@pytest.mark.long
@pytest.mark.parametrize(
    ("applied", "place"),
    [({"text_encoder_scale": 0.4}, "text embedding of the prompt"), ({"scale": 0.7}, "latents after call 1 of 4")],
)
def test_another_strength_is_found(files, applied, place, capsys, monkeypatch):
    layout, (both, _) = files
    apply = ReferenceLoras.apply
    monkeypatch.setattr(
        ReferenceLoras, "apply", lambda self, loras: apply(self, [dataclasses.replace(one, **applied) for one in loras])
    )
    report = verified(capsys, *words(layout, "prompt=a fox", f"loras=[{{path: {both}}}]"), status=1)
    assert report["first_difference"] == f"image 00000-000: {place}"


def test_a_lora_that_diffusers_has_not_is_refused(tmp_path, capsys):
    layer = layers("sd1", "unet", "attn")[0]
    o, i = weight_shapes("sd1", "unet")[layer]
    name = f"lora_unet_{layer.replace('.', '_')}"
    shapes = {"hada_w1_a": (o, 2), "hada_w1_b": (2, i), "hada_w2_a": (o, 2), "hada_w2_b": (2, i)}
    file = write(tmp_path / "x.safetensors", {f"{name}.{role}": random(*shape) for role, shape in shapes.items()})
    assert main(words("sd1", "prompt=a fox", f"loras=[{{path: {file}}}]")) == 2
    line = capsys.readouterr().err
    assert "x.safetensors: has differences of the kind loha, which diffusers does not have; leave it out" in line
