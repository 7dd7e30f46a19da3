"""`python -m tpusd.run`: the command line -> new runs, a sweep, or one of them continued.

Everything that can be wrong is checked before anything heavy is imported.
"""

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tpusd.config.paths import expanded_path
from tpusd.errors import UserError, show
from tpusd.process.exit import exit_status
from tpusd.records.sweep import is_sweep

HELP = {"-h", "--help", "--version"}


def main(argv: Sequence[str] | None = None) -> int:
    """The command. argv: without the program's name. Returns the exit status."""
    started = time.monotonic()
    with exit_status() as status:
        argv = list(sys.argv[1:] if argv is None else argv)
        if HELP & set(argv):
            argv = [argument for argument in argv if not argument.startswith("resume=")]
        directories = [argument for argument in argv if argument.startswith("resume=")]
        if len(directories) > 1:
            raise UserError(f"{show(directories[1])}: resume= takes one directory; remove the second")
        if directories:
            if directories[0] == "resume=":
                raise UserError("resume=: is empty; give the directory of a run or a sweep")
            path = Path(expanded_path(directories[0].removeprefix("resume="), "resume"))
            rest = [argument for argument in argv if argument not in directories]
            if is_sweep(path):
                from tpusd.runs.sweep import resume_sweep

                status[0] = resume_sweep(path, rest)
            else:
                from tpusd.runs.resume import resume_run

                resume_run(path, rest, started=started)
        elif {"-m", "--multirun"} & set(argv):
            from tpusd.runs.sweep import start_sweep

            status[0] = start_sweep(argv)
        else:
            _run(argv, started)
    return status[0]


def _run(argv: Sequence[str], started: float) -> None:
    from tpusd.config.compose import compose_jobs

    for job in compose_jobs(argv) or ():
        from tpusd.config.schema import make_config
        from tpusd.runs.dry_run import RunToShow, show_plan
        from tpusd.runs.prepare import prepare_run
        from tpusd.runs.start import start_run
        from tpusd.runs.stripes import stripe_of

        config = make_config(job.values)
        if config.dry_run:
            show_plan([RunToShow(name="", config=config, stripe=stripe_of(config))], prepare_run)
        else:
            start_run(config, hydra_files=job.hydra_files(), started=started)


if __name__ == "__main__":
    sys.exit(main())
