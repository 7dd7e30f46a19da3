import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.checkpoints import copy, edit
from support.pipelines import SIZE, checkpoint, generate, pipeline, prompts
from support.runs import config

from tpusd.checkpoints import ModelSource, open_checkpoint
from tpusd.config.choices import conf_directory
from tpusd.engine import noise as keys
from tpusd.engine import programs
from tpusd.engine.devices import Devices
from tpusd.engine.pipeline import Pipeline
from tpusd.engine.programs import digest
from tpusd.errors import UserError
from tpusd.families.latent_diffusion import TextConditioning
from tpusd.families.stable_diffusion import StableDiffusion
from tpusd.samplers.loop import LoopState
from tpusd.samplers.table import SamplerSettings, make_table

pytestmark = pytest.mark.slow

NINE = ["a red fox", "an owl", "a moose", "a heron", "a newt", "a lynx", "a crab", "a wren", "a mole"]
STEPS = "sampler.num_inference_steps=7"
STOCHASTIC = ["sampler=ddim", "sampler.eta=1", STEPS]
SAMPLERS = sorted(file.stem for file in (conf_directory() / "sampler").glob("*.yaml"))


@pytest.fixture(scope="module")
def reference():
    """Row 5 of nine prompts, made alone on one device."""
    return generate(pipeline(), prompts(*NINE), *STOCHASTIC, "seed=3")[5, 0]


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize(
    ("devices", "per_device", "more"),
    [(2, 1, []), (4, 1, []), (8, 1, []), (1, 3, []), (1, 3, ["num_images_per_prompt=2"])],
)
def test_image_does_not_depend_on_devices_batch_or_copies(reference, devices, per_device, more):
    """Float addition is not associative: another compiled program may round a pixel to its neighbour."""
    pipe = pipeline(devices=devices, per_device=per_device)
    image = generate(pipe, prompts(*NINE), *STOCHASTIC, "seed=3", *more)[5, 0]
    assert image.trace["initial_noise"] == reference.trace["initial_noise"]
    assert image.trace["tokens"] == reference.trace["tokens"]
    difference = np.abs(image.pixels.astype(int) - reference.pixels)
    assert difference.max() <= 1 and (difference > 0).mean() < 0.01


def test_image_is_the_same_at_any_place_of_a_batch():
    pipe = pipeline(per_device=3)
    whole = generate(pipe, prompts(*NINE), *STOCHASTIC, "seed=3")
    for rows in (1, 2, 5):  # the last batch is padded, and row r stands at place r % 3 of it
        short = generate(pipe, prompts(*NINE[:rows]), *STOCHASTIC, "seed=3")
        for row in range(rows):
            assert short[row, 0].trace == whole[row, 0].trace
            np.testing.assert_array_equal(short[row, 0].pixels, whole[row, 0].pixels)


def test_image_does_not_depend_on_the_other_prompts(reference):
    texts = [f"something else {i}" for i in range(9)]
    texts[5] = NINE[5]
    image = generate(pipeline(devices=4), prompts(*texts), *STOCHASTIC, "seed=3")[5, 0]
    np.testing.assert_array_equal(image.pixels, reference.pixels)
    assert image.trace == reference.trace


def test_trace_tells_what_changed_first(reference):
    def made(*overrides):
        return generate(pipeline(devices=4), prompts(*NINE), *STOCHASTIC, "seed=3", *overrides)[5, 0].trace

    same = reference.trace
    assert sorted(same["latents"], key=int) == ["1", "5", "7"]
    other = made("seed=4")
    assert other["text_embedding"] == same["text_embedding"] and other["initial_noise"] != same["initial_noise"]
    other = made("guidance_scale=7.25")
    assert other["initial_noise"] == same["initial_noise"] and other["latents"]["1"] != same["latents"]["1"]
    assert made("negative_prompt=dark")["tokens"] != same["tokens"]


