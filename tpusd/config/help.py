"""What `python -m tpusd.run --help` prints: commands to copy, choices, and fields with their values and meanings."""

import shutil
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tpusd.config.grammar import hydra_value
from tpusd.config.options import Option, describe, options
from tpusd.config.schema import RunConfig
from tpusd.errors import show

_EXAMPLES = """\
tpusd run: images from a config, into a run directory that explains itself.

    python -m tpusd.run prompt="a red fox" model=sd15
    python -m tpusd.run prompts=portraits seed=0
    python -m tpusd.run sampler=dpmpp_2m sampler.num_inference_steps=25
    python -m tpusd.run prompts=file prompts.path=p.csv prompts.column=caption
    python -m tpusd.run model=local model.path=DIR
    python -m tpusd.run -m sampler=ddim,euler guidance_scale=3,7.5
    python -m tpusd.run -m experiment=samplers
    python -m tpusd.run resume=runs/DIR num_images_per_prompt=8
"""
_OWN = {  # words that are not fields of a config
    "prompt=TEXT": "the prompt, taken as it is; several: 'prompt=[a red fox,an owl]'",
    "resume=DIR": "finishes the run or the sweep in DIR, or extends it with the other words of the command",
}
_FLAGS = {
    "-m": "a sweep: a run for every combination of values that commas separate",
    "--cfg job": "prints the config of this command, and makes nothing",
    "--config-dir=DIR": "a directory with more choices, in folders such as prompts/",
    "--info": "says where the config comes from; --hydra-help lists Hydra's own flags",
    "-sc install=bash": 'prints tab completion for bash, zsh or fish, as in eval "$(tpusd -sc install=bash)"',
}
_LEFT = 36  # characters of the left column
_WIDTHS = (60, 140)  # characters of a line, at least and at most
_VALUE = 40  # characters of a value


def help_text(values: Mapping[str, Any], choices: Mapping[str, Sequence[str]]) -> str:
    """The help, as wide as the terminal.

    values: the composed config of the command (any JSON values).
    choices: by group.
    """
    width = min(max(shutil.get_terminal_size((100, 24)).columns, _WIDTHS[0]), _WIDTHS[1])
    return "\n".join(
        [
            _EXAMPLES,
            "Choices (group=choice)",
            *(line for group, names in sorted(choices.items()) for line in _row(f"{group}=", ", ".join(names), width)),
            "",
            "Fields (field=value), with the values of this command",
            *(line for name, text in _OWN.items() for line in _row(name, text, width)),
            *(line for name, text in _fields(values) for line in _row(name, text, width)),
            "",
            "Flags",
            *(line for name, text in _FLAGS.items() for line in _row(name, text, width)),
        ]
    )


def _fields(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """`seed=0` and what it is, for the fields that the config has: first those that are in no group."""
    known = [option for option in options(RunConfig) if not option.is_group]
    for option in sorted(known, key=lambda option: "." in option.path):
        found: Any = values
        for part in option.path.split("."):
            found = found.get(part, _ABSENT) if isinstance(found, Mapping) else _ABSENT
        if found is not _ABSENT:
            yield f"{option.path}={show(hydra_value(found), _VALUE)}", _meaning(option)


_ABSENT = object()


def _meaning(option: Option) -> str:
    return f"{option.help} ({describe(option.hint)})".replace("`", "")


def _row(name: str, text: str, width: int) -> Iterator[str]:
    """A name, and its text in the right column; below the name where the name is too long."""
    lines = textwrap.wrap(text, width - _LEFT - 1, break_on_hyphens=False, break_long_words=False)
    if len(name) + 4 > _LEFT:
        yield f"  {name}"
    else:
        yield f"  {name:<{_LEFT - 2}}{lines.pop(0)}"
    for line in lines:
        yield " " * _LEFT + line
