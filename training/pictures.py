"""Draws the pictures that the package holds, for image=asset:NAME and the like.

    python -m training.pictures tpusd/assets/pictures

portrait: somebody without glasses. eyes: a mask over the eyes. outline: the lines of somebody with a top hat.
"""

import argparse
import dataclasses
from pathlib import Path

import numpy as np
from PIL import Image

from tpusd.scores.portraits.draw import SIZE, draw, draw_pose
from tpusd.scores.portraits.world import Portrait
from training.outlines import drawn, outline

SEED = 3
PORTRAIT = Portrait(
    person="woman", hair_style="long", hair_color="brown", skin="pale", eye_color="green", glasses="none", hat="none",
    hat_color="red", beard="none", expression="smiling", clothes_color="yellow", clothes_pattern="striped",
    background="teal",
)  # fmt: skip
OF_OUTLINE = dataclasses.replace(
    PORTRAIT, person="man", hair_style="curly", glasses="round", hat="top hat", beard="moustache", background="gray"
)
EYES = (48, 79, 26, 102)  # top, bottom, left, right, in pixels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path)
    args = parser.parse_args()
    pose = draw_pose(np.random.default_rng(SEED))
    mask = np.zeros((SIZE, SIZE), np.uint8)
    top, bottom, left, right = EYES
    mask[top:bottom, left:right] = 255
    pictures = {
        "portrait": draw(PORTRAIT, pose),
        "eyes": mask,
        "outline": drawn(outline(draw(OF_OUTLINE, pose))),
    }
    args.directory.mkdir(parents=True, exist_ok=True)
    for name, pixels in pictures.items():
        Image.fromarray(pixels).save(args.directory / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main()
