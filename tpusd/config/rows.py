"""A row of a prompt set: one prompt, and what belongs to it. A record becomes a row here, and nowhere else."""

import contextlib
import difflib
import json
import operator
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from tpusd.config.adapters import LoraConfig, check_lora
from tpusd.config.controls import MAX_CONTROLNETS, ControlScale
from tpusd.config.limits import GuidanceScale, NumSteps, Seed, Size, Strength
from tpusd.config.paths import picture_path, with_whole_path
from tpusd.config.sizes import SIZE_FIELDS, Pair
from tpusd.config.typed import plain, read_value
from tpusd.errors import UserError, show

_T = TypeVar("_T")
# A row's own numbers: name -> its type, with its range, and the kind of number.
_NUMBERS: Mapping[str, tuple[object, type[int] | type[float]]] = {
    "seed": (Seed, int),
    "guidance_scale": (GuidanceScale, float),
    "num_inference_steps": (NumSteps, int),
    "height": (Size, int),
    "width": (Size, int),
    "strength": (Strength, float),
    "control_scale": (ControlScale, float),
}
_FILES = ("image", "mask")  # a row's own pictures
_SHA256 = {"image_sha256": "image", "mask_sha256": "mask"}  # -> the picture that it is of
_CONTROL = ("control_images", "control_images_sha256")  # lists, with an entry for each ControlNet
CONTROL_IMAGE = "control_image"  # a column for the list of one picture
_TEMPLATES = ("prompt_template", "negative_prompt_template")  # the texts as they were before their marks were read
ROW_FIELDS = (
    "prompt",
    "negative_prompt",
    *_NUMBERS,
    *_FILES,
    *_SHA256,
    *_TEMPLATES,
    "loras",
    *_CONTROL,
    *SIZE_FIELDS,
)
_counted = operator.attrgetter(*(name for name in ROW_FIELDS if name != "loras"))
_beside = operator.attrgetter(*(name for name in ROW_FIELDS if name not in ("prompt", "seed")))
_OWN_COLUMNS = frozenset((*ROW_FIELDS, CONTROL_IMAGE)) - {"prompt", "negative_prompt"}
MAX_LORAS = 64
MAX_PATH_CHARS = 4096
MAX_PROMPT_CHARS = 200_000  # far beyond any text encoder's window, and short enough for a PNG text chunk
MAX_COLUMN_DEPTH = 40  # of lists and groups in a further column; a config.yaml with them is nested 3 deeper


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One prompt. `None`: the run's own value holds. `extra`: further columns (any JSON), for the manifest alone."""

    prompt: str
    negative_prompt: str | None = None
    seed: Seed | None = None
    guidance_scale: GuidanceScale | None = None
    num_inference_steps: NumSteps | None = None
    height: Size | None = None  # pixels
    width: Size | None = None
    strength: Strength | None = None
    image: str | None = None  # a file
    mask: str | None = None
    image_sha256: str | None = None
    mask_sha256: str | None = None
    prompt_template: str | None = None
    negative_prompt_template: str | None = None
    loras: tuple[LoraConfig, ...] | None = None  # behind those of the run
    control_images: tuple[str | None, ...] | None = None  # files; None: the ControlNet has no effect
    control_images_sha256: tuple[str | None, ...] | None = None
    control_scale: ControlScale | None = None
    original_size: Pair | None = None
    crop: Pair | None = None
    target_size: Pair | None = None
    negative_original_size: Pair | None = None
    negative_crop: Pair | None = None
    negative_target_size: Pair | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_values(cls, values: Mapping[str, Any], where: str) -> "Row":
        """An inline row of a config, which has its further columns beside its own fields. Raises UserError."""
        return parse_row(where, values)

    def to_values(self) -> dict[str, Any]:
        """The row as an inline row of a config: what a saved config.yaml holds, so that it needs no other file."""
        return self.own_values() | dict(self.extra)

    @property
    def is_text_alone(self) -> bool:
        """Whether the row has only a prompt, and perhaps a seed."""
        return not self.extra and all(value is None for value in _beside(self))

    def own_values(self) -> dict[str, Any]:
        """The same without the further columns."""
        return {name: plain(getattr(self, name)) for name in ROW_FIELDS if getattr(self, name) is not None}

    def num_values(self, names: set[str]) -> int:
        """At least as many as the reader of a saved config counts.

        names: those of the rows before it, which count once. Those of this row are added.
        """
        own = sum(_num_values(value) for value in _counted(self) if value is not None)
        own += (self.loras is not None) + 20 * len(self.loras or ())
        before = len(names)
        names.update(self.extra)
        return 2 + own + sum(map(_num_values, self.extra.values())) + len(names) - before


