"""The interface of a model family: all that the rest of the code asks of Stable Diffusion, SDXL, or a later model.

A family has no state. It gets what a checkpoint says as `configs`, and what is on the devices as `networks`; both have
one entry for each of its parts. Knows no files, no devices and no batches of a run.
"""

import abc
import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, Self, TypeAlias, TypeVar

import jax
import numpy as np
from flax import nnx

from tpusd.config.cache import CacheConfig
from tpusd.config.sampler import SamplerSettings
from tpusd.config.schema import PartPrecision, PrecisionConfig, RunConfig, SavedConfig, Weighting
from tpusd.errors import UserError
from tpusd.networks.reuse import Reuse
from tpusd.networks.unet import Features
from tpusd.samplers.schedule import SchedulerConfig
from tpusd.samplers.table import Table
from tpusd.syntax.embeddings import TokenVectors
from tpusd.syntax.rules import TextRules, TextShape

MIN_BLOCK_TENSORS = 8  # a resnet's: two norms and two convolutions, with biases
ProgramName = Literal["encode", "encode_picture", "embed_control", "denoise", "decode"]
# What the name of a network of `model.controlnets` among the parts begins with; its place there follows.
CONTROLNET, T2I_ADAPTER = "controlnet_", "t2i_adapter_"
Values: TypeAlias = Mapping[str, Any]  # a JSON object: any JSON value
ChunkTokens: TypeAlias = Any  # a pytree of arrays or shapes, of prompts in chunks; the family's own
Conditioning: TypeAlias = object  # a pytree of arrays, of the prompt or of all that the denoiser gets; the family's own
Vector: TypeAlias = "jax.Array | np.ndarray | jax.ShapeDtypeStruct"  # traced, on the host, or only described
T = TypeVar("T")


class NetworkConfig(Protocol):
    """A config dataclass of one network."""

    @property
    def num_blocks(self) -> int:
        """Residual blocks, each of which has MIN_BLOCK_TENSORS parameters or more."""
        ...

    @classmethod
    def from_dict(cls, values: Values) -> Self:
        """Reads config.json. Raises UserError or ValueError for what is not implemented."""
        ...


Configs: TypeAlias = Mapping[str, NetworkConfig]  # part -> its config
Networks: TypeAlias = Mapping[str, nnx.Module]  # part -> the network; a program has only its own parts


class Rename(NamedTuple):
    """A regular expression on a stored tensor's whole name. layout: "torch", "flax", or None for both."""

    layout: str | None
    pattern: re.Pattern[str]
    replacement: str


class Ignored(NamedTuple):
    """Stored tensors that have no use here, and the reason."""

    pattern: re.Pattern[str]
    reason: str


class OriginalNames(NamedTuple):
    """A network in a single file of the original code. prefix: of its tensors. naming: how it names the layers."""

    prefix: str
    naming: Literal["unet", "controlnet", "t2i_adapter", "vae", "clip", "open_clip"]


@dataclass(frozen=True, kw_only=True)
class Component:
    """One network of a family, and how its files are named and written.

    program: the program that uses it.
    library, classes: as model_index.json names them, without a leading `Flax`; the first class is the one we save.
    network: `network(config, dtype=..., param_dtype=..., rngs=...)`.
    weights, flax_weights: file names without suffix, of PyTorch and Flax.
    precision: field of PrecisionConfig.
    tokenizer: folder of the tokenizer that feeds it; None for a network that reads no text.
    renames: applied in this order to a stored tensor's name.
    original: where single files may have it; a file has one of them.
    corrected: a config.json -> what the reference's pipeline takes it for.
    saved_config: fields of our config -> fields of the config.json that diffusers or transformers writes.
    """

    program: ProgramName
    library: Literal["diffusers", "transformers"]
    classes: tuple[str, ...]
    network: Callable[..., nnx.Module]
    config: type[NetworkConfig]
    weights: str
    flax_weights: str
    precision: str
    tokenizer: str | None = None
    renames: tuple[Rename, ...] = ()
    ignored: tuple[Ignored, ...] = ()
    original: tuple[OriginalNames, ...] = ()
    corrected: Callable[[Values], Values] = dict
    saved_config: Callable[[dict[str, Any]], dict[str, Any]] = dict


