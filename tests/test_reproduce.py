import json
import math

import numpy as np
import pytest
from PIL import Image
from support.runs import INLINE, SHA256, StandInPipeline, config, generated, manifest, prepare, saved

from tpusd.errors import UserError
from tpusd.plan.specs import make_specs
from tpusd.records.compare import Tolerance, compare, first_difference, measure
from tpusd.records.manifest import ImageRecord, recipe_values
from tpusd.records.saved import read_config
from tpusd.reproduce import main
from tpusd.runs.reproduce import reproduce
from tpusd.runs.start import start_run

pytestmark = pytest.mark.usefixtures("one_device")


@pytest.fixture(scope="module")
def original(tmp_path_factory, one_device):
    path = tmp_path_factory.mktemp("original") / "run"
    return start_run(
        config(f"output={path}", INLINE, "num_images_per_prompt=2"), prepare=prepare, load=lambda *_: StandInPipeline()
    )


class Drifting(StandInPipeline):
    """Adds `drift` to the pixels of row 1, and tells of it in the latents' digest after row `at`."""

    fingerprints = StandInPipeline.fingerprints | {"denoise": "1" * 64}

    def __init__(self, drift, at="1"):
        super().__init__()
        self.drift, self.at = drift, at

    def generate(self, specs, tables, **options):
        made = super().generate(specs, tables, **options)
        for spec, image in zip(specs, made, strict=True):
            if spec.row == 1:
                image.pixels = np.clip(image.pixels.astype(int) + self.drift, 0, 255).astype(np.uint8)
                image.trace = image.trace | {"latents": {self.at: "changed"}}
        return made


def reproduced(path, output, *overrides, pipeline=None, **options):
    pipeline = pipeline or StandInPipeline()
    same = reproduce(path, [f"output={output}", *overrides], prepare=prepare, load=lambda *_: pipeline, **options)
    report = json.loads((output / "comparison.json").read_text())
    return same, report, sum(map(len, pipeline.batches))


@pytest.mark.slow
def test_same_machine_gives_identical_images(original, tmp_path, capsys):
    same, report, number = reproduced(original, tmp_path / "again")
    assert same and number == 6 and report["counts"] == {"identical": 6} and report["changed"] == []
    out = capsys.readouterr().out
    assert out.endswith(f"{tmp_path / 'again'}: 6 identical\n") and "are those of the original" in out
    assert read_config(tmp_path / "again") == read_config(original) | {"output": str(tmp_path / "again")}
    assert (tmp_path / "again" / "comparison.png").exists()


@pytest.mark.slow
def test_chosen_images_alone_are_made_again(original, tmp_path):
    same, report, number = reproduced(original, tmp_path / "a", names=["00002-001", "00000-000"])
    assert same and number == 2 and [one["name"] for one in report["images"]] == ["00000-000", "00002-001"]
    same, report, number = reproduced(original, tmp_path / "b", sample=3)
    assert same and number == 3 and [one["name"] for one in report["images"]] == ["00000-000", "00001-000", "00002-000"]
    _, _, number = reproduced(original, tmp_path / "c", sample=99)
    assert number == 6


@pytest.mark.slow
@pytest.mark.parametrize(
    ("drift", "verdict", "status"), [(1, "within tolerance", 0), (-1, "within tolerance", 0), (60, "different", 1)]
)
def test_verdict_says_how_far_and_where_first(original, tmp_path, capsys, monkeypatch, drift, verdict, status):
    monkeypatch.setattr("tpusd.runs.reproduce.reproduce.__kwdefaults__", reproduce.__kwdefaults__ | {
        "prepare": prepare, "load": lambda *_: Drifting(drift)
    })  # fmt: skip
    assert main([str(original), f"output={tmp_path / 'again'}"]) == status
    report = json.loads((tmp_path / "again" / "comparison.json").read_text())
    assert report["counts"] == {"identical": 4, verdict: 2}
    one = next(one for one in report["images"] if one["name"] == "00001-000")
    assert (
        one["max_difference"] == abs(drift) and one["first_difference"] == "latents after row 1 of the sampler's table"
    )
    out = capsys.readouterr().out
    assert f"00001-000: {verdict}, PSNR " in out and f"largest difference {abs(drift)}/255, " in out
    assert ("/255, farther than rounding moves it, first in the latents" in out) == (verdict == "different")
    assert "changed: programs.denoise: dddddddddddd... -> 111111111111..." in out
    assert main([str(original), "--exact", f"output={tmp_path / 'exact'}"]) == 1
    with Image.open(tmp_path / "again" / "comparison.png") as picture:
        assert picture.width > 3 * 300


class Unguided(Drifting):
    """As every release after 0.1.0 makes images of a guidance scale up to 1."""

    fingerprints = {"encode": "e" * 64, "denoise_unguided": "d" * 64, "decode": "c" * 64}


@pytest.mark.slow
def test_an_image_of_the_older_rule_for_low_guidance_differs_and_the_report_says_why(tmp_path, capsys):
    """Drifting runs the program with guidance, as 0.1.0 did for every scale other than 1."""
    old = start_run(
        config(f"output={tmp_path / 'old'}", INLINE, "guidance_scale=0.5"), prepare=prepare, load=lambda *_: Drifting(0)
    )
    same, report, _ = reproduced(old, tmp_path / "new", pipeline=Unguided(60))
    line = "guidance_scale below 1: when this run was made, such a scale weakened the prompt"
    assert not same and report["changed"][-1].startswith(line) and line in capsys.readouterr().out
    same, report, _ = reproduced(tmp_path / "new", tmp_path / "newer", pipeline=Unguided(0))
    assert not same and report["changed"] == []


