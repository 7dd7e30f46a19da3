"""`import tpusd`: runs and sweeps from Python."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.runs import manifest

import tpusd
from tpusd.api.words import command_words, swept_words
from tpusd.config.compose import compose_jobs
from tpusd.errors import UserError

pytestmark = pytest.mark.slow

TINY = {"sampler__num_inference_steps": 2}


@pytest.fixture(scope="module")
def run(tmp_path_factory, one_device):
    return tpusd.generate(prompt_rows(2), seed=3, output=tmp_path_factory.mktemp("api") / "run", **TINY)


def prompt_rows(number: int) -> str:
    return f"prompts.rows=[{', '.join(['{prompt: a portrait of a man}'] * number)}]"


def test_import_is_light():
    """The libraries that making images needs are loaded by the call, not by the import."""
    heavy = {"jax", "numpy", "hydra", "transformers", "PIL", "yaml"}
    code = f"import sys, tpusd; dir(tpusd); assert not {heavy} & set(sys.modules), sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_picture_of_pillow_gets_a_file(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    picture = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3))
    (word,) = command_words([], {"image": picture})
    assert command_words([], {"image": picture.copy()}) == [word]
    (file,) = (tmp_path / "tpusd" / "pictures").iterdir()
    (job,) = compose_jobs([word])
    assert job.values["image"] == str(file)
    with Image.open(file) as kept:
        np.testing.assert_array_equal(np.asarray(kept), np.asarray(picture))
    (job,) = compose_jobs(command_words([], {"control_images": [picture, picture.convert("RGBA")]}))
    assert job.values["control_images"][0] == str(file) and len(list(file.parent.iterdir())) == 2
    with pytest.raises(UserError, match="image: a picture of the mode CMYK cannot be kept as PNG"):
        command_words([], {"image": picture.convert("CMYK")})


def test_every_name_is_there():
    assert {"generate", "sweep", "resume", "open_run", "open_sweep"} <= set(dir(tpusd))
    for name in dir(tpusd):
        getattr(tpusd, name)
    with pytest.raises(AttributeError, match="no_such"):
        tpusd.no_such  # noqa: B018


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize(
    "value",
    [
        "portraits",
        "a, b",
        "it's",
        'a "b"',
        "{x: 1}",
        "[1]",
        "\\",
        "a\\'",
        "null",
        "true",
        "",
        "a=b",
        "ütf",
        0,
        2.5,
        True,
        None,
    ],
)
def test_a_keyword_arrives_as_it_is(value):
    field = "negative_prompt" if isinstance(value, str) else "image_quality"
    (job,) = compose_jobs(command_words([], {field: value}))
    assert job.values[field] == value and type(job.values[field]) is type(value)


def test_two_underscores_and_dictionaries_reach_into_groups():
    words = command_words(
        ["seed=1", "model=local"], {"sampler__num_inference_steps": 5, "model": {"path": Path("/x y")}}
    )
    assert words[:3] == ["seed=1", "model=local", "sampler.num_inference_steps=5"]
    assert compose_jobs(words)[0].values["model"]["path"] == "/x y"


def test_numbers_of_numpy_are_numbers():
    assert command_words([], {"seed": np.uint32(7), "guidance_scale": np.float64(1.5)}) == [
        "seed=7",
        "guidance_scale=1.5",
    ]


def test_a_list_is_swept():
    assert swept_words(["seed=0,1"], {"guidance_scale": [3, 7.5], "sampler": ("ddim", "euler")}) == [
        "-m",
        "seed=0,1",
        "guidance_scale=3,7.5",
        "sampler=ddim,euler",
    ]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: tpusd.generate(seed=object()), "seed: must be text"),
        (lambda: tpusd.generate(no_such_field=1), "no_such_field=1: no such field"),
        (lambda: tpusd.generate("resume=x"), r"tpusd\.resume\('x'\)"),
        (lambda: tpusd.generate("seed=0", "-m"), r"tpusd\.sweep"),
        (lambda: tpusd.generate("--help"), "--help: is an option"),
        (lambda: tpusd.generate(dry_run=True), "dry_run=true"),
        (lambda: tpusd.sweep(seed=[]), "has no value"),
        (lambda: tpusd.open_run("no/such"), "no/such"),
        (lambda: tpusd.open_sweep("no/such"), "is not a sweep"),
    ],
)
def test_errors_are_one_line(call, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(tpusd.UserError, match=words) as caught:
        call()
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


def test_a_run_has_records_and_pictures(run):
    assert [record.values() for record in run.records] == manifest(run.path)
    assert len(run.images) == 2 and run.images[0].size == (run.records[0].width, run.records[0].height)
    assert [image.size for image in run.images[:5]] == [run.images[1].size] * 2
    assert np.any(np.asarray(run.images[0]) != np.asarray(run.images[1]))  # other rows, other noise
    assert run.config.seed == 3 and run.facts["state"] == "finished" and run.page.is_file()
    shown = run._repr_html_()
    assert shown.count("<img") == 2 and "a portrait of a man" in shown and "http" not in shown


def test_a_frame_has_a_row_for_each_image(run):
    pytest.importorskip("pandas")
    assert list(run.frame["prompt"]) == [record.prompt for record in run.records]
    assert all(Path(path).is_file() for path in run.frame["path"])


def test_the_same_images_as_the_command(run, tmp_path, one_device):
    from tpusd.run import main

    assert main([prompt_rows(2), "seed=3", "sampler.num_inference_steps=2", f"output={tmp_path / 'command'}"]) == 0
    assert [line["sha256"] for line in manifest(tmp_path / "command")] == [record.sha256 for record in run.records]


def test_a_second_call_neither_loads_nor_compiles(run, tmp_path, monkeypatch):
    from tpusd.runs.executors import local

    monkeypatch.setattr(local, "load_pipeline", lambda *_, **__: pytest.fail("loaded again"))
    second = tpusd.generate(prompt_rows(1), seed=3, output=tmp_path / "second", **TINY)
    assert second.records[0].sha256 == run.records[0].sha256
    assert second.facts["session"]["seconds"].get("compile", 0.0) == 0.0


def test_resume_extends_a_run(run, tmp_path):
    grown = tpusd.generate(prompt_rows(1), seed=3, output=tmp_path / "grown", **TINY)
    again = tpusd.resume(grown.path, num_images_per_prompt=2)
    assert again.path == grown.path and [record.key for record in again.records] == [(0, 0), (0, 1)]


def test_a_sweep_has_runs_axes_and_a_grid(run, tmp_path, one_device):
    made = tpusd.sweep(prompt_rows(1), guidance_scale=[3, 7.5], output=tmp_path / "sweep", **TINY)
    assert made.axes == {"guidance_scale": ("3", "7.5")} and len(made.runs) == 2 and not made.failed
    assert len(made.images) == 2 and made.page.is_file() and made.grid.width > 0
    assert made._repr_html_().count("<img") == 1
    assert tpusd.open_sweep(made.path).axes == made.axes
    with pytest.raises(tpusd.UserError, match="is a sweep"):
        tpusd.open_run(made.path)


@pytest.mark.long
@pytest.mark.slow
def test_changed_files_are_read_again(tmp_path, one_device):
    """The kept weights are those of the files: after a change, the next call reads them."""
    from support.checkpoints import copy

    path = copy(tmp_path)
    fields = {"model": "local", "model__path": path, "height": 32, "width": 32, **TINY}
    first = tpusd.generate(prompt_rows(1), output=tmp_path / "a", **fields)
    (file,) = (path / "unet").glob("*.safetensors")
    data = bytearray(file.read_bytes())
    data[-400:] = bytes(400)
    file.write_bytes(data)
    second = tpusd.generate(prompt_rows(1), output=tmp_path / "b", **fields)
    assert first.records[0].sha256 != second.records[0].sha256


def test_unload_frees_the_weights(run):
    from tpusd.api import calls

    assert calls._kept._pipelines
    tpusd.unload()
    assert not calls._kept._pipelines
