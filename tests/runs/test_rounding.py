"""`reproduce` tells what rounding does to an image from what another recipe does, with the embedded model."""

import dataclasses
import json
import math

import jax
import numpy as np
import pytest
from support.runs import config

from tpusd.engine.pipeline import Pipeline
from tpusd.plan.specs import make_spec
from tpusd.records.compare import TOLERANCES, Comparison, measure, same_start
from tpusd.runs import rounding
from tpusd.runs.executors.local import load_pipeline
from tpusd.runs.prepare import prepare_run
from tpusd.runs.reproduce import reproduce
from tpusd.runs.rounding import MOST, examine, times_rounding
from tpusd.runs.start import start_run
from tpusd.samplers.table import Table

# Rounding moves the shirt of 00002 far, and 00005 hardly (docs/log.md).
RUN = ("prompts=portraits", "seed=0", "sampler.num_inference_steps=20", "batch_size_per_device=4")
IMAGES = "images=[00002-000,00005-000]"


def test_distance_is_that_to_the_mean_of_the_others():
    """0, 2 and 4 are 3, 0 and 3 from the mean of their rest; 8 is 6 from the mean of all."""
    others = [np.full((2, 3, 3), value, np.uint8) for value in (0, 2, 4)]
    assert times_rounding(np.full((2, 3, 3), 8, np.uint8), others) == 2
    assert times_rounding(np.full((2, 3, 3), 2, np.uint8), others) == 0
    equal = [others[0], others[0]]
    assert times_rounding(others[0], equal) == 0 and math.isinf(times_rounding(others[1], equal))


def test_one_of_many_samples_is_within_and_a_shifted_one_is_not():
    """By the definition: samples of one distribution are exchangeable; a shift by their deviation is farther."""
    rng = np.random.default_rng(0)
    samples = [rng.normal(128, 5, (32, 32, 3)).round().astype(np.uint8) for _ in range(10)]
    assert times_rounding(samples[0], samples[1:]) < MOST < times_rounding(samples[0] + np.uint8(5), samples[1:])


def test_start_is_tokens_noise_and_number_of_steps():
    trace = {"tokens": "a", "text_embedding": "b", "initial_noise": "c", "latents": {"1": "d", "2": "e"}}
    assert same_start(trace, trace | {"text_embedding": "x", "latents": {"1": "x", "2": "x"}})
    for change in ({"tokens": "x"}, {"initial_noise": "x"}, {"latents": {"1": "d", "3": "e"}}, {"latents": 3}):
        assert not same_start(trace, trace | change)
    assert not same_start(trace, None)


def noisy(rng, deviation, shift=0.0):
    return rng.normal(128 + shift, deviation, (32, 32, 3)).round().clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize(
    ("shift", "expected"),
    [
        (0, {(0, 0): "within tolerance", (1, 0): "within rounding", (2, 0): "within rounding"}),
        (2, {(0, 0): "different"}),  # of the image that rounding moves least, and the others are not explained
    ],
)
def test_images_that_rounding_moves_least_decide(monkeypatch, shift, expected):
    """Image 0 is within the tolerance and moves by 1, images 1 and 2 are beyond it and move by 20."""
    rng = np.random.default_rng(1)
    deviations = {(0, 0): 1.0, (1, 0): 20.0, (2, 0): 20.0}
    pairs = {key: (noisy(rng, deviation, shift), noisy(rng, deviation)) for key, deviation in deviations.items()}

    def versions(config, keys, prepare, load):
        yield from ((key, [noisy(rng, deviations[key]) for _ in range(8)]) for key in keys)

    monkeypatch.setattr(rounding, "versions", versions)
    compared = {}
    for key, pair in pairs.items():
        psnr, largest = measure(*pair)
        verdict = "within tolerance" if key == (0, 0) else "different"
        compared[key] = Comparison(name=str(key), verdict=verdict, psnr=psnr, max_difference=largest)
    examined = examine(config(), compared, pairs.get, None, None)
    assert {key: one.verdict for key, one in examined.items()} == expected
    assert all(one.times_rounding is not None for one in examined.values())
    assert examine(config(), {(0, 0): compared[0, 0]}, pairs.get, None, None) == {}  # nothing is beyond the tolerance