def parse_row(place: str, record: Mapping[str, Any], *, column: str = "prompt", inline: bool = True) -> Row:
    """A record of a prompt file, or an inline row of a config, as a Row. Raises UserError that begins with `place`.

    place: where the record comes from, such as `prompts.rows[3]`.
    record: column -> value.
    column: the column that holds the prompt.
    inline: whether the record is part of a config; decides the advice in messages.
    """
    values = dict(record)
    if column not in values:
        have = [str(key) for key in values]
        near = difflib.get_close_matches(column, set(have) - set(ROW_FIELDS), n=1)
        raise UserError(
            f"{place}: has no column {show(column)}; it has {show(', '.join(have)) or 'none'}; "
            + (
                f"write {{{column}: text}}"
                if inline
                else f"choose one with prompts.column={near[0] if near else 'NAME'}"
            )
        )
    prompt = _text(place, column, values.pop(column))
    if not prompt.strip():
        skip = "" if inline else ", or skip such rows with prompts.on_empty=skip"
        raise UserError(f"{place}: {show(column)} is empty; write a prompt or take the row out{skip}")
    if column != "prompt" and "prompt" in values:
        raise UserError(
            f"{place}: has both {show(column)} and prompt, and the manifest's prompt is {show(column)}; "
            "rename the column prompt"
        )
    negative_prompt = values.pop("negative_prompt", None)
    own = {} if _OWN_COLUMNS.isdisjoint(values) else _own_fields(place, values)  # of a million rows, most have none
    for name in values:
        if not isinstance(name, str):
            raise UserError(f"{place}: column {show(name)} must have a name that is text; put it in quotes")
    return Row(
        prompt=prompt,
        negative_prompt=None if negative_prompt is None else _text(place, "negative_prompt", negative_prompt),
        **own,
        extra={name: _json_value(place, name, value) for name, value in values.items()},
    )


def _own_fields(place: str, values: dict[str, Any]) -> dict[str, Any]:
    """The row's own numbers, files, LoRAs and sizes, which are taken out of `values`. Raises UserError."""
    numbers = {
        name: _own_number(hint, kind, values.pop(name, None), f"{place}: {name}")
        for name, (hint, kind) in _NUMBERS.items()
    }
    files: dict[str, Any] = {name: _file(place, name, values.pop(name, None)) for name in _FILES}
    digests: dict[str, Any] = {name: _sha256(place, name, values.pop(name, None)) for name in _SHA256}
    templates = {name: values.pop(name, None) for name in _TEMPLATES}
    texts: dict[str, Any] = {n: None if text in (None, "") else _text(place, n, text) for n, text in templates.items()}
    loras = _loras(place, values.pop("loras", None))
    controls = _controls(place, values)
    sizes: dict[str, Any] = {name: _pair(values.pop(name, None), f"{place}: {name}") for name in SIZE_FIELDS}
    return {**numbers, **files, **digests, **texts, "loras": loras, **controls, **sizes}


def _text(place: str, name: str, value: object) -> str:
    if not isinstance(value, str):
        raise UserError(f"{place}: {show(name)}={show(value)}: must be text; put it in quotes")
    if len(value) > MAX_PROMPT_CHARS:
        raise UserError(f"{place}: {show(name)} has {len(value)} characters; at most {MAX_PROMPT_CHARS} are read")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise UserError(
            f"{place}: {show(name)} holds half a surrogate pair, which is not Unicode text; take it out"
        ) from None
    return value


def _file(place: str, name: str, value: object) -> str | None:
    """The path of a row's own picture; None if it has none."""
    if value is None or value == "":
        return None
    path = _text(place, name, value)
    if "\0" in path or len(path) > MAX_PATH_CHARS:
        raise UserError(f"{place}: {name}={show(path)}: cannot be the name of a file")
    return picture_path(path, f"{place}: {name}")


