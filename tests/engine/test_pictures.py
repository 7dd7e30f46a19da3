"""Images that start from a picture: on what they depend, what is compiled, what stays the picture's own."""

import jax
import numpy as np
import pytest
from PIL import Image
from support.loras import opened_lora, random, write
from support.pipelines import SIZE, generate, pipeline

from tpusd.config.grammar import hydra_value
from tpusd.engine.adapters import ScaledLora

pytestmark = pytest.mark.slow

STEPS = "sampler.num_inference_steps=10"
STOCHASTIC = ["sampler=euler_ancestral", STEPS, "seed=3"]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Two pictures, a mask, and a mask that is white everywhere."""
    folder, generator = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    mask = np.zeros((SIZE, SIZE), np.uint8)
    mask[13:51, 22:61] = 255
    arrays = {
        "a": generator.integers(0, 256, (SIZE, SIZE, 3), np.uint8),
        "b": generator.integers(0, 256, (SIZE, SIZE, 3), np.uint8),
        "mask": mask,
        "whole": np.full((SIZE, SIZE), 255, np.uint8),
    }
    made = {}
    for name, pixels in arrays.items():
        made[name] = str(folder / f"{name}.png")
        Image.fromarray(pixels).save(made[name])
    return made


def rows(*given):
    return f"prompts.rows={hydra_value(list(given))}"


def five(files):
    """Pictures, masks and strengths of all kinds, and a row without a picture."""
    return (
        {"prompt": "a red fox", "image": files["a"], "strength": 0.7},
        {"prompt": "an owl"},
        {"prompt": "a moose", "image": files["b"], "strength": 0.3},
        {"prompt": "a heron", "image": files["a"], "mask": files["mask"], "strength": 0.7},
        {"prompt": "a newt", "image": files["b"], "mask": files["mask"], "strength": 1.0},
    )


@pytest.fixture(scope="module")
def alone(files):
    """Each of the five rows made without the others, on one device, one at a time: row -> the image."""
    pipe = pipeline()
    return {
        number: generate(pipe, rows(row), *STOCHASTIC, f"first_row={number}")[number, 0]
        for number, row in enumerate(five(files))
    }


@pytest.mark.long
@pytest.mark.parametrize(("devices", "per_device"), [(1, 3), (2, 1), (4, 1), (8, 1)])
def test_an_image_from_a_picture_depends_on_no_other_image(files, alone, devices, per_device):
    """Another compiled batch may round a pixel to its neighbour; noise and the picture's latents are the same bits."""
    made = generate(pipeline(devices=devices, per_device=per_device), rows(*five(files)), *STOCHASTIC)
    for row, expected in alone.items():
        image = made[row, 0]
        assert image.trace["initial_noise"] == expected.trace["initial_noise"]
        difference = np.abs(image.pixels.astype(int) - expected.pixels)
        assert difference.max() <= 1 and (difference > 0).mean() < 0.01, row
    if per_device == 1:  # the same programs
        for row, expected in alone.items():
            np.testing.assert_array_equal(made[row, 0].pixels, expected.pixels)
            assert made[row, 0].trace == expected.trace


@pytest.mark.long
def test_the_place_in_a_batch_does_not_matter(files):
    pipe = pipeline(per_device=3)
    whole = generate(pipe, rows(*five(files)), *STOCHASTIC)
    for number, row in enumerate(five(files)):
        image = generate(pipe, rows(row), *STOCHASTIC, f"first_row={number}")[number, 0]
        np.testing.assert_array_equal(image.pixels, whole[number, 0].pixels)
        assert image.trace == whole[number, 0].trace


@pytest.mark.long
def test_nothing_compiles_again_for_other_pictures_masks_and_strengths(files):
    pipe = pipeline(per_device=3)
    generate(pipe, rows(*five(files)), STEPS)
    generate(pipe, rows(*five(files)), STEPS, "guidance_scale=1")  # the unguided programs
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, seconds, **_: compiled.append(name) if "backend_compile" in name else None
    )
    try:
        for image, strength, more in (
            ("a", 0.1, []),
            ("b", 0.35, ["sampler=heun", f"mask={files['mask']}", "mask_feather=5"]),
            ("b", 1, [f"mask={files['whole']}", "paste_back=false"]),
            ("a", 1, ["sampler=ddim", "sampler.eta=1", "guidance_scale=3", "seed=5"]),
            ("a", 0.5, ["guidance_interval=[0.2,0.6]", "sampler.num_inference_steps=23"]),
        ):
            generate(
                pipe, rows({"prompt": "other words"}), STEPS, f"image={files[image]}", f"strength={strength}", *more
            )
        assert compiled == []
    finally:
        jax.monitoring.clear_event_listeners()