class Agreement(NamedTuple):
    """Two values, of different configs, that must be equal. left, right: what they are, for the error."""

    left: str
    left_value: object
    right: str
    right_value: object


class TokenIds(Protocol):
    """What a tokenizer gives; input_ids (n,l) int32."""

    @property
    def input_ids(self) -> np.ndarray: ...


class TextTokenizer(Protocol):
    """Prompts -> token ids, each row of the same length."""

    @property
    def embedded(self) -> Sequence[TokenVectors]:
        """Words that have vectors of their own."""
        ...

    def __call__(self, prompts: Sequence[str], /) -> TokenIds: ...

    def words(self, texts: Sequence[str], /) -> list[list[int]]:
        """Token ids without begin and end of text, of texts of any length."""
        ...

    def window(self, words: Sequence[int], /) -> np.ndarray:
        """(l,) int32: token ids between begin and end of text, padded."""
        ...

    def normalized(self, text: str, /) -> str: ...

    def id_of(self, token: str, /) -> int | None: ...

    def ends_word(self, token: int, /) -> bool: ...


class Tokens(NamedTuple):
    """input_ids: for each tokenizer (b,l) int32. given (b,) bool: False where the embeddings are to be zeros."""

    input_ids: tuple[Any, ...]  # arrays of NumPy, of JAX, or shapes
    given: Any


class Guidance(NamedTuple):
    """Per image, float32 (b,): the scale of classifier-free guidance at a step, and the share of guidance_rescale."""

    scale: "Vector"
    rescale: "Vector"


class Control(NamedTuple):
    """What ControlNets and T2I-Adapters get for a batch, each in its place.

    pictures: of each, what `embed_control` gives of an image's picture.
    guess_mode: bool (b,), whether they guide the half of the prompt alone.
    scale: float32 (b,n), of each at this step; None outside of steps.
    """

    pictures: tuple[Any, ...]  # arrays of JAX, or shapes, as all of them
    guess_mode: Any
    scale: Any = None


