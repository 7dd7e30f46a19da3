"""`<lora:NAME:0.8>` in prompts of A1111's syntax: taken out of the text, as LoRAs of the row.

As in A1111, `<lora:NAME:TEXT:UNET>` has a strength for the text encoders and one for the UNet.
"""

import difflib
import os
import re
from collections.abc import Mapping
from pathlib import Path

from tpusd.config.adapters import LoraConfig, Scale
from tpusd.config.typed import read_value
from tpusd.errors import UserError, show, show_path

MAX_FILES = 100_000
_MARK = re.compile(r"<lora:([^<>]{1,400})>")
_SUFFIX = ".safetensors"


def without_loras(text: str, files: Mapping[str, tuple[Path, ...]], where: str) -> tuple[str, tuple[LoraConfig, ...]]:
    """A prompt without its marks, and what they name. Raises UserError: the end of a line.

    files: as `lora_files` gives them.
    where: the field that names their directory.
    """
    loras = tuple(_lora(mark, files, where) for mark in _MARK.finditer(text))
    return (_MARK.sub("", text), loras) if loras else (text, ())


def named_loras(text: str) -> list[tuple[str, str]]:
    """Every mark of a prompt, and the name in it. Raises UserError for one that no run would read."""
    return [(mark[0], _parts(mark)[0]) for mark in _MARK.finditer(text)]


def lora_files(directory: str) -> dict[str, tuple[Path, ...]]:
    """Name -> the safetensors files that have it, with and without the folders that lead to it. Raises UserError."""
    root, where = Path(directory).absolute(), f"prompts.lora_dir={show_path(directory)}"
    if not root.is_dir():
        raise UserError(f"{where}: no such directory; give the one that has the LoRAs")
    found: dict[str, tuple[Path, ...]] = {}
    number = 0
    for folder, _, names in os.walk(root):
        for name in sorted(names):
            number += 1
            if number > MAX_FILES:
                raise UserError(f"{where}: holds more than {MAX_FILES} files; give a directory with the LoRAs alone")
            if name.endswith(_SUFFIX):
                path = Path(folder, name)
                for own in {name.removesuffix(_SUFFIX), path.relative_to(root).as_posix().removesuffix(_SUFFIX)}:
                    found[own] = (*found.get(own, ()), path)
    return found


def _parts(mark: re.Match[str]) -> tuple[str, float, float]:
    """The name, and how strong it is in the text encoders and in the UNet. Raises UserError."""
    name, *numbers = (part.strip() for part in mark[1].split(":"))
    shown = show(mark[0], 80)
    if len(numbers) > 2:
        raise UserError(f"{shown}: must be <lora:NAME:0.8>, or <lora:NAME:TEXT:UNET> with a number for each")
    try:
        strengths = [read_value(Scale, float(number), shown) for number in numbers]
    except ValueError:
        raise UserError(f"{shown}: must have numbers after the name, as in <lora:NAME:0.8>") from None
    text = strengths[0] if strengths else 1.0
    return name, text, strengths[1] if len(strengths) > 1 else text


def _lora(mark: re.Match[str], files: Mapping[str, tuple[Path, ...]], where: str) -> LoraConfig:
    (name, text, unet), shown = _parts(mark), show(mark[0], 80)
    found = files.get(name, ())
    if len(found) > 1:
        raise UserError(f"{shown}: {where} has {len(found)} files of this name; write the folder too: FOLDER/NAME")
    if not found:
        near = difflib.get_close_matches(name, files, n=1)
        advice = f"; did you mean {show(near[0])}?" if near else ""
        raise UserError(f"{shown}: {where} has no {show(name, 60)}{_SUFFIX}{advice}")
    return LoraConfig(path=str(found[0]), scale=unet, text_encoder_scale=None if text == unet else text)
