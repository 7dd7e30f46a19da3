"""Text in chunks and with weights: tokens of an image's texts as arrays, and what the weights do to the embedding.

Weights are arrays beside the token ids, so other weights compile nothing. The weightings are those of AUTOMATIC1111's
web UI (with and without its norm), ComfyUI and compel. Nothing depends on the other images of a batch.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import DTypeLike

from tpusd.config.schema import Weighting
from tpusd.families.base import TextTokenizer
from tpusd.networks.clip_text import CLIPTextModel, CLIPTextOutput
from tpusd.syntax.chunks import LaidOut
from tpusd.syntax.embeddings import units
from tpusd.syntax.rules import CHUNK, TextShape

WINDOW = CHUNK + 2
WITH_EMPTY = ("comfy", "compel")  # these weigh what differs from the empty text


class ChunkedTokens(NamedTuple):
    """Tokens of b texts, an array for each tokenizer, except for `given`. l: 77.

    ids: int32 (b,n,l), the chunks, then those that `extras` counts; negative where `vectors` has the embedding.
    weights: float32 (b,n,l).
    keep: bool (b,m,n,l), the tokens that each version of a text has; None: there is one version.
    shares: float32 (b,m), of the versions, with the sum 1; None as well.
    vectors: float32 (b,n,l,e), in the place of token embeddings; None: no word has vectors of its own.
    given: bool (b,), False where the embeddings are to be zeros.
    """

    ids: tuple[Any, ...]  # arrays of NumPy, of JAX, or shapes
    weights: tuple[Any, ...]
    keep: tuple[Any, ...] | None
    shares: tuple[Any, ...] | None
    vectors: tuple[Any, ...] | None
    given: Any


def extras(weighting: Weighting | None) -> int:
    """Chunks after the text's own: an empty one, and for compel the text as it is written, for the pooled state."""
    return (weighting in WITH_EMPTY) + (weighting == "compel")


def shapes(b: int, widths: Sequence[int], shape: TextShape) -> ChunkedTokens:
    """The arrays of a batch as shapes. widths: of the token embeddings of each text encoder."""
    n, m = shape.chunks, shape.versions
    rows = n + extras(shape.weighting)

    def of(*dims: int, dtype: DTypeLike) -> tuple[jax.ShapeDtypeStruct, ...]:
        return (jax.ShapeDtypeStruct((b, *dims), dtype),) * len(widths)

    return ChunkedTokens(
        ids=of(rows, WINDOW, dtype=jnp.int32),
        weights=of(n, WINDOW, dtype=jnp.float32),
        keep=of(m, n, WINDOW, dtype=jnp.bool_) if shape.weighting == "compel" else None,
        shares=of(m, dtype=jnp.float32) if shape.weighting == "compel" else None,
        vectors=tuple(jax.ShapeDtypeStruct((b, rows, WINDOW, e), jnp.float32) for e in widths)
        if shape.embedded
        else None,
        given=jax.ShapeDtypeStruct((b,), jnp.bool_),
    )


def tokens_of(
    tokenizers: Sequence[TextTokenizer],
    texts: Sequence[str],
    laid_out: Sequence[Sequence[LaidOut]],
    shape: TextShape,
    given: np.ndarray,
) -> ChunkedTokens:
    """Texts as arrays of NumPy. laid_out: of each text, for each tokenizer."""
    made = [
        [_one_text(tokenizer, text, own[i], shape) for text, own in zip(texts, laid_out, strict=True)]
        for i, tokenizer in enumerate(tokenizers)
    ]
    ids, weights, keep, shares = (
        tuple(np.stack([one[name] for one in of_tokenizer]) for of_tokenizer in made)
        for name in ("ids", "weights", "keep", "shares")
    )
    vectors = tuple(map(_vectors_at, tokenizers, ids)) if shape.embedded else None
    if shape.weighting != "compel":
        return ChunkedTokens(ids, weights, None, None, vectors, given)
    return ChunkedTokens(ids, weights, keep, shares, vectors, given)


def _vectors_at(tokenizer: TextTokenizer, ids: np.ndarray) -> np.ndarray:
    """(b,n,l,e) float32: the vectors that negative ids name, zeros elsewhere."""
    every = np.concatenate([one.vectors for one in tokenizer.embedded])
    return np.where((ids < 0)[..., None], every[np.where(ids < 0, -1 - ids, 0)], np.float32(0))


