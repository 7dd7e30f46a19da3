"""The 2022 program's own pictures: diffusers 0.39.0's FlaxStableDiffusionPipeline under pmap on 8 devices.

data/sd2022 holds the checkpoint and what that program made of it, written by tools/record_2022.py.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from support.pipelines import generate, pipeline, prompts

pytestmark = pytest.mark.slow

DATA = Path(__file__).parents[1] / "data" / "sd2022"
META = json.loads((DATA / "expected.json").read_text())
EXPECTED = np.load(DATA / "expected.npz")


@pytest.fixture(scope="module", params=["safetensors", "msgpack"])
def directory(request, tmp_path_factory):
    """The checkpoint with one kind of weight files alone, so that no other can have been read."""
    root = tmp_path_factory.mktemp(request.param) / "sd2022"
    dropped = {"safetensors": "*.msgpack", "msgpack": "*.safetensors"}[request.param]
    return Path(shutil.copytree(DATA, root, ignore=shutil.ignore_patterns(dropped)))


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("case", META["cases"])
def test_eight_copies_of_row_0_are_the_2022_programs_images(directory, case):
    steps, negative = META["cases"][case]
    overrides = [f"seed={META['seed']}", f"guidance_scale={META['guidance_scale']}", "num_images_per_prompt=8"]
    overrides += ["sampler=pndm", f"sampler.num_inference_steps={steps}"]
    overrides += [f'negative_prompt="{negative}"'] if negative is not None else []
    pipe = pipeline(devices=8, path=directory)
    images = generate(pipe, prompts(META["prompt"]), *overrides, path=directory)
    assert [copy for _, copy in images] == list(range(8))
    ours = np.stack([image.pixels for image in images.values()]).astype(np.float32) / 255
    theirs = EXPECTED[case].astype(np.float32)
    assert ours.shape == theirs.shape
    difference = np.abs(ours - theirs)
    rounding = 0.5 / 255 + 2.0**-12  # ours to whole pixel values, theirs to float16
    assert difference.max() < 5e-3 + rounding
    assert np.abs(ours - np.round(theirs * 255) / 255).mean() < 5e-4
