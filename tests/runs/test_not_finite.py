"""What a run does with images that have NaN: they are left out or marked, the others are made, and the status is 1."""

import json

import pytest
from support.runs import INLINE, StandInPipeline, config, manifest, prepare
from support.sweeps import make

from tpusd.engine.not_finite import NotFinite
from tpusd.process.exit import exit_status
from tpusd.records.manifest import ImageRecord
from tpusd.records.saved import read_config
from tpusd.runs.not_finite import ImagesNotFinite, what_to_do
from tpusd.runs.reproduce import reproduce
from tpusd.runs.resume import resume_run
from tpusd.runs.start import start_run
from tpusd.validate import main as validate

pytestmark = pytest.mark.usefixtures("one_device")

PLACE = NotFinite(program="denoise", call=2, num_calls=50, timestep=961.0)
BAD = (1, 0)


class Overflowing(StandInPipeline):
    """Its images of `bad`, (row, copy), have NaN."""

    def __init__(self, bad=(BAD,)):
        super().__init__()
        self.bad = bad

    def generate(self, specs, tables, **options):
        made = super().generate(specs, tables, **options)
        for spec, image in zip(specs, made, strict=True):
            image.not_finite = PLACE if (spec.row, spec.copy) in self.bad else None
        return made


def start(path, *overrides, pipeline):
    made = config(f"output={path}", INLINE, "batch_size_per_device=2", *overrides)
    return start_run(made, prepare=prepare, load=lambda *_, **__: pipeline)


def resume(path, *overrides, pipeline):
    return resume_run(path, overrides, prepare=prepare, load=lambda *_, **__: pipeline)


@pytest.fixture
def sound(tmp_path):
    return start(tmp_path / "sound", pipeline=StandInPipeline())


@pytest.fixture
def run(tmp_path, capsys):
    """A run that lacks its bad image, and what it said."""
    path = tmp_path / "run"
    with exit_status() as status:
        start(path, pipeline=Overflowing())
    assert status == [1]
    return path, capsys.readouterr().err


def test_the_other_images_are_made_and_the_bad_one_is_not(sound, run):
    path, said = run
    assert manifest(path) == [line for line in manifest(sound) if line["row"] != BAD[0]]
    assert sorted(file.name for file in (path / "images").iterdir()) == ["00000-000.png", "00002-000.png"]
    *_, first, last = said.strip().splitlines()
    place = "latents after model call 2 of 50, timestep 961"
    assert first.endswith(f"00001-000 has NaN or infinity, first in the {place}; it is not written")
    assert last.startswith(
        f"tpusd: {path}: 1 of 3 images have NaN or infinity and are not written: 00001-000 (first in"
    )
    assert last.endswith(f"python -m tpusd.run resume={path} on_nan=record")
    assert "Traceback" not in (path / "run.log").read_text() and place in (path / "run.log").read_text()


def test_resuming_tries_it_again(sound, run):
    path, _ = run
    again = Overflowing()
    with pytest.raises(ImagesNotFinite):
        resume(path, pipeline=again)
    assert [[spec.name for spec in batch] for batch in again.batches] == [["00001-000"]]
    resume(path, pipeline=StandInPipeline())
    by_name = {line["file_name"]: line for line in manifest(path)}
    assert by_name == {line["file_name"]: line for line in manifest(sound)} and validate([str(path)]) == 0


@pytest.mark.slow
def test_record_writes_it_and_marks_its_line(run, sound):
    path, _ = run
    resume(path, "on_nan=record", pipeline=Overflowing())
    by_name = {line["file_name"]: line for line in manifest(path)}
    expected = {line["file_name"]: line for line in manifest(sound)}
    bad = by_name["images/00001-000.png"]
    assert bad.pop("not_finite") == "latents after model call 2 of 50, timestep 961"
    assert by_name == expected and validate([str(path)]) == 0
    assert read_config(path)["on_nan"] == "error"
    captions = map(json.loads, (path / "metadata.jsonl").read_text().splitlines())
    assert {caption["row"]: "not_finite" in caption for caption in captions} == {0: False, 1: True, 2: False}


@pytest.mark.slow
def test_marked_line_is_read_as_it_was_written(tmp_path):
    path = start(tmp_path / "run", "on_nan=record", pipeline=Overflowing())
    for line in (path / "manifest.jsonl").read_bytes().splitlines():
        record = ImageRecord.from_line(line)
        assert record.to_line() == line and (record.not_finite is not None) == (record.key == BAD)
        assert ImageRecord.from_values(record.values() | {"not_finite": 3}) is None


@pytest.mark.slow
def test_run_of_bad_images_alone_stays_and_can_be_continued(tmp_path):
    path = tmp_path / "run"
    with pytest.raises(ImagesNotFinite, match="3 of 3 images"):
        start(path, pipeline=Overflowing([(0, 0), (1, 0), (2, 0)]))
    resume(path, "on_nan=record", pipeline=Overflowing([(0, 0), (1, 0), (2, 0)]))
    assert len(manifest(path)) == 3


def test_long_lists_are_cut(tmp_path):
    bad = [(row, copy) for row in range(3) for copy in range(4)]
    with pytest.raises(ImagesNotFinite, match=r"00002-001 \(first in [^)]*\) and 2 more; "):
        start(tmp_path / "run", "num_images_per_prompt=4", pipeline=Overflowing(bad))
    log = (tmp_path / "run" / "run.log").read_text()
    assert sum("has NaN or infinity" in line for line in log.splitlines()) == 12


@pytest.mark.slow
def test_sweep_goes_on_and_fails(tmp_path, capsys):
    done = make(INLINE, "seed=0,1", f"output={tmp_path / 's'}", make=Overflowing)
    assert done.status == 1
    runs = sorted(path for path in (tmp_path / "s").iterdir() if path.is_dir())
    assert [len(manifest(path)) for path in runs] == [2, 2]
    said = capsys.readouterr().err
    assert said.count("1 of 3 images have NaN") == 2 and "ImagesNotFinite" not in said


def test_reproduction_misses_it(sound, tmp_path, capsys):
    load = lambda *_, **__: Overflowing()  # noqa: E731
    assert not reproduce(sound, [f"output={tmp_path / 'again'}"], prepare=prepare, load=load)
    report = json.loads((tmp_path / "again" / "comparison.json").read_text())
    assert report["counts"] == {"identical": 2, "missing": 1}
    assert "1 of 3 images have NaN" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("program", "precision", "advice"),
    [
        ("decode", ["precision=fp16", "precision.vae.dtype=float16"], "precision.vae.dtype=float32, or choose"),
        ("decode", ["precision=fp16", "precision.vae.dtype=float16"], "a checkpoint with another VAE"),
        ("denoise", ["precision=fp16"], "float16 ends at 65504: in a new run set precision.unet.dtype=float32"),
        ("encode", ["precision=bf16"], "choose precision=fp32, and if that does not help, check the weights"),
        ("denoise", ["precision=fp32"], "in a new run check the weights of the checkpoint's unet"),
    ],
)
def test_advice_fits_the_place_and_the_precision(program, precision, advice):
    assert advice in what_to_do(NotFinite(program=program), config(*precision).precision)
