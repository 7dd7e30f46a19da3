"""Keys and noise against plain jax.random calls."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tpusd.engine.noise import image_key, initial_latents, step_noise

ROOT = Path(__file__).resolve().parents[2]
SHAPE = (4, 5, 7)  # c, h, w: all distinct


@pytest.mark.parametrize("seed", [0, 1, 2**31 - 1, 2**31, 2**32 - 1])
def test_row_zero_is_the_historic_split(seed):
    split = jax.random.key_data(jax.random.split(jax.random.key(seed, impl="threefry2x32"), 11))
    assert np.array_equal([image_key(seed, 0, copy) for copy in range(11)], split)


@pytest.mark.parametrize("seed", [0, 5, 2**31, 2**32 - 1])
@pytest.mark.parametrize(("row", "copy"), [(0, 0), (0, 4095), (1, 0), (3, 2), (2**20 - 1, 4095)])
def test_key_is_folded_from_seed_row_and_copy(seed, row, copy):
    expected = jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), np.uint32(row * 4096 + copy))
    key = image_key(seed, row, copy)
    assert np.array_equal(key, jax.random.key_data(expected))
    assert key.dtype == np.uint32 and key.shape == (2,)


def test_root_key_holds_the_seed_itself():
    """Threefry's key of seed s is (0, s) for every seed that is allowed, so no two of them alias."""
    for seed in (0, 3, 2**31, 2**32 - 1):
        root = jax.random.key(np.uint32(seed), impl="threefry2x32")
        assert np.array_equal(jax.random.key_data(root), np.array([0, seed], np.uint32))


def test_row_seed_replaces_seed_and_row():
    expected = jax.random.fold_in(jax.random.key(9, impl="threefry2x32"), 2)
    assert np.array_equal(image_key(0, 3, 2, row_seed=9), jax.random.key_data(expected))
    assert np.array_equal(image_key(0, 3, 2, row_seed=9), image_key(1, 5, 2, row_seed=9))
    assert not np.array_equal(image_key(0, 3, 2, row_seed=0), image_key(0, 3, 2))  # 0 is a seed


def test_rows_and_copies_never_share_a_key():
    keys = {tuple(image_key(0, row, copy)) for row in range(13) for copy in (0, 1, 4094, 4095)}
    assert len(keys) == 13 * 4


@pytest.mark.slow
def test_latents_are_drawn_channel_first_and_bit_identical_alone_or_together():
    keys = np.stack([image_key(3, row, 1) for row in range(6)])
    latents = np.asarray(initial_latents(keys, SHAPE))
    assert latents.shape == (6, 5, 7, 4) and latents.dtype == np.float32
    for key, image in zip(keys, latents, strict=True):
        plain = jax.random.normal(jax.random.wrap_key_data(jnp.asarray(key), impl="threefry2x32"), SHAPE, jnp.float32)
        assert np.array_equal(image, np.transpose(plain, (1, 2, 0)))
        assert np.array_equal(image, initial_latents(key[None], SHAPE)[0])


@pytest.mark.slow
def test_step_noise_is_folded_from_the_step_and_differs_from_the_latents():
    keys = np.stack([image_key(3, row, 1) for row in range(3)])
    for k in (0, 1, 17):
        noise = np.asarray(step_noise(keys, k, SHAPE))
        step_key = jax.random.fold_in(jax.random.wrap_key_data(jnp.asarray(keys[2]), impl="threefry2x32"), 1 + k)
        assert np.array_equal(noise[2], np.transpose(jax.random.normal(step_key, SHAPE), (1, 2, 0)))
        assert not np.array_equal(noise, initial_latents(keys, SHAPE))


@pytest.mark.slow
def test_step_may_be_traced():
    keys = np.stack([image_key(3, 0, 1)])
    traced = jax.jit(lambda k: step_noise(keys, k, SHAPE))(np.int32(5))
    assert np.array_equal(traced, step_noise(keys, 5, SHAPE))


JAX_OPTIONS = {
    "JAX_RANDOM_SEED_OFFSET": "5",
    "JAX_THREEFRY_PARTITIONABLE": "0",
    "JAX_DEFAULT_PRNG_IMPL": "rbg",
    "JAX_ENABLE_CUSTOM_PRNG": "1",
    "JAX_ENABLE_X64": "1",
    "JAX_NUMPY_DTYPE_PROMOTION": "strict",
    "JAX_NUMPY_RANK_PROMOTION": "raise",
    "JAX_DEFAULT_MATMUL_PRECISION": "float32",
    "JAX_DEBUG_NANS": "1",
    "JAX_DISABLE_JIT": "1",
}
NOISE_OF_TWO_KEYS = """
import hashlib
import numpy as np
from tpusd.engine.noise import image_key, initial_latents, step_noise
keys = np.stack([image_key(5, 3, 2), image_key(5, 0, 1, 9)])
drawn = [initial_latents(keys, (4, 8, 8)), step_noise(keys, np.int32(7), (4, 8, 8))]
print(hashlib.sha256(b"".join(np.asarray(noise).tobytes() for noise in (keys, *drawn))).hexdigest())
"""


def noise_in_another_process(**variables):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    command = [sys.executable, "-c", NOISE_OF_TWO_KEYS]
    done = subprocess.run(
        command, env=environment | {"JAX_PLATFORMS": "cpu"} | variables, cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.long
@pytest.mark.slow
def test_settings_of_jax_do_not_change_the_noise():
    usual = noise_in_another_process()
    assert {name: noise_in_another_process(**{name: value}) for name, value in JAX_OPTIONS.items()} == dict.fromkeys(
        JAX_OPTIONS, usual
    )
