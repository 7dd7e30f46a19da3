"""NaN and infinity are found where they begin, image by image. Weights and dtypes of a checkpoint make them."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from support.checkpoints import TEXT, UNET, VAE, copy, edit_tensor, weights
from support.pipelines import SIZE, checkpoint, generate, pipeline, prompts
from support.runs import config

from tpusd.config.schema import saved_config
from tpusd.engine import programs
from tpusd.engine.not_finite import NotFinite
from tpusd.plan.specs import make_specs
from tpusd.prompts.rows import read_rows
from tpusd.samplers.table import make_table

pytestmark = pytest.mark.slow

BOUND = 0.7
LARGEST = float(np.finfo(np.float32).max)
ENCODE, DECODE = NotFinite(program="encode"), NotFinite(program="decode")


def infinite_word(root, word, layout="sd1"):
    """Of prompts with this word the text encoder makes NaN; the embeddings of others are sound."""
    tokenizer = checkpoint(layout).tokenizers[0]
    others = {int(i) for i in tokenizer(["a red fox, a moose"]).input_ids.ravel()}
    (only,) = {int(i) for i in tokenizer([word]).input_ids.ravel()} - others

    def change(tensor):
        tensor[only] = np.inf

    edit_tensor(root / TEXT, "text_model.embeddings.token_embedding.weight", change)


def infinite_timesteps(root):
    """At timesteps t with cos(t) > BOUND the UNet makes NaN; at others it is sound.

    Unit 0 of linear_1 is LARGEST * (1 - BOUND + cos t), since cos t is the first sinusoid. Above BOUND it is infinite.
    linear_2 takes it times 0, which is 0 for numbers and NaN for infinity.
    """

    def only_cosine(tensor):
        tensor[0] = 0
        tensor[0, 0] = LARGEST

    def bias(tensor):
        tensor[0] = LARGEST * (1 - BOUND)

    def without(tensor):
        tensor[:, 0] = 0

    edit_tensor(root / UNET, "time_embedding.linear_1.weight", only_cosine)
    edit_tensor(root / UNET, "time_embedding.linear_1.bias", bias)
    edit_tensor(root / UNET, "time_embedding.linear_2.weight", without)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A checkpoint with all of it, and an autoencoder that overflows in float16 where latents are large."""
    root = copy(tmp_path_factory.mktemp("faulty"))
    infinite_word(root, "q")
    infinite_timesteps(root)
    edit_tensor(root / VAE, "decoder.conv_in.weight", lambda tensor: tensor * np.float32(200))
    edit_tensor(root / VAE, "decoder.conv_in.bias", lambda tensor: tensor * 0)
    return root


@pytest.fixture(scope="module")
def pipe(root):
    more = ("precision.vae.dtype=float16", "precision.vae.param_dtype=float32")
    return pipeline(per_device=4, path=root, more=more)


def first_bad_call(*overrides):
    """Of a table: by the definition of the checkpoint's fault."""
    times = make_table(config(*overrides).sampler, checkpoint().scheduler_config).timesteps
    bad = [(k, t) for k, t in enumerate(times) if np.cos(t) > BOUND]
    return NotFinite(program="denoise", call=bad[0][0] + 1, num_calls=len(times), timestep=bad[0][1]) if bad else None


@pytest.fixture(scope="module")
def sound():
    """The number of steps of a table that the UNet is sound for."""
    steps = (f"sampler.num_inference_steps={n}" for n in range(2, 20))
    return next(field for field in steps if first_bad_call("sampler=ddim", field) is None)


def places(images):
    return [image.not_finite for image in images.values()]


@pytest.mark.long
@pytest.mark.slow
def test_text_embedding_is_of_its_image_alone(root, pipe, sound):
    """The others of its batch are what they are beside a sound one. The second batch is padded with the bad prompt."""
    rows = ["a red fox", "q", "a moose", "a fox"]
    made = generate(pipe, prompts(*rows, "a q"), "sampler=ddim", sound, path=root)
    assert places(made) == [None, ENCODE, None, None, ENCODE]
    rows[1] = "a red moose"
    beside = generate(pipe, prompts(*rows), "sampler=ddim", sound, path=root)
    for row in (0, 2, 3):
        np.testing.assert_array_equal(made[row, 0].pixels, beside[row, 0].pixels)
        assert made[row, 0].trace == beside[row, 0].trace


