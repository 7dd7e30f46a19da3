"""CLIP's two towers against transformers: random weights, through our loader and through its own."""

import pytest

torch = pytest.importorskip("torch")

import jax  # noqa: E402
import numpy as np  # noqa: E402
from PIL import Image  # noqa: E402
from support.clip import write_clip, write_vision  # noqa: E402
from transformers import CLIPModel, CLIPVisionModelWithProjection  # noqa: E402
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil  # noqa: E402

from tpusd.vision.clip import load_clip, unit  # noqa: E402

pytestmark = [pytest.mark.parity, pytest.mark.slow, pytest.mark.filterwarnings("default")]
TEXTS = ["a red fox", "", "words " * 60, "Ein Ölbild, 3 €"]
ABSOLUTE = 1e-4


def pictures():
    rng = np.random.default_rng(0)
    sizes = [(64, 48), (30, 30), (17, 90), (224, 224), (31, 29)]
    made = [Image.fromarray(rng.integers(0, 256, (height, width, 4), np.uint8), "RGBA") for width, height in sizes]
    return [image.convert(mode) for image, mode in zip(made, ("RGB", "L", "RGBA", "P", "CMYK"), strict=True)]


def close(ours, theirs):
    theirs = theirs.detach().numpy()
    assert ours.shape == theirs.shape and ours.dtype == np.float32 and np.abs(theirs).max() > 0.3
    np.testing.assert_allclose(ours, theirs, atol=ABSOLUTE, rtol=0)


@pytest.mark.parametrize(("act", "image_size", "patch_size"), [("quick_gelu", 30, 7), ("gelu", 28, 14)])
def test_whole_clip(tmp_path, act, image_size, patch_size):
    root = write_clip(tmp_path, act=act, image_size=image_size, patch_size=patch_size)
    clip = load_clip(root, devices=jax.local_devices()[:2], batch_size_per_device=1)
    model = CLIPModel.from_pretrained(root).float().eval()
    pixels = CLIPImageProcessorPil.from_pretrained(root)(images=pictures(), return_tensors="pt")["pixel_values"]
    ids = torch.tensor(clip._checkpoint.tokenizer(TEXTS).input_ids, dtype=torch.long)
    with torch.no_grad():
        images = model.get_image_features(pixels).pooler_output
        texts = model.get_text_features(ids).pooler_output
        scale = model.logit_scale.exp().item()
        expected = torch.nn.functional.normalize(images) @ torch.nn.functional.normalize(texts).T
    close(clip.image_features(pictures()), images)
    close(clip.text_features(TEXTS), texts)
    assert clip.logit_scale == pytest.approx(scale, rel=1e-6)
    cosines = unit(clip.image_features(pictures())) @ unit(clip.text_features(TEXTS)).T
    np.testing.assert_allclose(cosines, expected.numpy(), atol=ABSOLUTE, rtol=0)


def test_vision_tower_alone(tmp_path):
    root = write_vision(tmp_path)
    clip = load_clip(root, devices=jax.local_devices()[:1])
    model = CLIPVisionModelWithProjection.from_pretrained(root).float().eval()
    pixels = CLIPImageProcessorPil.from_pretrained(root)(images=pictures(), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        close(clip.image_features(pictures()), model(pixels).image_embeds)


def test_files_that_transformers_saves_are_read(tmp_path):
    """In shards, with the names of its newest version, and with a preprocessor inside of processor_config.json."""
    model = CLIPModel.from_pretrained(write_clip(tmp_path / "a")).float().eval()
    again = write_clip(tmp_path / "b", seed=7)
    (again / "model.safetensors").unlink()
    model.save_pretrained(again, max_shard_size="20KB")
    assert (again / "model.safetensors.index.json").is_file()
    ours = load_clip(tmp_path / "a", devices=jax.local_devices()[:1]).image_features(pictures())
    np.testing.assert_array_equal(load_clip(again, devices=jax.local_devices()[:1]).image_features(pictures()), ours)