@pytest.mark.slow
def test_overrides_are_told_and_change_the_images(original, tmp_path, capsys):
    same, report, _ = reproduced(original, tmp_path / "again", "guidance_scale=3", sample=2)
    assert not same and report["counts"] == {"different": 2} and report["overrides"][1:] == ["guidance_scale=3"]
    assert "new value: guidance_scale=3" in capsys.readouterr().out
    assert {record["guidance_scale"] for record in manifest(tmp_path / "again")} == {3}


@pytest.mark.slow
def test_changed_weights_are_refused_unless_told_otherwise(original, tmp_path, monkeypatch):
    monkeypatch.setattr("support.runs.SHA256", {name: "1" * 64 for name in SHA256})
    with pytest.raises(UserError, match="its files have changed"):
        reproduced(original, tmp_path / "again")
    assert not (tmp_path / "again").exists()
    same, report, _ = reproduced(original, tmp_path / "again", "on_changed_weights=warn")
    assert same and any(line.startswith("changed: weights: ") for line in report["changed"])


@pytest.mark.slow
def test_damaged_original_is_no_proof(original, tmp_path):
    import shutil

    path = shutil.copytree(original, tmp_path / "run")
    (path / "images" / "00000-001.png").write_bytes(b"other")
    (path / "images" / "00001-001.png").unlink()
    (path / "images" / "00001-001.png").symlink_to(original / "images" / "00001-001.png")
    same, report, _ = reproduced(path, tmp_path / "again")
    assert not same and report["counts"] == {"identical": 4, "original damaged": 2}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--images=00009-000"], "--images=00009-000: the run has no such image"),
        (["--images=x"], "images=x: must be names such as"),
        (["--images=,"], "names no image"),
        (["--sample=0"], "--sample=0: must be 1 or more"),
        (["--sample=x"], "invalid int value"),
        (["--frob"], "--frob: no such option"),
        (["seed"], "'seed': is not field=value"),
    ],
)
def test_faults_are_one_line(original, capsys, arguments, expected):
    assert main([str(original), *arguments]) == 2
    error = capsys.readouterr().err
    assert expected in error and error.count("\n") == 1


def test_measures_are_those_of_the_textbook():
    a = np.zeros((2, 3, 3), np.uint8)
    b = a.copy()
    b[0, 1, 2] = 7
    psnr, largest = measure(a, b)
    assert largest == 7 and math.isclose(psnr, 20 * math.log10(255) - 10 * math.log10(49 / 18))
    assert measure(a, a) == (math.inf, 0) and measure(np.uint8([[[255]]]), np.uint8([[[0]]])) == (0.0, 255)


def test_first_difference_is_the_earliest_stage():
    trace = {"tokens": "a", "text_embedding": "b", "initial_noise": "c", "latents": {"1": "d", "5": "e", "10": "f"}}
    for change, expected in (
        ({}, None),
        ({"tokens": "x", "text_embedding": "x"}, "tokens"),
        ({"text_embedding": "x", "initial_noise": "x"}, "text embedding"),
        ({"initial_noise": "x", "latents": {}}, "initial noise"),
        ({"latents": {"1": "d", "5": "x", "10": "x"}}, "latents after row 5 of the sampler's table"),
        ({"latents": {"1": "d", "5": "e"}}, "number of steps"),
        ({"latents": 3}, None),
    ):
        assert first_difference(trace, trace | change) == expected
    assert first_difference(None, trace) is None


@pytest.mark.slow
def test_tolerance_needs_both_measures(tmp_path):
    """One pixel far off is no rounding, however good the mean."""
    import hashlib
    import io

    for name, value in (("a", 0), ("b", 25)):
        pixels = np.zeros((64, 64, 3), np.uint8)
        pixels[0, 0, 0] = value
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        (tmp_path / name / "images").mkdir(parents=True)
        (tmp_path / name / "images" / "00000-000.png").write_bytes(buffer.getvalue())

    def record(name):
        data = (tmp_path / name / "images" / "00000-000.png").read_bytes()
        own = {"file_name": "images/00000-000.png", "sha256": hashlib.sha256(data).hexdigest(), "num_bytes": len(data)}
        recipe = recipe_values(config("prompts.rows=[{prompt: a}]"), next(make_specs(saved(height=64, width=64))))
        return ImageRecord(**own, **recipe, num_tokens=3, truncated=False, environment="e", trace={})

    for tolerance, verdict in (
        (Tolerance(min_psnr=40, max_difference=25), "within tolerance"),
        (Tolerance(min_psnr=40, max_difference=24), "different"),
        (Tolerance(min_psnr=70, max_difference=25), "different"),
    ):
        one = compare(tmp_path / "a", record("a"), tmp_path / "b", record("b"), tolerance)
        assert one.verdict == verdict and one.first_difference == "pixels"


def test_stand_in_image_is_not_flat():
    """Else a drift could hide behind clipping."""
    spec = prepare(config(INLINE))
    made = generated(next(make_specs(spec.config))).pixels
    assert 100 < made.mean() < 155 and made.std() > 50
