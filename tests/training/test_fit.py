"""The training loop: what a resumed training must keep."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

pytest.importorskip("optax")
pytest.importorskip("orbax.checkpoint")

from training.fit import fit, make_optimizer, make_step, restore, start_state

STEPS = 7


def loss(params, batch, key):
    return jnp.mean((batch @ params["w"] - 1.0 + 0.01 * jax.random.normal(key, (len(batch),))) ** 2)


def batch_of(step):
    return np.random.default_rng(step).standard_normal((5, 3), np.float32)


def train(directory, *stops):
    directory.mkdir(exist_ok=True)
    optimizer = make_optimizer(0.1, STEPS)
    for stop in stops:
        params = {"w": jnp.array([0.3, -0.2, 0.1])}
        state = fit(
            directory,
            start_state(params, optimizer),
            make_step(loss, optimizer),
            batch_of,
            steps=stop,
            seed=13,
            sample=lambda state: Image.new("RGB", (3, 2)),
            log_every=1,
            save_every=3,
        )
    return state


@pytest.mark.slow
def test_resumed_training_ends_where_an_uninterrupted_one_does(tmp_path):
    whole, parts = train(tmp_path / "whole", STEPS), train(tmp_path / "parts", 4, STEPS)
    assert int(whole.step) == int(parts.step) == STEPS
    for one, other in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))
    assert not np.allclose(whole.params["w"], whole.ema["w"])  # the average is one


@pytest.mark.slow
def test_training_leaves_log_curve_samples_and_checkpoint(tmp_path):
    state = train(tmp_path / "run", STEPS)
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert sorted(p.name for p in (tmp_path / "run").glob("*.png")) == [
        "loss.png", "sample_000003.png", "sample_000006.png", "sample_000007.png",
    ]  # fmt: skip
    again = restore(tmp_path / "run" / "checkpoints", state)
    np.testing.assert_array_equal(again.params["w"], state.params["w"])


def test_directory_without_checkpoint_restores_nothing(tmp_path):
    assert restore(tmp_path / "checkpoints", None) is None
