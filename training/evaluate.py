"""How often the model draws what its prompt says: accuracy per attribute on combinations that were never trained on.

    python -m training.evaluate DIR --count 500 --guidance-scale 7.5 --sheet sheet.png

DIR: what training.denoiser wrote. Samples with the training's own DDIM and measures with training.measure.
"""

import argparse
import json
import multiprocessing
from pathlib import Path

import jax
import numpy as np
from PIL import Image

from training.captions import make_caption
from training.denoiser import latents_shape, load_autoencoder, load_model, load_scaling_factor, make_sampler
from training.measure import read_portrait
from training.pool import sheet, to_uint8
from training.text_encoder import tokenizer_in
from training.world import VALUES, Portrait, draw_portrait

SEED = 101
BATCH_SIZE = 20


def held_out_prompts(count: int) -> tuple[list[Portrait], list[str]]:
    """The portraits and full captions of the evaluation; the first n are the same for every count >= n."""
    rng = np.random.default_rng(SEED)
    portraits, prompts = [], []
    for _ in range(count):
        portraits.append(draw_portrait(rng, held_out=True))
        prompts.append(make_caption(portraits[-1], set(portraits[-1].visible), rng))
    return portraits, prompts


def count_matches(images: np.ndarray, wanted: list[Portrait], processes: int = 2) -> dict[str, tuple[int, int]]:
    """Per attribute: (pictures in which it is as wanted, pictures in which it should show)."""
    if processes == 1:
        seen = [read_portrait(image) for image in images]
    else:
        with multiprocessing.get_context("spawn").Pool(processes) as pool:
            seen = pool.map(read_portrait, list(images), chunksize=10)
    counts = {}
    for name in VALUES:
        pairs = [(a, b) for a, b in zip(seen, wanted, strict=True) if name in b.visible]
        counts[name] = (sum(name in a.visible and getattr(a, name) == getattr(b, name) for a, b in pairs), len(pairs))
    return counts


def table(counts: dict[str, tuple[int, int]]) -> str:
    """Markdown, with the mean of the attributes' accuracies last."""
    shares = {name: right / shown for name, (right, shown) in counts.items() if shown}
    lines = ["| attribute | accuracy | pictures |", "| --- | --- | --- |"]
    lines += [
        f"| {name.replace('_', ' ')} | {100 * share:.1f} % | {counts[name][1]} |" for name, share in shares.items()
    ]
    return "\n".join([*lines, f"| **mean** | **{100 * np.mean(list(shares.values())):.1f} %** | |"])


def generate(
    directory: Path, prompts: list[str], *, guidance_scale: float, steps: int, negative: str = ""
) -> np.ndarray:
    """(n,128,128,3) uint8 from the newest checkpoint's moving average."""
    root = directory.parent
    tokenizer = tokenizer_in(root)
    graphdef, params = load_model(directory, tokenizer.vocab_size)
    decoder, decoder_params = load_autoencoder(root / "autoencoder")
    sampler = make_sampler(graphdef, decoder, load_scaling_factor(root), steps)
    padded = [*prompts, *[""] * (-len(prompts) % BATCH_SIZE)]
    made = []
    for start in range(0, len(padded), BATCH_SIZE):
        ids = tokenizer(padded[start : start + BATCH_SIZE]).input_ids
        without = tokenizer([negative] * BATCH_SIZE).input_ids
        noise = jax.random.normal(jax.random.fold_in(jax.random.key(SEED), start), (BATCH_SIZE, *latents_shape()))
        made.append(to_uint8(sampler(params, decoder_params, noise, ids, without, guidance_scale)))
    return np.concatenate(made)[: len(prompts)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--guidance-scale", type=float, default=7.5)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--sheet", type=Path)
    args = parser.parse_args()
    portraits, prompts = held_out_prompts(args.count)
    images = generate(args.directory, prompts, guidance_scale=args.guidance_scale, steps=args.steps)
    if args.sheet is not None:
        Image.fromarray(sheet(images[: args.count // 10 * 10][:60], 10)).save(args.sheet)
    counts = count_matches(images, portraits)
    print(table(counts))
    print(json.dumps({name: right / shown for name, (right, shown) in counts.items()}))


if __name__ == "__main__":
    main()
