"""What the packaged ControlNet does at each scale: how well outlines are followed, and which attributes are kept.

    python -m training.evaluate_outline                # 60 prompts of combinations never trained on, a table

Each prompt's own portrait is drawn, and its outline is the control image. The first line of the table is that outline
beside the one of the picture as the model's autoencoder gives it back: no model that draws with it does better.
"""

import argparse
import tempfile
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from PIL import Image

from tpusd.scores.portraits.draw import draw, draw_pose
from training import autoencoder
from training.evaluate import SEED, count_matches, held_out_prompts, mean_accuracy, read_portraits
from training.exported import load_exported
from training.lora import TINY
from training.outlines import drawn, outline, overlap
from training.pool import to_float, to_uint8

SCALES = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25)


def given_back(pictures: np.ndarray) -> np.ndarray:
    """Pictures (n,H,W,3) uint8 after the autoencoder's encoder and decoder."""
    graphdef, _ = autoencoder.make_model()
    vae = load_exported(TINY, "vae")

    @jax.jit
    def through(x):
        model = nnx.merge(graphdef, vae)
        return model.decode(model.encode(x)[0])

    return np.concatenate([to_uint8(through(to_float(pictures[i : i + 20]))) for i in range(0, len(pictures), 20)])


def made(folder: Path, prompts: list[str], files: list[Path], scale: float, words: list[str]) -> np.ndarray:
    """The images of a run with a control image for each prompt, (n,H,W,3) uint8."""
    import tpusd

    rows = [{"prompt": prompt, "control_image": str(file)} for prompt, file in zip(prompts, files, strict=True)]
    run = tpusd.generate(
        *words,
        f"seed={SEED}",
        f"model.controlnets=[{{asset: outline, scale: {scale}}}]",
        prompts__rows=rows,
        prompts="inline",
        output=str(folder / f"scale {scale:g}"),
    )
    return np.stack([np.asarray(image.convert("RGB")) for image in run.images])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("overrides", nargs="*", help="as for python -m tpusd.run")
    parser.add_argument("--count", type=int, default=60, help="prompts")
    args = parser.parse_args()
    portraits, prompts = held_out_prompts(args.count)
    rng = np.random.default_rng(SEED)
    pictures = np.stack([draw(portrait, draw_pose(rng)) for portrait in portraits])
    wanted = outline(pictures)

    def report(name, images):
        followed = np.mean([overlap(outline(image), lines) for image, lines in zip(images, wanted, strict=True)])
        kept = mean_accuracy(count_matches(read_portraits(images), portraits))
        print(f"| {name} | {100 * followed:.1f} % | {100 * kept:.1f} % |", flush=True)

    print("| scale | outline followed (IoU) | attributes as prompted |\n| --- | --- | --- |")
    report("the drawn pictures, through the autoencoder", given_back(pictures))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = [folder / f"{i}.png" for i in range(len(wanted))]
        for file, lines in zip(files, wanted, strict=True):
            Image.fromarray(drawn(lines)).save(file)
        for scale in SCALES:
            report(f"{scale:g}", made(folder, prompts, files, scale, args.overrides))


if __name__ == "__main__":
    main()
