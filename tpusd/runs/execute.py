"""A prepared run, made: the part that needs devices, from the claimed directory to its summary line.

The pipeline is given to it, so that many runs can share one. Knows nothing of configs as text and of how a directory is
claimed; jax is loaded inside functions.
"""

import contextlib
import dataclasses
import functools
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import datetime
from typing import Any

from tpusd.config.schema import RunConfig, config_values
from tpusd.errors import UserError, show
from tpusd.loggers.registry import log_run
from tpusd.plan.batches import Plan, make_plan
from tpusd.plan.specs import ImageSpec
from tpusd.process import signals
from tpusd.prompts.vocabulary import next_step
from tpusd.records.manifest import describe_image
from tpusd.runs.prepare import PreparedRun


def execute(
    prepared: PreparedRun,
    run_dir: Any,
    load: Callable[..., Any],
    *,
    done: Set[tuple[int, int]] = frozenset(),
    started: float | None = None,
) -> None:
    """Makes the run's images into its open directory, then its page and contact sheet, and prints its summary line.

    load(prepared, devices) -> pipeline, called once the directory says what is about to happen: `load_pipeline`, or
    what hands out one that several runs share. done: (row, copy) of images that are whole already. started: when the
    command began, by time.monotonic(), if this is the first that it does.
    """
    import jax

    seconds: dict[str, float] = {} if started is None else {"import": time.monotonic() - started}
    from tpusd.gallery.run import write_results
    from tpusd.process.progress import Progress
    from tpusd.records.directory import read_run
    from tpusd.records.layout import MEND
    from tpusd.records.provenance import describe_checkpoint, hash_checkpoint
    from tpusd.records.run_json import RunRecord
    from tpusd.storage.local import told_as_user_error

    devices = jax.local_devices()
    plan = make_plan(
        prepared.config, prepared.rows, len(devices), height=prepared.height, width=prepared.width, done=done
    )
    record = RunRecord(run_dir, read_run(run_dir.path), started=now(), num_images=plan.num_images)
    record.note(checkpoint=describe_checkpoint(prepared.checkpoint))
    run_dir.log(
        f"{now()} {plan.num_to_make} images in {plan.num_batches} batches on {len(devices)} "
        f"{devices[0].device_kind} device(s)"
    )
    progress = Progress(plan.num_images, plan.num_done)
    with ThreadPoolExecutor(1, thread_name_prefix="hash") as background, contextlib.closing(progress):
        hashing = background.submit(hash_checkpoint, prepared.checkpoint)  # reads every weight file: beside all else
        loading = time.monotonic()
        pipeline = load(prepared, devices)
        signals.renew()  # whoever set up JAX over several hosts took SIGTERM for himself
        generating = time.monotonic()
        making = Making(prepared, run_dir, record, devices, hashing, pipeline)
        before = dict(pipeline.seconds)  # what runs that shared it have spent

        def spent() -> dict[str, float]:
            return {name: value - before[name] for name, value in pipeline.seconds.items()}

        def made() -> Any:
            seconds.setdefault("first_batch", time.monotonic() - generating - sum(spent().values()))
            return making.note()

        run_images(
            plan,
            run_dir,
            pipeline,
            tables=lambda spec: prepared.table(spec.sampler),
            progress=progress,
            describe=functools.partial(describe_image, prepared.config, prepared.tokens),
            note=made,
        )
        seconds |= {"load": generating - loading, "generate": time.monotonic() - generating} | spent()
    record.finish(plan.num_to_make, seconds)
    with told_as_user_error(run_dir.path, MEND):
        write_results(run_dir.path, record.facts)
    record.write()
    log_run(run_dir.path, prepared.config, record.facts)
    summary = f"{run_dir.path}: {summary_line(plan.num_to_make, seconds)}"
    run_dir.log(f"{now()} {summary}")
    print(summary)
    if (hint := next_step(prepared.config.model)) is not None:
        print(f"tpusd: {hint}", file=sys.stderr)


def summary_line(num_images: int, seconds: Mapping[str, float]) -> str:
    """What a run took: all of it, start-up by its parts, its first batch, and the rate without start-up."""
    start_up = {name: seconds[name] for name in ("import", "compile", "weights") if name in seconds}
    after = seconds["generate"] - sum(start_up.get(name, 0.0) for name in ("compile", "weights"))
    whole = start_up.get("import", 0.0) + seconds["generate"]
    parts = [f"{num_images} image{'s' if num_images != 1 else ''} in {whole:.1f} s"]
    if start_up:
        told = ", ".join(f"{name} {value:.1f}" for name, value in start_up.items())
        parts.append(f"start-up {sum(start_up.values()):.1f} s ({told})")
    if "first_batch" in seconds:
        parts += [f"first batch {seconds['first_batch']:.1f} s", f"{num_images / max(after, 1e-9):.2f} images/s"]
    return ", ".join(parts)


