"""A prepared run, made: the part that needs devices, from the claimed directory to its summary line.

The pipeline is given to it, so that many runs can share one. Knows nothing of configs as text and of how a directory is
claimed; jax is loaded inside functions.
"""

import contextlib
import functools
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

from tpusd.config import RunConfig
from tpusd.embedded import next_step
from tpusd.errors import UserError
from tpusd.plan import ImageSpec, Plan, make_plan
from tpusd.prepare import PreparedRun


def execute(prepared: PreparedRun, run_dir: Any, load: Callable[..., Any]) -> None:
    """Makes the run's images into its claimed directory, then its page and contact sheet, and prints its summary line.

    load(prepared, devices) -> pipeline, called once the directory says what is about to happen: `load_pipeline`, or
    what hands out one that several runs share.
    """
    import jax

    from tpusd.progress import Progress
    from tpusd.provenance import KEY_DERIVATION, describe_checkpoint, describe_devices, versions
    from tpusd.results import write_results
    from tpusd.run_dir import told_as_user_error

    config, checkpoint = prepared.config, prepared.checkpoint
    devices = jax.local_devices()
    plan = make_plan(config, prepared.rows, len(devices), height=prepared.height, width=prepared.width)
    facts = {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "state": "running",
        "num_images": plan.num_images,
        "versions": versions(),
        "key_derivation": KEY_DERIVATION,
        "devices": describe_devices(devices),
        "checkpoint": describe_checkpoint(checkpoint),
    }
    run_dir.write_run(facts)
    run_dir.log(
        f"{now()} {plan.num_to_make} images in {len(plan.batches)} batches on {len(devices)} "
        f"{devices[0].device_kind} device(s)"
    )

    def hash_files() -> None:  # reads every weight file, so it goes on beside the images
        facts["checkpoint"] = describe_checkpoint(checkpoint, with_files=True)
        run_dir.write_run(facts)

    progress = Progress(plan.num_images, plan.num_done)
    with ThreadPoolExecutor(1, thread_name_prefix="hash") as background, contextlib.closing(progress):
        hashed = background.submit(hash_files)
        loading = time.monotonic()
        pipeline = load(prepared, devices)
        generating = time.monotonic()
        run_images(
            plan,
            run_dir,
            pipeline,
            config,
            tables=lambda spec: prepared.table(spec.sampler),
            progress=progress,
            describe=functools.partial(describe_image, config, prepared.tokens),
        )
        seconds = {"load": generating - loading, "generate": time.monotonic() - generating}
        hashed.result()
    facts |= {"state": "finished", "seconds": {name: round(value, 3) for name, value in seconds.items()}}
    with told_as_user_error(run_dir.path, "make room or mend its permissions"):
        write_results(run_dir.path, facts)
    run_dir.write_run(facts)
    rate = plan.num_to_make / max(seconds["generate"], 1e-9)
    summary = (
        f"{run_dir.path}: {plan.num_to_make} image{'s' if plan.num_to_make != 1 else ''} in "
        f"{seconds['generate']:.1f} s ({rate:.2f} images/s)"
    )
    run_dir.log(f"{now()} {summary}")
    print(summary)
    if (hint := next_step(config.model)) is not None:
        print(f"tpusd: {hint}", file=sys.stderr)


def load_pipeline(prepared: PreparedRun, devices: Sequence[Any]) -> Any:
    from tpusd.compile_cache import enable_compile_cache
    from tpusd.pipeline import Pipeline

    enable_compile_cache()
    return Pipeline.load(
        prepared.checkpoint,
        prepared.config.precision,
        height=prepared.height,
        width=prepared.width,
        batch_size_per_device=prepared.config.batch_size_per_device,
        devices=devices,
    )


def run_images(
    plan: Plan,
    run_dir: Any,
    pipeline: Any,
    config: RunConfig,
    *,
    tables: Callable[[ImageSpec], Any],
    describe: Callable[[ImageSpec], Mapping[str, Any]],
    progress: Any,
) -> None:
    """Makes every batch of the plan: the device works on the next while a pool encodes and writes the last."""
    from tpusd.writer import ImageWriter

    largest = max((batch.padded_size for batch in plan.batches), default=1)
    with ImageWriter(run_dir, config, describe, max_pending=2 * largest) as writer:
        for batch in plan.batches:
            progress.start_batch(len(batch.specs))
            images = pipeline.generate(list(batch.specs), [tables(spec) for spec in batch.specs], on_step=progress.step)
            writer.submit(batch.specs, images)
            progress.end_batch()


def describe_image(config: RunConfig, tokens: Mapping[str, tuple[int, bool]], spec: ImageSpec) -> dict[str, Any]:
    """The manifest's own fields of an image, but for `file_name`, `sha256` and `trace`."""
    num_tokens, truncated = tokens[spec.prompt]
    if spec.negative_prompt is not None:
        truncated = truncated or tokens[spec.negative_prompt][1]
    return {
        "row": spec.row,
        "copy": spec.copy,
        "prompt": spec.prompt,
        "negative_prompt": spec.negative_prompt,
        "seed": spec.seed if spec.row_seed is None else spec.row_seed,
        "row_seed": spec.row_seed,
        "height": spec.height,
        "width": spec.width,
        "sampler": spec.sampler.name,
        "num_inference_steps": spec.sampler.num_inference_steps,
        "guidance_scale": spec.guidance_scale,
        "guidance_rescale": spec.guidance_rescale,
        "model": config.model.name,
        "precision": config.precision.name,
        "num_tokens": num_tokens,
        "truncated": truncated,
    }


@contextlib.contextmanager
def logged(run_dir: Any) -> Iterator[None]:
    """run.log gets the end of the block, and the whole traceback where that is an error of ours."""
    try:
        yield
    except UserError as error:
        run_dir.log(f"{now()} stopped: {error}")
        raise
    except BaseException as error:
        run_dir.log(f"{now()} stopped: {type(error).__name__}\n{traceback.format_exc()}")
        raise


def now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")
