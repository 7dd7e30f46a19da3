"""A checkpoint: opened (small files, checked), then loaded part by part, strictly (contract 5).

Knows which networks and tokenizers each pipeline class has, and what must agree between them. Knows no devices but for
the sharding that it is handed.
"""

import dataclasses
import functools
import hashlib
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax.numpy as jnp
from flax import nnx

from tpusd.checkpoints.files import Directory, shown
from tpusd.checkpoints.fill import fill
from tpusd.checkpoints.limits import check_values
from tpusd.checkpoints.msgpack import FlaxMsgpack
from tpusd.checkpoints.source import ModelSource, Resolved, choose_weights, resolve_source
from tpusd.checkpoints.tensors import Safetensors, TensorSource, open_shards
from tpusd.checkpoints.tokenizer import MAX_LENGTH, Tokenizer, open_tokenizer
from tpusd.errors import UserError
from tpusd.models.abstract import abstract_model
from tpusd.models.clip_text import CLIPTextConfig, CLIPTextModel
from tpusd.models.unet import UNet2DConditionModel, UNetConfig
from tpusd.models.vae import AutoencoderKL, VAEConfig
from tpusd.samplers.schedule import SchedulerConfig

MODELS = {
    "text_encoder": CLIPTextModel,
    "text_encoder_2": CLIPTextModel,
    "unet": UNet2DConditionModel,
    "vae": AutoencoderKL,
}
CONFIGS = {"text_encoder": CLIPTextConfig, "text_encoder_2": CLIPTextConfig, "unet": UNetConfig, "vae": VAEConfig}
_PIPELINES = {
    "StableDiffusionPipeline": "sd",
    "FlaxStableDiffusionPipeline": "sd",
    "StableDiffusionXLPipeline": "sdxl",
    "FlaxStableDiffusionXLPipeline": "sdxl",
}
# Component -> classes that it may be, `Flax` in front or not. The scheduler's class does not matter, only its config.
_COMPONENTS = {
    "text_encoder": ("CLIPTextModel",),
    "text_encoder_2": ("CLIPTextModelWithProjection",),
    "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
    "tokenizer_2": ("CLIPTokenizer", "CLIPTokenizerFast"),
    "unet": ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL",),
}
_UNUSED = (
    "scheduler",
    "safety_checker",
    "feature_extractor",
    "image_encoder",
    "watermark",
)  # of no effect on the pixels here


@dataclass(frozen=True)
class Identity:
    """Which bytes a checkpoint is: repository and commit if it came from the Hub, and every file that is read."""

    directory: Path
    repo: str | None
    commit: str | None
    variant: str | None
    files: tuple[str, ...]  # relative to the directory, sorted

    @functools.cached_property
    def sha256(self) -> Mapping[str, str]:
        """Relative file -> sha256. Reads every file, some seconds per GB: call `start_hashing` early."""
        return {name: _sha256(self.directory / name) for name in self.files}

    def start_hashing(self) -> threading.Thread:
        """Computes `sha256` in a thread while something else goes on; join it, then read `sha256`."""
        thread = threading.Thread(target=lambda: self.sha256, name="checkpoint-sha256", daemon=True)
        thread.start()
        return thread


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What the small files say. Weights are read by `load_weights`."""

    kind: Literal["sd", "sdxl"]
    directory: Path
    identity: Identity
    text_encoder_configs: tuple[CLIPTextConfig, ...]  # one, or SDXL's two
    unet_config: UNetConfig
    vae_config: VAEConfig
    scheduler_config: SchedulerConfig
    scheduler_values: Mapping[str, Any]  # scheduler_config.json as it stands, to save it again
    tokenizers: tuple[Tokenizer, ...]
    force_zeros_for_empty_prompt: bool  # SDXL: zeros where no negative prompt is given
    weights: Mapping[str, tuple[str, str]]  # part -> (format, relative file): "safetensors", "shards" or "msgpack"

    @property
    def parts(self) -> tuple[str, ...]:
        """The networks that this checkpoint has, as `load_weights` calls them."""
        return tuple(self.weights)

    def config(self, part: str):
        """A part's config dataclass."""
        encoders = dict(zip(("text_encoder", "text_encoder_2"), self.text_encoder_configs, strict=False))
        return {**encoders, "unet": self.unet_config, "vae": self.vae_config}[part]

    def abstract(self, part: str, *, dtype=jnp.float32, param_dtype=jnp.float32) -> nnx.Module:
        """A part as shapes only, freshly built."""
        return abstract_model(MODELS[part], self.config(part), dtype=dtype, param_dtype=param_dtype)


