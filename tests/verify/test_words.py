"""The words of the command, and the report: what needs no PyTorch."""

import dataclasses
import importlib.util
import json

import numpy as np
import pytest
from support.runs import config, saved

from tpusd.config.schema import ModelConfig, PromptsConfig, RunConfig
from tpusd.errors import UserError
from tpusd.plan.specs import ControlInput, PictureInput, make_spec
from tpusd.verify import covered, main
from tpusd.verify.compare import EQUAL, LATENTS_BOUND, stage
from tpusd.verify.covered import check_covered, check_rows, compared, idle_fields
from tpusd.verify.report import Compared, Report, text_of
from tpusd.verify.weights import Weights

THREE = "prompts.rows=[{prompt: a}, {prompt: b}, {prompt: c}]"


def line_of(capsys, *argv):
    assert main(argv) == 2
    out, error = capsys.readouterr()
    assert out == "" and error.startswith("tpusd: ") and error.count("\n") == 1
    return error


def test_a_field_that_nobody_has_placed_is_refused(monkeypatch):
    """So a new one is not ignored."""
    monkeypatch.setattr(covered, "COVERED", tuple(name for name in covered.COVERED if name != "seed"))
    with pytest.raises(UserError, match="seed=3: verify does not compare this"):
        check_covered(config("precision=fp32", "seed=3"))


def test_the_lists_name_fields_that_exist():
    for cls, names in (
        (RunConfig, (*covered.COVERED, *covered.IDLE)),
        (ModelConfig, covered.COVERED_OF_MODEL),
        (PromptsConfig, covered.COVERED_OF_PROMPTS),
    ):
        assert set(names) <= {field.name for field in dataclasses.fields(cls)} and len(names) == len(set(names))


@pytest.mark.parametrize(
    "fields",
    [
        {"picture": PictureInput(image="x.png", image_sha256=None, strength=0.5, resize="fill")},
        {"controls": (ControlInput(net=0, image="x.png", image_sha256=None),)},
    ],
)
def test_a_row_with_what_is_not_compared_is_refused(fields):
    spec = dataclasses.replace(make_spec(saved(THREE, "seed=3"), 2, 0), extra={"note": "x"})
    check_rows([spec])
    with pytest.raises(UserError, match="row 2: (image|control_image): verify does not compare"):
        check_rows([dataclasses.replace(spec, **fields)])


@pytest.mark.parametrize(
    "words",
    [
        ["cache=deepcache"],
        ["embeddings=[{path: x.safetensors, token: x}]"],
        ["image=x.png"],
        ["image=x.png", "strength=0.5"],
        ["model.controlnets=[{path: x}]", "control_image=x.png"],
        ["guidance_interval=[0.1,1]"],
        ["guidance_schedule=linear"],
        ["safety=blur"],
        ["dry_run=true"],
        ["shard=1/2"],
        ["model.vae.path=x"],
        ["prompts.syntax=a1111"],
        ["on_truncate=chunk"],
    ],
)
def test_what_is_not_compared_is_refused_by_name(words, capsys):
    error = line_of(capsys, *words)
    assert all(word.partition("=")[0].removesuffix(".path") in error for word in words)
    assert "verify does not compare this with diffusers; leave it out" in error


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["precision=bf16"], "precision=bf16: verify compares float32 with float32"),
        (["precision.unet.dtype=bfloat16"], "verify compares float32 with float32"),
        (["-m", "seed=0,1"], "-m: verify takes one run"),
        (["resume=x"], "resume=x: verify takes one run"),
        (["reference.pth=x"], "reference.pth=x: no such field; verify has reference.path=PATH"),
        (["reference.path=a", "reference.path=b"], "reference.path=b: given twice"),
        (["reference.path="], "reference.path='': must name a directory or a .safetensors file"),
        (["sede=1"], "did you mean seed"),
        (["--steps=3"], "sampler.num_inference_steps"),
    ],
)
def test_other_words_are_one_line(words, expected, capsys):
    assert expected in line_of(capsys, *words)


def test_without_pytorch_one_line_says_how_to_install_it(capsys, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "torch" else found(name, *more)
    )
    line = line_of(capsys)
    assert "verify: needs torch" in line and "; pip install 'tpusd[parity]'" in line


def test_fields_without_effect_are_named():
    made = config("precision=fp32", "output=x", "num_images_per_prompt=3", "batch_size_per_device=2")
    check_covered(made)
    assert idle_fields(made) == ["num_images_per_prompt", "batch_size_per_device", "output"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], ["00000-000", "00001-000"]),
        (["limit=3"], ["00000-000", "00001-000", "00002-000"]),
        (["limit=1"], ["00000-000"]),
        (["rows='2:3'"], ["00002-000"]),
        (["images=[00001-001]"], ["00001-001"]),
    ],
)
def test_which_images_are_compared(words, expected):
    assert [spec.name for spec in compared(saved(THREE, "num_images_per_prompt=2", *words))] == expected


def test_differences_are_shares_of_the_largest_value_and_nothing_hides_in_them():
    theirs = np.array([1.0, -4.0, 2.0])
    one = stage("x", theirs + [0, 0.01, 0], theirs, LATENTS_BOUND)
    assert (one.largest, one.mean) == pytest.approx((0.0025, 0.0025 / 3)) and not one.same  # the mean is too large
    assert stage("x", theirs, theirs, EQUAL).same and stage("x", 0 * theirs, 0 * theirs, EQUAL).same
    for wrong in (theirs * np.nan, theirs[:2], np.array([1.0, np.inf, 2.0])):
        assert not stage("x", wrong, theirs, LATENTS_BOUND).same
        assert not stage("x", theirs, wrong, LATENTS_BOUND).same
    assert not stage("x", theirs, 0 * theirs, LATENTS_BOUND).same  # a reference of zeros
    nan = np.array([np.nan])
    assert not stage("x", nan, nan, LATENTS_BOUND).same


def report(*stages, different=()):
    spec = make_spec(saved(THREE), 0, 0)
    weights = Weights(number=3, different=different, alone={})
    images = (Compared(spec=spec, stages=stages),)
    return Report(
        model="m", reference="r", reader="x", versions={}, num_images=3, weights=weights, images=images
    )  # fmt: skip


@pytest.mark.slow
def test_the_report_names_the_first_place():
    good, bad = (stage(name, np.ones(2), np.full(2, value), LATENTS_BOUND) for name, value in (("a", 1), ("b", 2)))
    assert report(good).first is None and list(text_of(report(good)))[-1].startswith("same: 1 of the run's 3 images")
    assert report(good, bad).first == "image 00000-000: b"
    weight = stage("unet.w", np.ones(2), np.zeros(2), EQUAL)
    assert report(good, bad, different=(weight,)).first == "weights: unet.w"
    assert any("unet.w: DIFFERS" in line for line in text_of(report(good, different=(weight,))))
    shown = json.loads(json.dumps(report(bad, different=(weight,)).to_json(), allow_nan=False))
    assert (shown["same"], shown["weights"]["different"][0]["largest"]) == (False, None)


def test_the_text_has_the_first_place_that_differs_among_many():
    steps = [
        stage(f"latents after call {k}", np.ones(2), np.full(2, 2.0 if k >= 7 else 1.0), LATENTS_BOUND)
        for k in range(1, 12)
    ]
    lines = [line for line in text_of(report(*steps)) if "latents" in line and "first place" not in line]
    assert [int(line.split()[3]) for line in lines] == [1, 5, 7, 10, 11]
