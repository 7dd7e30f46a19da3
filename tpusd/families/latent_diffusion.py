"""What Stable Diffusion 1, 2 and XL share: CLIP text encoders, a UNet with classifier-free guidance, an autoencoder.

Rombach et al. 2022; Podell et al. 2023. Knows nothing of one family alone: that is in stable_diffusion.py and sdxl.py.
"""

import abc
import dataclasses
import functools
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tpusd.config.cache import CacheConfig
from tpusd.config.packed_rows import first_rows
from tpusd.config.sampler import SamplerSettings
from tpusd.config.schema import PrecisionConfig, SavedConfig, Weighting
from tpusd.errors import UserError
from tpusd.families import chunks, controls
from tpusd.families.base import (
    CONTROLNET,
    T2I_ADAPTER,
    Agreement,
    Component,
    Conditioning,
    Configs,
    Control,
    Family,
    Guidance,
    Ignored,
    NetworkConfig,
    Networks,
    OriginalNames,
    Rename,
    TextTokenizer,
    Tokens,
    changed_config,
    entry,
)
from tpusd.networks.clip_text import CLIPTextConfig, CLIPTextModel, CLIPTextOutput
from tpusd.networks.controlnet import ControlNetConfig, ControlNetModel
from tpusd.networks.reuse import Reuse
from tpusd.networks.t2i_adapter import T2IAdapter, T2IAdapterConfig
from tpusd.networks.unet import Features, UNet2DConditionModel
from tpusd.networks.unet_config import UNetConfig
from tpusd.networks.vae import AutoencoderKL, VAEConfig
from tpusd.samplers.guidance import classifier_free_guidance
from tpusd.samplers.schedule import SchedulerConfig
from tpusd.samplers.table import Table, make_table
from tpusd.syntax.chunks import lay_out
from tpusd.syntax.rules import TextRules, TextShape

Kept = TypeVar("Kept")
TEXT_ENCODER, UNET, VAE = "text_encoder", "unet", "vae"  # the parts that all of these families have
# diffusers' schedulers that can clip the predicted sample, and whether they do where the file does not say.
CLIPS = {"ddim": True, "ddpm": True, "heun": False, "lcm": False}

# Flax writes list entries as attributes: down_blocks_0. (linear_1 is a name, not an entry.)
_LISTS = "down_blocks|up_blocks|attentions|resnets|transformer_blocks|downsamplers|upsamplers|to_out|net"
_FLAX_LISTS = Rename("flax", re.compile(rf"(^|\.)({_LISTS})_(\d+)(?=\.)"), r"\1\2.\3")


def _saved_clip_config(values: dict[str, Any]) -> dict[str, Any]:
    """Whether there is a projection, the class says in `architectures`; clip_skip is of a run."""
    own = ("with_projection", "clip_skip")
    return {"model_type": "clip_text_model"} | {name: value for name, value in values.items() if name not in own}


def _saved_vae_config(values: dict[str, Any]) -> dict[str, Any]:
    """Every level has the same type of block, which our config does not name."""
    levels = len(values["block_out_channels"])
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * levels, "up_block_types": ["UpDecoderBlock2D"] * levels}
    return values | blocks


