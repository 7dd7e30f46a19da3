"""The compiled loop: it is the table's arithmetic, each image by its own table, and it compiles once."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.sampler_cases import NAMES, UNLOGGED, run_in_float64

import tpusd
from tpusd.engine import noise as keys
from tpusd.samplers.guidance import classifier_free_guidance
from tpusd.samplers.loop import LoopState, run_steps
from tpusd.samplers.rows import COLUMNS, PUSH, T, Table
from tpusd.samplers.schedule import SchedulerConfig
from tpusd.samplers.table import SamplerSettings, make_table

PUBLISHED = Path(tpusd.__file__).parent / "assets" / "published"
SD15 = json.loads((PUBLISHED / "sd15/scheduler/scheduler_config.json").read_text())
CONFIG = SchedulerConfig.from_dict(SD15)
SHAPE = (5, 7, 3)  # h, w, c
BATCH = 4
KEYS = np.stack([keys.image_key(3, row, 0) for row in range(BATCH)])


def made(name, steps, **options):
    return make_table(SamplerSettings(name=name, num_inference_steps=steps, **options), CONFIG)


def model(x, t, xp=jnp):
    return 0.8 * xp.sin(x + 0.003 * t) + 0.1 * x


@jax.jit
def run(tables, state, image_keys, start, stop):
    def predict(k, x, t, guidance, kept):
        return model(x, t[:, None, None, None]), kept

    return run_steps(
        predict, state, tables, start, stop, noise=lambda k: keys.step_noise(image_keys, k, (3, *SHAPE[:2])), **UNLOGGED
    )[0]


def begin(tables, image_keys=KEYS):
    noise = np.asarray(keys.initial_latents(image_keys, (3, *SHAPE[:2])))
    scales = np.array([table.init_scale for table in tables], np.float32)
    return LoopState.start(jnp.asarray(noise * scales[:, None, None, None]))


def finish(tables, start=0, stop=None, state=None, image_keys=KEYS):
    stop = max(map(len, tables)) if stop is None else stop
    padded = np.stack([table.padded() for table in tables])
    return run(padded, begin(tables, image_keys) if state is None else state, image_keys, start, stop)


MIXED = [made("euler_ancestral", 9), made("pndm", 4), made("heun", 6), made("unipc", 7, solver_order=3)]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_loop_is_the_arithmetic_of_the_table(name):
    table = made(name, 11)
    ours = np.asarray(finish([table] * BATCH).x)
    for image in range(BATCH):
        key = KEYS[image : image + 1]
        exact = run_in_float64(
            table,
            lambda x, t: model(x, t, np),
            np.asarray(keys.initial_latents(key, (3, *SHAPE[:2]))[0]),
            lambda k, key=key: np.asarray(keys.step_noise(key, k, (3, *SHAPE[:2]))[0]),
        )
        assert np.abs(ours[image] - exact).max() < 5e-5 * max(1, np.abs(exact).max())


@pytest.mark.slow
def test_loop_runs_any_table():
    """No sampler leaves all registers filled over a row that does not push; this table does."""
    rng = np.random.default_rng(2)
    rows = rng.uniform(-0.5, 0.5, (13, COLUMNS))
    rows[:, PUSH] = [1, 1, 0, 1, 1, 1, 0, 0, 1, 0, 1, 1, 0]
    table = Table(rows, 1.7)
    ours = np.asarray(finish([table] * BATCH).x[0])
    exact = run_in_float64(
        table,
        lambda x, t: model(x, t, np),
        np.asarray(keys.initial_latents(KEYS[:1], (3, *SHAPE[:2]))[0]),
        lambda k: np.asarray(keys.step_noise(KEYS[:1], k, (3, *SHAPE[:2]))[0]),
    )
    assert np.abs(exact).max() > 0.1
    np.testing.assert_allclose(ours, exact, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("image", range(BATCH))
def test_image_does_not_depend_on_the_tables_of_its_batch(image):
    mixed = np.asarray(finish(MIXED).x)
    alone = np.asarray(finish([MIXED[image]] * BATCH).x)
    np.testing.assert_array_equal(mixed[image].view(np.uint32), alone[image].view(np.uint32))


@pytest.mark.slow
def test_stopping_and_going_on_changes_nothing():
    whole = finish(MIXED)
    part = finish(MIXED, 3, None, finish(MIXED, 0, 3))
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(part), strict=True):
        np.testing.assert_array_equal(np.asarray(a).view(np.uint32), np.asarray(b).view(np.uint32))


@pytest.mark.slow
def test_nothing_compiles_again_for_another_sampler_steps_or_bounds():
    before = run._cache_size()
    for name in NAMES:
        finish([made(name, 3)] * BATCH)
    finish([made("ddim", 50, eta=1.0)] * BATCH, 7, 9)
    assert before <= 1 and run._cache_size() == 1


@pytest.mark.slow
def test_image_rests_after_its_last_row_whatever_the_model_says():
    state = LoopState(*(jnp.full((1, *SHAPE), value, jnp.float32) for value in (-0.0, 1e-40, np.nan, np.inf, -7.0)))
    table = jnp.zeros((1, 8, COLUMNS), jnp.float32)
    after, _ = run_steps(
        lambda k, x, t, _, kept: (jnp.full_like(x, jnp.nan), kept),
        state,
        table,
        0,
        8,
        noise=lambda k: state.y,
        **UNLOGGED,
    )
    for old, new in zip(jax.tree.leaves(state), jax.tree.leaves(after), strict=True):
        np.testing.assert_array_equal(np.asarray(old).view(np.uint32), np.asarray(new).view(np.uint32))


@pytest.mark.slow
def test_what_a_row_does_not_use_cannot_spoil_it():
    """An infinite register, and noise that is not a number where no noise is asked for."""
    table = made("ddim", 3).rows[None].astype(np.float32)
    start = LoopState.start(jnp.ones((1, *SHAPE)))
    state = start._replace(h3=jnp.full((1, *SHAPE), jnp.inf), y=jnp.full((1, *SHAPE), jnp.nan))

    def end(state):
        return run_steps(
            lambda k, x, t, _, kept: (0.1 * x, kept),
            state,
            table,
            0,
            1,
            noise=lambda k: jnp.full((1, *SHAPE), jnp.nan),
            **UNLOGGED,
        )[0].x

    assert np.isfinite(end(state)).all()
    np.testing.assert_array_equal(end(state), end(start))


@pytest.mark.slow
def test_noise_is_drawn_only_where_some_image_asks_for_it():
    drawn = []

    def noise(k):
        jax.debug.callback(lambda k: drawn.append(int(k)), k)
        return jnp.zeros((2, *SHAPE))

    @jax.jit
    def go(tables):
        state = LoopState.start(jnp.ones((2, *SHAPE)))
        return run_steps(lambda k, x, t, _, kept: (0.1 * x, kept), state, tables, 0, 12, noise=noise, **UNLOGGED)[0].x

    stochastic, plain = made("euler_ancestral", 4), made("euler", 12)
    go(np.stack([plain.padded()] * 2)).block_until_ready()
    jax.effects_barrier()
    assert drawn == []
    go(np.stack([plain.padded(), stochastic.padded()])).block_until_ready()
    jax.effects_barrier()
    assert sorted(drawn) == [0, 1, 2]  # its last row leads to zero noise, and then it rests


@pytest.mark.slow
def test_model_is_asked_at_the_timesteps_of_each_table():
    asked = []

    def predict(k, x, t, guidance, kept):
        jax.debug.callback(lambda t: asked.append(np.asarray(t)), t, ordered=True)
        return x, kept

    tables = [made("lms", 3), made("ddim", 3)]
    state = LoopState.start(jnp.ones((2, *SHAPE)))
    run_steps(predict, state, np.stack([t.padded() for t in tables]), 0, 3, noise=lambda k: state.x, **UNLOGGED)
    jax.effects_barrier()
    np.testing.assert_array_equal(np.stack(asked, 1), np.stack([t.rows[:, T] for t in tables]).astype(np.float32))


# Guidance.

RNG = np.random.default_rng(11)
UNCOND, COND = (jnp.asarray(RNG.standard_normal((3, *SHAPE), np.float32)) for _ in range(2))


@pytest.mark.slow
def test_guidance_is_the_published_formula_per_image():
    scale, rescale = np.array([1.0, 7.5, 0.0], np.float32), np.zeros(3, np.float32)
    guided = np.asarray(classifier_free_guidance(UNCOND, COND, scale, rescale))
    for i in range(3):
        np.testing.assert_allclose(guided[i], UNCOND[i] + scale[i] * (COND[i] - UNCOND[i]), rtol=1e-6, atol=1e-6)


@pytest.mark.slow
def test_rescaled_guidance_has_the_deviation_of_the_conditional_prediction():
    """Lin et al. 2023, equations 15 and 16."""
    scale = np.full(3, 9.0, np.float32)
    plain = np.asarray(classifier_free_guidance(UNCOND, COND, scale, np.zeros(3, np.float32)))
    whole = np.asarray(classifier_free_guidance(UNCOND, COND, scale, np.ones(3, np.float32)))
    part = np.asarray(classifier_free_guidance(UNCOND, COND, scale, np.array([0.0, 0.7, 1.0], np.float32)))
    np.testing.assert_allclose(whole.std(axis=(1, 2, 3)), np.asarray(COND).std(axis=(1, 2, 3)), rtol=1e-5)
    np.testing.assert_array_equal(part[0], plain[0])
    np.testing.assert_allclose(part[1], 0.7 * whole[1] + 0.3 * plain[1], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(part[2], whole[2], rtol=1e-6)


@pytest.mark.slow
def test_guidance_of_a_flat_prediction_is_finite_without_rescaling():
    flat, ones = jnp.ones((2, *SHAPE)), np.ones(2, np.float32)
    np.testing.assert_array_equal(classifier_free_guidance(flat, flat, 7.5 * ones, 0 * ones), flat)


@pytest.mark.slow
def test_guidance_of_an_image_does_not_depend_on_its_batch():
    scale, rescale = np.array([7.5, 3.0, 12.0], np.float32), np.array([0.7, 0.0, 1.0], np.float32)
    together = np.asarray(classifier_free_guidance(UNCOND, COND, scale, rescale))
    for i in range(3):
        others = [np.s_[i : i + 1]] * 3
        alone = classifier_free_guidance(*(jnp.concatenate([a[s] for s in others]) for a in (UNCOND, COND)),
                                         scale[[i] * 3], rescale[[i] * 3])  # fmt: skip
        np.testing.assert_array_equal(np.asarray(alone)[0], together[i])
