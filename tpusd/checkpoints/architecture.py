"""What a checkpoint's configs say of its networks: enough to build them as shapes, without weights or tokenizers.

Knows which networks each pipeline class has, and what must agree between them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import jax.numpy as jnp
from flax import nnx

from tpusd.checkpoints.files import Directory, shown
from tpusd.checkpoints.limits import check_values
from tpusd.checkpoints.tokenizer import MAX_LENGTH
from tpusd.errors import UserError
from tpusd.networks.abstract import abstract_model
from tpusd.networks.clip_text import CLIPTextConfig, CLIPTextModel
from tpusd.networks.unet import UNet2DConditionModel, UNetConfig
from tpusd.networks.vae import AutoencoderKL, VAEConfig
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


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """The networks of a checkpoint as their configs describe them."""

    kind: Literal["sd", "sdxl"]
    text_encoder_configs: tuple[CLIPTextConfig, ...]  # one, or SDXL's two
    unet_config: UNetConfig
    vae_config: VAEConfig
    scheduler_config: SchedulerConfig
    scheduler_values: Mapping[str, Any]  # scheduler_config.json as it stands, to save it again
    force_zeros_for_empty_prompt: bool  # SDXL: zeros where no negative prompt is given

    @property
    def encoder_parts(self) -> tuple[str, ...]:
        return ("text_encoder", "text_encoder_2")[: len(self.text_encoder_configs)]

    @property
    def parts(self) -> tuple[str, ...]:
        """The names of the networks."""
        return (*self.encoder_parts, "unet", "vae")

    def config(self, part: str):
        """A part's config dataclass."""
        encoders = dict(zip(self.encoder_parts, self.text_encoder_configs, strict=True))
        return {**encoders, "unet": self.unet_config, "vae": self.vae_config}[part]

    def abstract(self, part: str, *, dtype=jnp.float32, param_dtype=jnp.float32) -> nnx.Module:
        """A part as shapes only, freshly built."""
        return abstract_model(MODELS[part], self.config(part), dtype=dtype, param_dtype=param_dtype)


def read_architecture(directory: Directory) -> Architecture:
    """Reads and checks model_index.json and the configs of networks and scheduler. Raises UserError."""
    index = directory.json("model_index.json")
    kind = _kind(index, directory)
    encoders = ("text_encoder",) if kind == "sd" else ("text_encoder", "text_encoder_2")
    _check_components(index, (*encoders, "unet", "vae", *tokenizer_folders(kind)), directory)
    text_configs = tuple(
        # Whether there is a projection is said by the class, and by `architectures` only if somebody wrote it.
        _read_config(directory, part, {"architectures": [index[part][1].removeprefix("Flax")]})
        for part in encoders
    )
    unet = _read_config(directory, "unet")
    vae = _read_config(directory, "vae")
    _check_agreement(text_configs, unet, vae, directory)
    scheduler_values = directory.json("scheduler/scheduler_config.json", infinity=True)  # in lambda_min_clipped
    return Architecture(
        kind=kind,
        text_encoder_configs=text_configs,
        unet_config=unet,
        vae_config=vae,
        scheduler_config=_parsed(SchedulerConfig, scheduler_values, "scheduler/scheduler_config.json", directory),
        scheduler_values=scheduler_values,
        force_zeros_for_empty_prompt=index.get("force_zeros_for_empty_prompt") is not False,
    )


def tokenizer_folders(kind: str) -> tuple[str, ...]:
    return ("tokenizer",) if kind == "sd" else ("tokenizer", "tokenizer_2")


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
