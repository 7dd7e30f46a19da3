"""Text embeddings of prompts with weights and chunks: against compel, and the published rules of A1111 and ComfyUI.

The references run transformers' own CLIP on random weights. A1111's and ComfyUI's rules are written here from their
documentation; the words and weights of each prompt are literals, so that no parser checks itself.
"""

import functools
import random

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

import jax  # noqa: E402
import numpy as np  # noqa: E402
from flax import nnx  # noqa: E402
from support.checkpoints import tiny  # noqa: E402
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizerFast  # noqa: E402

from tpusd.checkpoints import ModelSource, load_weights, open_checkpoint  # noqa: E402
from tpusd.syntax.chunks import extent, lay_out, shape_of  # noqa: E402
from tpusd.syntax.rules import TextRules  # noqa: E402

pytestmark = [
    pytest.mark.parity,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # the references' own deprecations are not ours
]
TOLERANCE = 1e-5
LAYOUTS = ("sd1", "sd2", "sdxl")
PARTS = {"text_encoder": ("tokenizer", CLIPTextModel), "text_encoder_2": ("tokenizer_2", CLIPTextModelWithProjection)}
LETTERS = "abcdefghijklmnopqrstuvwxyz"  # a letter is a token of the tiny checkpoints
LONG = ", ".join(f"{LETTERS[i : i + 7]} {LETTERS[:i]}" for i in range(1, 19))  # over 300 tokens
BREAK = ("BREAK", None)


@functools.cache
def checkpoint(layout):
    return open_checkpoint(ModelSource(path=str(tiny(layout))))


@functools.cache
def our_networks(layout):
    made = {}
    for part in checkpoint(layout).family.parts("encode"):
        graph, _ = nnx.split(checkpoint(layout).abstract(part))
        made[part] = nnx.merge(graph, load_weights(checkpoint(layout), part, param_dtype=np.float32))
    return made


def ours(layout, prompts, rules):
    """Of each prompt hidden states (l,e) and pooled (p,). All are one batch, so each has the chunks of the longest."""
    opened = checkpoint(layout)
    shape = shape_of([extent(text, rules, opened.tokenizers) for text in prompts], rules)
    tokens = opened.family.tokenize_chunks(opened.tokenizers, prompts, [rules] * len(prompts), shape, opened.options)

    networks = our_networks(layout)

    @jax.jit
    def encode(tokens):
        return opened.family.encode_chunks(networks, tokens, rules.weighting)

    cond = encode(tokens)
    pooled = [None] * len(prompts) if cond.pooled is None else np.asarray(cond.pooled)
    return list(zip(np.asarray(cond.hidden), pooled, strict=True))


@functools.cache
def reference(layout, part):
    """A tokenizer and a text encoder of transformers."""
    folder, cls = PARTS[part]
    tokenizer = CLIPTokenizerFast.from_pretrained(str(tiny(layout) / folder), local_files_only=True)
    return tokenizer, cls.from_pretrained(str(tiny(layout) / part)).float().eval()


def states(layout, part, windows):
    """(n,77,e) as the family takes them, and pooled (n,p). windows: n lists of at most 75 ids."""
    tokenizer, model = reference(layout, part)
    rows = []
    for ids in windows:
        row = [tokenizer.bos_token_id, *ids, tokenizer.eos_token_id]
        rows.append(row + [tokenizer.pad_token_id] * (77 - len(row)))
    with torch.no_grad():
        out = model(torch.tensor(rows), output_hidden_states=True)
    hidden = out.hidden_states[-2] if layout == "sdxl" else out.last_hidden_state
    return hidden, getattr(out, "text_embeds", None)


def windows_of(tokenizer, fragments):
    """A1111's chunks of 75: the words after a comma move on where there are at most 20 of them at the end."""
    comma, done, rest, resumed = tokenizer.convert_tokens_to_ids(",</w>"), [], [], False

    def cut(final):
        nonlocal rest, resumed
        while len(rest) > 75:
            commas = [i for i in range(75) if rest[i][0] == comma and not (i == 0 and resumed)]
            near = commas and commas[-1] >= 55 and rest[75][0] != comma
            stop = commas[-1] + 1 if near else 75
            done.append(rest[:stop])
            rest, resumed = rest[stop:], stop == 75 and rest[75][0] == comma
        if final:
            done.append(rest)
            rest, resumed = [], False

    for text, weight in fragments:
        if (text, weight) == BREAK:
            cut(final=True)
        else:
            rest += [(token, weight) for token in tokenizer(text, add_special_tokens=False)["input_ids"]]
    cut(final=bool(rest) or not done)
    return done


def published(layout, fragments, weighting):
    """The embedding by A1111's rules, or with ComfyUI's weights: hidden (l,e), pooled (p,), condition.

    condition: of A1111's division by a mean, which is near 0 in random networks: how much it enlarges rounding.
    """
    sides, pooled, condition = [], None, 1.0
    for part in checkpoint(layout).family.parts("encode"):
        windows = windows_of(reference(layout, part)[0], fragments)
        z, pooled = states(layout, part, [[token for token, _ in window] for window in windows])
        empty, _ = states(layout, part, [[]])
        made = []
        for one, window in zip(z, windows, strict=True):
            weights = torch.ones(77, 1)
            weights[1 : 1 + len(window), 0] = torch.tensor([weight for _, weight in window])
            if weighting == "comfy":
                made.append((one - empty[0]) * weights + empty[0])
            elif weighting == "a1111":
                scaled = one * weights
                made.append(scaled * (one.mean() / scaled.mean()))
                condition = max(condition, *(float(z.abs().mean() / z.mean().abs()) for z in (one, scaled)))
            else:
                made.append(one * weights)
        sides.append(torch.cat(made))
    return torch.cat(sides, dim=-1).numpy(), None if pooled is None else pooled[0].numpy(), condition


