"""The loop that every training here runs: steps, moving average, checkpoints, loss curve. Knows no network."""

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from flax import nnx
from PIL import Image, ImageDraw

EMA_DECAY = 0.999
WARM_UP_STEPS = 100
DECAY_SHARE = 0.5  # of the steps, at the end: the rate falls to zero. A resumed, longer run is back at the full rate


class TrainState(NamedTuple):
    """Everything a checkpoint holds. ema: the moving average of params, which is what is sampled from and stored."""

    step: jax.Array
    params: Any
    ema: Any
    optimizer: Any


def make_optimizer(learning_rate: float, steps: int) -> optax.GradientTransformation:
    """AdamW: warm-up, a constant rate, and a linear fall over the last half."""
    decay_from = max(WARM_UP_STEPS, round(steps * (1 - DECAY_SHARE)))
    schedule = optax.join_schedules(
        [
            optax.linear_schedule(0.0, learning_rate, WARM_UP_STEPS),
            optax.constant_schedule(learning_rate),
            optax.linear_schedule(learning_rate, 0.0, max(1, steps - decay_from)),
        ],
        [WARM_UP_STEPS, decay_from],
    )
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.99, weight_decay=1e-3))


def make_step(loss: Callable, optimizer: optax.GradientTransformation) -> Callable:
    """loss(params, batch, key) -> scalar; returns step(state, batch, seed) -> (state, loss), compiled."""

    def step(state: TrainState, batch, seed):
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        value, gradients = jax.value_and_grad(loss)(state.params, batch, key)
        updates, moments = optimizer.update(gradients, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        # In the beginning the average would remember the random start for too long.
        decay = jnp.minimum(EMA_DECAY, (1.0 + state.step) / (10.0 + state.step))
        ema = optax.incremental_update(params, state.ema, 1.0 - decay)
        return TrainState(state.step + 1, params, ema, moments), value

    return jax.jit(step, donate_argnums=0)


def random_params(cls, *args, seed: int) -> tuple:
    """(graphdef, parameters) of `cls(*args, rngs)` at a random start, without compiling a program for every shape.

    Kernels are normal with variance 1/inputs, embeddings with deviation 0.02 as CLIP's; scales 1, biases 0.
    """
    graphdef, params = nnx.split(nnx.eval_shape(lambda: cls(*args, rngs=nnx.Rngs(0))))
    rng = np.random.default_rng(seed)
    for path, variable in nnx.to_flat_state(params):
        shape = variable.get_value().shape
        match path[-1]:
            case "kernel":
                value = rng.standard_normal(shape, np.float32) / np.float32(math.sqrt(math.prod(shape[:-1])))
            case "embedding":
                value = rng.standard_normal(shape, np.float32) * np.float32(0.02)
            case "scale":
                value = np.ones(shape, np.float32)
            case _:
                value = np.zeros(shape, np.float32)
        variable.set_value(jnp.asarray(value))
    return graphdef, params


def start_state(params, optimizer: optax.GradientTransformation) -> TrainState:
    """Step 0."""
    return TrainState(jnp.zeros((), jnp.int32), params, jax.tree.map(jnp.copy, params), optimizer.init(params))


def restore(directory: Path, like: TrainState) -> TrainState | None:
    """The newest checkpoint under `directory`, or None. like: a state of the same shapes."""
    with ocp.CheckpointManager(Path(directory).absolute()) as manager:
        newest = manager.latest_step()
        if newest is None:
            return None
        leaves, tree = jax.tree.flatten(like)
        return jax.tree.unflatten(tree, manager.restore(newest, args=ocp.args.StandardRestore(leaves)))


def fit(
    directory: Path,
    state: TrainState,
    step: Callable,
    batch_of: Callable[[int], Any],
    *,
    steps: int,
    seed: int,
    sample: Callable[[TrainState], Image.Image] | None = None,
    log_every: int = 20,
    save_every: int = 200,
) -> TrainState:
    """Trains to `steps`, going on from the newest checkpoint in `directory`, if any.

    batch_of(k): the batch of step k, so that a resumed training sees what an uninterrupted one would have. Writes
    log.jsonl, loss.png and sample_<step>.png beside the checkpoints; sample(state) draws the latter.
    """
    directory = Path(directory).absolute()
    checkpoints = directory / "checkpoints"
    # Placed, restored and fresh arrays alike: for jit a placed and an unplaced array make two programs to compile.
    state = jax.device_put(restore(checkpoints, state) or state, jax.devices()[0])
    done = int(state.step)
    print(f"{directory.name}: from step {done} to {steps}", flush=True)
    since, running = time.monotonic(), []
    with ocp.CheckpointManager(checkpoints, options=ocp.CheckpointManagerOptions(max_to_keep=2)) as manager:
        while done < steps:
            state, loss = step(state, batch_of(done), seed)
            done += 1
            running.append(loss)
            if done % log_every == 0 or done == steps:
                mean = float(sum(running)) / len(running)
                seconds = (time.monotonic() - since) / len(running)
                with open(directory / "log.jsonl", "a", encoding="utf-8") as log:
                    log.write(json.dumps({"step": done, "loss": mean, "seconds_per_step": round(seconds, 4)}) + "\n")
                print(f"step {done} loss {mean:.5f} {seconds:.3f} s/step", flush=True)
                since, running = time.monotonic(), []
            if done % save_every == 0 or done == steps:
                manager.save(done, args=ocp.args.StandardSave(jax.tree.leaves(state)))
                if sample is not None:
                    sample(state).save(directory / f"sample_{done:06d}.png")
                draw_curve(directory / "log.jsonl").save(directory / "loss.png")
                since = time.monotonic()
        manager.wait_until_finished()
    return state


def draw_curve(log: Path, width: int = 800, height: int = 400) -> Image.Image:
    """Loss over steps; the lowest loss and the highest, but for the first few, are written beside the curve."""
    rows = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    image = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(image)
    low, high = min(row["loss"] for row in rows), max(sorted(row["loss"] for row in rows)[: max(1, len(rows) - 3)])
    last = max(row["step"] for row in rows)
    span = max(high - low, 1e-9)
    points = [
        (60 + (width - 80) * row["step"] / last, 20 + (height - 60) * min(1, (high - row["loss"]) / span))
        for row in rows
    ]
    pen.line([(x, max(20, y)) for x, y in points], fill="black", width=2)
    pen.text((4, 14), f"{high:.4f}", fill="black")
    pen.text((4, height - 48), f"{low:.4f}", fill="black")
    pen.text((width - 90, height - 24), f"step {last}", fill="black")
    return image
