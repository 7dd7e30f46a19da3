"""One denoising step of the 2022 program, compiled for a TPU slice that is not there: for the table of tpu_estimates.

    PYTHON -m benchmarks.flax_2022_step v5e:2x4 sd15 1

PYTHON: of the environment of diffusers 0.39.0 (the head of tools/record_2022.py says how it is made) with libtpu. The
step is FlaxUNet2DConditionModel on twice the batch, and guidance, in bfloat16; SDXL with `split_head_dim`, without
which it does not fit. Prints one line of JSON: seconds and bytes of one device's step, and how many kernels of the
compiler's own (softmax) carry no estimate, so that the step costs more than is said.
"""

import json
import os
import sys
import time
from pathlib import Path

os.environ["USE_FLAX"] = "1"
PUBLISHED = Path(__file__).parents[1] / "tpusd/assets/published"
TEXT_LENGTH = 77


def main(topology: str, model: str, batch: str) -> None:
    from tpusd.preflight.topology import open_topology, prepare_compiler

    prepare_compiler()
    slice_ = open_topology(topology)
    print(json.dumps(compile_step(slice_, PUBLISHED / model, int(batch))))


def compile_step(slice_, directory: Path, batch: int) -> dict:
    import diffusers
    import jax
    import jax.numpy as jnp

    from tpusd.preflight.hlo_cost import program_cost
    from tpusd.preflight.hlo_text import hlo_text

    config = json.loads((directory / "unet/config.json").read_text())
    xl = config.get("addition_embed_type") == "text_time"
    unet, _ = diffusers.FlaxUNet2DConditionModel.from_config(
        config, dtype=jnp.bfloat16, split_head_dim=xl, return_unused_kwargs=True
    )
    half = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.bfloat16)  # noqa: E731
    weights = jax.tree.map(lambda x: half(*x.shape), jax.eval_shape(unet.init_weights, jax.random.key(0)))
    side, text = config["sample_size"], (TEXT_LENGTH, config["cross_attention_dim"])
    # Latents have their channels first here. SDXL's six sizes and pooled text go through its second time embedding.
    added = None
    if xl:
        pooled = config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]
        added = {"text_embeds": (pooled,), "time_ids": (6,)}

    def step(weights, latents, t, hidden, added):
        both, times = jnp.concatenate([latents] * 2), jnp.broadcast_to(t, 2 * latents.shape[0])
        noise = unet.apply(
            {"params": weights}, both, times, encoder_hidden_states=hidden, added_cond_kwargs=added
        ).sample
        uncond, cond = jnp.split(noise, 2)
        return latents + uncond + 7.5 * (cond - uncond)

    n = len(slice_.devices)
    latents = jax.ShapeDtypeStruct((n, batch, config["in_channels"], side, side), jnp.float32)
    added = added and {name: half(n, 2 * batch, *shape) for name, shape in added.items()}
    time_ = jax.ShapeDtypeStruct((n,), jnp.int32)
    mapped = jax.pmap(step, in_axes=(None, 0, 0, 0, 0), devices=list(slice_.devices))
    start = time.monotonic()
    lowered = mapped.lower(weights, latents, time_, half(n, 2 * batch, *text), added)
    compiled = lowered.compile()
    seconds = time.monotonic() - start
    text = hlo_text(compiled, lambda dump: lowered.compile(compiler_options=dump))
    cost = program_cost(text, slice_.chip).once
    return {
        "seconds": cost.seconds,
        "unpriced_kernels": sum(cost.unpriced.values()),
        "temporary_bytes": compiled.memory_analysis().temp_size_in_bytes,
        "compile_seconds": seconds,
    }


if __name__ == "__main__":
    main(*sys.argv[1:])
