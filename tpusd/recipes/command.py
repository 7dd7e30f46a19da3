"""A config, or one image of it, as the shell command that makes it: `python -m tpusd.run field=value ...`.

The inverse of tpusd.config.compose. Knows nothing of files.
"""

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tpusd.config.adapters import LoraConfig
from tpusd.config.cache import NO_CACHE
from tpusd.config.grammar import hydra_value
from tpusd.config.rows import MAX_PROMPT_CHARS, Row
from tpusd.config.schema import RunConfig
from tpusd.config.sizes import SIZE_FIELDS
from tpusd.config.typed import plain, read
from tpusd.recipes.shell import MAX_WORD_BYTES, UTF8_ARGUMENTS, quoted

PROGRAM = "python -m tpusd.run"
# Groups, and the choice of each that a user's own choice is written as; its fields are then all set.
STAND_INS = {"model": "local", "precision": "fp32", "sampler": "ddim"}
# The top-level fields that decide pixels. A command leaves out the others: where a run goes, and how it is made.
PIXEL_FIELDS = (
    "seed",
    "guidance_scale",
    "guidance_rescale",
    "guidance_interval",
    "guidance_schedule",
    "noise",
    "noise_batch_size",
    "noise_threads",
    "negative_prompt",
    "height",
    "width",
    "strength",
    "resize",
    "paste_back",
    "mask_feather",
    "control_scale",
    "guess_mode",
    *SIZE_FIELDS,
    "image_format",
    "image_quality",
)


def config_overrides(config: RunConfig) -> list[str]:
    """Everything that decides the pixels, except the prompt rows: groups, and the fields that differ from conf/."""
    values = plain(config, whole=True)
    names = [(group, values[group]["name"]) for group in STAND_INS]
    known = _choices()
    chosen = tuple((group, name if name in known[group] else STAND_INS[group]) for group, name in names)
    lines = [f"{group}={name}" for group, name in chosen]
    base = _composed(chosen)
    for group in STAND_INS:
        own = {name: value for name, value in values[group].items() if name not in ("name", "loras")}
        lines += _differences(group, own, base[group])  # only the choice sets a name
    loras, brought = values["loras"], _brought_by(base["model"])
    if brought and [_named(lora) for lora in loras[-len(brought) :]] == [_named(lora) for lora in brought]:
        loras = loras[: -len(brought)]
    elif brought:
        lines.append("model.loras=[]")
    if loras:
        lines.append(f"loras={hydra_value([_named(lora) for lora in loras])}")
    if values["embeddings"]:
        lines.append(f"embeddings={hydra_value([_named(one) for one in values['embeddings']])}")
    lines += [*_text_overrides(config), *_cache_overrides(config), *_safety_overrides(config)]
    differing = [name for name in PIXEL_FIELDS if name == "seed" or values[name] != base[name]]
    return lines + [f"{name}={hydra_value(values[name])}" for name in differing]


def _text_overrides(config: RunConfig) -> Iterator[str]:
    """How prompts are read, where that is not plain. Other values of on_truncate decide no pixel."""
    if config.prompts.syntax != "plain":
        yield f"prompts.syntax={config.prompts.syntax}"
    if config.prompts.weighting is not None:
        yield f"prompts.weighting={config.prompts.weighting}"
    if config.on_truncate == "chunk":
        yield "on_truncate=chunk"


def _cache_overrides(config: RunConfig) -> Iterator[str]:
    if config.cache != NO_CACHE:
        yield f"cache={config.cache.name}"
        values = plain(config.cache)
        yield from _differences("cache", {name: values[name] for name in values if name != "name"}, plain(NO_CACHE))


def _safety_overrides(config: RunConfig) -> Iterator[str]:
    """What becomes of a picture that the safety checker finds. `record` decides no pixel."""
    safety = config.safety
    if safety.name in ("blur", "drop"):
        yield f"safety={safety.name}"
        for name in ("path", "repo", "revision"):
            if (value := getattr(safety, name)) is not None:
                yield f"safety.{name}={hydra_value(value)}"


def image_overrides(row: Row, index: int, copy: int) -> list[str]:
    """What follows `config_overrides` to make one image alone: its row, at its place in the prompt set.

    row: of the prompt set. index: its place there. copy: which of the row's images.
    """
    lines = [f"prompts.rows=[{hydra_value(row.own_values())}]"]
    return lines + [f"{name}={value}" for name, value in (("first_row", index), ("first_copy", copy)) if value]


def _brought_by(model: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The LoRAs that a choice of conf/model has, with all their fields."""
    return [plain(read(LoraConfig, lora)) for lora in model.get("loras") or ()]


def _named(given: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a file that are set. The lock on it is kept where nothing else says which bytes it had."""
    pinned = given["path"] is not None
    return {name: value for name, value in given.items() if value is not None and (pinned or name != "sha256")}


def fitting_row(row: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """A prompt row that one word of a command can hold, and a line for each text that is not whole.

    row: field -> value, as in `prompts.rows`.
    """
    rule = "holds NUL, which no command line can hold; it is left out"
    lines = [f"{name}: {rule}" for name, text in row.items() if _has_nul(text)]
    kept = {name: text.replace("\0", "") if _has_nul(text) else text for name, text in row.items()}
    limit, cut = MAX_PROMPT_CHARS, kept
    while len(f"prompts.rows=[{hydra_value(cut)}]".encode(errors="surrogatepass")) > MAX_WORD_BYTES:
        limit = limit * 3 // 4
        cut = {name: text[:limit] if isinstance(text, str) else text for name, text in kept.items()}
    for name, text in kept.items():
        if cut[name] != text:
            rule = f"more than a command line holds; the first {limit} are taken"
            lines.append(f"{name}: has {len(text)} characters, {rule}")
    return cut, lines


def _has_nul(value: object) -> bool:
    return isinstance(value, str) and "\0" in value


def shell_command(overrides: Sequence[str], *, ascii_only: bool = False) -> str:
    """The command with these overrides. ascii_only: for a terminal that cannot show every character."""
    words = quoted(overrides, ascii_only=ascii_only)
    setting = f"{UTF8_ARGUMENTS} " if ascii_only and not all(map(str.isascii, overrides)) else ""
    return f"{setting}{PROGRAM} {words}"


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