def _controls(place: str, values: dict[str, Any]) -> dict[str, Any]:
    """The row's control images and their sums, which are taken out of `values`. Raises UserError."""
    alone, several = (values.pop(name, None) for name in (CONTROL_IMAGE, _CONTROL[0]))
    digests = values.pop(_CONTROL[1], None)
    if alone in (None, "") and several in (None, ""):
        if digests not in (None, ""):
            raise UserError(f"{place}: {_CONTROL[1]}: has no control_images beside it; remove the column")
        return {}
    if alone not in (None, "") and several not in (None, ""):
        raise UserError(f"{place}: has both control_image and control_images; leave one of the two out")
    paths = [alone] if several in (None, "") else _list(place, _CONTROL[0], several)
    files = tuple(_file(place, CONTROL_IMAGE, path) for path in paths)
    if digests in (None, ""):
        return {_CONTROL[0]: files}
    sums = tuple(_sha256(place, _CONTROL[1], one) for one in _list(place, _CONTROL[1], digests))
    if len(sums) != len(files):
        raise UserError(f"{place}: {_CONTROL[1]}: has {len(sums)} entries for {len(files)} control_images")
    return dict(zip(_CONTROL, (files, sums), strict=True))


def _list(place: str, name: str, value: object) -> list[Any]:
    if not isinstance(value, list | tuple) or not 1 <= len(value) <= MAX_CONTROLNETS:
        raise UserError(
            f"{place}: {name}={show(value)}: must be a list of 1 to {MAX_CONTROLNETS}, one for each ControlNet; "
            "for one alone write control_image"
        )
    return list(value)


def _sha256(place: str, name: str, value: object) -> str | None:
    if value is None or value == "":
        return None
    if not isinstance(value, str) or not re.fullmatch("[0-9a-f]{64}", value):
        raise UserError(f"{place}: {name}={show(value)}: must be 64 hexadecimal digits; leave it out to take any file")
    return value


def _pair(value: object, where: str) -> Any:
    """Two numbers; None if the row has none of its own. csv gives text, as in `[1024, 768]`. Raises UserError."""
    if value is None or value == "":
        return None
    if isinstance(value, str) and (found := re.fullmatch(r"\s*\[?\s*(\d{1,9})\s*,\s*(\d{1,9})\s*\]?\s*", value)):
        value = [int(found[1]), int(found[2])]
    return read_value(Pair, value, where)


def _loras(place: str, value: object) -> tuple[LoraConfig, ...] | None:
    """A row's own LoRAs; None if it has none."""
    if value in (None, "", []):
        return None
    if not isinstance(value, list):
        raise UserError(f"{place}: loras={show(value)}: must be a list, as in [{{path: FILE.safetensors, scale: 0.8}}]")
    if len(value) > MAX_LORAS:
        raise UserError(f"{place}: loras has {len(value)} of them; at most {MAX_LORAS} can be merged")
    made: tuple[LoraConfig, ...] = read_value(tuple[LoraConfig, ...], value, f"{place}: loras")
    for number, lora in enumerate(made):
        check_lora(lora, f"{place}: loras[{number}]")
    return tuple(with_whole_path(lora, f"{place}: loras[{number}]") for number, lora in enumerate(made))


def _own_number(hint: object, kind: type[int] | type[float], value: object, where: str) -> Any:
    """A row's own number; None if it has none.

    hint: the field's type, with its range.
    kind: int or float. csv gives text: '7' -> 7, and '7.0' too, which tables with empty cells have. The check refuses
        text that is not a number.
    value: as the file has it.
    where: the place and the field's name, for the error.

    Raises UserError.
    """
    if value is None or value == "":
        return None
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            value = kind(value) if re.fullmatch(r"\s*[-+]?\d+\s*", value) else float(value)
    if kind is int and isinstance(value, float) and value.is_integer():
        value = int(value)
    return read_value(hint, value, where)


def _json_value(place: str, name: str, value: _T) -> _T:
    """A further column, unchanged. It goes into JSON as it is; raises UserError for a value that JSON cannot hold."""
    try:
        _num_values(value)
        json.dumps(value, allow_nan=False).encode()
        json.dumps(value, ensure_ascii=False).encode()
        json.dumps(name, ensure_ascii=False).encode()
    except (TypeError, ValueError, RecursionError):
        raise UserError(
            f"{place}: {show(name)}={show(value)}: cannot be written to the manifest; use text or a number"
        ) from None
    return value


def _num_values(value: object, depth: int = MAX_COLUMN_DEPTH) -> int:
    """A list and a group count twice, because an empty one takes as much memory as two texts.

    Raises ValueError where they are nested over `depth` deep.
    """
    if not isinstance(value, list | tuple | Mapping):
        return 1
    if not depth:
        raise ValueError("is nested too deep")
    items = value.values() if isinstance(value, Mapping) else value
    names = len(value) if isinstance(value, Mapping) else 0
    return 2 + names + sum(_num_values(item, depth - 1) for item in items)
