"""`python -m tpusd.run`: the command line -> configs -> each prepared, given a run directory, and made.

Everything that can be wrong is checked before anything heavy is imported. Knows nothing of samplers, models or formats.
"""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from tpusd.config.schema import RunConfig, config_values, make_config
from tpusd.errors import UserError, show
from tpusd.process.exit import exit_status
from tpusd.records.sweep import is_sweep
from tpusd.runs.execute import execute, load_pipeline, logged
from tpusd.runs.prepare import PreparedRun, prepare_run
from tpusd.runs.resume import advising, closing, holds_images, resume, tell


def main(argv: Sequence[str] | None = None) -> int:
    """The command. argv: without the program's name. Returns the exit status."""
    started = time.monotonic()
    with exit_status() as status:
        argv = list(sys.argv[1:] if argv is None else argv)
        directories = [argument for argument in argv if argument.startswith("resume=")]
        if directories:
            rest = [argument for argument in argv if argument not in directories]
            if len(directories) > 1:
                raise UserError(f"{show(directories[1])}: one run at a time is gone on with; leave it out")
            path = Path(directories[0].removeprefix("resume="))
            if is_sweep(path):
                from tpusd.runs.sweep import resume_sweep

                status[0] = resume_sweep(path, rest)
            else:
                resume(path, rest, started=started)
        elif {"-m", "--multirun"} & set(argv):
            from tpusd.runs.sweep import sweep

            status[0] = sweep(argv)
        else:
            _run(argv, started)
    return status[0]


def _run(argv: Sequence[str], started: float) -> None:
    from tpusd.config.compose import compose_jobs

    for job in compose_jobs(argv) or ():
        config = make_config(job.values)
        if config.dry_run:
            from tpusd.runs.sweep import show_plan

            show_plan([("", config)])
            continue
        run(
            config,
            hydra_files={
                "overrides.yaml": list(job.overrides),
                "config.yaml": job.values,
                "hydra.yaml": job.hydra_yaml,
            },
            started=started,
        )


def run(
    config: RunConfig,
    *,
    name: str | None = None,
    hydra_files: Mapping[str, Any] | None = None,
    prepare: Callable[[RunConfig], PreparedRun] = prepare_run,
    load: Callable[..., Any] = load_pipeline,
    started: float | None = None,
) -> Path:
    """Makes a whole run; returns its directory. name: in place of its prompts' name. load, started: see `execute`."""
    from tpusd.records.directory import RunDir, check_claim, make_claim, to_yaml

    if name is None:
        name = config.prompts.name if config.prompts.path is None else Path(config.prompts.path).stem
    claim = make_claim(config.output, name, datetime.now().astimezone())
    check_claim(claim)
    prepared = prepare(config)
    run_dir = RunDir.claim(claim)
    with closing(run_dir):
        try:
            with logged(run_dir):
                for warning in prepared.warnings:
                    tell(run_dir, warning)
                for file, values in (hydra_files or {}).items():
                    run_dir.write(f".hydra/{file}", (values if isinstance(values, str) else to_yaml(values)).encode())
                run_dir.write_config(config_values(prepared.config))  # from here on it is a run, and can be resumed
                with advising(run_dir):
                    execute(prepared, run_dir, load, started=started)
        except UserError:
            if not holds_images(run_dir):
                run_dir.discard()  # nothing came of it, so nothing stays of it
            raise
    return run_dir.path


if __name__ == "__main__":
    sys.exit(main())
