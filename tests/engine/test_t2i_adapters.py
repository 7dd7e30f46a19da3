"""Images with T2I-Adapters: what a scale of 0 is, on what they depend, what is compiled."""

import jax
import numpy as np
import pytest
from PIL import Image
from support.controlnets import tiny_controlnet
from support.pipelines import SIZE, generate, pipeline
from support.t2i_adapters import tiny_adapter

from tpusd.config.grammar import hydra_value

pytestmark = pytest.mark.slow
STEPS = "sampler.num_inference_steps=5"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder, made = tmp_path_factory.mktemp("controls"), []
    for seed in range(2):
        pixels = np.random.default_rng(seed).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
        made.append(str(folder / f"{seed}.png"))
        Image.fromarray(pixels).save(made[-1])
    return made


def rows(*given):
    return f"prompts.rows={hydra_value(list(given))}"


def words(*nets):
    return f"model.controlnets={hydra_value([{'path': str(path), **fields} for path, fields in nets])}"


def test_at_scale_0_an_image_is_the_one_without_a_t2i_adapter(files):
    plain = generate(pipeline(), rows({"prompt": "a red fox"}), STEPS)[0, 0]
    adapter = tiny_adapter()
    pipe, row = pipeline(nets=(adapter,)), {"prompt": "a red fox", "control_image": files[0]}
    for own, *more in ((row, words((adapter, {"scale": 0}))), ({**row, "control_scale": 0}, words((adapter, {})))):
        made = generate(pipe, rows(own, row), *more, STEPS)[0, 0]
        np.testing.assert_array_equal(made.pixels, plain.pixels)
        assert made.trace == plain.trace
    controlled = generate(pipe, rows(row), words((adapter, {})), STEPS)[0, 0]
    assert np.abs(controlled.pixels.astype(int) - plain.pixels).max() > 1
    assert controlled.trace["control"] != generate(
        pipe, rows({**row, "control_image": files[1]}), words((adapter, {})), STEPS
    )[0, 0].trace["control"]  # fmt: skip


@pytest.mark.long
def test_an_image_with_a_t2i_adapter_depends_on_no_other_image(files):
    adapter = tiny_adapter()
    four = [
        {"prompt": "a red fox", "control_image": files[0]},
        {"prompt": "an owl"},
        {"prompt": "a moose", "control_image": files[1], "control_scale": 0.3},
    ]
    alone = [
        generate(pipeline(nets=(adapter,)), rows(row), words((adapter, {})), STEPS, f"first_row={number}")[number, 0]
        for number, row in enumerate(four)
    ]
    for devices, per_device in ((2, 1), (1, 3)):
        pipe = pipeline(devices=devices, per_device=per_device, nets=(adapter,))
        made = generate(pipe, rows(*four), words((adapter, {})), STEPS)
        for number, expected in enumerate(alone):
            assert made[number, 0].trace.get("control") == expected.trace.get("control")
            difference = np.abs(made[number, 0].pixels.astype(int) - expected.pixels)
            assert difference.max() <= (per_device > 1) and (difference > 0).mean() < 0.01, number


@pytest.mark.long
def test_nothing_compiles_again_for_other_scales_steps_and_pictures(files):
    nets = (tiny_controlnet(), tiny_adapter())
    pipe = pipeline(nets=nets)

    def make(first, second, *pictures):
        row = {"prompt": "a fox", "control_images": list(pictures)}
        return generate(pipe, rows(row), words((nets[0], first), (nets[1], second)), STEPS)[0, 0].pixels

    whole = make({}, {}, *files)
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, seconds, **_: compiled.append(name) if "backend_compile" in name else None
    )
    try:
        others = [
            make({"scale": 0.5}, {"scale": 0.3, "end": 0.6}, *files),
            make({}, {"start": 0.4}, *files),
            make({}, {}, files[1], files[0]),
        ]
        assert compiled == []
    finally:
        jax.monitoring.clear_event_listeners()
    assert all(not np.array_equal(whole, other) for other in others)