# What transformers' text models do not read either, from files of the whole CLIP.
_NOT_TEXT = (
    Ignored(re.compile(r"(^|\.)embeddings\.position_ids$"), "positions are counted, not read"),
    Ignored(re.compile(r"^(vision_model|visual_projection)\."), "of CLIP's tower for images"),
    Ignored(re.compile(r"^logit_scale$"), "only comparing texts with images needs it"),
)
CLIP_TEXT_COMPONENT = Component(
    program="encode",
    library="transformers",
    classes=("CLIPTextModel",),
    network=CLIPTextModel,
    config=CLIPTextConfig,
    weights="model",
    flax_weights="flax_model",
    precision="text_encoder",
    tokenizer="tokenizer",
    renames=(
        # transformers 5 saves CLIP without the prefix that earlier versions and every published file have.
        Rename(None, re.compile(r"^(embeddings|encoder|final_layer_norm)\."), r"text_model.\1."),
    ),
    ignored=(*_NOT_TEXT, Ignored(re.compile(r"^text_projection\."), "CLIPTextModel has no projection")),
    saved_config=_saved_clip_config,
)
CLIP_TEXT_COMPONENT_WITH_PROJECTION = dataclasses.replace(
    CLIP_TEXT_COMPONENT, classes=("CLIPTextModelWithProjection",), tokenizer="tokenizer_2", ignored=_NOT_TEXT
)
UNET_COMPONENT = Component(
    program="denoise",
    library="diffusers",
    classes=("UNet2DConditionModel",),
    network=UNet2DConditionModel,
    config=UNetConfig,
    weights="diffusion_pytorch_model",
    flax_weights="diffusion_flax_model",
    precision="unet",
    renames=(_FLAX_LISTS,),
    original=(OriginalNames("model.diffusion_model.", "unet"),),
)
VAE_COMPONENT = Component(
    program="decode",
    library="diffusers",
    classes=("AutoencoderKL",),
    network=AutoencoderKL,
    config=VAEConfig,
    weights="diffusion_pytorch_model",
    flax_weights="diffusion_flax_model",
    precision="vae",
    renames=(
        # The autoencoder's attention before diffusers 0.17: the spelling of SD 1.x and 2.x as published.
        Rename(None, re.compile(r"\.attentions([._]\d+)\.query\."), r".attentions\1.to_q."),
        Rename(None, re.compile(r"\.attentions([._]\d+)\.key\."), r".attentions\1.to_k."),
        Rename(None, re.compile(r"\.attentions([._]\d+)\.value\."), r".attentions\1.to_v."),
        Rename(None, re.compile(r"\.attentions([._]\d+)\.proj_attn\."), r".attentions\1.to_out.0."),
        _FLAX_LISTS,
    ),
    original=(OriginalNames("first_stage_model.", "vae"), OriginalNames("vae.", "vae")),
    saved_config=_saved_vae_config,
)


class TextConditioning(NamedTuple):
    """What the UNet gets of the text: hidden (b,l,e); pooled (b,p), None except for SDXL."""

    hidden: jax.Array
    pooled: jax.Array | None


class UNetConditioning(NamedTuple):
    """What the UNet gets besides the sample and the timestep; with guidance, negative prompts come first.

    hidden (b or 2b,l,e). pooled (b or 2b,p) and time_ids (b or 2b,6): None except for SDXL.
    """

    hidden: jax.Array
    pooled: jax.Array | None
    time_ids: jax.Array | None


def _zeros_put_in(text: TextConditioning, given: jax.Array) -> TextConditioning:
    def zeroed(x: jax.Array) -> jax.Array:
        return jnp.where(given.reshape(-1, *[1] * (x.ndim - 1)), x, 0)

    made: TextConditioning = jax.tree.map(zeroed, text)
    return made


def _downscale(configs: Configs) -> int:
    return entry(configs, VAE, VAEConfig).downscale


def _predict(
    call: Callable[..., tuple[jax.Array, Kept]],
    config: UNetConfig,
    x: jax.Array,
    t: jax.Array,
    conditioning: Conditioning,
    guidance: Guidance | None,
) -> tuple[jax.Array, Kept]:
    """One call of a UNet with guidance. call: the UNet's inputs -> its output, and what else it gives."""
    assert isinstance(conditioning, UNetConditioning)
    if guidance is None:
        return call(x, t, *conditioning)
    b = x.shape[0]
    if config.time_cond_proj_dim is not None:
        prompts: UNetConditioning = jax.tree.map(lambda both: both[b:], conditioning)
        return call(x, t, *prompts, cast(jax.Array, guidance.scale))
    out, kept = call(jnp.concatenate([x, x]), jnp.concatenate([t, t]), *conditioning)
    scale, rescale = cast(jax.Array, guidance.scale), cast(jax.Array, guidance.rescale)
    return classifier_free_guidance(out[:b], out[b:], scale, rescale), kept


