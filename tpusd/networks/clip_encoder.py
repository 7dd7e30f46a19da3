"""The transformer of CLIP's two towers, for texts and for pictures (Radford et al. 2021, sections 2.3 and 2.4).

Each tower has embeddings and norms of its own around it.
"""

from collections.abc import Callable, Mapping
from typing import Protocol, Unpack

import jax
from flax import nnx

from tpusd.networks.attention.dispatch import dot_product_attention
from tpusd.networks.layers import LayerArgs, gelu, layer_norm


def quick_gelu(x: jax.Array) -> jax.Array:
    """The activation of OpenAI's CLIP, of an array of any shape: x sigmoid(1.702 x) (Hendrycks & Gimpel 2016)."""
    return x * jax.nn.sigmoid(1.702 * x)


ACTIVATIONS: Mapping[str, Callable[[jax.Array], jax.Array]] = {
    "quick_gelu": quick_gelu,  # OpenAI's CLIP
    "gelu": gelu,  # OpenCLIP: SD 2.x, SDXL's second encoder, CLIP-H
}


class EncoderConfig(Protocol):
    """The fields of a tower's config that shape its transformer."""

    @property
    def hidden_size(self) -> int: ...
    @property
    def intermediate_size(self) -> int: ...
    @property
    def num_hidden_layers(self) -> int: ...
    @property
    def num_attention_heads(self) -> int: ...
    @property
    def hidden_act(self) -> str: ...
    @property
    def layer_norm_eps(self) -> float: ...


def check_encoder(config: EncoderConfig) -> None:
    """Raises ValueError for fields that do not fit each other, or that are not implemented."""
    if config.hidden_act not in ACTIVATIONS:
        raise ValueError(f"hidden_act={config.hidden_act!r} is not one of {', '.join(ACTIVATIONS)}")
    if config.hidden_size % config.num_attention_heads:
        raise ValueError(f"hidden_size={config.hidden_size} is not a multiple of {config.num_attention_heads=}")


class CLIPAttention(nnx.Module):
    """Multi-head self-attention. (b,l,c) -> (b,l,c). causal: a token sees only itself and those before it."""

    def __init__(self, config: EncoderConfig, *, causal: bool, **kw: Unpack[LayerArgs]) -> None:
        self.num_heads, self.causal = config.num_attention_heads, causal
        self.q_proj = nnx.Linear(config.hidden_size, config.hidden_size, **kw)
        self.k_proj = nnx.Linear(config.hidden_size, config.hidden_size, **kw)
        self.v_proj = nnx.Linear(config.hidden_size, config.hidden_size, **kw)
        self.out_proj = nnx.Linear(config.hidden_size, config.hidden_size, **kw)

    def __call__(self, x: jax.Array, keep: jax.Array | None = None) -> jax.Array:
        b, length, c = x.shape
        heads = (b, length, self.num_heads, c // self.num_heads)
        q, k, v = (proj(x).reshape(heads) for proj in (self.q_proj, self.k_proj, self.v_proj))
        return self.out_proj(dot_product_attention(q, k, v, causal=self.causal, keep=keep).reshape(b, length, c))


class CLIPMLP(nnx.Module):
    """Two-layer perceptron. (b,l,c) -> (b,l,c)."""

    def __init__(self, config: EncoderConfig, **kw: Unpack[LayerArgs]) -> None:
        self.activation = ACTIVATIONS[config.hidden_act]
        self.fc1 = nnx.Linear(config.hidden_size, config.intermediate_size, **kw)
        self.fc2 = nnx.Linear(config.intermediate_size, config.hidden_size, **kw)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.fc2(self.activation(self.fc1(x)))


class CLIPEncoderLayer(nnx.Module):
    """Pre-norm transformer layer. (b,l,c) -> (b,l,c)."""

    def __init__(self, config: EncoderConfig, *, causal: bool, **kw: Unpack[LayerArgs]) -> None:
        self.layer_norm1 = layer_norm(config.hidden_size, config.layer_norm_eps, **kw)
        self.self_attn = CLIPAttention(config, causal=causal, **kw)
        self.layer_norm2 = layer_norm(config.hidden_size, config.layer_norm_eps, **kw)
        self.mlp = CLIPMLP(config, **kw)

    def __call__(self, x: jax.Array, keep: jax.Array | None = None) -> jax.Array:
        x = x + self.self_attn(self.layer_norm1(x), keep)
        return x + self.mlp(self.layer_norm2(x))


class CLIPEncoder(nnx.Module):
    """The stack of layers. (b,l,c) -> the state before the first layer and the states after each, (b,l,c) each."""

    def __init__(self, config: EncoderConfig, *, causal: bool, **kw: Unpack[LayerArgs]) -> None:
        layers = [CLIPEncoderLayer(config, causal=causal, **kw) for _ in range(config.num_hidden_layers)]
        self.layers = nnx.List(layers)

    def __call__(self, x: jax.Array, keep: jax.Array | None = None) -> list[jax.Array]:
        states = [x]
        for layer in self.layers:
            states.append(layer(states[-1], keep))
        return states
