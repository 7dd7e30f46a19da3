"""Metrics on CLIP: against transformers on random weights, and what is said where weights are not there."""

import json

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file
from support.clip import PROJECTION, write_clip
from support.runs import StandInPipeline, config, manifest, prepare

import tpusd.scores.metrics.aesthetic as aesthetic
from tpusd.records.manifest import read_manifest
from tpusd.records.scores import read_scores
from tpusd.records.set_scores import read_set_scores
from tpusd.runs.start import start_run
from tpusd.score import main
from tpusd.scores.metrics.clip import clip_at

pytestmark = [pytest.mark.usefixtures("one_device"), pytest.mark.slow]
ROWS = 'prompts.rows=[{prompt: "a red fox"}, {prompt: "an owl at night"}, {prompt: "words words words"}]'


@pytest.fixture(scope="module")
def run(tmp_path_factory, one_device):
    path = tmp_path_factory.mktemp("clip") / "run"
    made = config(f"output={path}", ROWS, "num_images_per_prompt=2", "height=40", "width=64")
    return start_run(made, prepare=prepare, load=lambda *_: StandInPipeline())


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("weights"))


def column(run, name):
    records = sorted(read_manifest(run), key=lambda record: record.key)
    scores = read_scores(run, records)
    return np.array([scores.of(record)[name] for record in records])


def reference(run, clip):
    """(cosines of pictures and prompts, the logit scale, the pictures' features of length 1), by transformers."""
    torch = pytest.importorskip("torch")
    from transformers import CLIPModel
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    model = CLIPModel.from_pretrained(clip).float().eval()
    lines = sorted(manifest(run), key=lambda line: line["file_name"])
    pictures = [Image.open(run / line["file_name"]).convert("RGB") for line in lines]
    pixels = CLIPImageProcessorPil.from_pretrained(clip)(images=pictures, return_tensors="pt")["pixel_values"]
    tokenizer = clip_at_path(clip)._checkpoint.tokenizer
    ids = torch.tensor(tokenizer([line["prompt"] for line in lines]).input_ids, dtype=torch.long)
    with torch.no_grad():
        images = torch.nn.functional.normalize(model.get_image_features(pixels).pooler_output)
        texts = torch.nn.functional.normalize(model.get_text_features(ids).pooler_output)
        return (images * texts).sum(-1).numpy(), model.logit_scale.exp().item(), images.numpy()


def clip_at_path(path):
    from tpusd.scores.base import Place

    return clip_at(Place(path=path), "clip")


@pytest.mark.parity
@pytest.mark.filterwarnings("default")
def test_scores_are_those_of_transformers(run, clip):
    places = [f"{name}.path={clip}" for name in ("clip", "pickscore", "hpsv21")]
    assert main([str(run), "metric=clip_score,pickscore,hpsv21", *places]) == 0
    cosines, scale, _ = reference(run, clip)
    assert (cosines > 0).any()
    np.testing.assert_allclose(column(run, "clip_score"), np.maximum(100 * cosines, 0), atol=1e-2)
    np.testing.assert_allclose(column(run, "pickscore"), scale * cosines, atol=1e-2)
    np.testing.assert_allclose(column(run, "hpsv21"), cosines, atol=1e-4)
    (weights,) = {
        json.loads(line)["weights"] for line in (run / "scores" / "clip_score.jsonl").read_text().splitlines()
    }
    assert weights == clip_at_path(clip).sha256


@pytest.fixture
def predictor(tmp_path, monkeypatch):
    """LAION's layers at the size of the random CLIP's embedding."""
    sizes = (PROJECTION, *aesthetic.SIZES[1:])
    monkeypatch.setattr(aesthetic, "SIZES", sizes)
    random = np.random.default_rng(3)
    tensors = {}
    for number, layer in enumerate(aesthetic.LAYERS):
        tensors[f"layers.{layer}.weight"] = (
            random.normal(size=(sizes[number + 1], sizes[number])).astype(np.float32) / 8
        )
        tensors[f"layers.{layer}.bias"] = random.normal(size=sizes[number + 1]).astype(np.float32)
    return tensors


@pytest.mark.parity
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_aesthetic_is_the_published_network(run, clip, predictor, tmp_path, suffix):
    """As its program builds it: Linear and Dropout in turn, two Linear at the end, nothing else between them."""
    torch = pytest.importorskip("torch")
    file = tmp_path / f"predictor{suffix}"
    save_file(predictor, file) if suffix == ".safetensors" else np.savez(file, **predictor)
    name = f"looks_{suffix[1:]}"
    assert main([str(run), "metric=aesthetic", f"column={name}", f"clip.path={clip}", f"aesthetic.path={file}"]) == 0
    linear = [torch.nn.Linear(b, a) for a, b in zip(aesthetic.SIZES[1:], aesthetic.SIZES, strict=False)]
    parts = [linear[0], torch.nn.Dropout(0.2), linear[1], torch.nn.Dropout(0.2), linear[2], torch.nn.Dropout(0.1)]
    network = torch.nn.ModuleDict({"layers": torch.nn.Sequential(*parts, linear[3], linear[4])}).eval()
    network.load_state_dict({key: torch.from_numpy(value) for key, value in predictor.items()})
    _, _, images = reference(run, clip)
    with torch.no_grad():
        wanted = network["layers"](torch.from_numpy(images))[:, 0].numpy()
    np.testing.assert_allclose(column(run, name), wanted, atol=1e-4)


def test_a_predictor_that_is_another_file_is_one_line(run, clip, predictor, tmp_path, capsys):
    first, *_ = predictor
    cases = {
        "short.safetensors": (
            {key: value for key, value in predictor.items() if key != first},
            f"{first} is not a tensor",
        ),
        "more.safetensors": (predictor | {"x": np.zeros(1, np.float32)}, "holds x too"),
        "whole.safetensors": ({key: value.astype(np.int32) for key, value in predictor.items()}, "is not a tensor of"),
    }
    for name, (tensors, said) in cases.items():
        save_file(tensors, tmp_path / name)
        assert main([str(run), "metric=aesthetic", f"clip.path={clip}", f"aesthetic.path={tmp_path / name}"]) == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1
    for name, said in {
        "x.pth": "a .pth file is a pickle",
        "x.npz": "is not a readable npz",
        "x.safetensors": "readable",
    }.items():
        (tmp_path / name).write_bytes(b"PK\x03\x04 not")
        assert main([str(run), "metric=aesthetic", f"clip.path={clip}", f"aesthetic.path={tmp_path / name}"]) == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1


def test_cmmd_with_a_clip(run, clip, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert main([str(run), "metric=cmmd", f"cmmd.path={clip}", f"reference={run}"]) == 0
    (score,) = read_set_scores(run)
    assert score.value == pytest.approx(0, abs=1e-6) and score.weights == clip_at_path(clip).sha256


OFFLINE = {
    "clip_score": "clip.repo=openai/clip-vit-large-patch14",
    "pickscore": "pickscore.repo=yuvalkirstain/PickScore_v1",
    "hpsv21": "give hpsv21.path=DIR",
    "aesthetic": "give aesthetic.path=FILE.safetensors; download sac+logos+ava1-l14-linearMSE.pth",
}


@pytest.mark.parametrize("metric", OFFLINE)
def test_weights_that_are_not_here_are_one_line(run, metric, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    clip_at.cache_clear()
    assert main([str(run), f"metric={metric}"]) == 2
    error = capsys.readouterr().err
    assert OFFLINE[metric] in error and error.count("\n") == 1