@pytest.mark.long
@pytest.mark.slow
def test_what_is_not_masked_is_the_pictures_own(files):
    pipe, masked = pipeline(), np.asarray(Image.open(files["mask"])) > 0
    own = np.asarray(Image.open(files["a"]))
    mask = [f"image={files['a']}", f"mask={files['mask']}", "strength=0.7"]
    hard, feathered, loose = (
        generate(pipe, rows({"prompt": "a fox"}), *STOCHASTIC, *mask, *more)[0, 0].pixels
        for more in ([], ["mask_feather=6"], ["paste_back=false"])
    )
    for made in (hard, feathered):
        np.testing.assert_array_equal(made[~masked], own[~masked])
        assert (made[masked] != own[masked]).mean() > 0.9
    np.testing.assert_array_equal(hard[masked], loose[masked])
    assert not np.array_equal(loose[~masked], own[~masked])
    edge = np.s_[30:34, 22:28]  # within the mask
    assert not np.array_equal(feathered[edge], hard[edge])


@pytest.mark.long
@pytest.mark.parametrize("zero_snr", [False, True])
def test_strength_one_is_text_to_image_where_no_picture_is_left(files, zero_snr):
    """With all masked and all steps, as in diffusers; without a mask, where the first level is noise alone."""
    sampler = ["sampler=ddim", STEPS, "seed=3"]
    if zero_snr:
        sampler += [
            "sampler.rescale_betas_zero_snr=true",
            "sampler.timestep_spacing=trailing",
            "sampler.prediction_type=v_prediction",
        ]
    mask = [] if zero_snr else [f"mask={files['whole']}"]
    plain = generate(pipeline(), rows({"prompt": "a fox"}), *sampler)[0, 0]
    made = generate(pipeline(), rows({"prompt": "a fox"}), *sampler, f"image={files['a']}", "strength=1", *mask)[0, 0]
    difference = np.abs(made.pixels.astype(int) - plain.pixels)
    assert made.trace["initial_noise"] == plain.trace["initial_noise"]
    assert difference.max() <= 1 and (difference > 0).mean() < 0.01
    less = generate(pipeline(), rows({"prompt": "a fox"}), *sampler, f"image={files['a']}", "strength=0.9", *mask)[0, 0]
    assert np.abs(less.pixels.astype(int) - plain.pixels).max() > 1


@pytest.mark.long
def test_guidance_by_the_step_counts_the_steps_that_are_made(files):
    """Seven of ten steps: an interval of their first half is guidance for four of them."""
    picture = [*STOCHASTIC, f"image={files['a']}", "strength=0.7"]

    def latents(*more):
        return generate(pipeline(), rows({"prompt": "a fox"}), *picture, *more)[0, 0].trace["latents"]

    whole, none, early, late = (
        latents(*more)
        for more in ([], ["guidance_scale=1"], ["guidance_interval=[0,0.2]"], ["guidance_interval=[0.2,1]"])
    )
    assert list(whole) == ["1", "5", "7"] and whole["1"] != none["1"]
    assert early["1"] == whole["1"] and early["5"] not in (whole["5"], none["5"])
    assert late["1"] == none["1"] and late["5"] not in (whole["5"], none["5"])


def test_a_lora_acts_on_images_from_pictures(files, tmp_path):
    layer = "unet.mid_block.attentions.0.proj_in"
    up, down = random(32, 2, 1, 1, seed=0), random(2, 32, 1, 1, seed=1)
    lora = opened_lora(
        write(tmp_path / "a.safetensors", {f"{layer}.lora_B.weight": up, f"{layer}.lora_A.weight": down})
    )
    picture = [*STOCHASTIC, f"image={files['a']}", "strength=0.7"]
    made = {
        scale: generate(
            pipeline(), rows({"prompt": "a fox"}), *picture,
            loras=[ScaledLora(lora=lora, scale=scale, text_encoder_scale=scale)],
        )[0, 0]
        for scale in (0.0, 1.0)
    }  # fmt: skip
    plain = generate(pipeline(), rows({"prompt": "a fox"}), *picture)[0, 0]
    assert made[0.0].trace == plain.trace and made[1.0].trace["latents"]["7"] != plain.trace["latents"]["7"]
    assert made[1.0].trace["picture"] == plain.trace["picture"]


def test_the_trace_says_that_the_picture_is_another(files):
    pipe = pipeline()
    made = [
        generate(pipe, rows({"prompt": "a fox"}), *STOCHASTIC, f"image={files[name]}", "strength=0.7")[0, 0].trace
        for name in ("a", "b")
    ]
    assert made[0]["picture"] != made[1]["picture"] and made[0]["initial_noise"] == made[1]["initial_noise"]
