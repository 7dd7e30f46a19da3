"""`python -m tpusd.run resume=DIR [fields]`: goes on with a run, or makes it grow, which is the same.

What is whole is kept, what is missing is made, and the directory ends as if nothing had happened. A run that lacks
nothing is told so without opening its model.
"""

import contextlib
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tpusd.config.schema import RunConfig, config_values
from tpusd.errors import UserError
from tpusd.plan.specs import planned
from tpusd.process.signals import Interrupted
from tpusd.prompts.rows import read_rows
from tpusd.records.saved import FREE, grown, override, read_saved
from tpusd.runs.execute import execute, load_pipeline, logged, now
from tpusd.runs.prepare import PreparedRun, prepare_run


def resume(
    path: Path,
    argv: Sequence[str] = (),
    *,
    prepare: Callable[[RunConfig], PreparedRun] = prepare_run,
    load: Callable[..., Any] = load_pipeline,
    started: float | None = None,
) -> Path:
    """Completes the run at `path`. argv: fields set anew, which may only make it grow. started: see `execute`.

    Raises UserError.
    """
    from tpusd.records.directory import RunDir, read_run
    from tpusd.records.layout import CONTACT_SHEET, METADATA, PAGE
    from tpusd.records.repair import heal
    from tpusd.storage.local import file_size

    read_saved(path)  # what is no run directory is refused before anything in it is touched
    run_dir = RunDir.open(path)
    with closing(run_dir), logged(run_dir):
        saved = read_saved(path)  # again: until the lock was ours, another process could write it
        config, rows = grown(saved, override(saved, argv))
        healed = heal(run_dir, saved, read_rows(saved.prompts))
        for note in healed.notes:
            tell(run_dir, note)
        missing = sum(key not in healed.done for key in planned(config, len(rows)))
        if (
            not missing
            and read_run(path).get("state") == "finished"
            and all(file_size(path / name) for name in (CONTACT_SHEET, PAGE, METADATA))
        ):
            print(f"{path}: complete, {len(healed.done)} images")
            return path
        prepared = prepare(config)
        for warning in prepared.warnings:
            tell(run_dir, warning)
        lasting = replace(config, **{name: getattr(saved, name) for name in FREE})
        if config_values(lasting) != config_values(saved):
            run_dir.write_config(config_values(lasting))
        run_dir.log(f"{now()} goes on: {len(healed.done)} images are there and {missing} are missing")
        with advising(run_dir):
            execute(prepared, run_dir, load, done=healed.done, started=started)
    return path


def tell(run_dir: Any, line: str) -> None:
    """A line for the user, now and in run.log."""
    print(f"tpusd: {line}", file=sys.stderr)
    run_dir.log(f"{now()} {line}")


@contextlib.contextmanager
def advising(run_dir: Any) -> Iterator[None]:
    """Whoever stops the block tells how to go on, where there is something to go on with."""
    advice = f"go on with: python -m tpusd.run resume={shlex.quote(str(run_dir.path))}"
    try:
        yield
    except UserError as error:
        if holds_images(run_dir):
            raise UserError(f"{error}; then {advice}") from None
        raise
    except Interrupted as error:
        error.advice = f"; every image in the manifest is whole; {advice}"
        raise


def holds_images(run_dir: Any) -> bool:
    return next(run_dir.records(), None) is not None


@contextlib.contextmanager
def closing(run_dir: Any) -> Iterator[None]:
    """Closes a run directory that may be gone by then."""
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            run_dir.close()
