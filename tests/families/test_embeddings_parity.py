"""Prompts with embeddings (textual inversion): against diffusers' load_textual_inversion, and A1111's published rules.

The checkpoints and the vectors are random. The words and their tokens are literals where no reference reads the text.
"""

import functools

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

import jax  # noqa: E402
import numpy as np  # noqa: E402
from diffusers import DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline  # noqa: E402
from flax import nnx  # noqa: E402
from support.checkpoints import tiny  # noqa: E402
from support.embeddings import vectors, write  # noqa: E402
from support.runs import config  # noqa: E402

from tpusd.checkpoints import ModelSource, load_weights, open_checkpoint  # noqa: E402
from tpusd.config.embeddings import AppliedEmbedding, EmbeddingConfig  # noqa: E402
from tpusd.engine import noise as keys  # noqa: E402
from tpusd.engine.pipeline import Pipeline  # noqa: E402
from tpusd.plan.specs import ImageSpec  # noqa: E402
from tpusd.runs.embeddings import open_embeddings, with_embeddings  # noqa: E402
from tpusd.samplers.table import SamplerSettings, make_table  # noqa: E402
from tpusd.syntax.chunks import extent, lay_out, shape_of  # noqa: E402
from tpusd.syntax.rules import TextRules  # noqa: E402

pytestmark = [
    pytest.mark.parity,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # the reference's own deprecations are not ours
]
TOLERANCE = 1e-5
MAX, MEAN = 5e-3, 1e-4  # of pixels, as in tests/engine/test_images_parity.py
SIZE = 64
LAYOUTS = ("sd1", "sd2", "sdxl")
WORDS = {"<cat-toy>": 1, "ugly": 4, "<cat-toy>x": 2}  # word -> its vectors
PLAIN = (
    "a <cat-toy> in the snow",
    "<CAT-TOY>, ugly",
    "xuglyy <cat-toy>x,ugly<cat-toy>",  # also inside of a word; the longest word that fits
    "a fox",
    "",
    "ugly " * 30,  # more vectors than the window has
)


def of_word(word, width):
    return vectors(WORDS[word], width, seed=list(WORDS).index(word))


