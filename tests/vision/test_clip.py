"""What `load_clip` gives and refuses."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file
from support.clip import PROJECTION, write_clip, write_preprocessor, write_vision

from tpusd.engine.devices import Devices
from tpusd.errors import UserError
from tpusd.vision.clip import load_clip, unit
from tpusd.vision.preprocessing import PreprocessorConfig, preprocess

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("clip"))


def pictures(number=5):
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (40, 33, 3), np.uint8)) for _ in range(number)]


def one(root, **more):
    return load_clip(root, devices=jax.local_devices()[:1], **more)


def test_batches_are_padded_and_each_tower_is_compiled_once(whole, monkeypatch):
    compiled = []
    lower = Devices.lower
    monkeypatch.setattr(Devices, "lower", lambda self, spec: compiled.append(spec) or lower(self, spec))
    clip = one(whole, batch_size_per_device=2)
    together = clip.image_features(iter(pictures()))
    alone = np.concatenate([clip.image_features([picture]) for picture in pictures()])
    assert together.shape == (5, PROJECTION) and len(compiled) == 1
    np.testing.assert_array_equal(together, alone)
    texts = clip.text_features(["a fox", "an owl", "a hen"])
    np.testing.assert_array_equal(texts[2:], clip.text_features(["a hen"]))
    assert len(compiled) == 2


def test_no_picture_is_no_embedding(whole):
    clip = one(whole)
    assert clip.image_features([]).shape == clip.text_features([]).shape == (0, PROJECTION)
    assert clip.dimension == PROJECTION and len(clip.sha256) == 64


def test_identity_is_of_every_file_that_is_read(whole, tmp_path):
    names = {"config.json", "model.safetensors", "preprocessor_config.json", "vocab.json", "merges.txt"}
    assert names <= set(one(whole).identity.files)
    copied = Path(shutil.copytree(whole, tmp_path / "copy"))
    assert one(copied).sha256 == one(whole).sha256
    write_preprocessor(copied, 30, resample=2)
    assert one(copied).sha256 != one(whole).sha256


def test_unit_of_nothing_is_nothing():
    assert np.array_equal(unit(np.array([[3.0, 4.0], [0.0, 0.0]])), [[0.6, 0.8], [0.0, 0.0]])


def edit(root, name, change):
    file = root / name
    values = json.loads(file.read_text())
    change(values)
    file.write_text(json.dumps(values))


def in_config(change):
    return lambda root: edit(root, "config.json", change)


def in_weights(change):
    def act(root):
        tensors = load_file(root / "model.safetensors")
        change(tensors)
        save_file(tensors, root / "model.safetensors")

    return act


def only_a_pickle(root):
    (root / "model.safetensors").rename(root / "pytorch_model.bin")


EMBEDDING = "vision_model.embeddings.class_embedding"
DAMAGES = {
    "no config.json; get": lambda root: (root / "config.json").unlink(),
    "neither a CLIPModel nor": in_config(lambda values: values.pop("vision_config")),
    "must be a group of fields": in_config(lambda values: values.update(vision_config=3)),
    "hidden_act='silu' is not one of": in_config(lambda values: values["vision_config"].update(hidden_act="silu")),
    "new_option=True \\(unknown field\\)": in_config(lambda values: values["vision_config"].update(new_option=True)),
    "num_channels=1 \\(implemented: 3\\)": in_config(lambda values: values["vision_config"].update(num_channels=1)),
    "give 4000000 patches": in_config(lambda values: values["vision_config"].update(image_size=2000, patch_size=1)),
    "give 0 patches": in_config(lambda values: values["vision_config"].update(patch_size=31)),
    "projection_dim=x": in_config(lambda values: values.update(projection_dim="x")),
    "too few for the 200": in_config(lambda values: values["vision_config"].update(num_hidden_layers=200)),
    "image_size=30": lambda root: write_preprocessor(root, 28),
    "resample=9": lambda root: write_preprocessor(root, 30, resample=9),
    "do_convert_rgb=False": lambda root: write_preprocessor(root, 30, do_convert_rgb=False),
    "size={'longest_edge': 3}": lambda root: write_preprocessor(root, 30, size={"longest_edge": 3}),
    "size must be either": lambda root: write_preprocessor(root, 30, size={"height": 30}),
    "has only a pickle \\(pytorch_model.bin\\)": only_a_pickle,
    "has no weights \\(model.safetensors missing\\)": lambda root: (root / "model.safetensors").unlink(),
    "1 missing: vision_model.embeddings.class_embedding": in_weights(lambda tensors: tensors.pop(EMBEDDING)),
    "1 of another shape": in_weights(lambda tensors: tensors.update({EMBEDDING: np.zeros(27, np.float32)})),
    "does not have: extra": in_weights(lambda tensors: tensors.update(extra=np.zeros(3, np.float32))),
}


@pytest.mark.parametrize("rule", DAMAGES)
def test_what_is_wrong_with_a_checkpoint_is_one_line(whole, tmp_path, rule):
    root = Path(shutil.copytree(whole, tmp_path / "clip"))
    DAMAGES[rule](root)
    with pytest.raises(UserError, match=rule) as error:
        one(root).image_features(pictures(1))
    assert "\n" not in str(error.value) and len(str(error.value)) < 700


def test_old_files_have_a_towers_fields_twice_and_the_second_counts(whole, tmp_path):
    root = Path(shutil.copytree(whole, tmp_path / "clip"))

    def change(values):
        values["vision_config_dict"] = dict(values["vision_config"])
        values["vision_config"]["patch_size"] = 3
        values["text_config_dict"] = None

    edit(root, "config.json", change)
    np.testing.assert_array_equal(one(root).image_features(pictures()), one(whole).image_features(pictures()))


@pytest.mark.parametrize(
    ("make", "rule"),
    [
        (write_vision, "has no tower for texts; choose a whole CLIPModel"),
        (lambda root: _without_tokenizer(write_clip(root)), "has no tokenizer; choose a whole CLIPModel"),
    ],
)
def test_texts_need_their_tower_and_their_tokenizer(tmp_path, make, rule):
    clip = one(make(tmp_path))
    assert clip.image_features(pictures(1)).shape == (1, PROJECTION)
    with pytest.raises(UserError, match=rule):
        clip.text_features(["a fox"])


def _without_tokenizer(root):
    for name in ("vocab.json", "merges.txt"):
        (root / name).unlink()
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        (root / name).unlink()
    return root


def test_scale_of_the_logits_is_asked_for_only_where_it_is_needed(tmp_path):
    clip = one(write_vision(tmp_path))
    with pytest.raises(UserError, match="has no logit_scale"):
        _ = clip.logit_scale


@pytest.mark.parametrize(("words", "rule"), [({}, "exactly one of"), ({"path": "/", "repo": "a/b"}, "exactly one of")])
def test_one_place_is_named(words, rule):
    with pytest.raises(UserError, match=rule):
        load_clip(**words, field="clip")


def test_long_and_narrow_picture_takes_no_memory():
    line = Image.new("RGB", (60_000, 1))
    with pytest.raises(UserError, match="60000x1 pixels: is too long and narrow"):
        preprocess(line, PreprocessorConfig())