@pytest.mark.long
@pytest.mark.slow
def test_negative_prompt_counts_with_guidance_alone(root, pipe, sound):
    fields = [prompts("a moose"), "sampler=ddim", "negative_prompt=q"]
    assert places(generate(pipe, *fields, sound, path=root)) == [ENCODE]
    assert places(generate(pipe, *fields, sound, "guidance_scale=1", path=root)) == [None]
    bad = ["sampler=euler", "sampler.num_inference_steps=6"]
    assert places(generate(pipe, *fields, *bad, "guidance_scale=1", path=root)) == [first_bad_call(*bad)]


SAMPLERS, CALLS = ("euler", "ddim", "pndm"), (1, 2, 4)


def with_first_bad_call(sampler, call):
    """Fields of a run whose sampler meets the first bad timestep in this call."""
    for steps in range(call, 60):
        fields = (f"sampler={sampler}", f"sampler.num_inference_steps={steps}")
        place = first_bad_call(*fields)
        if place is not None and place.call == call:
            return fields
    raise AssertionError(f"no number of steps for {sampler} and call {call}")


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("on_step", [None, lambda done, total: None], ids=["one call", "in pieces"])
def test_step_is_the_first_whose_latents_are_not_finite(root, pipe, sound, on_step):
    """Images of other samplers and numbers of steps share the batch, and each has its own first step."""
    specs, expected = [], []
    for fields in (*map(with_first_bad_call, SAMPLERS, CALLS), ("sampler=ddim", sound)):
        made = config(prompts("a moose"), *fields)
        specs += make_specs(saved_config(made, rows=read_rows(made.prompts), height=SIZE, width=SIZE))
        expected.append(first_bad_call(*fields))
    tables = [make_table(spec.sampler, checkpoint(path=root).scheduler_config) for spec in specs]
    assert [image.not_finite for image in pipe.generate(specs, tables, on_step=on_step)] == expected
    assert [place and place.call for place in expected] == [*CALLS, None]


def test_pixels_of_a_float16_autoencoder_that_overflows(root, pipe, sound):
    """As SDXL's own autoencoder does, here for the one image whose latents are large."""
    rows = "prompts.rows=[{prompt: a moose}, {prompt: a moose, guidance_scale: 1000}, {prompt: a fox}]"
    assert places(generate(pipe, rows, "sampler=ddim", sound, path=root)) == [None, DECODE, None]


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("part", ["text_encoder", "text_encoder_2"])
def test_embeddings_of_both_of_sdxls_encoders_count(tmp_path, part):
    """A bias that is infinite; the pooled embedding of the second encoder as well."""
    root = copy(tmp_path, "sdxl")
    name = "text_projection.weight" if part == "text_encoder_2" else "text_model.encoder.layers.0.mlp.fc2.bias"

    def change(tensor):
        tensor.reshape(-1)[0] = np.inf

    edit_tensor(root / part / "model.safetensors", name, change)
    opened = checkpoint("sdxl", root)
    networks = {}
    for one in ("text_encoder", "text_encoder_2"):
        graph, _ = nnx.split(opened.abstract(one, dtype=jnp.float32, param_dtype=jnp.float32))
        networks[one] = nnx.merge(graph, weights(root, one))
    tokens = opened.family.tokenize(opened.tokenizers, ["a moose", None], opened.options)
    _, _, finite = programs.encode(opened.family, networks, tokens)
    # Where no prompt is given, SDXL's embeddings are zeros.
    assert finite.tolist() == [False, True]


def test_place_is_in_words():
    assert str(ENCODE) == "text embedding" and str(DECODE) == "pixels"
    place = NotFinite(program="denoise", call=7, num_calls=51, timestep=841.0)
    assert str(place) == "latents after model call 7 of 51, timestep 841"
