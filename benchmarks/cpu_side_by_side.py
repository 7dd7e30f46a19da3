"""Seconds a batch on a CPU: tpusd, the 2022 program and PyTorch diffusers, in alternation, on one random checkpoint.

    python -m benchmarks.cpu_side_by_side --flax REF/bin/python [--torch python] [--size tiny|medium] [--rounds 5]

The 2022 program is FlaxStableDiffusionPipeline of diffusers 0.39.0, which needs an environment of its own (the head of
tools/record_2022.py says how to make it); --torch names a Python with diffusers and PyTorch. Every program runs in a
process of its own, compiles and warms up first, and then makes a batch whenever its turn comes: what else the machine
does falls on all alike. float32, PNDM, guidance 7.5, one device, a batch of 2.

PNDM calls the UNet once more than it has steps, and the 2022 program leaves out its last call; it is given one step
more, so that all programs make as many calls.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROMPT = "a portrait of an old sailor, oil on canvas"
GUIDANCE, BATCH = 7.5, 2
# Pixels, steps and the widths of UNet and VAE. The tiny one is that of tests/data/sd2022.
SIZES = {
    "tiny": dict(pixels=64, steps=20, unet=(32, 32), vae=(8, 8, 16, 16)),
    "medium": dict(pixels=256, steps=5, unet=(96, 192, 384, 384), vae=(32, 64, 128, 128)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--flax", metavar="PYTHON", help="of the environment of the 2022 program")
    parser.add_argument("--torch", metavar="PYTHON", help="of an environment with diffusers and PyTorch")
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--work", nargs=2, metavar=("PROGRAM", "DIRECTORY"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work is not None:
        work(*arguments.work, **SIZES[arguments.size])
        return
    pythons = {"tpusd": sys.executable, "flax 2022": arguments.flax, "torch": arguments.torch}
    with tempfile.TemporaryDirectory() as directory:
        maker = arguments.flax or arguments.torch
        if maker is None:
            parser.error("--flax or --torch: needed, for one of them makes the checkpoint")
        start(maker, "checkpoint", directory, arguments.size).wait()
        workers = {
            name: start(python, name.split()[0], directory, arguments.size)
            for name, python in pythons.items()
            if python is not None
        }
        for name, worker in workers.items():
            print(f"{name}: compiled and warm after {ask(worker):.1f} s", flush=True)
        times = {name: [] for name in workers}
        for _ in range(arguments.rounds):
            for name, worker in workers.items():
                times[name].append(ask(worker))
        for worker in workers.values():
            worker.stdin.close()
            worker.wait()
    for name, values in times.items():
        ratio = statistics.median(b / a for a, b in zip(times["tpusd"], values, strict=True))
        told = f"; {ratio:.2f} times tpusd's, median of pairs" if name != "tpusd" else ""
        print(f"{name:10} {' '.join(f'{value:.3f}' for value in values)} s a batch of {BATCH}{told}")


def start(python: str, program: str, directory: str, size: str) -> subprocess.Popen:
    command = [python, "-m", "benchmarks.cpu_side_by_side", "--work", program, directory, "--size", size]
    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=None if os.environ.get("VERBOSE") else subprocess.DEVNULL,
        text=True,
        cwd=Path(__file__).parents[1],
        env={**os.environ, "JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": "", "USE_FLAX": "1"},
    )


def ask(worker: subprocess.Popen) -> float:
    worker.stdin.write("go\n")
    worker.stdin.flush()
    line = worker.stdout.readline()
    while line and not line.startswith("seconds "):
        line = worker.stdout.readline()
    if not line:
        sys.exit(f"{worker.args}: ended; VERBOSE=1 shows why")
    return float(line.split()[1])


def work(program: str, directory: str, *, pixels: int, steps: int, unet: tuple, vae: tuple) -> None:
    """One process: the checkpoint, or a program that makes a batch for every line on stdin."""
    path = Path(directory) / "checkpoint"
    if program == "checkpoint":
        make_checkpoint(path, unet, vae, pixels)
        return
    began = time.monotonic()
    make = {"tpusd": ours, "flax": flax, "torch": pytorch}[program](path, pixels, steps)
    make()
    for i, _ in enumerate(iter(sys.stdin.readline, "")):
        turn = began if i == 0 else time.monotonic()
        if i:
            make()
        print(f"seconds {time.monotonic() - turn}", flush=True)


def make_checkpoint(path: Path, unet: tuple, vae: tuple, pixels: int) -> None:
    """Random weights of the SD 1.x layout; sets the widths of the 2022 recorder and lets it save both formats."""
    import diffusers
    import torch
    import transformers

    from tools.record_2022 import save_tokenizer

    torch.manual_seed(0)
    levels = len(unet)
    networks = {
        "unet": diffusers.UNet2DConditionModel(
            sample_size=pixels // 8, block_out_channels=unet, layers_per_block=1, cross_attention_dim=32,
            attention_head_dim=8, norm_num_groups=32,
            down_block_types=("CrossAttnDownBlock2D",) * (levels - 1) + ("DownBlock2D",),
            up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * (levels - 1),
        ),
        "vae": diffusers.AutoencoderKL(
            block_out_channels=vae, layers_per_block=1, norm_num_groups=4, sample_size=pixels,
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        ),
        "text_encoder": transformers.CLIPTextModel(
            transformers.CLIPTextConfig(
                vocab_size=514, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
                bos_token_id=512, eos_token_id=513, pad_token_id=513,
            )
        ),
        "scheduler": diffusers.PNDMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1,
            set_alpha_to_one=False,
        ),
    }  # fmt: skip
    path.mkdir(parents=True)
    save_tokenizer(path / "tokenizer")
    for name, network in networks.items():
        network.save_pretrained(path / name)
    libraries = {"text_encoder": "transformers"}
    index = {"_class_name": "StableDiffusionPipeline", "tokenizer": ["transformers", "CLIPTokenizer"]}
    index |= {name: [libraries.get(name, "diffusers"), type(network).__name__] for name, network in networks.items()}
    index |= {"safety_checker": [None, None], "feature_extractor": [None, None], "requires_safety_checker": False}
    (path / "model_index.json").write_text(json.dumps(index, indent=2))


def ours(path: Path, pixels: int, steps: int):
    import jax

    from tpusd.config.compose import compose_jobs
    from tpusd.config.schema import make_config
    from tpusd.plan.specs import make_specs
    from tpusd.runs.executors.local import load_pipeline
    from tpusd.runs.prepare import prepare_run

    fields = ["model=local", f"model.path={path}", "precision=fp32", f"height={pixels}", f"width={pixels}"]
    fields += [f"sampler.num_inference_steps={steps}", f"num_images_per_prompt={BATCH}"]
    fields += [f"batch_size_per_device={BATCH}", f'prompts.rows=[{{prompt: "{PROMPT}"}}]']
    (job,) = compose_jobs(fields)
    prepared = prepare_run(make_config(job.values))
    pipeline = load_pipeline(prepared, jax.local_devices()[:1])
    specs = list(make_specs(prepared.config))
    tables = [prepared.table(spec) for spec in specs]
    return lambda: pipeline.generate(specs, tables)


def flax(path: Path, pixels: int, steps: int):
    import jax
    import numpy as np
    from flax.jax_utils import replicate

    devices = jax.local_devices()  # before the recorder asks for eight
    from tools.record_2022 import load_flax

    assert len(devices) == 1
    pipeline, params = load_flax(path)
    params = replicate(params, devices)
    ids = pipeline.prepare_inputs([PROMPT] * BATCH).reshape(1, BATCH, -1)
    keys = jax.random.split(jax.random.PRNGKey(0), 1)

    def make():
        size = dict(height=pixels, width=pixels)
        made = pipeline(ids, params, keys, steps + 1, guidance_scale=GUIDANCE, jit=True, **size)
        np.asarray(made.images)

    return make


def pytorch(path: Path, pixels: int, steps: int):
    import torch
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(str(path), torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return lambda: pipeline(
        [PROMPT] * BATCH, num_inference_steps=steps, height=pixels, width=pixels, guidance_scale=GUIDANCE
    )


if __name__ == "__main__":
    main()