def open_checkpoint(source: ModelSource) -> Checkpoint:
    """Reads and checks all but the weights' data: model_index.json, configs, tokenizers, headers of weight files.

    source: a ModelSource, or a config with its five fields. Every error is a UserError.
    """
    return describe(resolve_source(source))


def describe(resolved: Resolved) -> Checkpoint:
    """`open_checkpoint` for a directory that is already here."""
    directory = resolved.directory
    index = directory.json("model_index.json")
    kind = _kind(index, directory)
    encoders = ("text_encoder",) if kind == "sd" else ("text_encoder", "text_encoder_2")
    tokenizer_folders = ("tokenizer",) if kind == "sd" else ("tokenizer", "tokenizer_2")
    parts = (*encoders, "unet", "vae")
    _check_components(index, (*parts, *tokenizer_folders), directory)

    text_configs = tuple(
        # Whether there is a projection is said by the class, and by `architectures` only if somebody wrote it.
        _read_config(directory, part, {"architectures": [index[part][1].removeprefix("Flax")]})
        for part in encoders
    )
    unet = _read_config(directory, "unet")
    vae = _read_config(directory, "vae")
    _check_agreement(text_configs, unet, vae, directory)

    scheduler_values = directory.json("scheduler/scheduler_config.json", infinity=True)  # in lambda_min_clipped
    scheduler = _parsed(SchedulerConfig, scheduler_values, "scheduler/scheduler_config.json", directory)
    weights, files = {}, []
    for part in parts:
        chosen = choose_weights(directory.names(part), part, resolved.variant, directory.shown(part))
        weights[part] = (chosen.format, f"{part}/{chosen.name}")
        opened = _open_weights(directory, *weights[part])  # a truncated file is found here, not after compiling
        files += [f"{part}/{file.name}" for file in opened.files]
    tokenizers = tuple(open_tokenizer(directory, folder) for folder in tokenizer_folders)
    for folder, tokenizer, config in zip(tokenizer_folders, tokenizers, text_configs, strict=True):
        if tokenizer.vocab_size > config.vocab_size:
            raise UserError(
                f"{directory.shown(folder)}: has {tokenizer.vocab_size} tokens, the text encoder's config.json says "
                f"vocab_size={config.vocab_size}; get the checkpoint again"
            )
        files += [f"{folder}/{path.name}" for path in tokenizer.files]
    files += ["model_index.json", "scheduler/scheduler_config.json", *(f"{part}/config.json" for part in parts)]
    return Checkpoint(
        kind=kind,
        directory=directory.root,
        identity=Identity(directory.root, resolved.repo, resolved.commit, resolved.variant, tuple(sorted(files))),
        text_encoder_configs=text_configs,
        unet_config=unet,
        vae_config=vae,
        scheduler_config=scheduler,
        scheduler_values=scheduler_values,
        tokenizers=tokenizers,
        force_zeros_for_empty_prompt=index.get("force_zeros_for_empty_prompt") is not False,
        weights=weights,
    )


def load_weights(checkpoint: Checkpoint, part: str, *, param_dtype, sharding=None) -> nnx.State:
    """One part's parameters as `param_dtype`, placed as `sharding` says (see jax.device_put; None: the default device).

    part: one of checkpoint.parts. Host memory holds two tensors at most. The state has the structure of
    `nnx.split(checkpoint.abstract(part))[1]`. Raises UserError that lists all that does not fit.
    """
    directory = Directory(checkpoint.directory)
    file_format, name = checkpoint.weights[part]
    source = _open_weights(directory, file_format, name)
    model = checkpoint.abstract(part, param_dtype=param_dtype)
    return fill(model, part, source, dtype=param_dtype, sharding=sharding, where=directory.shown(name))


def _open_weights(directory: Directory, file_format: str, name: str) -> TensorSource:
    if file_format == "shards":
        return open_shards(directory, name)
    path = directory.need(name, "get the checkpoint again")
    return FlaxMsgpack(path) if file_format == "msgpack" else Safetensors((path,))