class LatentDiffusion(Family):
    """What is the same in all of these families."""

    beside = {CONTROLNET: controls.CONTROLNET_COMPONENT, T2I_ADAPTER: controls.T2I_ADAPTER_COMPONENT}

    def agreements(self, configs: Configs) -> Iterable[Agreement]:
        """Text encoders, UNet and autoencoder must be of one checkpoint."""
        unet, vae = entry(configs, UNET, UNetConfig), entry(configs, VAE, VAEConfig)
        width = sum(text.hidden_size for text in self._text_configs(configs))
        return [
            Agreement("unet cross_attention_dim", unet.cross_attention_dim, "text hidden_size", width),
            *(
                []
                if self.inpaints(configs)
                else [Agreement("unet in_channels", unet.in_channels, "vae latent_channels", vae.latent_channels)]
            ),
            Agreement("unet out_channels", unet.out_channels, "vae latent_channels", vae.latent_channels),
            Agreement("vae in_channels", vae.in_channels, "red, green and blue", 3),
            Agreement("vae out_channels", vae.out_channels, "red, green and blue", 3),
        ]

    def saved_index(self) -> dict[str, Any]:
        """Components that diffusers' pipeline has and that have no effect on the pixels here."""
        return {"feature_extractor": [None, None], "image_encoder": [None, None]}

    def with_clip_skip(self, configs: Configs, clip_skip: int) -> Configs:
        """Every text encoder's states are those before its last `clip_skip` layers. Raises UserError."""
        texts = {part: entry(configs, part, CLIPTextConfig) for part in self.parts("encode")}
        most = min(config.num_hidden_layers for config in texts.values()) - 2
        if clip_skip > most:
            raise UserError(f"model.clip_skip={clip_skip}: must be from 0 to {most} for this model's text encoders")
        return {**configs, **{part: changed_config(config, {"clip_skip": clip_skip}) for part, config in texts.items()}}

    def check_cache(self, configs: Configs, cache: CacheConfig) -> None:
        """The branch is a skip connection of the UNet."""
        last = entry(configs, UNET, UNetConfig).num_skips - 1
        if cache.branch > last:
            raise UserError(
                f"cache.branch={cache.branch}: must be from 0 to {last}, the skip connections of this model's UNet"
            )

    def size_multiple(self, configs: Configs) -> int:
        """Pixels of a latent along one side: 8; and what a T2I-Adapter puts together to one position: 16 for SDXL's."""
        adapters = [config.downscale_factor for config in configs.values() if isinstance(config, T2IAdapterConfig)]
        return math.lcm(_downscale(configs), *adapters)

    def inpaints(self, configs: Configs) -> bool:
        """Whether the UNet has 9 input channels: latents, a mask, and the latents of the rest of the picture."""
        return entry(configs, UNET, UNetConfig).in_channels == 2 * entry(configs, VAE, VAEConfig).latent_channels + 1

    def image_size(self, configs: Configs) -> tuple[int, int]:
        """The UNet's sample_size is that of the latents. Raises UserError where the checkpoint does not say it."""
        own, scale = entry(configs, UNET, UNetConfig).sample_size, _downscale(configs)
        if own is None:
            raise UserError("sample_size=null in unet/config.json: the image size is unknown; set height and width")
        height, width = (own, own) if isinstance(own, int) else own
        return height * scale, width * scale

    def latent_shape(self, configs: Configs, height: int, width: int) -> tuple[int, int, int]:
        """One latent for each 8x8 pixels."""
        scale = _downscale(configs)
        return height // scale, width // scale, entry(configs, VAE, VAEConfig).latent_channels

    def schedule(
        self, settings: SamplerSettings, config: SchedulerConfig, height: int, width: int, *, strength: float = 1.0
    ) -> Table:
        """The same for every size."""
        return make_table(settings, config, strength=strength)

    def schedule_notes(self, settings: SamplerSettings, config: SchedulerConfig) -> Iterator[str]:
        """diffusers' PNDM begins with Runge-Kutta steps, and others clip latents, unless the file switches that off."""
        if settings.name == "pndm" and not config.skip_prk_steps:
            yield (
                "scheduler_config.json does not say skip_prk_steps=true: diffusers would begin with Runge-Kutta steps; "
                "here all steps are linear multistep (PLMS), as in every published Stable Diffusion"
            )
        if self.would_clip(settings, config):
            yield (
                f"scheduler_config.json does not say clip_sample=false: with {settings.name}, diffusers would clip the "
                "latents to -1..1, which spoils the picture; here they are not clipped"
            )

    def guidance_notes(self, configs: Configs, config: SavedConfig) -> Iterator[str]:
        """What has no effect on a UNet that reads the guidance scale."""
        width = entry(configs, UNET, UNetConfig).time_cond_proj_dim
        if width is None:
            return
        idle = [name for name in ("negative_prompt", "guidance_rescale") if getattr(config, name)]
        if not idle and any(row.negative_prompt for _, row in first_rows(config.prompts.rows)):
            idle = ["negative_prompt"]
        if idle:
            yield (
                f"{' and '.join(idle)}: no effect, because this UNet reads the guidance scale "
                f"(time_cond_proj_dim={width}) and has no unconditional half"
            )

    def would_clip(self, settings: SamplerSettings, config: SchedulerConfig) -> bool:
        """Whether the reference would clip the predicted sample to -1..1."""
        default = CLIPS.get(settings.name)
        return default is not None and (default if config.clip_sample is None else config.clip_sample)

    def token_lengths(self, configs: Configs) -> tuple[int, ...]:
        """CLIP's positions: 77."""
        return tuple(text.max_position_embeddings for text in self._text_configs(configs))

    def tokenize(
        self, tokenizers: Sequence[TextTokenizer], prompts: Sequence[str | None], options: Mapping[str, bool]
    ) -> Tokens:
        """A prompt that is not given is the empty prompt."""
        words = [prompt or "" for prompt in prompts]
        ids = tuple(tokenizer(words).input_ids for tokenizer in tokenizers)
        return Tokens(ids, self.given(prompts, options))

    def encode(self, networks: Networks, tokens: Tokens) -> TextConditioning:
        """The text encoders' states, zeros where no prompt was given."""
        encoders = [entry(networks, part, CLIPTextModel) for part in self.parts("encode")]
        text = self.text([encoder(ids) for encoder, ids in zip(encoders, tokens.input_ids, strict=True)])
        return _zeros_put_in(text, tokens.given)

    def check_rules(self, rules: TextRules) -> None:
        """CLIP reads all of them."""

    def chunk_shapes(self, configs: Configs, b: int, shape: TextShape) -> chunks.ChunkedTokens:
        """An array of each kind for each text encoder."""
        return chunks.shapes(b, [text.hidden_size for text in self._text_configs(configs)], shape)

    def tokenize_chunks(
        self,
        tokenizers: Sequence[TextTokenizer],
        prompts: Sequence[str | None],
        rules: Sequence[TextRules],
        shape: TextShape,
        options: Mapping[str, bool],
    ) -> chunks.ChunkedTokens:
        """A prompt that is not given is the empty prompt."""
        texts = [prompt or "" for prompt in prompts]
        laid_out = [[lay_out(text, own, t) for t in tokenizers] for text, own in zip(texts, rules, strict=True)]
        return chunks.tokens_of(tokenizers, texts, laid_out, shape, self.given(prompts, options))

    def encode_chunks(
        self, networks: Networks, tokens: chunks.ChunkedTokens, weighting: Weighting | None
    ) -> TextConditioning:
        """As `encode`, of all chunks side by side. The pooled text is that of the first chunk, except for compel."""
        encoders = [entry(networks, part, CLIPTextModel) for part in self.parts("encode")]
        outputs = [chunks.encode(encoder, tokens, i, weighting) for i, encoder in enumerate(encoders)]
        return _zeros_put_in(self.text(outputs), tokens.given)

    def given(self, prompts: Sequence[str | None], options: Mapping[str, bool]) -> np.ndarray:
        """bool (b,): False where a prompt that is not given makes zeros after encoding."""
        return np.ones(len(prompts), bool)

    @abc.abstractmethod
    def text(self, outputs: Sequence[CLIPTextOutput]) -> TextConditioning:
        """The text encoders' outputs -> what the UNet gets of them."""

    def prepare(
        self,
        prompt: Conditioning,
        negative_prompt: Conditioning | None,
        *,
        height: int,
        width: int,
        sizes: jax.Array | None = None,
    ) -> UNetConditioning:
        """Both prompts as one batch."""
        assert isinstance(prompt, TextConditioning)
        both = prompt
        if negative_prompt is not None:
            both = jax.tree.map(lambda u, c: jnp.concatenate([u, c]), negative_prompt, prompt)
        if sizes is None:
            return UNetConditioning(*both, time_ids=self.time_ids(both.hidden.shape[0], height, width))
        own = sizes[:, 0] if negative_prompt is None else jnp.concatenate([sizes[:, 1], sizes[:, 0]])
        return UNetConditioning(*both, time_ids=own)

    def time_ids(self, b: int, height: int, width: int) -> jax.Array | None:
        """SDXL's sizes (b,6)."""
        return None

    def predict(
        self,
        networks: Networks,
        x: jax.Array,
        t: jax.Array,
        conditioning: Conditioning,
        guidance: Guidance | None,
        control: Control | None = None,
    ) -> jax.Array:
        """One call of the UNet, with guidance for a batch of 2b; a UNet that reads the guidance has a batch of b."""
        unet, b = entry(networks, UNET, UNet2DConditionModel), x.shape[0]

        def call(
            x: jax.Array,
            t: jax.Array,
            hidden: jax.Array,
            pooled: jax.Array | None,
            time_ids: jax.Array | None,
            scale: jax.Array | None = None,
        ) -> tuple[jax.Array, None]:
            text = (hidden, pooled, time_ids)
            halves = x.shape[0] // b
            added = controls.residuals(networks, control, x, t, text, halves)
            inside = controls.features(networks, control, halves)
            return unet(x, t, *text, guidance_scale=scale, residuals=added, features=inside), None

        return _predict(call, unet.config, x, t, conditioning, guidance)[0]

    def predict_reusing(
        self,
        networks: Networks,
        x: jax.Array,
        t: jax.Array,
        conditioning: Conditioning,
        guidance: Guidance | None,
        reuse: Reuse,
    ) -> tuple[jax.Array, jax.Array]:
        """DeepCache (Ma et al. 2024): both halves of a guided batch reuse their own."""
        unet = entry(networks, UNET, UNet2DConditionModel)
        return _predict(functools.partial(unet.reusing, reuse), unet.config, x, t, conditioning, guidance)

    def deep_half(
        self,
        configs: Configs,
        precision: PrecisionConfig,
        branch: int,
        *,
        images: int,
        guided: bool,
        height: int,
        width: int,
    ) -> jax.ShapeDtypeStruct:
        """What enters the UNet's layer that takes the skip connection `branch`, in the precision of its layers."""
        unet = entry(configs, UNET, UNetConfig)
        h, w, _ = self.latent_shape(configs, height, width)
        b = images * (2 if guided and unet.time_cond_proj_dim is None else 1)
        return jax.ShapeDtypeStruct((b, *unet.deep_shape(branch, h, w)), jnp.dtype(precision.unet.dtype))

    def check_controlnet(self, configs: Configs, config: NetworkConfig, where: str) -> None:
        """It must be made for a UNet of these shapes."""
        unet = entry(configs, UNET, UNetConfig)
        if isinstance(config, T2IAdapterConfig):
            controls.check_adapter_fits(config, unet, _downscale(configs), where)
            return
        assert isinstance(config, ControlNetConfig)
        controls.check_fits(config, unet, _downscale(configs), where)

    def embed_control(self, network: nnx.Module, images: jax.Array) -> Features:
        """The ControlNet's own convolutions, or the whole T2I-Adapter."""
        if isinstance(network, T2IAdapter):
            return network.embed(images)
        assert isinstance(network, ControlNetModel)
        return (network.embed(images),)

    def encode_picture(self, networks: Networks, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The autoencoder's encoder, scaled as the UNet has latents."""
        vae = entry(networks, VAE, AutoencoderKL)
        mean, logvar = vae.encode(images.astype(vae.dtype))
        return mean * vae.config.scaling_factor, jnp.exp(logvar / 2) * vae.config.scaling_factor

    def decode(self, networks: Networks, latents: jax.Array) -> jax.Array:
        """Undoes the scaling of the latents, then the autoencoder's decoder."""
        vae = entry(networks, VAE, AutoencoderKL)
        return vae.decode((latents / vae.config.scaling_factor).astype(vae.dtype))

    def _text_configs(self, configs: Configs) -> list[CLIPTextConfig]:
        return [entry(configs, part, CLIPTextConfig) for part in self.parts("encode")]
