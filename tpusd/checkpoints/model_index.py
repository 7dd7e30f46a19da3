"""model_index.json: which family a checkpoint is of, and which components it consists of."""

from collections.abc import Mapping
from typing import Any

from tpusd.checkpoints.files import Directory
from tpusd.errors import UserError, show
from tpusd.families.base import Family
from tpusd.families.registry import find_family, pipeline_classes

FILE = "model_index.json"
TOKENIZER_CLASSES = ("CLIPTokenizer", "CLIPTokenizerFast")
# Without effect on the pixels here. The scheduler's class does not matter, only its config.
_UNUSED = ("scheduler", "safety_checker", "feature_extractor", "image_encoder", "watermark")


def read_family(directory: Directory) -> tuple[Family, Mapping[str, Any]]:
    """The family, and the content of model_index.json (any JSON values). Raises UserError."""
    index = directory.json(FILE)
    name = index.get("_class_name")
    family = find_family(name) if isinstance(name, str) else None
    if family is None:
        raise UserError(
            f"{directory.shown(FILE)}: _class_name={show(name)} is not a pipeline that is implemented; "
            f"choose a checkpoint of {' or '.join(pipeline_classes())}"
        )
    return family, index


def check_components(family: Family, index: Mapping[str, Any], directory: Directory) -> None:
    """Every component that the family needs is there and implemented; no other has an effect. Raises UserError."""
    where = directory.shown(FILE)
    needed = {part: component.classes for part, component in family.components.items()}
    needed |= dict.fromkeys(family.tokenizers, TOKENIZER_CLASSES)
    for name, classes in needed.items():
        value = index.get(name)
        if not isinstance(value, list) or len(value) != 2 or not isinstance(value[1], str):
            raise UserError(f"{where}: {name} is missing, which {index['_class_name']} needs; get the checkpoint again")
        if value[1].removeprefix("Flax") not in classes:
            raise UserError(
                f"{where}: {name}={show(value[1])} is not implemented (implemented: {' or '.join(classes)}); "
                "choose another checkpoint"
            )
    for name, value in index.items():
        if isinstance(value, list) and any(value) and name not in needed and name not in _UNUSED:
            raise UserError(f"{where}: the component {show(name)} is not implemented; choose another checkpoint")
