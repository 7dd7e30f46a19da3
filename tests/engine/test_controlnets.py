"""Images with ControlNets: on what they depend, what is compiled, and what a scale of 0 is."""

import jax
import numpy as np
import pytest
from PIL import Image
from support.controlnets import tiny_controlnet
from support.pipelines import SIZE, generate, pipeline

from tpusd.config.grammar import hydra_value

pytestmark = pytest.mark.slow
STEPS = "sampler.num_inference_steps=5"
STOCHASTIC = ["sampler=euler_ancestral", STEPS, "seed=3"]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Two control images, and a picture to start from."""
    folder, made = tmp_path_factory.mktemp("controls"), {}
    for seed, name in enumerate(("a", "b", "start")):
        pixels = np.random.default_rng(seed).integers(0, 2, (SIZE, SIZE, 1), np.uint8) * np.uint8(255)
        made[name] = str(folder / f"{name}.png")
        Image.fromarray(np.broadcast_to(pixels, (SIZE, SIZE, 3)).copy()).save(made[name])
    return made


def nets():
    return tiny_controlnet(), tiny_controlnet(seed=1)


def words(*scales):
    return "model.controlnets=" + hydra_value(
        [{"path": str(path), "scale": scale} for path, scale in zip(nets(), scales, strict=False)]
    )


def rows(*given):
    return f"prompts.rows={hydra_value(list(given))}"


def four(files):
    """One with a control image, one without, one that also starts from a picture, and one that is weaker."""
    return (
        {"prompt": "a red fox", "control_image": files["a"]},
        {"prompt": "an owl"},
        {"prompt": "a moose", "control_image": files["b"], "image": files["start"], "strength": 0.7},
        {"prompt": "a heron", "control_image": files["b"], "control_scale": 0.3},
    )


@pytest.fixture(scope="module")
def alone(files):
    """Each of the four rows made without the others: row -> the image."""
    pipe = pipeline(nets=nets()[:1])
    return {
        number: generate(pipe, rows(row), words(1.0), *STOCHASTIC, f"first_row={number}")[number, 0]
        for number, row in enumerate(four(files))
    }


@pytest.mark.long
@pytest.mark.parametrize(("devices", "per_device"), [(1, 3), (2, 1), (8, 1)])
def test_an_image_with_a_controlnet_depends_on_no_other_image(files, alone, devices, per_device):
    """Another compiled batch may round a pixel to its neighbour; noise and the embedded pictures are the same bits."""
    pipe = pipeline(devices=devices, per_device=per_device, nets=nets()[:1])
    made = generate(pipe, rows(*four(files)), words(1.0), *STOCHASTIC)
    for row, expected in alone.items():
        image = made[row, 0]
        assert image.trace["initial_noise"] == expected.trace["initial_noise"]
        assert image.trace.get("control") == expected.trace.get("control")
        difference = np.abs(image.pixels.astype(int) - expected.pixels)
        assert difference.max() <= 1 and (difference > 0).mean() < 0.01, row
        if per_device == 1:  # the same programs
            np.testing.assert_array_equal(image.pixels, expected.pixels)


def test_at_scale_0_an_image_is_the_one_without_a_controlnet(files):
    """Bit for bit, and in a batch with others: of the net's own scale, the run's factor, and the row's."""
    plain = generate(pipeline(), rows({"prompt": "a red fox"}), *STOCHASTIC)[0, 0]
    pipe, row = pipeline(nets=nets()[:1]), {"prompt": "a red fox", "control_image": files["a"]}
    off = (
        (row, words(0.0)),
        (row, words(1.0), "control_scale=0"),
        ({**row, "control_scale": 0}, words(1.0)),
        ({"prompt": "a red fox"}, words(1.0)),
    )
    for own, *more in off:
        made = generate(pipe, rows(own, row), *more, *STOCHASTIC)[0, 0]
        np.testing.assert_array_equal(made.pixels, plain.pixels)
        assert made.trace == plain.trace
    controlled = generate(pipe, rows(row), words(1.0), *STOCHASTIC)[0, 0]
    assert np.abs(controlled.pixels.astype(int) - plain.pixels).max() > 1


@pytest.mark.long
def test_of_two_controlnets_the_one_at_scale_0_has_no_effect(files):
    both = {"prompt": "a fox", "control_images": [files["a"], files["b"]]}
    second = {"prompt": "a fox", "control_images": [None, files["b"]]}
    pipe = pipeline(nets=nets())
    alone = generate(pipe, rows(second), words(1.0, 0.8), STEPS)[0, 0]
    made = generate(pipe, rows(both), words(0.0, 0.8), STEPS)[0, 0]
    np.testing.assert_array_equal(made.pixels, alone.pixels)
    own = pipeline(nets=nets()[1:])
    first = "model.controlnets=" + hydra_value([{"path": str(nets()[1]), "scale": 0.8}])
    same = generate(own, rows({"prompt": "a fox", "control_image": files["b"]}), first, STEPS)[0, 0]
    np.testing.assert_array_equal(made.pixels, same.pixels)
    assert not np.array_equal(generate(pipe, rows(both), words(1.0, 0.8), STEPS)[0, 0].pixels, alone.pixels)


def test_steps_before_the_start_do_not_depend_on_the_control_image(files):
    """By their digests: the first of five steps is before the start at 0.2."""
    late = "model.controlnets=" + hydra_value([{"path": str(nets()[0]), "start": 0.2}])
    pipe = pipeline(nets=nets()[:1])
    one, other = (
        generate(pipe, rows({"prompt": "a fox", "control_image": files[name]}), late, STEPS)[0, 0].trace
        for name in ("a", "b")
    )
    assert one["control"] != other["control"]
    assert one["latents"]["1"] == other["latents"]["1"] and one["latents"]["5"] != other["latents"]["5"]


@pytest.mark.long
def test_nothing_compiles_again_for_other_control_images_scales_and_steps(files):
    pipe = pipeline(nets=nets()[:1])
    row = {"prompt": "a fox", "control_image": files["a"]}
    generate(pipe, rows(row), words(1.0), STEPS)
    generate(pipe, rows(row), words(1.0), STEPS, "guidance_scale=1")
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, seconds, **_: compiled.append(name) if "backend_compile" in name else None
    )
    try:
        for net, *more in (
            ({"scale": 0.3},),
            ({"start": 0.2, "end": 0.6}, "sampler=heun"),
            ({}, f"control_image={files['b']}", "control_scale=1.7", "seed=4"),
            ({}, "guess_mode=true", "guidance_scale=3"),
        ):
            own = row if not any(word.startswith("control_image") for word in more) else {"prompt": "a fox"}
            fields = "model.controlnets=" + hydra_value([{"path": str(nets()[0]), **net}])
            generate(pipe, rows(own), fields, STEPS, *more)
        assert compiled == []
    finally:
        jax.monitoring.clear_event_listeners()
