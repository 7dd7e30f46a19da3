"""Floating-point operations of a function, counted in its jaxpr: what its arithmetic needs, however it is compiled.

Counts convolutions and matrix products, as published figures do (a multiply-add is two). Knows nothing of devices.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
from jax.extend.core import Jaxpr, JaxprEqn, Literal, Var

from tpusd.networks.reuse import REUSED


@dataclass(frozen=True)
class Work:
    """FLOPs: once a call, in one trip of a loop whose length is an argument, and what a trip that reuses saves."""

    once: float
    per_trip: float
    reused: float = 0.0


def count_flops(function: Callable[..., object], *arguments: Any) -> Work:
    """arguments: trees of arrays or jax.ShapeDtypeStruct."""
    return _count(jax.make_jaxpr(function)(*arguments).jaxpr)


def _count(jaxpr: Jaxpr) -> Work:
    once = per_trip = reused = 0.0
    for equation in jaxpr.eqns:
        name, parameters = equation.primitive.name, equation.params
        if name == "dot_general":
            once += _dot(equation)
        elif name == "conv_general_dilated":
            once += _convolution(equation)
        elif name == "while":
            body = _count(parameters["body_jaxpr"].jaxpr)
            per_trip += body.once + body.per_trip
            reused += body.reused
        elif name == "cond":
            # Where each platform has its own way to the same result, the cheapest of them is what the result needs.
            choose = min if parameters.get("branches_platforms") is not None else max
            branches = [_count(branch.jaxpr) for branch in parameters["branches"]]
            once += choose(branch.once for branch in branches)
            per_trip += choose(branch.per_trip for branch in branches)
            if REUSED in str(equation.source_info.name_stack):
                reused += max(branch.once for branch in branches) - min(branch.once for branch in branches)
        else:
            times = parameters["length"] if name == "scan" else 1
            for inner in _inner(parameters):
                work = _count(inner)
                once += times * work.once
                per_trip += times * work.per_trip
                reused += times * work.reused
    return Work(once, per_trip, reused)


def _inner(parameters: Mapping[str, Any]) -> Iterator[Jaxpr]:
    """The programs within an equation. Its parameters may be anything."""
    for value in parameters.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if hasattr(item, "eqns"):
                yield item
            elif hasattr(item, "jaxpr") and hasattr(item.jaxpr, "eqns"):
                yield item.jaxpr


def _dot(equation: JaxprEqn) -> float:
    (contracting, _), _ = equation.params["dimension_numbers"]
    left = _shape(equation.invars[0])
    return 2.0 * float(math.prod(_shape(equation.outvars[0])) * math.prod(left[axis] for axis in contracting))


def _convolution(equation: JaxprEqn) -> float:
    kernel = _shape(equation.invars[1])
    numbers = equation.params["dimension_numbers"]
    out_channels, in_per_group = kernel[numbers.rhs_spec[0]], kernel[numbers.rhs_spec[1]]
    taps = math.prod(kernel) / (out_channels * in_per_group)
    return 2.0 * float(math.prod(_shape(equation.outvars[0])) * in_per_group * taps)


def _shape(variable: Var | Literal) -> tuple[int, ...]:
    shape: tuple[int, ...] = variable.aval.shape  # type: ignore[attr-defined]  # of an array, as all variables here are
    return shape