class Family(abc.ABC):
    """One model family. Sizes in pixels. `encode`, `prepare`, `predict` and `decode` are pure and are traced by JAX."""

    name: ClassVar[str]
    pipeline_classes: ClassVar[tuple[str, ...]]  # `_class_name` of model_index.json, without a leading `Flax`
    components: ClassVar[Mapping[str, Component]]  # part -> component, in the order in which weights are read
    beside: ClassVar[Mapping[str, Component]] = {}  # CONTROLNET and T2I_ADAPTER -> such a network beside these parts
    reads_sizes: ClassVar[bool] = False  # whether the model has size conditioning

    def schedule_notes(self, settings: SamplerSettings, config: SchedulerConfig) -> Iterable[str]:
        """A line for each thing in the scheduler's file that makes the images differ from the reference's."""
        return ()

    def guidance_notes(self, configs: Configs, config: SavedConfig) -> Iterable[str]:
        """A line for each field of guidance that has no effect on this checkpoint."""
        return ()

    def parts(self, program: ProgramName) -> tuple[str, ...]:
        """The parts that a program uses. The autoencoder that decodes latents also encodes pictures."""
        own = "decode" if program == "encode_picture" else program
        return tuple(part for part, component in self.components.items() if component.program == own)

    def component(self, part: str) -> Component:
        """Of a part of a checkpoint, which may be a network of `model.controlnets`."""
        if part in self.components:
            return self.components[part]
        return self.beside[part.rstrip("0123456789")]

    @property
    def tokenizers(self) -> tuple[str, ...]:
        """The folders of the tokenizers, in the order of their networks."""
        return tuple(c.tokenizer for c in self.components.values() if c.tokenizer is not None)

    def precisions(self, precision: PrecisionConfig, parts: Iterable[str] | None = None) -> dict[str, PartPrecision]:
        """Part -> its precision. parts: of a checkpoint; None: its own alone."""
        return {part: getattr(precision, self.component(part).precision) for part in parts or self.components}

    # What a checkpoint and a run must satisfy.

    @abc.abstractmethod
    def agreements(self, configs: Configs) -> Iterable[Agreement]:
        """What one config says of another's network."""

    def check(self, config: RunConfig) -> None:  # noqa: B027  (a family may refuse nothing)
        """Refuses a run that this family cannot make. Raises UserError."""

    def options(self, index: Values) -> dict[str, bool]:
        """The fields of model_index.json that reach the image, with their defaults filled in."""
        return {}

    def saved_index(self) -> dict[str, Any]:
        """Further fields of a saved model_index.json, as diffusers expects them; any JSON values."""
        return {}

    def with_clip_skip(self, configs: Configs, clip_skip: int) -> Configs:
        """The configs with `clip_skip` layers left out at the end of the text encoders. Raises UserError."""
        raise UserError(f"model.clip_skip={clip_skip}: is for CLIP's text encoders; leave it out")

    def check_cache(self, configs: Configs, cache: CacheConfig) -> None:
        """Refuses a cache that the denoiser cannot have. Raises UserError."""
        if cache.name != "none":
            raise UserError(f"cache={cache.name}: this model's denoiser has no deep half to reuse; remove cache")

    # Sizes.

    @abc.abstractmethod
    def size_multiple(self, configs: Configs) -> int:
        """Height and width must be multiples of this."""

    def inpaints(self, configs: Configs) -> bool:
        """Whether the denoiser also reads a mask and the latents of the picture without its masked part."""
        return False

    @abc.abstractmethod
    def image_size(self, configs: Configs) -> tuple[int, int]:
        """Height and width of the images that the checkpoint was trained for. Raises UserError if unknown."""

    @abc.abstractmethod
    def latent_shape(self, configs: Configs, height: int, width: int) -> tuple[int, int, int]:
        """(h,w,c) of one image's latents."""

    @abc.abstractmethod
    def schedule(
        self, settings: SamplerSettings, config: SchedulerConfig, height: int, width: int, *, strength: float = 1.0
    ) -> Table:
        """The sampler's table for an image of this size. Raises UserError for settings that do not fit.

        strength: the share of the steps, the last ones, of an image that starts from a picture.
        """

    # Prompts.

    @abc.abstractmethod
    def token_lengths(self, configs: Configs) -> tuple[int, ...]:
        """Tokens of a prompt, for each tokenizer."""

    @abc.abstractmethod
    def tokenize(
        self, tokenizers: Sequence[TextTokenizer], prompts: Sequence[str | None], options: Mapping[str, bool]
    ) -> Tokens:
        """Prompts -> Tokens of NumPy arrays. None: no (negative) prompt is given. options: as `options` gives them."""

    @abc.abstractmethod
    def encode(self, networks: Networks, tokens: Tokens) -> Conditioning:
        """Tokens -> text embeddings, every leaf (b,...)."""

    def check_rules(self, rules: TextRules) -> None:
        """Refuses ways to read prompts that this family does not have. Raises UserError."""
        if not rules.is_plain:
            raise UserError(
                f"prompts.syntax={rules.syntax}: this model reads plain prompts of one window; remove prompts.syntax "
                "and on_truncate=chunk"
            )

    def chunk_shapes(self, configs: Configs, b: int, shape: TextShape) -> ChunkTokens:
        """What `tokenize_chunks` gives for b prompts, as shapes."""
        raise NotImplementedError(self.name)

    def tokenize_chunks(
        self,
        tokenizers: Sequence[TextTokenizer],
        prompts: Sequence[str | None],
        rules: Sequence[TextRules],
        shape: TextShape,
        options: Mapping[str, bool],
    ) -> ChunkTokens:
        """Prompts in chunks, with weights. rules: of each. shape: which holds all of them. Otherwise as `tokenize`."""
        raise NotImplementedError(self.name)

    def encode_chunks(self, networks: Networks, tokens: ChunkTokens, weighting: Weighting | None) -> Conditioning:
        """The result of `tokenize_chunks` -> text embeddings, every leaf (b,...)."""
        raise NotImplementedError(self.name)

    # Images.

    @abc.abstractmethod
    def prepare(
        self,
        prompt: Conditioning,
        negative_prompt: Conditioning | None,
        *,
        height: int,
        width: int,
        sizes: jax.Array | None = None,
    ) -> Conditioning:
        """What `predict` needs and is the same at every step. prompt, negative_prompt: results of `encode`.

        negative_prompt: None where no image of the batch uses classifier-free guidance.
        sizes: size conditioning (b,2,6) float32, of prompts and negative prompts; None: that of the image's own size.
        """

    @abc.abstractmethod
    def predict(
        self,
        networks: Networks,
        x: jax.Array,
        t: jax.Array,
        conditioning: Conditioning,
        guidance: Guidance | None,
        control: Control | None = None,
    ) -> jax.Array:
        """The denoiser's output after guidance, (b,h,w,c) float32.

        x: latents (b,h,w,c) float32; where `inpaints`, then the mask (1) and the latents beside it (c).
        t: timesteps (b,) float32.
        conditioning: the result of `prepare`.
        guidance: None where no image of the batch uses classifier-free guidance.
        control: of the networks of `model.controlnets` among them, in their order; None without any.
        """

    def check_controlnet(self, configs: Configs, config: NetworkConfig, where: str) -> None:
        """Refuses a ControlNet or a T2I-Adapter of another base model.

        where: it, as the error begins. Raises UserError.
        """
        raise UserError(f"{where}: there are no ControlNets for {self.name}; leave it out")

    def embed_control(self, network: nnx.Module, images: jax.Array) -> Features:
        """Control images (b,H,W,3) float32 in 0..1 -> what a network makes of them once for all steps.

        One (b,h,w,c) of a ControlNet, and several of a T2I-Adapter.
        """
        raise NotImplementedError

    def predict_reusing(
        self,
        networks: Networks,
        x: jax.Array,
        t: jax.Array,
        conditioning: Conditioning,
        guidance: Guidance | None,
        reuse: Reuse,
    ) -> tuple[jax.Array, jax.Array]:
        """`predict` with a cache: the output, and the deep half that it used. `check_cache` refuses what cannot."""
        raise NotImplementedError(self.name)

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
        """The shape of the deep half that `predict_reusing` takes, for so many images, with guidance or without it."""
        raise NotImplementedError(self.name)

    def encode_picture(self, networks: Networks, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Images (b,H,W,3) float32 in -1..1 -> mean and standard deviation of their latents, (b,h,w,c) float32.

        The networks are those of `decode`. `check` refuses pictures for a family that cannot start from one.
        """
        raise NotImplementedError

    @abc.abstractmethod
    def decode(self, networks: Networks, latents: jax.Array) -> jax.Array:
        """Latents (b,h,w,c) float32 -> images (b,H,W,3) float32, about -1..1, not clipped."""


def entry(values: Mapping[str, object], part: str, cls: type[T]) -> T:
    """values[part], which is a `cls`: a config or a network of a known class."""
    value = values[part]
    assert isinstance(value, cls), (part, type(value))
    return value


def config_values(config: NetworkConfig) -> dict[str, Any]:
    """A config dataclass as the JSON object of config.json has it."""
    assert dataclasses.is_dataclass(config) and not isinstance(config, type)
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def changed_config(config: NetworkConfig, changes: Mapping[str, object]) -> NetworkConfig:
    """A config dataclass with other values of some fields."""
    assert dataclasses.is_dataclass(config) and not isinstance(config, type)
    return type(config)(**{**{f.name: getattr(config, f.name) for f in dataclasses.fields(config)}, **changes})
