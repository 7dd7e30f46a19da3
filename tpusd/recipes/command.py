"""A config, or one image of it, as the shell command that makes it: `python -m tpusd.run field=value ...`.

The inverse of tpusd.config.compose. Knows nothing of files.
"""

import functools
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tpusd.config.grammar import hydra_value
from tpusd.config.rows import Row
from tpusd.config.schema import RunConfig, config_values

PROGRAM = "python -m tpusd.run"
# Groups, and the choice of each that a user's own choice is written as; its fields are then all set.
STAND_INS = {"model": "local", "precision": "fp32", "sampler": "ddim"}
# The top-level fields that decide pixels. A command leaves out the others: where a run goes, and how it is made.
PIXEL_FIELDS = (
    "seed",
    "guidance_scale",
    "guidance_rescale",
    "negative_prompt",
    "height",
    "width",
    "image_format",
    "image_quality",
)


def config_overrides(config: RunConfig) -> list[str]:
    """Everything that decides the pixels, except the prompt rows: groups, and the fields that differ from conf/."""
    values = config_values(config)
    names = [(group, values[group]["name"]) for group in STAND_INS]
    known = _choices()
    chosen = tuple((group, name if name in known[group] else STAND_INS[group]) for group, name in names)
    lines = [f"{group}={name}" for group, name in chosen]
    base = _composed(chosen)
    for group in STAND_INS:
        lines += _differences(group, values[group], base[group])
    differing = [name for name in PIXEL_FIELDS if name == "seed" or values[name] != base[name]]
    return lines + [f"{name}={hydra_value(values[name])}" for name in differing]


def image_overrides(row: Row, index: int, copy: int) -> list[str]:
    """What follows `config_overrides` to make one image alone: its row, at its place in the prompt set.

    row: of the prompt set. index: its place there. copy: which of the row's images.
    """
    own: dict[str, Any] = {"prompt": row.prompt, "negative_prompt": row.negative_prompt}
    own |= {"seed": row.seed, "guidance_scale": row.guidance_scale}
    row_value = {name: value for name, value in own.items() if value is not None}
    lines = [f"prompts.rows=[{hydra_value(row_value)}]"]
    return lines + [f"{name}={value}" for name, value in (("first_row", index), ("first_copy", copy)) if value]


def shell_command(overrides: Sequence[str]) -> str:
    return f"{PROGRAM} {quoted(overrides)}"


def quoted(overrides: Sequence[str]) -> str:
    """Overrides as words of a POSIX shell."""
    return " ".join(map(shlex.quote, overrides))


def _differences(prefix: str, values: Mapping[str, Any], base: Mapping[str, Any]) -> Iterator[str]:
    for name, value in values.items():
        usual = base.get(name)
        if isinstance(value, Mapping):
            yield from _differences(f"{prefix}.{name}", value, usual or {})
        elif value != usual and name != "sha256":  # a lock on the weights' files, and long
            yield f"{prefix}.{name}={hydra_value(value)}"


@functools.cache
def _choices() -> dict[str, set[str]]:
    from tpusd.config.choices import conf_directory

    return {group: {file.stem for file in (conf_directory() / group).glob("*.yaml")} for group in STAND_INS}


@functools.cache
def _composed(choices: tuple[tuple[str, str], ...]) -> dict[str, Any]:
    from tpusd.config.compose import compose_jobs

    jobs = compose_jobs([f"{group}={name}" for group, name in choices])
    assert jobs is not None
    return jobs[0].values
