"""A checkpoint as a pipeline of PyTorch diffusers, in float32, on the CPU.

Nothing is downloaded, and no pickle is read. torch and diffusers are imported by name: they come with the extra
`parity`, and are not typed here.
"""

import contextlib
import importlib
import importlib.util
import tempfile
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from tpusd.checkpoints import Checkpoint, load_weights, model_index, save_checkpoint
from tpusd.checkpoints.files import Directory
from tpusd.checkpoints.opened import FolderWeights, OriginalWeights
from tpusd.checkpoints.save import save_configs
from tpusd.errors import UserError, show, show_path

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

NEEDED = ("torch", "diffusers", "accelerate")
# What the pipelines have besides, where they have it: no effect on a picture, except for the watermark, which is off.
_LEFT_OUT = {
    "safety_checker": None,
    "feature_extractor": None,
    "image_encoder": None,
    "requires_safety_checker": False,
    "add_watermarker": False,
}
_LIBRARIES = (None, "diffusers", "transformers", "stable_diffusion")  # the last is diffusers' own safety checker
OWN, CONVERTED = "diffusers' own reader", "the weights as tpusd read and saved them"


def check_installed(*more: str) -> None:
    """Raises UserError where the reference is not installed. more: packages that it needs besides."""
    missing = [name for name in (*NEEDED, *more) if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"verify: needs {' and '.join(missing)}; pip install 'tpusd[parity]'")


def versions() -> dict[str, str]:
    """Of the reference's packages."""
    return {name: str(importlib.import_module(name).__version__) for name in ("torch", "diffusers", "transformers")}


def open_reference(checkpoint: Checkpoint) -> tuple["DiffusionPipeline", str]:
    """The pipeline, and who read the weights: OWN or CONVERTED. Raises UserError where diffusers cannot."""
    weights = list(checkpoint.weights.values())
    with quiet():
        cls = getattr(importlib.import_module("diffusers"), checkpoint.family.pipeline_classes[0])
        if all(isinstance(own, OriginalWeights) and not own.ema for own in weights):
            with contextlib.suppress(_NotRead):
                return _finished(_of_single_file(cls, checkpoint)), OWN
        elif all(isinstance(own, FolderWeights) and own.format != "msgpack" for own in weights):
            return _finished(_of_directory(cls, checkpoint)), OWN
        return _finished(_converted(cls, checkpoint)), CONVERTED


class _NotRead(Exception):
    """diffusers' own reader of single files does not take this one."""


def _of_directory(cls: type["DiffusionPipeline"], checkpoint: Checkpoint) -> "DiffusionPipeline":
    index = Directory(checkpoint.directory).json(model_index.FILE)
    for name, value in index.items():  # a library that a file names is imported
        if isinstance(value, list) and value and value[0] not in _LIBRARIES:
            raise UserError(
                f"{show_path(checkpoint.directory / model_index.FILE)}: {show(name)} is of the library "
                f"{show(value[0])}; diffusers would import it: correct the file"
            )
    return _called(cls.from_pretrained, str(checkpoint.directory), cls, variant=checkpoint.identity.variant)


def _of_single_file(cls: type["DiffusionPipeline"], checkpoint: Checkpoint) -> "DiffusionPipeline":
    """By diffusers' own table of names. Configs and tokenizers, which the file does not have, are those of tpusd."""
    (file,) = {own.path for own in checkpoint.weights.values() if isinstance(own, OriginalWeights)}
    tokenizers = {
        name: own.backend for name, own in zip(checkpoint.family.tokenizers, checkpoint.tokenizers, strict=True)
    }
    with tempfile.TemporaryDirectory(prefix="tpusd-") as folder:
        save_configs(folder, checkpoint)
        try:
            scheduler_class = importlib.import_module("diffusers").__dict__[checkpoint.scheduler_values["_class_name"]]
            scheduler = scheduler_class.from_pretrained(folder, subfolder="scheduler")
            return _called(cls.from_single_file, str(file), cls, config=folder, scheduler=scheduler, **tokenizers)
        except UserError as error:
            raise _NotRead from error


def _converted(cls: type["DiffusionPipeline"], checkpoint: Checkpoint) -> "DiffusionPipeline":
    family = checkpoint.family
    with tempfile.TemporaryDirectory(prefix="tpusd-") as folder:
        save_checkpoint(
            folder,
            family,
            networks={
                part: (checkpoint.configs[part], load_weights(checkpoint, part, param_dtype="float32"))
                for part in family.components
            },
            tokenizers=dict(zip(family.tokenizers, checkpoint.tokenizers, strict=True)),
            scheduler_config=checkpoint.scheduler_values,
            options=checkpoint.options,
        )
        return _called(cls.from_pretrained, folder, cls)


def _called(
    read: Callable[..., "DiffusionPipeline"], where: str, cls: type["DiffusionPipeline"], **more: object
) -> "DiffusionPipeline":
    """A pipeline of diffusers. more: arguments of `read`. Raises UserError where it raises anything."""
    taken = set(importlib.import_module("inspect").signature(cls.__init__).parameters)
    left_out = {name: value for name, value in _LEFT_OUT.items() if name in taken}
    torch = importlib.import_module("torch")
    try:
        return read(where, local_files_only=True, use_safetensors=True, dtype=torch.float32, **left_out, **more)
    except Exception as error:  # the library raises many types, for files that it does not expect
        why = show(str(error).strip() or type(error).__name__, 200)
        raise UserError(f"{show_path(where)}: diffusers cannot read it ({why}); choose another checkpoint") from error


def _finished(pipeline: "DiffusionPipeline") -> "DiffusionPipeline":
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to("cpu", importlib.import_module("torch").float32)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """The reference's warnings and bars are about its own interface, and are not shown."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in ("diffusers", "transformers"):
            logging = importlib.import_module(f"{name}.utils.logging")
            logging.set_verbosity(logging.CRITICAL)
            logging.disable_progress_bar()
        yield
