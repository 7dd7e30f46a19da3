"""What the runner costs over the bare compiled programs: files, manifest, recipes, page, prompts.

    python -m benchmarks.runner_overhead [--images 16] [--rounds 3]

Makes the same images alternately through `tpusd.run.run`, into a run directory, and by calling the same loaded pipeline
batch after batch and dropping the pixels. Prints each time, the ratio of the medians, and the process's peak memory.
"""

import argparse
import contextlib
import resource
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import jax

from tpusd.compose import compose_jobs
from tpusd.config import make_config
from tpusd.execute import load_pipeline
from tpusd.plan import make_plan
from tpusd.prepare import prepare_run
from tpusd.run import run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("overrides", nargs="*", help="fields of tpusd.run")
    arguments = parser.parse_args()
    rows = "[" + ", ".join(f'{{prompt: "portrait {i}"}}' for i in range(arguments.images)) + "]"
    (job,) = compose_jobs([f"prompts.rows={rows}", "batch_size_per_device=4", *arguments.overrides])
    config = make_config(job.values)
    prepared = prepare_run(config)
    pipeline = load_pipeline(prepared, jax.local_devices())
    bare(prepared, pipeline)  # compiles, and waits for the weights
    times = {"run": [], "bare": []}
    with tempfile.TemporaryDirectory() as directory:
        for round_ in range(arguments.rounds):
            start = time.monotonic()
            with contextlib.redirect_stdout(sys.stderr):
                run(replace(config, output=str(Path(directory) / str(round_))), load=lambda *_, **__: pipeline)
            times["run"].append(time.monotonic() - start)
            start = time.monotonic()
            bare(prepared, pipeline)
            times["bare"].append(time.monotonic() - start)
    medians = {name: statistics.median(values) for name, values in times.items()}
    for name, values in times.items():
        print(f"{name:5} {' '.join(f'{value:.2f}' for value in values)} s; median {medians[name]:.2f} s")
    print(f"overhead {medians['run'] / medians['bare'] - 1:+.1%} for {arguments.images} images")
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")


def bare(prepared, pipeline) -> None:
    plan = make_plan(
        prepared.config, prepared.rows, len(jax.local_devices()), height=prepared.height, width=prepared.width
    )
    for batch in plan.batches:
        pipeline.generate(batch.specs, [prepared.table(spec.sampler) for spec in batch.specs])


if __name__ == "__main__":
    main()