def _kind(index: Mapping[str, Any], directory: Directory) -> str:
    name = index.get("_class_name")
    if not isinstance(name, str) or name not in _PIPELINES:
        raise UserError(
            f"{directory.shown('model_index.json')}: _class_name={shown(name)} is not a pipeline that is implemented; "
            f"choose a checkpoint of {' or '.join(n for n in _PIPELINES if not n.startswith('Flax'))}"
        )
    return _PIPELINES[name]


def _check_components(index: Mapping[str, Any], needed: tuple[str, ...], directory: Directory) -> None:
    """Every component that takes part is one that is implemented, and none that would is left out."""
    where = directory.shown("model_index.json")
    for name in needed:
        value = index.get(name)
        known = _COMPONENTS[name]
        if not isinstance(value, list) or len(value) != 2 or not isinstance(value[1], str):
            raise UserError(f"{where}: {name} is missing, which {index['_class_name']} needs; get the checkpoint again")
        if value[1].removeprefix("Flax") not in known:
            raise UserError(
                f"{where}: {name}={shown(value[1])} is not implemented (implemented: {' or '.join(known)}); "
                "choose another checkpoint"
            )
    for name, value in index.items():
        if isinstance(value, list) and any(value) and name not in needed and name not in _UNUSED:
            raise UserError(f"{where}: the component {shown(name)} is not implemented; choose another checkpoint")


def _read_config(directory: Directory, part: str, more: Mapping[str, Any] | None = None):
    cls, name = CONFIGS[part], f"{part}/config.json"
    values = {**directory.json(name), **(more or {})}
    check_values(cls, values, directory.shown(name))
    return _parsed(cls, values, name, directory)


def _parsed(cls, values: Mapping[str, Any], name: str, directory: Directory):
    """`cls.from_dict(values)`, with whatever a stranger's values raise there as one bounded line."""
    try:
        return cls.from_dict(values)
    except (UserError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
        told = shown(str(error).removeprefix(f"{name}: "), 600)
        raise UserError(f"{directory.shown(name)}: {told}; choose another checkpoint, or get this one again") from None


def _check_agreement(text: tuple[CLIPTextConfig, ...], unet: UNetConfig, vae: VAEConfig, directory: Directory) -> None:
    """What one config says of another's network."""
    rules = [
        ("unet cross_attention_dim", unet.cross_attention_dim, "text hidden_size", sum(c.hidden_size for c in text)),
        ("unet in_channels", unet.in_channels, "vae latent_channels", vae.latent_channels),
        ("unet out_channels", unet.out_channels, "vae latent_channels", vae.latent_channels),
        ("vae in_channels", vae.in_channels, "red, green and blue", 3),
        ("vae out_channels", vae.out_channels, "red, green and blue", 3),
    ]
    rules += [
        ("text max_position_embeddings", c.max_position_embeddings, "tokens of a prompt", MAX_LENGTH) for c in text
    ]
    if (unet.addition_embed_type == "text_time") != (len(text) == 2):
        raise UserError(
            f"{directory.shown('unet/config.json')}: addition_embed_type={shown(unet.addition_embed_type)} does not go "
            f"with {len(text)} text encoder(s); the files of two checkpoints are mixed up"
        )
    if unet.addition_embed_type == "text_time":
        # Six numbers of size and crop, and the pooled text: Podell et al. 2023, section 2.2.
        size = 6 * (unet.addition_time_embed_dim or 0) + text[-1].projection_dim
        rules.append(
            (
                "unet projection_class_embeddings_input_dim",
                unet.projection_class_embeddings_input_dim,
                "6 x addition_time_embed_dim + projection_dim",
                size,
            )
        )
    for left, a, right, b in rules:
        if a != b:
            raise UserError(
                f"{shown(directory.root, 300)}: {left}={a} but {right}={b}: they must be equal; "
                "this kind of model is not implemented, or the files of two checkpoints are mixed up"
            )


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def config_values(config) -> dict[str, Any]:
    """A config dataclass as the JSON of config.json has it."""
    return {
        f.name: list(v) if isinstance(v := getattr(config, f.name), tuple) else v for f in dataclasses.fields(config)
    }
