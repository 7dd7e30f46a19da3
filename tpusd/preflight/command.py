"""`python -m tpusd.preflight model=sdxl topology=v5e:2x4 ...`: what a run would need of a TPU slice, without one."""

import json
import sys
from collections.abc import Sequence

from tpusd.config.paths import expanded_path
from tpusd.config.schema import make_config
from tpusd.errors import UserError, show
from tpusd.preflight.topology import check_topology, open_topology, prepare_compiler
from tpusd.process.exit import exit_status
from tpusd.process.report import report

HELP = """\
tpusd preflight: what a run would need of a TPU slice, found out without one.

    python -m tpusd.preflight model=sd15 topology=v5e:2x4 batch_size_per_device=8
    python -m tpusd.preflight model=sdxl sampler=euler topology=v6e:2x4 --json

Takes the fields of tpusd.run, and
  topology=NAME     the slice: v2:2x2x1, v3:2x2x1, v4:2x2x1, v5e:2x4, v5p:2x2x1, v6e:2x4, ...
  --json            the report as JSON
  --largest-batch   also look for the largest batch_size_per_device that fits; compiles several times
  --hlo=DIR         keep the compiled programs' text there
Times are the compiler's estimates, not measurements. Compiling takes minutes."""


def main(argv: Sequence[str] | None = None) -> int:
    """The command. argv: without the program's name. Returns the exit status: 0 also where a run does not fit."""
    argv = list(sys.argv[1:] if argv is None else argv)
    with exit_status() as status:
        if not argv or "--help" in argv or "-h" in argv:
            print(HELP)
        else:
            _preflight(argv)
    return status[0]


def _preflight(argv: Sequence[str]) -> None:
    as_json, largest = (flag in argv for flag in ("--json", "--largest-batch"))
    topology = _value(argv, "topology")
    hlo = _value(argv, "--hlo")
    if hlo is not None:
        hlo = expanded_path(hlo, "--hlo")
    own = ("topology=", "--hlo=", "--json", "--largest-batch")
    rest = [argument for argument in argv if not argument.startswith(own)]
    if topology is None:
        raise UserError("topology: missing; add the slice, as in topology=v5e:2x4")
    check_topology(topology)
    from tpusd.config.compose import compose_jobs
    from tpusd.preflight.report import preflight
    from tpusd.preflight.text import report_text

    jobs = compose_jobs(rest)
    if jobs is None:
        return
    configs = [make_config(job.values) for job in jobs]
    prepare_compiler()
    on = open_topology(topology)
    reports = [preflight(config, on, largest=largest, hlo=hlo, tell=report) for config in configs]
    if as_json:
        values = [each.to_json() for each in reports]
        print(json.dumps(values[0] if len(values) == 1 else values, indent=2))
    else:
        print("\n\n".join(map(report_text, reports)))


def _value(argv: Sequence[str], name: str) -> str | None:
    values = [argument.split("=", 1)[1] for argument in argv if argument.startswith(f"{name}=")]
    if len(values) > 1:
        raise UserError(f"{name}={show(values[1])}: given twice")
    return values[0] if values else None
