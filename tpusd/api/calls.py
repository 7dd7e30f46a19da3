"""Makes runs and sweeps from Python. The same code as the command line's, with the weights kept between calls."""

import contextlib
from collections.abc import Iterator, Sequence
from os import PathLike
from typing import TYPE_CHECKING

from tpusd.api.results import Run, Sweep, open_run, open_sweep
from tpusd.api.words import command_words, swept_words
from tpusd.config.paths import path_argument
from tpusd.errors import UserError, show, show_path

if TYPE_CHECKING:
    import jax

    from tpusd.engine.pipeline import Pipeline
    from tpusd.plan.batches import ProgramKey
    from tpusd.runs.prepare import PreparedRun


def generate(*words: str, **fields: object) -> Run:
    """Makes a run, as `python -m tpusd.run` does, and returns it. Raises UserError.

        tpusd.generate("prompts=portraits", "seed=0")
        tpusd.generate(prompts="portraits", seed=0, sampler__num_inference_steps=20)

    The weights and the compiled programs stay on the devices for the next call; see `unload`.

    words: of the command line.
    fields: fields and groups by name; two underscores stand for a dot.
    """
    from tpusd.config.compose import compose_jobs
    from tpusd.config.schema import make_config
    from tpusd.runs.start import start_run

    lines = command_words(words, fields)
    _refuse_commands(lines)
    jobs = compose_jobs(lines)
    assert jobs is not None, lines
    config = make_config(jobs[0].values)
    if config.dry_run:
        raise UserError("dry_run=true: tpusd.generate makes images; for a plan: python -m tpusd.run dry_run=true ...")
    with _interruptible("tpusd.resume(DIRECTORY)"):
        return open_run(start_run(config, hydra_files=jobs[0].hydra_files(), load=_kept))


def sweep(*words: str, **fields: object) -> Sweep:
    """Makes a sweep, as `python -m tpusd.run -m` does, and returns it. Raises UserError.

        tpusd.sweep(prompts="portraits", guidance_scale=[3, 7.5, 12], seed=[0, 1])

    A run that failed does not stop the others; see `Sweep.failed`.

    words: of the command line, such as "seed=0,1".
    fields: fields and groups by name; a list is one value for each run.
    """
    from tpusd.config.compose import compose_jobs, sweep_words
    from tpusd.config.words import with_whole_paths
    from tpusd.runs.requests import plan_sweep
    from tpusd.runs.sweep import claim_sweep, make_sweep, prepare_with_shared_checkpoints

    lines = with_whole_paths(swept_words(words, fields))
    _refuse_commands(lines)
    jobs = compose_jobs(lines)
    assert jobs is not None, lines
    planned, requests = plan_sweep(jobs, sweep_words(lines))
    if requests[0].config.dry_run:
        raise UserError("dry_run=true: tpusd.sweep makes images; for a plan: python -m tpusd.run -m dry_run=true ...")
    path, made = claim_sweep(jobs[0].values["output"], planned)
    with _interruptible(f"tpusd.resume({str(path)!r})"):
        make_sweep(path, planned, requests, prepare=prepare_with_shared_checkpoints(), load=_kept, made=made)
    return open_sweep(path)


def resume(directory: str | PathLike[str], *words: str, **fields: object) -> "Run | Sweep":
    """Completes a run or a sweep, or extends it, as `resume=DIR` does, and returns it. Raises UserError.

    directory: of the run or the sweep.
    words, fields: what to extend it by, such as num_images_per_prompt=4.
    """
    from tpusd.records.sweep import is_sweep
    from tpusd.runs.resume import resume_run
    from tpusd.runs.sweep import resume_sweep

    path = path_argument(directory)
    if is_sweep(path):
        with _interruptible(f"tpusd.resume({str(path)!r})"):
            resume_sweep(path, swept_words(words, fields), load=_kept)
        return open_sweep(path)
    with _interruptible(f"tpusd.resume({str(path)!r})"):
        resume_run(path, command_words(words, fields), load=_kept)
    return open_run(path)


def unload() -> None:
    """Frees the devices' memory: forgets the weights and the programs that the last call left there."""
    _kept.clear()


class _KeptPipelines:
    """A LoadPipeline that keeps the pipelines of one set of weights, for as long as their files stay the same."""

    def __init__(self) -> None:
        self._files: tuple[object, ...] = ()
        self._pipelines: dict[ProgramKey, Pipeline] = {}

    def __call__(
        self, prepared: "PreparedRun", devices: "Sequence[jax.Device]", *, weights_of: "Pipeline | None" = None
    ) -> "Pipeline":
        from tpusd.plan.batches import program_key
        from tpusd.runs.executors.local import load_pipeline

        key = program_key(prepared.config)
        files = (key.weights, tuple(devices), *_state_of_files(prepared))
        if files != self._files:
            self._pipelines.clear()  # first, so that the devices do not have to hold two checkpoints
            self._files = files
        if key not in self._pipelines:
            shared = weights_of or next(iter(self._pipelines.values()), None)
            self._pipelines[key] = load_pipeline(prepared, devices, weights_of=shared)
        return self._pipelines[key]

    def clear(self) -> None:
        self._pipelines.clear()
        self._files = ()


_kept = _KeptPipelines()


def _state_of_files(prepared: "PreparedRun") -> Iterator[tuple[str, int, int]]:
    """What changes where a file of the checkpoint does: (path, bytes, time of the last change)."""
    for path in prepared.checkpoint.identity.paths.values():
        try:
            status = path.stat()
        except OSError as error:
            raise UserError(f"{show_path(path)}: cannot be read: {error.strerror}") from None
        yield str(path), status.st_size, status.st_mtime_ns


@contextlib.contextmanager
def _interruptible(how: str) -> Iterator[None]:
    """Python's own KeyboardInterrupt, with how to continue."""
    try:
        yield
    except KeyboardInterrupt as error:
        error.add_note(f"Every image in the manifest is whole. Continue with {how}")
        raise


def _refuse_commands(lines: Sequence[str]) -> None:
    """Raises UserError for words that ask for another command than to make images."""
    for number, line in enumerate(lines):
        if line.startswith("resume="):
            raise UserError(f"{show(line)}: write tpusd.resume({line.removeprefix('resume=')!r})")
        if line in ("-m", "--multirun") and number:
            raise UserError(f"{line}: write tpusd.sweep(...)")
        if (
            line.startswith("-")
            and line not in ("-m", "--multirun")
            and not line.startswith(("--config-dir=", "--config-name="))
        ):
            raise UserError(f"{show(line)}: is an option of a command; use it with python -m tpusd.run")