def test_trace_of_the_noise_is_that_of_the_key():
    image = generate(pipeline(), prompts("a"), STEPS, "seed=11")[0, 0]
    noise = keys.initial_latents(keys.image_key(11, 0, 0)[None], (4, SIZE // 8, SIZE // 8))
    assert image.trace["initial_noise"] == "".join(f"{int(part):08x}" for part in digest(noise)[0])


class Sine(StableDiffusion):
    """Predicts without a network."""

    def predict(self, networks, x, t, conditioning, guidance, control=None):
        return jnp.sin(x)


def test_trace_of_a_row_is_that_of_a_run_which_stops_there():
    table = make_table(SamplerSettings(name="euler_ancestral", num_inference_steps=12), checkpoint().scheduler_config)
    rows, scale = jnp.asarray(table.padded())[None], jnp.full(1, table.init_scale, jnp.float32)
    cond = TextConditioning(jnp.zeros((1, 3, 2)), None)
    image_keys = jnp.asarray(keys.image_key(5, 0, 0))[None]

    def run(stop):
        state = LoopState.start(jnp.zeros((1, 6, 5, 4)))
        return programs.denoise(
            Sine(), {}, 0, stop, state, cond, None, jnp.zeros(1), rows, scale, image_keys, height=48, width=40
        )

    _, whole = run(12)
    traced = {0: 1, 1: 5, 2: 10}  # place -> row
    for place, row in traced.items():
        np.testing.assert_array_equal(whole.rows[:, place], digest(run(row)[0].x))
    assert not whole.rows[:, len(traced) :].any()


def test_digest_sees_every_bit_and_the_order():
    x = np.random.default_rng(0).standard_normal((1, 3, 5, 7), np.float32)
    digest_of = jax.jit(digest)
    seen = {tuple(map(int, digest_of(x)[0]))}
    for i in range(x.size):
        other = x.copy()
        other.view(np.uint32).reshape(-1)[i] ^= 1 << (i % 32)
        seen.add(tuple(map(int, digest_of(other)[0])))
    seen.add(tuple(map(int, digest_of(x[:, ::-1])[0])))
    assert len(seen) == x.size + 2


def test_nothing_compiles_again_for_other_values():
    pipe = pipeline(per_device=3)
    generate(pipe, prompts("a", "b"), STEPS)
    generate(pipe, prompts("a"), STEPS, "guidance_scale=1")  # the unguided program
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, seconds, **_: compiled.append(name) if "backend_compile" in name else None
    )
    try:
        for overrides in (
            ["negative_prompt=dark"],
            ["seed=12345"],
            ["guidance_scale=3", "guidance_rescale=0.7"],
            ["guidance_scale=1", "seed=2"],
            ["guidance_interval=[0.2,0.6]"],
            ["guidance_interval=[0,0.5]", "guidance_schedule=cosine", "guidance_scale=5"],
            ["guidance_schedule=linear"],
            STOCHASTIC,
            ["num_images_per_prompt=5"],
            *([f"sampler={name}", "sampler.num_inference_steps=11"] for name in SAMPLERS),
        ):
            generate(pipe, prompts("quite other words", "and more", "of them"), *overrides)
        assert compiled == []
        jax.jit(lambda x: x + 2)(np.zeros(17)).block_until_ready()
        assert compiled  # the listener does hear
    finally:
        jax.monitoring.clear_event_listeners()


def test_up_to_guidance_one_the_unconditional_half_is_not_computed():
    pipe = pipeline(per_device=3)
    one, other, zero = (
        generate(pipe, prompts("a fox"), STEPS, f"guidance_scale={scale}", f"negative_prompt={text}")[0, 0]
        for scale, text in ((1, "dark"), (1, "light"), (0, "dark"))
    )
    np.testing.assert_array_equal(one.pixels, other.pixels)
    np.testing.assert_array_equal(one.pixels, zero.pixels)
    assert "denoise_unguided" in pipe.fingerprints
    close = generate(pipe, prompts("a fox"), STEPS, "guidance_scale=1.0001", "negative_prompt=dark")[0, 0]
    assert np.abs(close.pixels.astype(int) - one.pixels).max() <= 1  # and it is what guidance tends to


@pytest.mark.long
@pytest.mark.slow
def test_outside_its_interval_guidance_has_no_effect():
    """An interval up to a call is a run with guidance until then: its trace there, and the unguided rest."""
    pipe = pipeline(per_device=2)
    steps = ["sampler=euler", "sampler.num_inference_steps=10"]

    def trace(*overrides):
        return generate(pipe, prompts("a fox"), *steps, *overrides)[0, 0].trace["latents"]

    whole, half, none = trace(), trace("guidance_interval=[0,0.5]"), trace("guidance_scale=1")
    late = trace("guidance_interval=[0.5,1]")
    assert half["1"] == whole["1"] and half["5"] == whole["5"] and half["10"] not in (whole["10"], none["10"])
    assert late["1"] == none["1"] and late["5"] == none["5"] and late["10"] not in (whole["10"], none["10"])


def test_an_image_with_an_interval_does_not_depend_on_its_batch():
    pipe = pipeline(per_device=3)
    interval = ["sampler=euler_ancestral", "sampler.num_inference_steps=7", "guidance_interval=[0.3,0.8]"]
    together = generate(pipe, prompts("a fox", "an owl", "a newt"), *interval)
    alone = generate(pipe, prompts("a fox"), *interval)[0, 0]
    watched = generate(pipe, prompts("a fox"), *interval, on_step=lambda done, total: None)[0, 0]
    for one in (together[0, 0], watched):
        np.testing.assert_array_equal(one.pixels, alone.pixels)
        assert one.trace == alone.trace


def test_negative_prompt_and_guidance_reach_the_pixels():
    pipe = pipeline()
    images = [
        generate(pipe, prompts("a fox"), STEPS, *overrides)[0, 0].pixels
        for overrides in ([], ["negative_prompt=dark"], ["guidance_scale=3"], ["guidance_rescale=0.7"], ["seed=1"])
    ]
    assert len({hashlib.sha256(image.tobytes()).hexdigest() for image in images}) == len(images)


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("layout", ["sd2", "sdxl"])
def test_other_layouts_generate(layout):
    pipe = pipeline(layout)
    plain, empty = (
        generate(pipe, prompts("a fox", "an owl", "a newt"), STEPS, *more, layout=layout)
        for more in ([], ["negative_prompt=''"])
    )
    assert len(plain) == 3 and all(image.pixels.shape == (SIZE, SIZE, 3) for image in plain.values())
    same = np.array_equal(plain[0, 0].pixels, empty[0, 0].pixels)
    assert same == (layout != "sdxl")  # SDXL takes zeros where no negative prompt is given


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_lower_precision_stays_near_float32(precision):
    exact = generate(pipeline(), prompts("a fox"), STEPS)[0, 0].pixels.astype(int)
    rounded = generate(pipeline(precision=precision), prompts("a fox"), STEPS)[0, 0].pixels
    difference = np.abs(exact - rounded)
    assert 0 < difference.mean() < 255 * {"bf16": 0.05, "fp16": 0.01}[precision]


@pytest.mark.parametrize(
    ("piece_seconds", "first", "second"), [(0, range(1, 14), range(1, 14)), (1e9, (1, 2, 13), (13,))]
)
def test_progress_counts_to_the_longest_table(piece_seconds, first, second, monkeypatch):
    """PNDM makes one call more than steps. How long a call may take is seen from the one before."""
    monkeypatch.setattr("tpusd.engine.pipeline.PIECE_SECONDS", piece_seconds)
    pipe, what = pipeline(), (prompts("a fox"), "sampler.num_inference_steps=12")
    monkeypatch.setattr(pipe, "_rows_a_call", 1)
    whole = generate(pipe, *what)[0, 0]  # nobody is told: one call
    assert sorted(whole.trace["latents"], key=int) == ["1", "5", "10", "13"]
    for expected in (first, second):
        seen = []
        told = generate(pipe, *what, on_step=lambda *step: seen.append(step))[0, 0]  # noqa: B023
        assert seen == [(row, 13) for row in expected]
        assert told.trace == whole.trace
        np.testing.assert_array_equal(told.pixels, whole.pixels)


def test_weights_that_do_not_fit_are_refused_before_anything_is_compiled(tmp_path, monkeypatch):
    root = copy(tmp_path)
    edit(root / "vae" / "config.json", use_quant_conv=False)
    monkeypatch.setattr(Devices, "finish", lambda *_: pytest.fail("something was compiled"))
    opened = open_checkpoint(ModelSource(path=str(root)))
    broken = Pipeline.load(
        opened, config("precision=fp32").precision, height=SIZE, width=SIZE, batch_size_per_device=1,
        devices=jax.devices()[:1],
    )  # fmt: skip
    with pytest.raises(UserError, match="vae.*the weights do not fit"):
        generate(broken, prompts("a"), STEPS)
