"""`python -m tpusd.verify [fields of tpusd.run]`: the same images by PyTorch diffusers, and where they differ."""

import json
import sys
from collections.abc import Sequence

from tpusd.config.paths import expanded_path
from tpusd.errors import UserError, show
from tpusd.process.exit import exit_status
from tpusd.process.report import report, say

EXIT_DIFFERENT = 1
HELP = """\
tpusd verify: a run's images made a second time by PyTorch diffusers, and compared place by place.

    python -m tpusd.verify
    python -m tpusd.verify model=local model.path=DIR sampler=euler sampler.num_inference_steps=10
    python -m tpusd.verify model=local model.path=FILE.safetensors reference.path=DIR

Takes the fields of tpusd.run, and
  reference.path=PATH  another checkpoint for diffusers, a directory or one file: is a converted one the same?
  limit=N              how many prompts are compared, an image of each (default: 2)
  --json               the report as JSON
Both programs compute in float32, from the same noise; diffusers on the CPU, which takes minutes for a large model.
Needs PyTorch and diffusers: pip install 'tpusd[parity]'. Nothing is written.
Exit status: 0 all is the same within rounding, 1 something differs, 2 it could not be tried."""


def main(argv: Sequence[str] | None = None) -> int:
    """The command. argv: without the program's name. Returns the exit status."""
    argv = list(sys.argv[1:] if argv is None else argv)
    with exit_status() as status:
        if "--help" in argv or "-h" in argv:
            print(HELP)
        elif not _verify(argv):
            status[0] = EXIT_DIFFERENT
    return status[0]


def _verify(argv: Sequence[str]) -> bool:
    """Whether nothing differs."""
    own = [word for word in argv if word.startswith("reference.")]
    rest = [word for word in argv if word not in own and word != "--json"]
    path = _reference(own)
    if flag := next((word for word in rest if word in ("-m", "--multirun") or word.startswith("resume=")), None):
        raise UserError(f"{show(flag)}: verify takes one run; leave it out")
    if not any(word.startswith("precision=") for word in rest):
        rest = ["precision=fp32", *rest]
    from tpusd.config.compose import compose_jobs

    jobs = compose_jobs(rest)
    if jobs is None:
        return True
    from tpusd.config.schema import make_config
    from tpusd.verify.covered import check_covered, idle_fields

    config = make_config(jobs[0].values)
    check_covered(config)
    if idle := idle_fields(config):
        report(f"{', '.join(idle)}: no effect here: verify makes the first image of a prompt, and writes no file")
    from tpusd.verify.report import text_of
    from tpusd.verify.verify import verify

    found = verify(config, path)
    if "--json" in argv:
        print(json.dumps(found.to_json(), indent=2))
    else:
        for line in text_of(found):
            say(line)
    return found.first is None


def _reference(words: Sequence[str]) -> str | None:
    """The value of reference.path."""
    for word in words:
        if not word.startswith("reference.path="):
            raise UserError(f"{show(word)}: no such field; verify has reference.path=PATH")
    if len(words) > 1:
        raise UserError(f"{show(words[1])}: given twice; leave one of the two out")
    if not words:
        return None
    value = words[0].removeprefix("reference.path=")
    if not value.strip():
        raise UserError("reference.path='': must name a directory or a .safetensors file")
    return expanded_path(value, "reference.path")
