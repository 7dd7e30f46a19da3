"""Where a safety checker is found, what is refused, and a real one in a real run."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file
from support.checkpoints import copy, tiny
from support.clip import checker_tensors, write_checker, write_preprocessor
from support.runs import StandInPipeline, config, manifest

from tpusd.checkpoints import ModelSource, open_checkpoint
from tpusd.engine.devices import Devices
from tpusd.errors import UserError
from tpusd.records.validate import faults
from tpusd.runs.executors.local import load_pipeline
from tpusd.runs.start import start_run
from tpusd.vision.safety import SafetyChecker, open_checker
from tpusd.vision.verdict import decide

pytestmark = pytest.mark.slow


def checkpoint(root=None):
    return open_checkpoint(ModelSource(path=str(root or tiny())))


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return write_checker(tmp_path_factory.mktemp("checker"))


def test_it_is_found_alone_in_a_checkpoint_and_in_the_models_own(alone, tmp_path):
    own = copy(tmp_path)
    write_checker(own, folder="safety_checker")
    found = [
        open_checker(checkpoint(), path=str(alone)),
        open_checker(checkpoint(), path=str(own)),
        open_checker(checkpoint(own)),
    ]
    names = [sorted(one.identity.files) for one in found]
    assert names[0] == ["config.json", "model.safetensors", "preprocessor_config.json"]
    assert names[1] == names[2] == [
        "feature_extractor/preprocessor_config.json", "safety_checker/config.json", "safety_checker/model.safetensors",
    ]  # fmt: skip
    assert found[1].sha256 == found[2].sha256 and found[0].vision == found[1].vision


def test_model_without_a_checker_is_one_line_before_anything_is_compiled(tmp_path):
    with pytest.raises(UserError, match="safety: the model has no safety_checker/; name one with safety.path=DIR"):
        start_run(config(f"output={tmp_path / 'run'}", "safety=record"))
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("one_device")
@pytest.mark.parametrize("name", ["record", "blur", "drop"])
def test_checker_of_the_model_in_a_run(tmp_path, name):
    """Its thresholds let half of the pictures pass. Those are the pictures of a run without a checker."""
    check_run(tmp_path, name, load=lambda *_, **__: StandInPipeline())


@pytest.mark.long
def test_checker_beside_the_whole_model(tmp_path):
    check_run(tmp_path, "blur", load=load_pipeline)


def check_run(tmp_path, name, load):
    own = copy(tmp_path)
    words = [
        "model=local", f"model.path={own}", "precision=fp32", "sampler.num_inference_steps=2", "height=64", "width=64",
        'prompt="a fox"', "num_images_per_prompt=6", "batch_size_per_device=4",
    ]  # fmt: skip
    plain = start_run(config(f"output={tmp_path / 'plain'}", *words), load=load)
    pictures = [np.asarray(Image.open(plain / line["file_name"])) for line in manifest(plain)]
    _with_thresholds_in_the_middle(own, pictures)
    path = start_run(config(f"output={tmp_path / 'run'}", *words, f"safety={name}"), load=load)
    written = {line["copy"]: line for line in manifest(path)}
    before = {line["copy"]: line for line in manifest(plain)}
    passed = {number for number, line in written.items() if not line["safety"]["nsfw"]}
    assert len(passed) == 3 and list(faults(path)) == []
    assert all(written[number]["sha256"] == before[number]["sha256"] for number in passed)
    changed = {number for number, line in written.items() if line["sha256"] != before[number]["sha256"]}
    assert changed == (set(range(6)) - passed if name == "blur" else set())
    assert set(written) == (passed if name == "drop" else set(range(6)))


def _with_thresholds_in_the_middle(own, pictures):
    """A checker one of whose concepts finds half of these pictures, and the others none."""
    tensors = checker_tensors() | {"concept_embeds_weights": np.full(17, 2, np.float32)}
    tensors["special_care_embeds_weights"] = np.full(3, 2, np.float32)
    write_checker(own, folder="safety_checker", tensors=tensors)
    checker = SafetyChecker(open_checker(checkpoint(own)), Devices(jax.local_devices()[:1]), batch_size_per_device=6)
    cosines = sorted(2 + verdict.scores[0] for verdict in checker.check(pictures))
    assert cosines[3] - cosines[2] > 0.004, cosines
    tensors["concept_embeds_weights"][0] = (cosines[2] + cosines[3]) / 2
    write_checker(own, folder="safety_checker", tensors=tensors)


def in_weights(change):
    def act(root):
        tensors = load_file(root / "model.safetensors")
        change(tensors)
        save_file(tensors, root / "model.safetensors")

    return act


def in_config(**changes):
    def act(root):
        values = json.loads((root / "config.json").read_text()) | changes
        (root / "config.json").write_text(json.dumps(values))

    return act


DAMAGES = {
    "has no safety checker": lambda root: (root / "config.json").unlink(),
    "vision_config=3: must be a group": in_config(vision_config=3),
    "1 missing: concept_embeds": in_weights(lambda tensors: tensors.pop("concept_embeds")),
    "1 of another shape": in_weights(lambda tensors: tensors.update(concept_embeds_weights=np.zeros(16, np.float32))),
    "does not have: extra": in_weights(lambda tensors: tensors.update(extra=np.zeros(3, np.float32))),
    "has only a pickle": lambda root: (root / "model.safetensors").rename(root / "pytorch_model.bin"),
    "image_size=30": lambda root: write_preprocessor(root, 28),
    "is not valid JSON": lambda root: (root / "preprocessor_config.json").write_text("{"),
    "too few bytes|too few for a safetensors": lambda root: (root / "model.safetensors").write_bytes(b"x"),
}


@pytest.mark.parametrize("rule", DAMAGES)
def test_what_is_wrong_with_a_checker_is_one_line(alone, tmp_path, rule):
    root = Path(shutil.copytree(alone, tmp_path / "checker"))
    DAMAGES[rule](root)
    with pytest.raises(UserError, match=rule) as error:
        open_checker(checkpoint(), path=str(root))
    assert "\n" not in str(error.value)


def test_special_care_counts_from_the_next_special_concept_on():
    """The reference sets the adjustment inside of its loop, so the first one does not help itself."""
    special, concepts = np.array([0.1, -0.005, -0.02], np.float32), np.array([-0.008, -0.012], np.float32)
    found = decide(concepts, special, np.zeros(2, np.float32), np.zeros(3, np.float32))
    assert found.special_scores == (0.1, 0.005, -0.01) and found.special_care == (0, 1)
    assert found.scores == (0.002, -0.002) and found.concepts == (0,) and found.nsfw
    calm = decide(concepts, special[1:], np.zeros(2, np.float32), np.zeros(2, np.float32))
    assert calm.scores == (-0.008, -0.012) and not calm.nsfw
