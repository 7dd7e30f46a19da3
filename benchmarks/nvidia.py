"""Seconds an image on an NVIDIA GPU at full size with random weights: tpusd's programs, and PyTorch diffusers compiled.

    python -m benchmarks.nvidia [--model sd15|sdxl] [--batch 1] [--rounds 5] [--torch python]

Both denoise with Euler (sd15: 50 steps, sdxl: 20) and classifier-free guidance, from text embeddings to pixels, in
bfloat16; --torch names a Python with diffusers and PyTorch for CUDA, run in a process of its own after ours. Random
weights take the time of trained ones. The share of the floor is that of the matrix units at the card's peak rate.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

STEPS = {"sd15": 50, "sdxl": 20, "tiny": 5}
PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L4": 121e12}  # dense bfloat16, as NVIDIA publishes them


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", choices=STEPS, default="sd15")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--torch", metavar="PYTHON")
    parser.add_argument("--only-torch", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only_torch:
        print(json.dumps(torch_seconds(arguments.model, arguments.batch, arguments.rounds)))
        return
    report("tpusd", *our_seconds(arguments.model, arguments.batch, arguments.rounds), arguments.batch)
    if arguments.torch is not None:
        command = [arguments.torch, "-m", "benchmarks.nvidia", "--only-torch", "--model", arguments.model]
        command += ["--batch", str(arguments.batch), "--rounds", str(arguments.rounds)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1])
        report("PyTorch diffusers, compiled", json.loads(done.stdout), None, None, arguments.batch)


def report(name: str, seconds: list[float], flops: float | None, device: str | None, batch: int) -> None:
    each = statistics.median(seconds) / batch
    peak = next((value for card, value in PEAK_FLOPS.items() if device is not None and card in device), None)
    share = f", {flops / peak / each:.0%} of the floor's rate" if peak is not None else ""
    spread = f"{min(seconds) / batch:.3f} to {max(seconds) / batch:.3f}"
    print(f"{name}: {each:.3f} s an image ({spread}){share}" + (f" on {device}" if device else ""))


def our_seconds(model: str, batch: int, rounds: int) -> tuple[list[float], float, str]:
    """-> seconds a batch, FLOPs an image, the device's name. Denoising and decoding."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from tpusd.checkpoints.published import find_architecture
    from tpusd.config.compose import compose_jobs
    from tpusd.config.schema import make_config
    from tpusd.engine.blueprint import Blueprint
    from tpusd.engine.devices import Devices
    from tpusd.preflight.flops import count_flops

    fields = [f"model={model}", "precision=bf16", "sampler=euler", f"sampler.num_inference_steps={STEPS[model]}"]
    (job,) = compose_jobs(fields)
    config = make_config(job.values)
    architecture = find_architecture(config.model)
    height, width = architecture.family.image_size(architecture.configs)
    blueprint = Blueprint(architecture, config.precision, height=height, width=width, batch_size_per_device=batch)
    devices = Devices(jax.local_devices()[:1])
    table = architecture.family.schedule(config.sampler, architecture.scheduler_config, height, width)

    def random(leaf):
        """Small numbers of either sign, cheaply: as many as SDXL has are slow to draw on a host."""
        tile = np.random.default_rng(0).normal(0, 0.02, 9973).astype(np.float32)
        return jax.device_put(jnp.asarray(np.resize(tile, leaf.shape)).astype(leaf.dtype), devices.replicated)

    denoise, decode = blueprint.denoise(guided=True), blueprint.decode()
    unet, vae = (jax.tree.map(random, blueprint.weights(program)) for program in ("denoise", "decode"))
    state, cond, uncond, guidance, *_ = denoise.split
    arguments = jax.tree.map(lambda s: np.full(s.shape, 0.5, s.dtype), (cond, uncond, guidance))
    keys = np.tile(np.array([0, 1], np.uint32), (batch, 1))
    scales = np.full(batch, table.init_scale, np.float32)
    split = devices.put_split((*arguments, np.stack([table.padded()] * batch), scales, keys))
    bounds = devices.put_shared((np.int32(0), np.int32(len(table))))
    run_denoise, run_decode = (devices.compile(spec).call for spec in (denoise, decode))

    def once() -> float:
        empty = devices.put_split(jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), state))
        start = time.monotonic()
        latents = run_denoise(unet, *bounds, empty, *split)[0].x
        jax.block_until_ready(run_decode(vae, latents))
        return time.monotonic() - start

    work = [count_flops(spec.function, *spec.shared, *spec.split) for spec in (denoise, decode)]
    flops = (work[0].once + len(table) * work[0].per_trip + work[1].once) / batch
    once()
    return [once() for _ in range(rounds)], flops, jax.local_devices()[0].device_kind


def torch_seconds(model: str, batch: int, rounds: int) -> list[float]:
    import torch
    from diffusers import AutoencoderKL, EulerDiscreteScheduler, UNet2DConditionModel

    root = Path(__file__).parents[1] / "tpusd" / "assets" / "published" / model
    scheduler = EulerDiscreteScheduler.from_config(EulerDiscreteScheduler.load_config(root / "scheduler"))
    with torch.device("cuda"):
        unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(root / "unet"))
        vae = AutoencoderKL.from_config(AutoencoderKL.load_config(root / "vae"))
    unet = torch.compile(unet.to(torch.bfloat16, memory_format=torch.channels_last).eval(), mode="max-autotune")
    vae = vae.to(torch.bfloat16, memory_format=torch.channels_last).eval()
    decode = torch.compile(vae.decode, mode="max-autotune")
    config = unet.config
    like = dict(device="cuda", dtype=torch.bfloat16)
    text = torch.full((2 * batch, 77, config.cross_attention_dim), 0.5, **like)
    more = {}
    if config.addition_embed_type == "text_time":
        size = 8 * config.sample_size
        ids = torch.tensor([[size, size, 0, 0, size, size]] * 2 * batch, **like)
        more = {"added_cond_kwargs": {"text_embeds": torch.full((2 * batch, 1280), 0.5, **like), "time_ids": ids}}

    @torch.no_grad()
    def once() -> float:
        scheduler.set_timesteps(STEPS[model], device="cuda")
        latents = torch.randn(batch, 4, config.sample_size, config.sample_size, **like) * scheduler.init_noise_sigma
        torch.cuda.synchronize()
        start = time.monotonic()
        for t in scheduler.timesteps:
            both = scheduler.scale_model_input(torch.cat([latents, latents]), t)
            uncond, cond = unet(both, t, encoder_hidden_states=text, **more).sample.chunk(2)
            latents = scheduler.step(uncond + 7.5 * (cond - uncond), t, latents).prev_sample
        pixels = decode(latents / vae.config.scaling_factor).sample
        ((pixels.float() / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
        torch.cuda.synchronize()
        return time.monotonic() - start

    once()
    return [once() for _ in range(rounds)]


if __name__ == "__main__":
    sys.exit(main())