def close(made, hidden, pooled, condition=1.0):
    """made: of a prompt, perhaps with empty chunks at its end."""
    bound = TOLERANCE * max(1, np.abs(hidden).max())
    assert len(made[0]) >= len(hidden) and len(hidden) % 77 == 0
    np.testing.assert_allclose(made[0][: len(hidden)], hidden, atol=bound * condition, rtol=0)
    if pooled is not None:
        np.testing.assert_allclose(made[1], pooled, atol=bound, rtol=0)


# The prompt, and its words with their weights.
PROMPTS = (
    ("a red fox", [("a red fox", 1)]),
    ("", [("", 1)]),
    ("a (red:1.4) fox", [("a ", 1), ("red", 1.4), (" fox", 1)]),
    ("((red)) [fox], (an [owl]:0.5)", [("red", 1.1**2), (" ", 1), ("fox", 1 / 1.1), (", ", 1), ("an ", 0.5), ("owl", 0.5 / 1.1)]),  # noqa: E501
    ("a fox BREAK (snow:1.2)", [("a fox", 1), BREAK, ("snow", 1.2)]),
    (LONG, [(LONG, 1)]),
    (f"({LONG}:1.3), night", [(LONG, 1.3), (", night", 1)]),
    (f"{LONG[:90]} (owl:0.2) {LONG[90:]}", [(LONG[:90] + " ", 1), ("owl", 0.2), (" " + LONG[90:], 1)]),
)  # fmt: skip


@pytest.mark.parametrize("weighting", ["a1111", "a1111_no_norm", "comfy"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_weights_and_chunks_are_those_of_the_published_rules(layout, weighting):
    rules = TextRules(syntax="a1111", weighting=weighting, whole=True)
    every = ours(layout, [prompt for prompt, _ in PROMPTS], rules)
    for made, (_, fragments) in zip(every, PROMPTS, strict=True):
        close(made, *published(layout, fragments, weighting))


def test_chunks_of_prompts_of_1_to_300_tokens_are_those_of_the_published_rules():
    """Words and commas at random, so that chunks end at every distance from a comma."""
    tokenizer, rules = checkpoint("sd1").tokenizers[0], TextRules(syntax="plain", whole=True)
    random.seed(1)
    for size in (*range(1, 301, 2), *[150] * 100):
        text = "".join(random.choice(["ab ", "c ", ", ", "d", "e "]) for _ in range(size))
        made = [chunk.ids for chunk in lay_out(text, rules, tokenizer).chunks]
        expected = windows_of(reference("sd1", "text_encoder")[0], [(text, 1)])
        assert made == [[token for token, _ in window] for window in expected]


def test_a_long_prompt_without_weights_is_the_same_in_plain_syntax():
    (made,) = ours("sdxl", [LONG], TextRules(syntax="plain", whole=True))
    close(made, *published("sdxl", [(LONG, 1)], "a1111_no_norm"))


@pytest.mark.parametrize("weighting", ["a1111", "a1111_no_norm", "comfy", "compel"])
def test_an_embedding_does_not_depend_on_the_others_of_its_batch(weighting):
    rules = TextRules(syntax="a1111", weighting=weighting, whole=True)
    prompt = "a (red:1.4) fox, (an owl:0.3)"
    beside = [ours("sdxl", [prompt, other], rules)[0][0] for other in ("(the:0.1) (other:9)", "(owl:0.5), an owl")]
    np.testing.assert_array_equal(*beside)


COMPELS = (
    "a red fox",
    "",
    "a red++ fox, an owl-",
    "a (red fox)1.4 in the (deep snow)0.6",
    'a "red fox"++ (an (old+ owl)--)1.2, well-known',
    "(a fox)0, (an owl)0.999 (unbalanced",
    r"a \(red\) fox+ (c, d. e)1.1",
    "(a - b)1.2 fox++, (x=y)1.5",
    "word. (another one)0.3. third",
)


def compels(layout, prompt, whole):
    compel = pytest.importorskip("compel")
    kinds = compel.ReturnedEmbeddingsType
    parts = [reference(layout, part) for part in checkpoint(layout).family.parts("encode")]
    if layout == "sdxl":
        made = compel.Compel(
            tokenizer=[tokenizer for tokenizer, _ in parts],
            text_encoder=[model for _, model in parts],
            returned_embeddings_type=kinds.PENULTIMATE_HIDDEN_STATES_NON_NORMALIZED,
            requires_pooled=[False, True],
            truncate_long_prompts=not whole,
        )
        hidden, pooled = made(prompt)
        return hidden[0].numpy(), pooled[0].numpy()
    made = compel.Compel(tokenizer=parts[0][0], text_encoder=parts[0][1], truncate_long_prompts=not whole)
    return made(prompt)[0].numpy(), None


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_compels_syntax_and_weighting_are_compels(layout, whole):
    rules = TextRules(syntax="compel", weighting="compel", whole=whole)
    long = (f"({LONG[:200]})0.7. {LONG[200:300]}+ (some more. words)1.3", LONG)
    for group in ((*COMPELS, long[0]), long):
        for made, prompt in zip(ours(layout, group, rules), group, strict=True):
            close(made, *compels(layout, prompt, whole))