@functools.cache
def torch_pipeline(layout):
    cls = StableDiffusionXLPipeline if layout == "sdxl" else StableDiffusionPipeline
    pipeline = cls.from_pretrained(str(tiny(layout)), local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    encoders = [(pipeline.tokenizer, pipeline.text_encoder)]
    if layout == "sdxl":
        encoders.append((pipeline.tokenizer_2, pipeline.text_encoder_2))
    for word in WORDS:
        for tokenizer, encoder in encoders:
            tensor = torch.from_numpy(of_word(word, encoder.config.hidden_size))
            pipeline.load_textual_inversion(tensor, token=word, tokenizer=tokenizer, text_encoder=encoder)
    return pipeline


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("embeddings")


@functools.cache
def bare(layout):
    return open_checkpoint(ModelSource(path=str(tiny(layout))))


@functools.cache
def checkpoint(layout, folder):
    """Opened, with the embeddings as files have them."""
    parts = bare(layout).family.parts("encode")
    widths = [bare(layout).configs[part].hidden_size for part in parts]
    given = []
    for i, word in enumerate(WORDS):
        names = ("clip_l", "clip_g") if len(widths) == 2 else ("emb_params",)
        tensors = {name: of_word(word, width) for name, width in zip(names, widths, strict=True)}
        path = write(folder / f"{layout}-{i}.safetensors", tensors)
        given.append(EmbeddingConfig(path=str(path), token=word))
    return with_embeddings(bare(layout), open_embeddings(given, "tiny", bare(layout)))


@functools.cache
def networks(layout):
    made = {}
    for part in bare(layout).family.parts("encode"):
        graph, _ = nnx.split(bare(layout).abstract(part))
        made[part] = nnx.merge(graph, load_weights(bare(layout), part, param_dtype=np.float32))
    return made


def ours(layout, folder, prompts, rules):
    opened = checkpoint(layout, folder)
    shape = shape_of([extent(text, rules, opened.tokenizers) for text in prompts], rules)
    tokens = opened.family.tokenize_chunks(opened.tokenizers, prompts, [rules] * len(prompts), shape, opened.options)
    own = networks(layout)
    return jax.jit(lambda tokens: opened.family.encode_chunks(own, tokens, rules.weighting))(tokens)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_text_embeddings_are_those_of_diffusers(layout, folder):
    made = ours(layout, folder, PLAIN, TextRules(embedded=True))
    pipeline = torch_pipeline(layout)
    for i, prompt in enumerate(PLAIN):
        with torch.no_grad():
            theirs = pipeline.encode_prompt(
                prompt, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False
            )
        hidden = theirs[0][0].numpy()
        bound = TOLERANCE * max(1, np.abs(hidden).max())
        np.testing.assert_allclose(np.asarray(made.hidden[i]), hidden, atol=bound, rtol=0)
        if layout == "sdxl":
            np.testing.assert_allclose(np.asarray(made.pooled[i]), theirs[2][0].numpy(), atol=bound, rtol=0)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_counts_are_those_of_the_references_tokenizer(layout, folder):
    pipeline, rules = torch_pipeline(layout), TextRules(embedded=True)
    for prompt in PLAIN:
        converted = pipeline.maybe_convert_prompt(prompt, pipeline.tokenizer)
        number = len(pipeline.tokenizer(converted).input_ids)
        laid_out = lay_out(prompt, rules, checkpoint(layout, folder).tokenizers[0])
        assert (laid_out.num_tokens, laid_out.truncated) == (number, number > 77), prompt


# A prompt in A1111's syntax, and its chunks: letters, which are tokens of the tiny checkpoints, and (word, weight).
A1111S = (
    ("a (<cat-toy>:1.3) b", [[("a", 1), ("<cat-toy>", 1.3), ("b", 1)]]),
    ("(ugly:0.5), [<cat-toy>x] a", [[("ugly", 0.5), (",", 1), ("<cat-toy>x", 1 / 1.1), ("a", 1)]]),
    ("a " * 72 + "ugly b", [[("a", 1)] * 72, [("ugly", 1), ("b", 1)]]),
    ("a " * 71 + "ugly b", [[("a", 1)] * 71 + [("ugly", 1)], [("b", 1)]]),
    ("a " * 60 + ", ugly " + "b " * 12, [[("a", 1)] * 60 + [(",", 1)], [("ugly", 1)] + [("b", 1)] * 12]),
    ("ugly BREAK ugly", [[("ugly", 1)], [("ugly", 1)]]),
)


def published(layout, windows, folder):
    """The embedding by A1111's rules without norm: vectors in the place of tokens, then times the weights."""
    pipeline, sides = torch_pipeline(layout), []
    parts = [(pipeline.tokenizer, pipeline.text_encoder)]
    if layout == "sdxl":
        parts.append((pipeline.tokenizer_2, pipeline.text_encoder_2))
    for tokenizer, encoder in parts:

        def ids(word, tokenizer=tokenizer):
            names = [word, *(f"{word}_{i}" for i in range(1, WORDS.get(word, 1)))]
            return [tokenizer.convert_tokens_to_ids(name if word in WORDS else f"{name}</w>") for name in names]

        made = []
        for window in windows:
            tokens = [(token, weight) for word, weight in window for token in ids(word)]
            row = [tokenizer.bos_token_id, *(token for token, _ in tokens), tokenizer.eos_token_id]
            row += [tokenizer.pad_token_id] * (77 - len(row))
            with torch.no_grad():
                out = encoder(torch.tensor([row]), output_hidden_states=True)
            z = (out.hidden_states[-2] if layout == "sdxl" else out.last_hidden_state)[0]
            weights = torch.ones(77, 1)
            weights[1 : 1 + len(tokens), 0] = torch.tensor([weight for _, weight in tokens])
            made.append(z * weights)
        sides.append(torch.cat(made))
    return torch.cat(sides, dim=-1).numpy()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_embeddings_in_a1111s_syntax_are_never_cut_and_have_weights(layout, folder):
    rules = TextRules(syntax="a1111", weighting="a1111_no_norm", whole=True, embedded=True)
    made = ours(layout, folder, [prompt for prompt, _ in A1111S], rules)
    for own, (prompt, windows) in zip(np.asarray(made.hidden), A1111S, strict=True):
        expected = published(layout, windows, folder)
        bound = TOLERANCE * max(1, np.abs(expected).max())
        np.testing.assert_allclose(own[: len(expected)], expected, atol=bound, rtol=0, err_msg=prompt)


@pytest.mark.parametrize("layout", [*(pytest.param(name, marks=pytest.mark.long) for name in ("sd1", "sd2")), "sdxl"])
def test_images_are_those_of_diffusers(layout, folder):
    opened, texts = checkpoint(layout, folder), (("a <cat-toy> fox", "ugly"), ("<cat-toy>x ugly", "a <cat-toy>"))
    settings = SamplerSettings(name="ddim", num_inference_steps=5)
    table = make_table(settings, opened.scheduler_config)
    pipe = Pipeline.load(
        bare(layout), config("precision=fp32").precision, height=SIZE, width=SIZE, batch_size_per_device=2,
        devices=jax.devices()[:1],
    )  # fmt: skip
    specs = [
        ImageSpec(
            row=0, copy=0, prompt=prompt, negative_prompt=negative, seed=0, row_seed=None, guidance_scale=3.0,
            guidance_rescale=0.0, height=SIZE, width=SIZE, sampler=settings, text=TextRules(embedded=True),
            embeddings=(AppliedEmbedding(sha256="0", token="ugly"),),
        )
        for prompt, negative in texts
    ]  # fmt: skip
    made = pipe.generate(specs, [table] * 2, tokenizers=opened.tokenizers)
    latents = np.asarray(keys.initial_latents(np.stack([keys.image_key(0, 0, 0)] * 2), (4, 8, 8)))
    with torch.no_grad():
        theirs = torch_pipeline(layout)(
            [prompt for prompt, _ in texts],
            negative_prompt=[negative for _, negative in texts],
            latents=torch.from_numpy(latents.transpose(0, 3, 1, 2).copy()),
            num_inference_steps=5, guidance_scale=3.0, height=SIZE, width=SIZE, output_type="np",
        ).images  # fmt: skip
    difference = np.abs(np.stack([image.pixels for image in made]) / 255 - np.round(theirs * 255) / 255)
    assert difference.max() < MAX and difference.mean() < MEAN
