"""Keywords of a Python call -> words of the command line. Pure, but for pictures, which get a file."""

from collections.abc import Iterator, Mapping, Sequence
from os import PathLike, fspath

from tpusd.api.pictures import is_picture, picture_file
from tpusd.config.grammar import hydra_value
from tpusd.errors import UserError, show


def command_words(words: Sequence[str], fields: Mapping[str, object]) -> list[str]:
    """Words as they are, then a word for each field. Raises UserError.

    words: of the command line, such as "sampler.eta=0.5".
    fields: name -> a plain value. A name with two underscores, or a dictionary, reaches into a group:
        sampler__eta=0.5 and sampler={"eta": 0.5} are sampler.eta=0.5.
    """
    for word in words:
        if not isinstance(word, str):
            raise UserError(f"{show(word)}: words of the command line are texts; give a field as name=value")
    return [*words, *(f"{name}={hydra_value(_rows(name, value))}" for name, value in _flat(fields))]


def swept_words(words: Sequence[str], fields: Mapping[str, object]) -> list[str]:
    """The same for a sweep, where a list is one value for each run: seed=[0, 1] is seed=0,1. Raises UserError."""
    lines = command_words(words, {})
    for name, value in _flat(fields):
        if name == "prompt":  # several prompts are rows of each run
            lines.append(f"{name}={hydra_value(_rows(name, value))}")
            continue
        values = value if isinstance(value, list | tuple) else [value]
        if not values:
            raise UserError(f"{name}=[]: has no value; a sweep needs one at least")
        lines.append(f"{name}={','.join(map(hydra_value, values))}")
    return ["-m", *(line for line in lines if line not in ("-m", "--multirun"))]


def _rows(name: str, value: object) -> object:
    """`prompt` as a list, whose texts need no reading of their own."""
    return [value] if name == "prompt" and isinstance(value, str) else value


def _flat(fields: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    for name, value in fields.items():
        full = prefix + str(name).replace("__", ".")
        if isinstance(value, Mapping):
            yield from _flat(value, f"{full}.")
        else:
            yield full, _plain(full, value)


def _plain(name: str, value: object) -> object:
    """A value as JSON has it; NumPy's numbers become Python's, a path its text, and a picture the path of its file."""
    if is_picture(value):
        return picture_file(value, name)
    if isinstance(value, PathLike):
        return fspath(value)
    if isinstance(value, list | tuple | range):
        return [_plain(name, item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(name, item) for key, item in value.items()}
    if type(value).__module__ == "numpy" and hasattr(value, "tolist"):
        return _plain(name, value.tolist())
    if value is None or isinstance(value, str | int | float | bool):
        return value
    raise UserError(f"{name}: must be text, a number, a path, a picture or a list of these, not {type(value).__name__}")
