"""The embedded model draws what its prompts say: colours found in the pixels, guidance and negative prompts at work."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

import tpusd
from tpusd.config.paths import packaged_picture
from tpusd.scores.portraits.draw import BACKGROUND, HAIR, draw
from tpusd.scores.portraits.measure import MIDDLE
from tpusd.scores.portraits.world import from_labels
from training.evaluate import (
    BATCH_SIZE,
    NEGATIVE,
    count_matches,
    generate,
    held_out_prompts,
    mean_accuracy,
    read_portraits,
)
from training.outlines import outline, overlap
from training.styles import share_off

pytestmark = [pytest.mark.long, pytest.mark.slow]

TEN = {  # prompt -> hair colour, background; no clothes, skin or hat of the hair's colour
    "portrait of a smiling woman with long red hair and pale skin, wearing a white shirt, teal background": (
        "red", "teal",
    ),
    "portrait of a serious man with short black hair, wearing a yellow sweater, pink background": ("black", "pink"),
    "a surprised lady with a blond bob and dark skin, wearing a blue top, purple background": ("blond", "purple"),
    "portrait of a woman with curly blue hair and tanned skin, wearing a red shirt, gray background": ("blue", "gray"),
    "a drawing of a man with spiky white hair and brown skin, wearing a black shirt, on a green background": (
        "white", "green",
    ),
    "a happy girl with brown pigtails and pale skin, wearing a green shirt, against a yellow wall": ("brown", "yellow"),
    "portrait of a sad woman with a black bob and pale skin, wearing an orange top, red background": ("black", "red"),
    "a picture of a smiling man with curly red hair and pale skin, wearing a blue sweater, gray background": (
        "red", "gray",
    ),
    "portrait of a lady with long white hair and dark skin, wearing a purple shirt, orange background": (
        "white", "orange",
    ),
    "portrait of a boy with short blue hair and pale skin, wearing a striped red shirt, yellow background": (
        "blue", "yellow",
    ),
}  # fmt: skip
FEW_STEPS = "sampler.num_inference_steps=25"  # half the time, nearly the same pictures
NEAR = 45  # of 255, in the channel that differs most: no two hair colours and no two backgrounds are as near
CORNER = 10  # pixels that neither hair nor hat reaches


@pytest.fixture(scope="module")
def ten():
    return generate(list(TEN))


@pytest.fixture(scope="module")
def held_out():
    """20 held-out prompts: what was wanted, and the mean accuracy at a guidance scale."""
    portraits, prompts = held_out_prompts(BATCH_SIZE)

    def accuracy(*overrides):
        return mean_accuracy(count_matches(read_portraits(generate(prompts, *overrides)), portraits))

    return accuracy


def distance(image, color):
    return np.abs(image.astype(int) - color).max(axis=-1)


@pytest.mark.parametrize("palette", [HAIR, BACKGROUND])
def test_no_two_colours_of_the_palette_are_near(palette):
    colors = list(palette.values())
    assert all(distance(np.array(a), b) > NEAR for i, a in enumerate(colors) for b in colors[:i])


def test_the_wanted_background_is_behind_every_portrait(ten):
    for image, (prompt, (_, background)) in zip(ten, TEN.items(), strict=True):
        corners = np.concatenate([image[:CORNER, :CORNER], image[:CORNER, -CORNER:]])
        near = (distance(corners, BACKGROUND[background]) < NEAR).mean()
        assert near > 0.9, f"{prompt}: {near:.0%} of the corners"


def test_the_wanted_hair_is_on_every_head(ten):
    for image, (prompt, (hair, background)) in zip(ten, TEN.items(), strict=True):
        head = image[:100]
        pixels = {color: (distance(head, HAIR[color]) < NEAR).sum() for color in HAIR}
        style = next(style for style in ("long", "bob", "curly", "pigtails", "spiky", "short") if style in prompt)
        assert pixels[hair] > drawn_hair(style, hair, background) / 2, f"{prompt}: {pixels}"


def drawn_hair(style, hair, background):
    """Pixels of the hair's colour in a drawing with this hair."""
    portrait = dataclasses.replace(
        from_labels(np.zeros(13, int)), hair_style=style, hair_color=hair, background=background, glasses="none",
        hat="none", clothes_color="purple",
    )  # fmt: skip
    return (distance(draw(portrait, MIDDLE)[:100], HAIR[hair]) < NEAR).sum()


def test_the_packaged_lora_makes_old_photographs(ten):
    styled = generate(list(TEN), "loras=[{asset: old_photograph}]")
    before, after = (np.mean([share_off(image) for image in images]) for images in (ten, styled))
    assert before > 0.6 and after < 0.15, (before, after)


def test_the_packaged_controlnet_follows_an_outline(tmp_path):
    """Where the prompt leaves open who it is, most of the lines are there at scale 1, and few without it."""
    lines = np.asarray(Image.open(packaged_picture("asset:outline", "control_image")).convert("L")) > 128
    followed = []
    for scale in (0, 1):
        run = tpusd.generate(
            FEW_STEPS, "prompt=portrait of a person", "model.controlnets=[{asset: outline}]", "num_images_per_prompt=4",
            "control_image=asset:outline", f"control_scale={scale}", seed=0, output=str(tmp_path / str(scale)),
        )  # fmt: skip
        followed.append(np.mean([overlap(outline(np.asarray(image.convert("RGB"))), lines) for image in run.images]))
    assert followed[1] > 0.5 and followed[1] > 1.5 * followed[0], followed


def test_accuracy_rises_from_guidance_1_to_the_default(held_out):
    alone, default = held_out("guidance_scale=1"), held_out()
    assert default > alone and default > 0.9, (alone, default)


def test_a_negative_prompt_makes_what_it_names_rare():
    text, value = NEGATIVE["person"]
    _, prompts = held_out_prompts(10, silent=("person", "beard"))
    shown = []
    for more in ((), (f'negative_prompt="{text}"',)):
        seen = read_portraits(generate(prompts, FEW_STEPS, *more))
        shown.append(sum(portrait.person == value for portrait in seen))
    assert shown[0] >= 6 and shown[1] <= shown[0] / 2, shown
