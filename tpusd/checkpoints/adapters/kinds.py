"""The kinds of difference, each a pure function of its tensors: LoRA, LoHa, LoKr, a whole difference, and DoRA's norms.

Arrays have PyTorch's layout: (out,in) or (out,in,h,w). Arithmetic is float32. JAX traces these functions, and
`jax.eval_shape` tells which shapes fit without computing anything. Knows no files and no names of layers.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp

from tpusd.checkpoints.adapters.keys import DIFF, DORA, DOWN, MAGNITUDE, MID, UP

Tensors = Mapping[str, jax.Array]  # role -> tensor
Shape = tuple[int, ...]
_SMALLEST = 1e-30  # of a norm that is divided by


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One kind of difference.

    required: roles of which the sets are alternatives. optional: further roles.
    delta: tensors and the weight's shape -> the difference, of that shape or of one with as many values a row.
    rank: the roles whose first dimension is the rank that alpha is divided by; where there is no such tensor, alpha
        has no effect.
    """

    name: Literal["lora", "loha", "lokr", "full"]
    required: Sequence[frozenset[str]]
    optional: frozenset[str]
    delta: Callable[[Tensors, Shape], jax.Array]
    rank: Sequence[str]

    def takes(self, roles: frozenset[str]) -> bool:
        """Whether a layer with these roles is of this kind, and complete."""
        return any(one <= roles <= one | self.optional for one in self.required)


def _dot(a: jax.Array, b: jax.Array) -> jax.Array:
    """A matrix product in float32; a TPU's default is bfloat16."""
    return jnp.matmul(a, b, precision="highest")


def _rows(x: jax.Array) -> jax.Array:
    return x.reshape(x.shape[0], -1)


def _lora(t: Tensors, shape: Shape) -> jax.Array:
    """up (o,r), down (r,i) (Hu et al. 2021); of a convolution down (r,i,h,w), or mid (r,r,h,w) between the two."""
    up, down = _rows(t[UP]), t[DOWN]
    if MID in t:
        return jnp.einsum("op,pqhw,qi->oihw", up, t[MID], _rows(down), precision="highest")
    return _dot(up, _rows(down)).reshape(up.shape[0], *down.shape[1:])


def _loha(t: Tensors, shape: Shape) -> jax.Array:
    """The product, value by value, of two of low rank (Hyeon-Woo et al. 2021), each with a core t in Tucker's form."""

    def half(number: int) -> jax.Array:
        a, b = t[f"hada_w{number}_a"], t[f"hada_w{number}_b"]
        if (core := t.get(f"hada_t{number}")) is not None:
            return jnp.einsum("pqhw,qi,po->oihw", core, b, a, precision="highest")
        return _dot(_rows(a), _rows(b))

    return half(1) * half(2)


def _lokr(t: Tensors, shape: Shape) -> jax.Array:
    """The Kronecker product of w1 (a,b) and w2 (c,d) or (c,d,h,w), each whole or of low rank (Yeh et al. 2023)."""
    w1 = t["lokr_w1"] if "lokr_w1" in t else _dot(t["lokr_w1_a"], t["lokr_w1_b"])
    if "lokr_w2" in t:
        w2 = t["lokr_w2"]
    elif "lokr_t2" in t:
        w2 = jnp.einsum("pqhw,pc,qd->cdhw", t["lokr_t2"], t["lokr_w2_a"], t["lokr_w2_b"], precision="highest")
    else:
        w2 = _dot(t["lokr_w2_a"], _rows(t["lokr_w2_b"]))
    (a, b), c = w1.shape, w2.shape[0]
    w2 = w2.reshape(c, -1, math.prod(shape[2:]))
    product = jnp.einsum("ab,cdk->acbdk", w1, w2, precision="highest")
    return product.reshape(a * c, b * w2.shape[1], *shape[2:])


def _full(t: Tensors, shape: Shape) -> jax.Array:
    return t[DIFF]


