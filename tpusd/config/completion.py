"""Tab completion of the words of a command: fields, choices, values, lists, paths and runs. Composes nothing."""

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal, get_args, get_origin

from tpusd.config.choices import group_choices
from tpusd.config.options import Option, options
from tpusd.config.schema import RunConfig
from tpusd.config.typed import split_hint

FLAGS = ("--help", "--cfg", "--config-dir=", "--info", "--multirun", "-m")
_PLAIN = re.compile(r"[\w./+=,:@%~\[\]-]*")  # what a shell's completion can hold without quotes
_SUFFIXES = {  # of the files that a field takes
    "prompts.path": (".txt", ".csv", ".tsv", ".jsonl", ".json", ".parquet"),
    "model.path": (".safetensors",),
    "model.unet.path": (".safetensors",),
    "model.vae.path": (".safetensors",),
    "score_weights.clip.path": (),
    "score_weights.pickscore.path": (),
    "score_weights.hpsv21.path": (),
    "score_weights.aesthetic.path": (".safetensors", ".npz"),
}
_PATHS = ("resume", "--config-dir", "output", *_SUFFIXES, "model.config", "safety.path")  # fields that take a path
_MAX_ENTRIES = 10_000  # of a directory that are looked at
_RUN_FILES = ("config.yaml", "sweep.json")


def candidates(words: Sequence[str], word: str) -> list[str]:
    """What `word`, the last of the line, can become.

    words: those before it, without the program's name and the subcommand.
    """
    if word.startswith("-") and "=" not in word:
        found: Iterable[str] = (flag for flag in FLAGS if flag.startswith(word))
    elif "=" not in word:
        found = (name for name in _names(word) if name.startswith(word))
    else:
        key, _, value = word.partition("=")
        several = bool({"-m", "--multirun"} & set(words))
        found = (f"{key}={text}" for text in _values(key, value, several))
    return sorted({each for each in found if _PLAIN.fullmatch(each)})


def _names(word: str) -> Iterator[str]:
    """Fields, groups and the words that are no fields. The fields of a group follow when its dot is typed."""
    yield from ("prompt=", "resume=")
    for group in group_choices():
        yield f"{group}="
    for option in options(RunConfig):
        inside, typed = option.path.count("."), word.count(".")
        if option.is_group and inside == typed and option.path != word:
            yield f"{option.path}."
        elif not option.is_group and inside == typed:
            yield f"{option.path}="


def _values(key: str, value: str, several: bool) -> Iterator[str]:
    """The values of a field that begin with `value`; in a sweep, of the last of them."""
    if key in _PATHS:
        yield from _paths(value, key)
        return
    choices, is_list = _choices(key)
    if is_list:
        before, _, last = value.rpartition(",") if "," in value else ("[", "", value.removeprefix("["))
        taken = before.strip("[").split(",")
        opening = before if before == "[" else f"{before},"
        yield from (
            f"{opening}{name}{end}" for name in choices if name.startswith(last) and name not in taken for end in "],"
        )
        return
    before, comma, last = value.rpartition(",") if several else ("", "", value)
    yield from (f"{before}{comma}{name}" for name in choices if name.startswith(last) and name not in before.split(","))


def _choices(key: str) -> tuple[Sequence[str], bool]:
    """The values of a field where they can be listed, and whether it takes a list of them."""
    groups = group_choices()
    if key in groups:
        return groups[key], False
    option = next((option for option in options(RunConfig) if option.path == key), None)
    return ((), False) if option is None else _listed(option)


def _listed(option: Option) -> tuple[Sequence[str], bool]:
    hint = split_hint(option.hint)[0]
    members = [hint, *get_args(hint)]
    for member in members:
        if member is bool:
            return ("false", "true"), False
        if get_origin(member) is Literal:
            return [str(one) for one in get_args(member)], False
        if get_origin(member) in (tuple, Sequence):
            item = split_hint(get_args(member)[0])[0]
            return [str(one) for one in get_args(item)] if get_origin(item) is Literal else (), True
    default = option.default
    return ([str(default)] if isinstance(default, int | float | str) else []), False


def _paths(value: str, key: str) -> Iterator[str]:
    """Directories with a slash behind them, runs and checkpoints without, and files that the field takes."""
    head, slash, last = value.rpartition("/")
    directory = Path(head + slash).expanduser() if head or slash else Path()
    if key == "resume" and not value:
        directory, head, slash = Path("runs"), "runs", "/"
    try:
        entries = sorted(entry for entry, _ in zip(directory.iterdir(), range(_MAX_ENTRIES), strict=False))
    except (OSError, RuntimeError):  # RuntimeError: a home that is not known
        return
    for entry in entries:
        if not entry.name.startswith(last) or (entry.name.startswith(".") and not last):
            continue
        if entry.is_dir():
            whole = _is_whole(entry, key)
            yield f"{head}{slash}{entry.name}{'' if whole else '/'}"
        elif entry.suffix.lower() in _SUFFIXES.get(key, ()):
            yield f"{head}{slash}{entry.name}"


def _is_whole(directory: Path, key: str) -> bool:
    """Whether a directory is what the field takes, so that nothing need follow."""
    if key == "resume":
        return any((directory / name).is_file() for name in _RUN_FILES)
    return key == "model.path" and (directory / "model_index.json").is_file()
