"""Each metric against its published formula, or against what made the pictures."""

import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from tpusd.scores.base import Picture
from tpusd.scores.portraits.draw import make_picture
from tpusd.scores.portraits.prompts import named_attributes
from tpusd.scores.portraits.world import draw_portrait, from_labels
from tpusd.scores.registry import metrics
from training.captions import draw_named, make_caption


def picture(pixels, prompt=""):
    return Picture(image=Image.fromarray(pixels), record=SimpleNamespace(prompt=prompt))


def score(name, *pictures):
    return metrics()[name].open({})(pictures)


def test_the_registry_loads_no_heavy_library():
    code = (
        "import sys; from tpusd.scores.registry import metrics; metrics(); "
        "print([name for name in ('jax', 'PIL', 'numpy', 'scipy', 'transformers') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


def test_colorfulness_is_the_published_formula():
    """Two halves, pure red and pure blue: rg is 255 or 0 (mean 127.5, deviation 127.5), yb is 127.5 or -255 (mean
    -63.75, deviation 191.25)."""
    pixels = np.zeros((6, 10, 3), np.uint8)
    pixels[:, :5, 0] = pixels[:, 5:, 2] = 255
    wanted = (127.5**2 + 191.25**2) ** 0.5 + 0.3 * (127.5**2 + 63.75**2) ** 0.5
    gray = np.full((6, 10, 3), 77, np.uint8)
    assert score("colorfulness", picture(pixels), picture(gray)) == [pytest.approx(wanted, rel=1e-12), 0.0]


def test_prompts_name_the_attributes_of_their_captions():
    """Captions of random portraits, by the program that the embedded model was trained with."""
    rng = np.random.default_rng(5)
    for _ in range(3000):
        portrait = draw_portrait(rng)
        named = draw_named(portrait, rng)
        wanted = {name: getattr(portrait, name) for name in named if name in portrait.visible}
        lacking = {"glasses": "none", "hat": "none", "beard": "none", "clothes_pattern": "plain"}
        wanted = {name: value for name, value in wanted.items() if lacking.get(name) != value}
        assert named_attributes(text := make_caption(portrait, named, rng)) == wanted, text


@pytest.mark.slow
def test_attributes_are_the_share_of_what_the_prompt_names_that_is_drawn():
    pixels, labels = make_picture(3, seed=12)
    portrait = from_labels(labels)
    true = f"a {portrait.person} with {portrait.hair_color} hair, {portrait.background} background"
    other = "red" if portrait.background != "red" else "blue"
    false = f"a {portrait.person} with {portrait.hair_color} hair, {other} background"
    assert score("attributes", picture(pixels, true), picture(pixels, false), picture(pixels, "a fox")) == [
        1.0,
        pytest.approx(2 / 3),
        None,
    ]


def test_attributes_refuse_a_picture_of_another_size():
    refuses = metrics()["attributes"].refuses_size
    assert "it is 40x24" in refuses(40, 24)
    assert refuses(128, 128) is None
