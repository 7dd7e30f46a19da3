"""Teaches the text encoder to read captions before the denoiser is trained with it: which attributes does one name?

    python -m training.text_encoder DIR --steps 800

Linear heads on the final states after end-of-text are thrown away afterwards. Goes on from DIR's newest checkpoint.
"""

import argparse
import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from tpusd.checkpoints.files import Directory
from tpusd.checkpoints.tokenizer import MAX_LENGTH, Tokenizer, open_tokenizer
from tpusd.networks.clip_text import CLIPTextConfig, CLIPTextModel
from tpusd.scores.portraits.world import VALUES, Portrait, draw_portrait
from training.captions import draw_named, make_caption
from training.fit import fit, make_optimizer, make_step, random_params, start_state

SEED = 23
CLASSES = [len(values) + 1 for values in VALUES.values()]  # the last one: not named


def text_config(vocab_size: int) -> CLIPTextConfig:
    """The embedded model's text encoder."""
    return CLIPTextConfig(
        vocab_size=vocab_size, eos_token_id=vocab_size - 1, hidden_size=64, intermediate_size=256, num_hidden_layers=3,
        num_attention_heads=4, projection_dim=64,
    )  # fmt: skip


@functools.cache
def tokenizer_in(directory: Path) -> Tokenizer:
    """The tokenizer that training.tokenizer wrote into `directory`."""
    return open_tokenizer(Directory(directory), "tokenizer")


class Reader(nnx.Module):
    """Text encoder with one linear head for all attributes."""

    def __init__(self, config: CLIPTextConfig, rngs: nnx.Rngs):
        self.encoder = CLIPTextModel(config, rngs=rngs)
        self.heads = nnx.Linear(config.hidden_size, sum(CLASSES), rngs=rngs)

    def __call__(self, input_ids, positions):
        """input_ids (b,l), positions (b,k) -> logits (b,k,classes)."""
        states = self.encoder(input_ids).last_hidden_state
        return self.heads(jnp.take_along_axis(states, positions[:, :, None], axis=1))


def named_labels(portrait: Portrait, named: set[str]) -> np.ndarray:
    """(attributes,) int32: what the caption tells; the lack of something is not told."""
    labels = portrait.labels
    for i, (name, values) in enumerate(VALUES.items()):
        if name not in named or getattr(portrait, name) in ("none", "plain"):
            labels[i] = len(values)
    return labels


def make_loss(graphdef):
    """Cross-entropy of every attribute at end-of-text and at one position after it."""
    offsets = np.cumsum([0, *CLASSES])

    def loss(params, batch, key):
        input_ids, labels, ends = batch
        later = ends + jnp.floor(jax.random.uniform(key, ends.shape) * (MAX_LENGTH - ends)).astype(jnp.int32)
        logits = nnx.merge(graphdef, params)(input_ids, jnp.stack([ends, later], axis=1))
        total = 0.0
        for i, (start, stop) in enumerate(zip(offsets, offsets[1:], strict=False)):
            total += optax.softmax_cross_entropy_with_integer_labels(logits[..., start:stop], labels[:, None, i]).mean()
        return total / len(CLASSES)

    return loss


def make_batch(tokenizer: Tokenizer, step: int, size: int):
    """(input_ids (b,77), labels (b,attributes), position of end-of-text (b,)) of step `step`."""
    rng = np.random.default_rng([SEED, step])
    portraits = [draw_portrait(rng) for _ in range(size)]
    named = [draw_named(portrait, rng) for portrait in portraits]
    tokens = tokenizer([make_caption(p, n, rng) for p, n in zip(portraits, named, strict=True)])
    labels = np.stack([named_labels(p, n) for p, n in zip(portraits, named, strict=True)])
    return tokens.input_ids, labels, tokens.num_tokens - 1


def make_reader(vocab_size: int):
    """(graphdef, parameters) at the random start."""
    return random_params(Reader, text_config(vocab_size), seed=SEED)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path, help="beside it lies the folder `tokenizer`")
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    args = parser.parse_args()
    tokenizer = tokenizer_in(args.directory.parent)
    graphdef, params = make_reader(tokenizer.vocab_size)
    optimizer = make_optimizer(args.learning_rate, args.steps)
    args.directory.mkdir(parents=True, exist_ok=True)
    state = fit(
        args.directory, start_state(params, optimizer), make_step(make_loss(graphdef), optimizer),
        lambda step: make_batch(tokenizer, step, args.batch_size), steps=args.steps, seed=SEED,
    )  # fmt: skip
    loss = make_loss(graphdef)(state.ema, make_batch(tokenizer, 1 << 30, 512), jax.random.key(0))
    print(json.dumps({"cross_entropy_of_new_captions": float(loss)}))


if __name__ == "__main__":
    main()
