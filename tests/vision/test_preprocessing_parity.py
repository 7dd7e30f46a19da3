"""Pictures of every mode and many sizes against transformers' own image processor, bit for bit."""

import pytest

pytest.importorskip("torch")

import numpy as np
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from tpusd.vision.preprocessing import PreprocessorConfig, preprocess

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("default")]
MODES = ("RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "YCbCr", "I;16", "palette with transparency", "colour key")
SIZES = ((64, 48), (33, 33), (20, 90), (224, 224), (301, 257), (7, 5))
PROCESSORS = (
    {"size": {"shortest_edge": 30}, "crop_size": {"height": 30, "width": 30}},
    {"size": 45, "crop_size": 30},
    {"size": 21, "crop_size": {"height": 31, "width": 30}},  # the picture is smaller than what is cut out
    {"size": {"height": 24, "width": 40}, "do_center_crop": False, "resample": 2},
    {"size": 30, "crop_size": 30, "do_normalize": False},
    {"size": 30, "crop_size": 30, "do_rescale": False},
    {"size": 30, "crop_size": 30, "rescale_factor": 0.01, "image_mean": [0.5] * 3, "image_std": [0.25, 0.5, 1.0]},
    {"do_resize": False, "crop_size": 11},
)


def picture(mode: str, size: tuple[int, int], seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    colours = Image.fromarray(rng.integers(0, 256, (size[1], size[0], 4), np.uint8), "RGBA")
    if mode == "palette with transparency":
        made = colours.convert("RGB").quantize(16)
        made.info["transparency"] = bytes(range(0, 256, 16))
        return made
    if mode == "colour key":
        made = colours.convert("RGB")
        made.info["transparency"] = made.getpixel((0, 0))
        return made
    if mode == "I;16":
        return Image.fromarray(rng.integers(0, 65536, (size[1], size[0]), np.uint16))
    return colours.convert(mode if mode in ("RGBA", "LA", "L") else "RGB").convert(mode)


def reference(image: Image.Image, values: dict) -> np.ndarray:
    (pixels,) = CLIPImageProcessorPil(**values)(images=[image], return_tensors="np")["pixel_values"]
    return pixels.transpose(1, 2, 0)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", SIZES)
def test_every_mode_and_size(mode, size):
    image, values = picture(mode, size), PROCESSORS[0]
    np.testing.assert_array_equal(preprocess(image, PreprocessorConfig.from_dict(values)), reference(image, values))


@pytest.mark.parametrize("values", PROCESSORS)
@pytest.mark.parametrize("size", [(64, 48), (48, 65)])
def test_every_field_of_the_file(values, size):
    image = picture("RGB", size)
    ours = preprocess(image, PreprocessorConfig.from_dict(values))
    np.testing.assert_array_equal(ours, reference(image, values))
    assert ours.dtype == np.float32


def test_pixels_are_taken_as_a_picture_is():
    image = picture("RGB", (64, 48))
    config = PreprocessorConfig()
    np.testing.assert_array_equal(preprocess(np.asarray(image), config), preprocess(image, config))


def test_saved_processor_is_read(tmp_path):
    import json

    CLIPImageProcessorPil().save_pretrained(tmp_path)
    values = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert PreprocessorConfig.from_dict(values) == PreprocessorConfig()
