"""The safety checker against diffusers' StableDiffusionSafetyChecker: every score, and every decision."""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from diffusers.pipelines.stable_diffusion import safety_checker as published  # noqa: E402
from flax import nnx  # noqa: E402
from PIL import Image  # noqa: E402
from support.checkpoints import tiny  # noqa: E402
from support.clip import PROJECTION, checker_tensors, config_fields, vision_config, write_checker  # noqa: E402
from transformers import CLIPConfig  # noqa: E402
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil  # noqa: E402

from tpusd.checkpoints import ModelSource, open_checkpoint  # noqa: E402
from tpusd.checkpoints.fill import fill  # noqa: E402
from tpusd.engine.devices import Devices  # noqa: E402
from tpusd.vision.safety import SafetyChecker, matched_network, open_checker  # noqa: E402
from tpusd.vision.verdict import decide  # noqa: E402

pytestmark = [pytest.mark.parity, pytest.mark.slow, pytest.mark.filterwarnings("default")]
SPECIAL = 3


def reference(tensors):
    config = CLIPConfig(vision_config=config_fields(vision_config()), projection_dim=PROJECTION)
    model = published.StableDiffusionSafetyChecker(config).eval()
    renamed = {name.replace("vision_model.vision_model.", "vision_model."): value for name, value in tensors.items()}
    model.load_state_dict({name: torch.tensor(value) for name, value in renamed.items()})
    return model


def decisions(model, clip_input, monkeypatch):
    """Whether the reference finds each picture, and all scores on the way, (n,20): special ones first."""
    scores = []
    monkeypatch.setattr(published, "round", lambda *value: scores.append(round(*value)) or scores[-1], raising=False)
    images = np.zeros((len(clip_input), 2, 2, 3))
    _, found = model(clip_input, list(images))
    return found, np.array(scores, np.float64).reshape(len(clip_input), -1)


class Given(torch.nn.Module):
    """In the place of the vision tower: the embeddings themselves."""

    def forward(self, embeddings):
        return None, embeddings


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    root = write_checker(tmp_path_factory.mktemp("checker"))
    return open_checker(open_checkpoint(ModelSource(path=str(tiny()))), path=str(root))


def test_decisions_on_a_thousand_embeddings(opened, monkeypatch):
    """Also those that only the rounding, or only the care for a special concept, decides."""
    embeddings = np.random.default_rng(1).standard_normal((1000, PROJECTION)).astype(np.float32)
    tensors = checker_tensors()
    model = reference(tensors)
    model.vision_model, model.visual_projection = Given(), torch.nn.Identity()
    found, scores = decisions(model, torch.from_numpy(embeddings), monkeypatch)

    matched = matched_network(opened.network, opened.vision)
    graph, _ = nnx.split(matched.model)
    near = nnx.merge(graph, fill(matched, dtype=jnp.float32)).compare(jnp.asarray(embeddings))
    thresholds = tensors["concept_embeds_weights"], tensors["special_care_embeds_weights"]
    ours = [
        decide(concepts, special, *thresholds)
        for concepts, special in zip(np.asarray(near.concepts), np.asarray(near.special), strict=True)
    ]
    assert [verdict.nsfw for verdict in ours] == found and 100 < sum(found) < 900
    np.testing.assert_allclose([(*one.special_scores, *one.scores) for one in ours], scores, atol=1e-7)
    assert [one.concepts for one in ours] == [tuple(np.flatnonzero(row[SPECIAL:] > 0)) for row in scores]
    assert [one.special_care for one in ours] == [tuple(np.flatnonzero(row[:SPECIAL] > 0)) for row in scores]
    bare = np.asarray(near.concepts) - thresholds[0]
    assert ((bare > 0) & (scores[:, SPECIAL:] <= 0)).any()  # rounded away
    assert ((bare < -1e-3) & (scores[:, SPECIAL:] > 0)).any()  # by the adjustment


def test_pictures_from_files_to_verdicts(opened, monkeypatch):
    rng = np.random.default_rng(2)
    pictures = [rng.integers(0, 256, (48, 40, 3), np.uint8) // (1 + i % 3) for i in range(20)]
    processor = CLIPImageProcessorPil.from_pretrained(opened.network.files.directory.root)
    pixels = processor(images=[Image.fromarray(one) for one in pictures], return_tensors="pt")["pixel_values"]
    found, scores = decisions(reference(checker_tensors()), pixels, monkeypatch)
    checker = SafetyChecker(opened, Devices(jax.local_devices()[:2]), batch_size_per_device=3)
    ours = checker.check(pictures)
    assert [verdict.nsfw for verdict in ours] == found
    np.testing.assert_allclose([(*one.special_scores, *one.scores) for one in ours], scores, atol=1.01e-3)
    assert (np.array([(*one.special_scores, *one.scores) for one in ours]) == scores.round(3)).mean() > 0.99


def test_files_that_diffusers_saves_are_read(tmp_path, opened):
    again = tmp_path / "again"
    reference(checker_tensors()).save_pretrained(again)
    CLIPImageProcessorPil.from_pretrained(opened.network.files.directory.root).save_pretrained(again)
    other = open_checker(open_checkpoint(ModelSource(path=str(tiny()))), path=str(again))
    picture = [np.random.default_rng(3).integers(0, 256, (48, 40, 3), np.uint8)]
    verdicts = [
        SafetyChecker(one, Devices(jax.local_devices()[:1]), batch_size_per_device=1).check(picture)
        for one in (opened, other)
    ]
    assert verdicts[0] == verdicts[1]
