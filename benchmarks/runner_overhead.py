"""What the runner costs over the bare compiled programs: files, manifest, recipes, page, prompts; and how that grows.

    python -m benchmarks.runner_overhead [--images 16] [--rounds 3]
    python -m benchmarks.runner_overhead --images 16 64 256 --prompts 1 16 --devices 1 2

Makes the same images of the embedded model alternately through `tpusd.run.run`, into a run directory, and by calling
the same loaded pipeline batch after batch and dropping the pixels. Prints a table of the medians, the overhead and the
process's peak memory: a row for every combination, each in a process of its own. --prompts: how many prompts the images
are copies of; by default every image has its own. --devices: of a CPU, as many as XLA is told to make of it.
"""

import argparse
import contextlib
import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

HEAD = ("images", "prompts", "devices", "run, s", "bare, s", "overhead", "peak memory, GiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, nargs="+", default=[16])
    parser.add_argument("--prompts", type=int, nargs="+", default=[None])
    parser.add_argument("--devices", type=int, nargs="+", default=[1])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    arguments, overrides = parser.parse_known_args()  # what is left are fields of tpusd.run
    if arguments.work:
        print(json.dumps(measure(arguments.images[0], arguments.prompts[0], arguments.rounds, overrides)))
        return
    print(f"| {' | '.join(HEAD)} |\n|{' --- |' * len(HEAD)}", flush=True)
    for images, prompts, devices in itertools.product(arguments.images, arguments.prompts, arguments.devices):
        prompts = prompts or images
        if images % prompts:
            parser.error(f"--prompts {prompts}: must divide --images {images}")
        command = [
            sys.executable,
            "-m",
            "benchmarks.runner_overhead",
            *overrides,
            "--work",
            "--rounds",
            str(arguments.rounds),
        ]
        command += ["--images", str(images), "--prompts", str(prompts)]
        flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}".strip()
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "XLA_FLAGS": flags})
        if done.returncode:
            sys.exit(done.returncode)  # it has said why
        run, bare, peak = json.loads(done.stdout)
        row = (images, prompts, devices, f"{run:.2f}", f"{bare:.2f}", f"{run / bare - 1:+.1%}", f"{peak:.2f}")
        print(f"| {' | '.join(map(str, row))} |", flush=True)


def measure(images: int, prompts: int, rounds: int, overrides: list[str]) -> tuple[float, float, float]:
    """-> median seconds of a run, and of the bare programs; peak memory in GiB."""
    import jax

    from tpusd.config.compose import compose_jobs
    from tpusd.config.schema import make_config
    from tpusd.runs.executors.local import load_pipeline
    from tpusd.runs.prepare import prepare_run
    from tpusd.runs.start import start_run

    rows = "[" + ", ".join(f'{{prompt: "portrait {i}"}}' for i in range(prompts)) + "]"
    fields = [f"prompts.rows={rows}", f"num_images_per_prompt={images // prompts}", "batch_size_per_device=4"]
    (job,) = compose_jobs([*fields, *overrides])
    config = make_config(job.values)
    prepared = prepare_run(config)
    pipeline = load_pipeline(prepared, jax.local_devices())
    bare(prepared, pipeline)  # compiles, and waits for the weights
    times = {"run": [], "bare": []}
    with tempfile.TemporaryDirectory() as directory:
        for round_ in range(rounds):
            start = time.monotonic()
            with contextlib.redirect_stdout(sys.stderr):
                start_run(replace(config, output=str(Path(directory) / str(round_))), load=lambda *_, **__: pipeline)
            times["run"].append(time.monotonic() - start)
            start = time.monotonic()
            bare(prepared, pipeline)
            times["bare"].append(time.monotonic() - start)
    for name, values in times.items():
        print(f"{name:5} {' '.join(f'{value:.2f}' for value in values)} s", file=sys.stderr)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return statistics.median(times["run"]), statistics.median(times["bare"]), peak


def bare(prepared, pipeline) -> None:
    from tpusd.plan.batches import pack
    from tpusd.plan.specs import make_specs
    from tpusd.runs.prepare import PreparedRun

    images = ((prepared, spec) for spec in make_specs(prepared.config))
    for batch in pack(images, pipeline.batch_size, PreparedRun.num_calls):
        pipeline.generate(batch.specs, [prepared.table(spec) for spec in batch.specs])


if __name__ == "__main__":
    main()
