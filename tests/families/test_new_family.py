"""A family that is only in this file: registered, it goes from a checkpoint to images, and nothing else is edited."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from support.checkpoints import load_tool
from support.runs import config

from tpusd.checkpoints import ModelSource, open_checkpoint, save_checkpoint
from tpusd.checkpoints.files import Directory
from tpusd.checkpoints.tokenizer import open_tokenizer, write_byte_tokenizer
from tpusd.errors import UserError
from tpusd.families import registry
from tpusd.families.base import Agreement, Component, Family, Tokens, entry
from tpusd.networks.config import read_config
from tpusd.networks.layers import conv1x1
from tpusd.run import main
from tpusd.runs.prepare import prepare_run
from tpusd.samplers.table import make_table

pytestmark = pytest.mark.slow

WORDS, MIXER, PAINTER = "words", "mixer", "painter"
SCALE = 4  # pixels to one latent


class JsonConfig:
    num_blocks = 0  # no network of this family has any

    @classmethod
    def from_dict(cls, values):
        return read_config(cls, values, only={}, harmless=frozenset(), name=cls.__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class WordsConfig(JsonConfig):
    vocab_size: int = 514
    width: int = 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class MixerConfig(JsonConfig):
    channels: int = 3
    width: int = 5
    sample_size: int = 6


@dataclasses.dataclass(frozen=True, kw_only=True)
class PainterConfig(JsonConfig):
    channels: int = 3


class Words(nnx.Module):
    def __init__(self, config, **kw):
        self.embedding = nnx.Embed(config.vocab_size, config.width, **kw)

    def __call__(self, ids):
        return self.embedding(ids).mean(axis=1)


class Mixer(nnx.Module):
    """Guidance is an input of the network, as in distilled models."""

    def __init__(self, config, **kw):
        self.text = nnx.Linear(config.width + 1, config.channels, **kw)
        self.image = conv1x1(config.channels, config.channels, **kw)

    def __call__(self, x, text, scale):
        told = self.text(jnp.concatenate([text, scale[:, None]], axis=-1))
        return self.image(x) + told[:, None, None, :]


class Painter(nnx.Module):
    def __init__(self, config, **kw):
        self.out = conv1x1(config.channels, 3, **kw)

    def __call__(self, x):
        b, h, w, _ = x.shape
        return jnp.tanh(jnp.repeat(jnp.repeat(self.out(x), SCALE, axis=1), SCALE, axis=2).astype(jnp.float32))


def component(program, network, config, precision, **more):
    return Component(
        program=program, library="diffusers", classes=(network.__name__,), network=network, config=config,
        weights="weights", flax_weights="flax_weights", precision=precision, **more,
    )  # fmt: skip


class Invented(Family):
    name = "invented"
    pipeline_classes = ("InventedPipeline",)
    components = {
        WORDS: component("encode", Words, WordsConfig, "text_encoder", tokenizer="speller"),
        MIXER: component("denoise", Mixer, MixerConfig, "unet"),
        PAINTER: component("decode", Painter, PainterConfig, "vae"),
    }

    def __init__(self):
        self.scheduled = []

    def agreements(self, configs):
        width = entry(configs, MIXER, MixerConfig).width
        return [Agreement("mixer width", width, "words width", entry(configs, WORDS, WordsConfig).width)]

    def check(self, run):
        if run.guidance_rescale:
            raise UserError(f"guidance_rescale={run.guidance_rescale:g}: this family has none; leave it at 0")

    def size_multiple(self, configs):
        return SCALE

    def image_size(self, configs):
        size = SCALE * entry(configs, MIXER, MixerConfig).sample_size
        return size, 2 * size

    def latent_shape(self, configs, height, width):
        return height // SCALE, width // SCALE, entry(configs, MIXER, MixerConfig).channels

    def schedule(self, settings, config, height, width, *, strength=1.0):
        self.scheduled.append((height, width))
        return make_table(settings, config)

    def token_lengths(self, configs):
        return (77,)

    def tokenize(self, tokenizers, prompts, options):
        (tokenizer,) = tokenizers
        return Tokens((tokenizer([prompt or "" for prompt in prompts]).input_ids,), np.ones(len(prompts), bool))

    def encode(self, networks, tokens):
        return {"text": networks[WORDS](*tokens.input_ids)}

    def prepare(self, prompt, negative_prompt, *, height, width, sizes=None):
        return prompt

    def predict(self, networks, x, t, conditioning, guidance, control=None):
        scale = jnp.ones(len(x)) if guidance is None else guidance.scale
        return networks[MIXER](x, conditioning["text"], scale).astype(jnp.float32)

    def decode(self, networks, latents):
        return networks[PAINTER](latents)


@pytest.fixture
def family(monkeypatch):
    family = Invented()
    monkeypatch.setattr(registry, "FAMILIES", (*registry.FAMILIES, family))
    return family


@pytest.fixture
def checkpoint(family, tmp_path):
    tool, rng = load_tool("make_tiny_checkpoint"), np.random.default_rng(0)
    write_byte_tokenizer(tmp_path / "scratch/speller")
    configs = {part: component.config() for part, component in family.components.items()}
    save_checkpoint(
        tmp_path / "checkpoint",
        family,
        networks={
            part: (config, tool.random_state(family.components[part].network, config, rng))
            for part, config in configs.items()
        },
        tokenizers={"speller": open_tokenizer(Directory(tmp_path / "scratch"), "speller")},
        scheduler_config=tool.SCHEDULER,
    )
    return tmp_path / "checkpoint"


def fields(checkpoint, *more):
    prompts = 'prompts.rows=[{prompt: "a red fox"}, {prompt: "an owl"}]'
    return [
        "model=local",
        f"model.path={checkpoint}",
        "precision=fp32",
        prompts,
        "sampler.num_inference_steps=3",
        *more,
    ]


def test_a_new_family_makes_images_from_its_checkpoint(family, checkpoint, tmp_path):
    output = tmp_path / "run"
    assert main(fields(checkpoint, f"output={output}", "num_images_per_prompt=2", "batch_size_per_device=3")) == 0
    lines = [json.loads(line) for line in (output / "manifest.jsonl").read_text().splitlines()]
    assert [(line["row"], line["copy"]) for line in lines] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert {(line["height"], line["width"]) for line in lines} == {(24, 48)} == set(family.scheduled)
    assert len({line["sha256"] for line in lines}) == 4


def test_the_images_of_a_new_family_do_not_depend_on_the_batch(checkpoint):
    pixels = [images(checkpoint, batch) for batch in (1, 2)]
    np.testing.assert_array_equal(*pixels)
    assert pixels[0].shape == (2, 24, 48, 3) and pixels[0].std() > 1
    assert (pixels[0] != images(checkpoint, 2, "guidance_scale=1")).any()


def images(checkpoint, batch, *more):
    from tpusd.engine.pipeline import Pipeline
    from tpusd.plan.batches import pack
    from tpusd.plan.specs import make_specs

    prepared = prepare_run(config(*fields(checkpoint, *more)))
    size = dict(height=prepared.config.height, width=prepared.config.width)
    pipe = Pipeline.load(
        prepared.checkpoint, prepared.config.precision, **size, batch_size_per_device=batch, devices=jax.devices()[:1]
    )
    made = []
    specs = ((prepared, spec) for spec in make_specs(prepared.config))
    for group in pack(specs, batch, lambda run, spec: run.num_calls(spec)):
        made += pipe.generate(group.specs, [prepared.table(spec) for spec in group.specs])
    return np.stack([image.pixels for image in made])


def test_what_a_new_family_refuses_is_refused(checkpoint):
    with pytest.raises(UserError, match="guidance_rescale=0.5: this family has none"):
        prepare_run(config(*fields(checkpoint, "guidance_rescale=0.5")))
    with pytest.raises(UserError, match="width=36: must be a multiple of 8"):
        config(*fields(checkpoint, "width=36"))
    file = checkpoint / MIXER / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"width": 6}))
    with pytest.raises(UserError, match="mixer width=6 but words width=5: they must be equal"):
        open_checkpoint(ModelSource(path=str(checkpoint)))


def test_a_family_that_is_not_registered_is_refused(checkpoint, monkeypatch):
    monkeypatch.setattr(registry, "FAMILIES", registry.FAMILIES[:-1])
    with pytest.raises(UserError, match="_class_name=InventedPipeline is not a pipeline that is implemented"):
        open_checkpoint(ModelSource(path=str(checkpoint)))