_NORMS = frozenset({DORA, MAGNITUDE})
_HADA = frozenset(f"hada_w{i}_{side}" for i in (1, 2) for side in "ab")
_W1 = (frozenset({"lokr_w1"}), frozenset({"lokr_w1_a", "lokr_w1_b"}))
_W2 = (frozenset({"lokr_w2"}), frozenset({"lokr_w2_a", "lokr_w2_b"}), frozenset({"lokr_w2_a", "lokr_w2_b", "lokr_t2"}))
KINDS = (
    Kind(name="lora", required=[frozenset({UP, DOWN})], optional=_NORMS | {MID}, delta=_lora, rank=[DOWN]),
    Kind(
        name="loha", required=[_HADA, _HADA | {"hada_t1", "hada_t2"}], optional=_NORMS, delta=_loha, rank=["hada_w1_b"]
    ),
    Kind(
        name="lokr",
        required=[w1 | w2 for w1 in _W1 for w2 in _W2],
        optional=_NORMS,
        delta=_lokr,
        rank=["lokr_w1_b", "lokr_w2_b"],
    ),
    Kind(name="full", required=[frozenset({DIFF})], optional=frozenset(), delta=_full, rank=[]),
)


def find_kind(roles: frozenset[str]) -> Kind | None:
    """The kind of a layer's weight by its roles, without alpha and bias; None if they are incomplete or do not belong
    together."""
    return next((kind for kind in KINDS if kind.takes(roles)), None)


def changed(weight: jax.Array, kind: Kind, tensors: Tensors, factor: jax.Array, scale: jax.Array) -> jax.Array:
    """The weight with one difference, float32.

    weight: float32.
    factor: alpha / rank.
    scale: the user's.
    """
    tensors = {role: tensor.astype(jnp.float32) for role, tensor in tensors.items()}
    delta = kind.delta(tensors, weight.shape).reshape(weight.shape) * factor
    norms = tensors.get(DORA, tensors.get(MAGNITUDE))
    if norms is None:
        return weight + scale * delta
    whole = weight + delta
    axis = norm_axis({role: tensor.shape for role, tensor in tensors.items()}, weight.shape)
    others = tuple(i for i in range(weight.ndim) if i != axis)
    length = jnp.sqrt(jnp.sum(whole * whole, axis=others, keepdims=True))
    wanted = norms.reshape(length.shape)
    return weight + scale * (whole * (wanted / jnp.maximum(length, _SMALLEST)) - weight)


def norm_axis(shapes: Mapping[str, Shape], weight: Shape) -> int | None:
    """The axis of the weight along which DoRA's norms are: 0 for outputs, 1 for inputs. None: they do not fit.

    shapes: role -> the tensor's shape. Norms are those of W + difference, as in the paper (Liu et al. 2024), in peft
    and in LyCORIS.
    """
    if MAGNITUDE in shapes:
        return 0 if math.prod(shapes[MAGNITUDE]) == weight[0] else None
    own = shapes[DORA]
    if math.prod(own) == weight[0] == own[0]:
        return 0
    return 1 if len(own) > 1 and math.prod(own) == weight[1] == own[1] else None


def fits(kind: Kind, shapes: Mapping[str, Shape], weight: Shape) -> bool:
    """Whether tensors of these shapes make a difference to a weight of shape `weight`. Computes nothing."""
    described = {role: jax.ShapeDtypeStruct(shape, jnp.float32) for role, shape in shapes.items()}
    try:
        made = jax.eval_shape(lambda tensors: kind.delta(tensors, weight), described).shape
    except (TypeError, ValueError, ZeroDivisionError):
        return False
    if math.prod(made) != math.prod(weight) or made[:1] != weight[:1]:
        return False
    if len(made) == len(weight) and made != weight:
        return False
    return not (DORA in shapes or MAGNITUDE in shapes) or (
        len(weight) > 1 and norm_axis(shapes, weight) is not None and not {DORA, MAGNITUDE} <= shapes.keys()
    )