@pytest.fixture(scope="module")
def load():
    """The program is compiled once for the tests of this module."""
    loaded = {}

    def load(prepared, devices, **shared) -> Pipeline:
        key = (prepared.config.precision, prepared.config.batch_size_per_device)
        if key not in loaded:
            loaded[key] = load_pipeline(prepared, jax.devices()[:1])
        return loaded[key]

    return load


def moved(factor):
    """Prepares runs whose initial noise is scaled: a sound run that is rounded otherwise."""

    def prepare(made):
        prepared = prepare_run(made)

        def table(spec) -> Table:
            own = prepared.table(spec)
            return dataclasses.replace(own, init_scale=own.init_scale * factor)

        return dataclasses.replace(prepared, table=table)

    return prepare


@pytest.fixture(scope="module")
def original(tmp_path_factory, load, one_device):
    """A sound run of which one image is beyond the tolerance, for no reason but rounding."""
    tolerance = TOLERANCES["bfloat16"]
    prepared = prepare_run(config(*RUN, IMAGES))
    spec = make_spec(prepared.config, 2, 0)
    table = prepared.table(spec)
    scaled = [dataclasses.replace(table, init_scale=table.init_scale * (1 + k * 2**-16)) for k in range(8)]
    pipeline = load(prepared, None)
    made = [image for half in (scaled[:4], scaled[4:]) for image in pipeline.generate([spec] * 4, half)]
    psnr = [measure(made[0].pixels, image.pixels)[0] for image in made]
    assert min(psnr) < tolerance.min_psnr, "rounding moves this image: docs/log.md"
    path = tmp_path_factory.mktemp("original") / "run"
    factor = 1 + psnr.index(min(psnr)) * 2**-16
    return start_run(config(*RUN, IMAGES, f"output={path}"), prepare=moved(factor), load=load)


class Altered:
    """A pipeline whose images are of another recipe than the run says: what a fault in the code would do."""

    def __init__(self, pipeline, **changes):
        self.pipeline, self.changes = pipeline, changes
        self.fingerprints, self.seconds = pipeline.fingerprints, pipeline.seconds

    def generate(self, specs, tables, **options):
        specs = [dataclasses.replace(spec, **self.changes) for spec in specs]
        return self.pipeline.generate(specs, tables, **options)


def reproduced(path, output, load, *overrides, **changes):
    """(whether all are the same, verdict of 00002, verdict of 00005, images that were examined)."""
    loading = load if not changes else lambda *given, **shared: Altered(load(*given, **shared), **changes)
    same = reproduce(path, [f"output={output}", *overrides], load=loading)
    images = json.loads((output / "comparison.json").read_text())["images"]
    return same, [one["verdict"] for one in images], sum(one["times_rounding"] is not None for one in images)


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.usefixtures("one_device")
def test_rounding_is_told_from_another_recipe(original, load, tmp_path, capsys):
    same, verdicts, examined = reproduced(original, tmp_path / "sound", load)
    assert same and verdicts == ["within rounding", "within tolerance"] and examined == 2
    assert "1 image beyond the tolerance; 16 versions are made" in capsys.readouterr().err
    # The same run by a program that does something else than the recipe says. 00002 says little of guidance.
    same, verdicts, _ = reproduced(original, tmp_path / "guidance", load, guidance_scale=4.3)
    assert not same and verdicts[1] == "different"
    same, verdicts, examined = reproduced(original, tmp_path / "seed", load, seed=1)
    assert not same and verdicts == ["different", "different"] and not examined


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.usefixtures("one_device")
@pytest.mark.parametrize("override", ["seed=1", "sampler.num_inference_steps=21", "guidance_scale=4.01"])
def test_another_recipe_is_different_however_near(original, load, tmp_path, override, monkeypatch):
    """The images of guidance 4 and 4.01 are as near to each other as two roundings. It is another recipe."""
    monkeypatch.setattr(rounding, "versions", None)  # none are made
    same, verdicts, examined = reproduced(original, tmp_path / "again", load, override)
    assert not same and verdicts == ["different", "different"] and examined == 0