def _one_text(tokenizer: TextTokenizer, text: str, own: LaidOut, shape: TextShape) -> dict[str, np.ndarray]:
    n, m, chunks = shape.chunks, shape.versions, own.chunks
    ids = [tokenizer.window(chunk.ids) for chunk in chunks]
    ids += [tokenizer.window([])] * (n - len(chunks) + (shape.weighting in WITH_EMPTY))
    if shape.weighting == "compel":
        (plain,) = units([text], "compel", tokenizer)
        ids.append(tokenizer.window([token for unit in plain for token in unit][:CHUNK]))
    weights = np.ones((n, WINDOW), np.float32)
    for i, chunk in enumerate(chunks):
        weights[i, 1 : 1 + len(chunk.weights)] = chunk.weights
    keep = np.ones((m, n, WINDOW), bool)
    for version, without in enumerate(own.without, 1):
        keep[version].reshape(-1)[without.first : without.last + 1] = False
    if len(chunks) > 1:
        keep[:, :, [0, -1]] = True  # begin and end of every window
    shares = np.zeros(m)
    shares[: 1 + len(own.without)] = [1.0, *(without.share for without in own.without)]
    return {
        "ids": np.stack(ids),
        "weights": weights,
        "keep": keep,
        "shares": (shares / shares.sum()).astype(np.float32),
    }


def encode(encoder: CLIPTextModel, tokens: ChunkedTokens, i: int, weighting: Weighting | None) -> CLIPTextOutput:
    """One encoder's states of whole texts, (b,n*l,e), with their weights; pooled (b,p), which has no weights.

    i: which tokenizer's tokens.
    """
    ids, weights = tokens.ids[i], tokens.weights[i]
    b, n, l = weights.shape  # noqa: E741
    m = 1 if tokens.keep is None else tokens.keep[i].shape[1]
    rows = _with_versions(ids, m, n)
    keep = None
    if tokens.keep is not None:
        whole = jnp.ones((b, ids.shape[1] - n, l), bool)
        keep = jnp.concatenate([tokens.keep[i].reshape(b, m * n, l), whole], axis=1).reshape(-1, l)
    vectors = None
    if tokens.vectors is not None:
        vectors = _with_versions(tokens.vectors[i], m, n).reshape(-1, l, tokens.vectors[i].shape[-1])
    out = encoder(rows.reshape(-1, l), keep, vectors)

    def weighed(states: jax.Array) -> jax.Array:
        own = states.reshape(b, -1, l, states.shape[-1]).astype(jnp.float32)
        z = own[:, : m * n].reshape(b, m, n, l, -1)
        empty = own[:, m * n, None, None] if weighting in WITH_EMPTY else None
        z = _weighed(z, weights[:, None, ..., None], empty, weighting)
        z = z[:, 0] if tokens.shares is None else (z * tokens.shares[i][..., None, None, None]).sum(axis=1)
        return z.reshape(b, n * l, -1).astype(states.dtype)

    pooled = out.pooled.reshape(b, -1, out.pooled.shape[-1])
    return CLIPTextOutput(
        weighed(out.last_hidden_state),
        weighed(out.penultimate_hidden_state),
        pooled[:, -1 if weighting == "compel" else 0],
    )


def _with_versions(chunks: jax.Array, m: int, n: int) -> jax.Array:
    """Chunks (b,n+k,l,...) -> (b,m*n+k,l,...): the first n, which are the text, m times, then the others."""
    b, _, *of_chunk = chunks.shape
    texts = jnp.broadcast_to(chunks[:, None, :n], (b, m, n, *of_chunk)).reshape(b, m * n, *of_chunk)
    return jnp.concatenate([texts, chunks[:, n:]], axis=1)


def _weighed(z: jax.Array, weights: jax.Array, empty: jax.Array | None, weighting: Weighting | None) -> jax.Array:
    """z: (b,m,n,l,e) float32. weights: (b,1,n,l,1). empty: (b,1,1,l,e), of the empty text."""
    if weighting is None:
        return z
    if empty is not None:
        return jnp.where(weights == 1, z, empty + (z - empty) * weights)
    scaled = z * weights
    if weighting == "a1111_no_norm":
        return scaled
    return scaled * (z.mean(axis=(-2, -1), keepdims=True) / scaled.mean(axis=(-2, -1), keepdims=True))
