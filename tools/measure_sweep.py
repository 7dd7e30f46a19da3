"""How much longer a sweep takes than its images on bare devices: `python tools/measure_sweep.py [field=value ...]`.

Runs a 2 x 3 x 2 sweep of the embedded model in this process, and then the very same batches again with nothing beside
them: no directories, files, pages or progress. The start-up is what lies before the first denoising step: imports,
checks, reading weights, compiling.
"""

import time

BEGAN = time.monotonic()

import sys  # noqa: E402
import tempfile  # noqa: E402
from pathlib import Path  # noqa: E402

SWEEP = ["sampler=ddim,dpmpp_2m", "guidance_scale=3,7.5,12", "seed=0,1", "sampler.num_inference_steps=20"]


def main(argv: list[str]) -> int:
    from tpusd.engine.pipeline import Pipeline
    from tpusd.run import main as run_main

    batches, steps = [], []
    generate = Pipeline.generate

    def watched(self, specs, tables, *, on_step=None):
        def step(done, total):
            steps.append((time.monotonic(), done, total))
            on_step(done, total)

        images = generate(self, specs, tables, on_step=step)
        batches.append((self, specs, tables))
        return images

    Pipeline.generate = watched
    with tempfile.TemporaryDirectory() as directory:
        status = run_main(["-m", *SWEEP, *argv, f"output={Path(directory) / 'sweep'}"])
    ended = time.monotonic()
    Pipeline.generate = generate
    if status:
        return status
    pipeline = batches[0][0]
    pipeline.generate(*batches[0][1:])  # warm again
    began = time.monotonic()
    for _, specs, tables in batches:
        pipeline.generate(specs, tables)
    bare = time.monotonic() - began
    # The first sign of life comes after row 1 of the first batch, and the last after all of its rows.
    first, last = steps[0], next(step for step in steps if step[1] == step[2])
    row = (last[0] - first[0]) / (last[1] - first[1])
    startup = first[0] - row * first[1] - BEGAN
    total = ended - BEGAN
    num_images = sum(len(specs) for _, specs, _ in batches)
    print(f"{num_images} images in {len(batches)} batches: {total:.1f} s, of which start-up {startup:.1f} s")
    print(f"bare devices: {bare:.1f} s; (total - start-up) / bare = {(total - startup) / bare:.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