class Making:
    """Ties images to what made them, which the directory says before it says that the first of them exists."""

    def __init__(
        self, prepared: PreparedRun, run_dir: Any, record: Any, devices: Sequence[Any], hashing: Future, pipeline: Any
    ):
        self._prepared, self._config, self._run_dir, self._record = prepared, prepared.config, run_dir, record
        self._devices, self._hashing, self._pipeline = devices, hashing, pipeline
        self._environment: dict[str, Any] | None = None

    def note(self) -> Any:
        """Called after a batch is made and before it is written."""
        from tpusd.records.provenance import describe_checkpoint, describe_environment, weights_digest
        from tpusd.runs.writer import MadeBy

        config, checkpoint = self._config, self._prepared.checkpoint
        if self._environment is None:
            sha256 = self._hashing.result()
            digest = weights_digest(sha256)
            for warning in check_weights(config, digest):
                print(f"tpusd: {warning}", file=sys.stderr)
                self._run_dir.log(f"{now()} {warning}")
            if config.model.sha256 is None:
                self._config = dataclasses.replace(config, model=dataclasses.replace(config.model, sha256=digest))
                self._run_dir.write_config(config_values(self._config))
            self._record.note(checkpoint=describe_checkpoint(checkpoint, sha256))
            self._environment = describe_environment(self._devices, config.batch_size_per_device, digest)
        self._record.note_environment(self._environment, self._pipeline.fingerprints)
        return MadeBy(config=self._config, fields={"environment": self._record.environment_id})


def check_weights(config: RunConfig, digest: str) -> tuple[str, ...]:
    """Raises UserError where the config asks for other weights than these, or returns that as a warning."""
    wanted = config.model.sha256
    if wanted is None or wanted == digest:
        return ()
    differs = f"model={show(config.model.name)}: its files have changed: sha256 {digest[:12]}..., not {wanted[:12]}..."
    if config.on_changed_weights == "error":
        raise UserError(
            f"{differs}; bring the old files back, or set on_changed_weights=warn to go on with these, which make "
            "other images"
        )
    return (differs,)


def load_pipeline(prepared: PreparedRun, devices: Sequence[Any], *, weights_of: Any = None) -> Any:
    """weights_of: a pipeline whose weights this one shares, of the same checkpoint, precision and devices."""
    from tpusd.engine.compile_cache import enable_compile_cache
    from tpusd.engine.pipeline import Pipeline

    enable_compile_cache()
    return Pipeline.load(
        prepared.checkpoint,
        prepared.config.precision,
        height=prepared.height,
        width=prepared.width,
        batch_size_per_device=prepared.config.batch_size_per_device,
        devices=devices,
        weights_of=weights_of,
    )


def run_images(
    plan: Plan,
    run_dir: Any,
    pipeline: Any,
    *,
    tables: Callable[[ImageSpec], Any],
    describe: Callable[[ImageSpec], Mapping[str, Any]],
    note: Callable[[], Any],
    progress: Any,
) -> None:
    """Makes every batch of the plan: the device works on the next while a pool encodes and writes the last.

    note: called when a batch is made and before it is written; returns a MadeBy.
    """
    from tpusd.runs.writer import ImageWriter

    with ImageWriter(run_dir, describe, max_pending=2 * plan.batch_size) as writer:
        for batch in plan.batches:
            signals.check()
            progress.start_batch(len(batch.specs))
            images = pipeline.generate(list(batch.specs), [tables(spec) for spec in batch.specs], on_step=progress.step)
            writer.submit(batch.specs, images, made_by=note())
            progress.end_batch()


@contextlib.contextmanager
def logged(run_dir: Any) -> Iterator[None]:
    """run.log gets the end of the block, and the whole traceback where that is an error of ours."""
    try:
        yield
    except UserError as error:
        run_dir.log(f"{now()} stopped: {error}")
        raise
    except BaseException as error:
        told = traceback.format_exc() if not isinstance(error, KeyboardInterrupt) else ""
        run_dir.log(f"{now()} stopped: {type(error).__name__} {error}\n{told}".rstrip())
        raise


def now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")
