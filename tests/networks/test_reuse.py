"""A UNet that reuses its deep half, layer by layer, against itself without reuse."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from support.checkpoints import load_tool
from support.runs import config

from tpusd.checkpoints.published import find_architecture
from tpusd.networks.abstract import abstract_model
from tpusd.networks.reuse import Reuse
from tpusd.networks.unet import UNet2DConditionModel

make = load_tool("make_tiny_checkpoint")
LAYOUTS = ("sd1", "sd2", "sdxl")


@functools.cache
def unet(layout):
    shape = make.tiny_configs(layout)["unet"]
    graph = nnx.graphdef(abstract_model(UNet2DConditionModel, shape, dtype=jnp.float32, param_dtype=jnp.float32))
    return shape, nnx.merge(graph, make.random_state(UNet2DConditionModel, shape, np.random.default_rng(5)))


def inputs(shape, seed, b=2, h=6, w=10):
    rng = np.random.default_rng(seed)

    def normal(*size):
        return jnp.asarray(rng.standard_normal(size, np.float32))

    more = ()
    if shape.addition_embed_type is not None:
        more = (normal(b, shape.projection_class_embeddings_input_dim - 6 * shape.addition_time_embed_dim),)
        more += (jnp.full((b, 6), 64.0),)
    return normal(b, h, w, 4), jnp.full(b, 300.0 + seed), normal(b, 7, shape.cross_attention_dim), *more


CASES = [pytest.param(layout, branch, marks=pytest.mark.long) for layout in LAYOUTS for branch in range(4)]
CASES[1] = ("sd1", 1)


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize(("layout", "branch"), CASES)
def test_a_call_computes_all_or_depends_on_the_deep_half_and_on_its_own_input(layout, branch):
    shape, model = unet(layout)
    assert shape.num_skips == 4
    first, second = inputs(shape, 1), inputs(shape, 2)
    call = jax.jit(functools.partial(reusing, model, branch))
    size = (2, *shape.deep_shape(branch, 6, 10))
    whole, deep = call(True, jnp.full(size, jnp.nan), *first)
    np.testing.assert_allclose(whole, jax.jit(lambda *given: model(*given))(*first), atol=1e-5)
    again, same = call(False, deep, *first)
    np.testing.assert_array_equal(deep, same)
    np.testing.assert_array_equal(whole, again)  # of the same input nothing is stale
    other, kept = call(False, deep, *second)
    np.testing.assert_array_equal(deep, kept)
    fresh, _ = call(True, deep, *second)
    assert np.abs(other - whole).max() > 1e-3 and np.abs(other - fresh).max() > 1e-3


def reusing(model, branch, full, deep, *given):
    return model.reusing(Reuse(branch, jnp.asarray(full), deep), *given)


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize(("name", "branches"), [("sd15", 12), ("sd21", 12), ("sdxl", 9)])
def test_the_deep_half_of_published_unets_has_the_shape_that_their_configs_say(name, branches):
    shape = find_architecture(config(f"model={name}").model).configs["unet"]
    assert shape.num_skips == branches
    model = abstract_model(UNet2DConditionModel, shape, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)
    graph, state = nnx.split(model)
    given = inputs(shape, 1, b=1, h=24, w=40)
    for branch in range(branches):

        def call(state, deep, *given, branch=branch):
            return reusing(nnx.merge(graph, state), branch, True, deep, *given)

        deep = jax.ShapeDtypeStruct((1, *shape.deep_shape(branch, 24, 40)), jnp.bfloat16)
        _, found = jax.eval_shape(call, state, deep, *given)  # a conditional needs equal shapes and types
        assert found == deep
