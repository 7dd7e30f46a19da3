"""CLIP's text transformer (Radford et al. 2021, section 2.4), with and without the projection.

The input is token ids; this module does not know the tokenizer.
"""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp
from annotated_types import Interval
from flax import nnx
from jax.typing import DTypeLike

from tpusd.networks.clip_encoder import CLIPEncoder, check_encoder
from tpusd.networks.config import TRANSFORMERS_FIELDS, Number, Real, TokenId, read_config
from tpusd.networks.layers import LayerArgs, layer_norm


@dataclasses.dataclass(frozen=True, kw_only=True)
class CLIPTextConfig:
    """Fields of text_encoder/config.json that shape the network; defaults are transformers'."""

    vocab_size: Annotated[int, Interval(ge=1, le=1 << 20)] = 49408
    hidden_size: Number = 512
    intermediate_size: Number = 2048
    num_hidden_layers: Annotated[int, Interval(ge=1, le=256)] = 12
    num_attention_heads: Number = 8
    max_position_embeddings: Number = 77
    hidden_act: str = "quick_gelu"
    layer_norm_eps: Real = 1e-5
    projection_dim: Number = 512
    eos_token_id: TokenId = 49407
    with_projection: bool = False  # `CLIPTextModelWithProjection` in `architectures`
    clip_skip: Annotated[int, Interval(ge=0, le=256)] = 0  # of a run, not of a file: layers to leave out at the end

    def __post_init__(self) -> None:
        check_encoder(self)

    @property
    def num_blocks(self) -> int:
        """Transformer layers."""
        return self.num_hidden_layers

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, name: str = "text_encoder/config.json") -> "CLIPTextConfig":
        """Reads text_encoder/config.json. Raises UserError for a field that is not implemented. name: of the file."""
        with_projection = "CLIPTextModelWithProjection" in (values.get("architectures") or ())
        if isinstance(text := values.get("text_config"), Mapping):  # of the whole CLIP; transformers reads this part
            values = text
        values = {**values, "with_projection": with_projection, "clip_skip": 0}
        return read_config(cls, values, only={}, harmless=TRANSFORMERS_FIELDS, name=name)


class CLIPTextOutput(NamedTuple):
    """States of the text. With clip_skip k the last layer is the one that has k layers after it, except for `pooled`.

    last_hidden_state: (b,l,c), after the last layer and the final norm.
    penultimate_hidden_state: (b,l,c), before the last layer, without a norm.
    pooled: (b,p), the last hidden state at the first end-of-text token, projected if the model has a projection.
    """

    last_hidden_state: jax.Array
    penultimate_hidden_state: jax.Array
    pooled: jax.Array


class CLIPTextEmbeddings(nnx.Module):
    """Token plus position embeddings. (b,l) int32 -> (b,l,c). vectors (b,l,c): embeddings where an id is negative."""

    def __init__(self, config: CLIPTextConfig, **kw: Unpack[LayerArgs]) -> None:
        self.token_embedding = nnx.Embed(config.vocab_size, config.hidden_size, **kw)
        self.position_embedding = nnx.Embed(config.max_position_embeddings, config.hidden_size, **kw)

    def __call__(self, input_ids: jax.Array, vectors: jax.Array | None = None) -> jax.Array:
        tokens = self.token_embedding(input_ids if vectors is None else jnp.maximum(input_ids, 0))
        if vectors is not None:
            stored = vectors.astype(self.token_embedding.param_dtype)  # as one of the table
            tokens = jnp.where((input_ids < 0)[..., None], stored.astype(tokens.dtype), tokens)
        return tokens + self.position_embedding(jnp.arange(input_ids.shape[1]))


class CLIPTextTransformer(nnx.Module):
    """Embeddings, encoder, final norm. (b,l) int32 -> the normed state after the last layer, and all states before."""

    def __init__(self, config: CLIPTextConfig, **kw: Unpack[LayerArgs]) -> None:
        self.embeddings = CLIPTextEmbeddings(config, **kw)
        self.encoder = CLIPEncoder(config, causal=True, **kw)
        self.final_layer_norm = layer_norm(config.hidden_size, config.layer_norm_eps, **kw)

    def __call__(
        self, input_ids: jax.Array, keep: jax.Array | None = None, vectors: jax.Array | None = None
    ) -> tuple[jax.Array, list[jax.Array]]:
        *before, last = self.encoder(self.embeddings(input_ids, vectors), keep)
        return self.final_layer_norm(last), before


class CLIPTextModel(nnx.Module):
    """Text encoder: token ids -> hidden states and the pooled state."""

    def __init__(
        self,
        config: CLIPTextConfig,
        *,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        kw = LayerArgs(dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.eos_token_id, self.clip_skip = config.eos_token_id, config.clip_skip
        self.text_model = CLIPTextTransformer(config, **kw)
        self.text_projection = (
            nnx.Linear(config.hidden_size, config.projection_dim, use_bias=False, **kw)
            if config.with_projection
            else None
        )

    def __call__(
        self, input_ids: jax.Array, keep: jax.Array | None = None, vectors: jax.Array | None = None
    ) -> CLIPTextOutput:
        """input_ids: (b,l) int32. Every row must have an end-of-text token.

        keep: bool (b,l), the tokens that others see; None: all.
        vectors: (b,l,c), token embeddings where an id is negative; None: no id is negative.
        """
        last, before = self.text_model(input_ids, keep, vectors)
        # transformers before 4.30 wrote a wrong eos_token_id of 2. In those models end-of-text is the highest id.
        end = input_ids if self.eos_token_id == 2 else input_ids == self.eos_token_id
        pooled = jnp.take_along_axis(last, jnp.argmax(end, axis=1)[:, None, None], axis=1)[:, 0]
        if self.text_projection is not None:
            pooled = self.text_projection(pooled)
        if self.clip_skip:
            *before, last = before[: len(before) + 1 - self.clip_skip]
            last = self.text_model.final_layer_norm(last)
        return CLIPTextOutput(last, before[-1], pooled)
