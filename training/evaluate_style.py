"""What the LoRA of old photographs does at each scale: how much colour is left, and which attributes are still drawn.

    python -m training.evaluate_style                  # 100 prompts of combinations never trained on, a table

An attribute that colour alone tells cannot be read from an old photograph, so the others are counted. The first line of
the table is what the best LoRA would do: the pictures of the model alone, turned into old photographs by their pixels.
"""

import argparse

import numpy as np

from tpusd.scores.portraits.measure import as_drawn
from training.evaluate import count_matches, generate, held_out_prompts, mean_accuracy, read_portraits
from training.styles import old_photograph, share_off

SCALES = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25)
SHAPES = ("person", "hair_style", "glasses", "hat", "beard", "expression", "clothes_pattern")
STYLED = 0.75  # scales from here on are read as old photographs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("overrides", nargs="*", help="as for python -m tpusd.run")
    parser.add_argument("--count", type=int, default=100, help="prompts")
    args = parser.parse_args()
    portraits, prompts = held_out_prompts(args.count)

    def report(name, images, look):
        counts = count_matches(read_portraits(images, look), portraits)
        kept = mean_accuracy({name: counts[name] for name in SHAPES})
        colour = np.mean([share_off(image) for image in images])
        print(f"| {name} | {100 * colour:.1f} % | {100 * kept:.1f} % |", flush=True)

    print("| scale | pixels with a colour of their own | shapes as prompted |\n| --- | --- | --- |")
    for scale in SCALES:
        images = generate(prompts, f"loras=[{{asset: old_photograph, scale: {scale}}}]", *args.overrides)
        if scale == 0:
            report("the model alone, turned", old_photograph(images).round().astype(np.uint8), old_photograph)
        report(f"{scale:g}", images, old_photograph if scale >= STYLED else as_drawn)


if __name__ == "__main__":
    main()
