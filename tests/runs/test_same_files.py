"""A sweep that grows, or that goes on after it was killed, makes all of its runs from the same files."""

import dataclasses

import numpy as np
import pytest
from PIL import Image
from support.checkpoints import tiny
from support.loras import random, write
from support.runs import SHA256, StandInPipeline, manifest, prepare, stand_in_checkpoint
from support.sweeps import contents, go_on, make

from tpusd.config.grammar import hydra_value
from tpusd.errors import ChangedFile
from tpusd.records.sweep import read_sweep
from tpusd.runs.sweep import prepare_with_shared_checkpoints

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_device")]
SIZE = 48
LAYER = "unet.mid_block.attentions.0.proj_in"


class Pipeline(StandInPipeline):
    def generate(self, specs, tables, *, inputs=None, loras=(), on_step=None):
        return super().generate(specs, tables, on_step=on_step)


class Killed(Pipeline):
    """Ends the process at its second batch."""

    def generate(self, specs, tables, **options):
        if self.batches:
            raise KeyboardInterrupt
        return super().generate(specs, tables, **options)


def picture(path, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def lora(path, seed=0):
    up, down = random(32, 2, 1, 1, seed=seed), random(2, 32, 1, 1, seed=seed)
    return write(path, {f"{LAYER}.lora_B.weight": up, f"{LAYER}.lora_A.weight": down})


def words(*more):
    size = (f"height={SIZE}", f"width={SIZE}", "sampler.num_inference_steps=10")
    return ("model=local", f"model.path={tiny()}", "prompt=a fox", *size, *more)


def sweep(path, *argv, make_pipeline=Pipeline):
    done = make(*words(*argv), f"output={path}", make=make_pipeline, prepare=prepare_with_shared_checkpoints())
    assert done.status == 0
    return path


def grown(path, *argv):
    return go_on(path, *argv, make=Pipeline, prepare=prepare_with_shared_checkpoints())


def line_of_refusal(path, *argv):
    """The one line with which the whole sweep is refused; nothing has changed then."""
    before = contents(path)
    with pytest.raises(ChangedFile) as caught:
        grown(path, *argv)
    assert contents(path) == before
    line = str(caught.value)
    assert "\n" not in line
    return line


def test_new_runs_start_from_the_pictures_of_those_that_are_there(tmp_path):
    file = picture(tmp_path / "a.png")
    path = sweep(tmp_path / "s", f"image={file}", "strength=0.25,0.5")
    data = file.read_bytes()
    picture(file, seed=1)
    line = line_of_refusal(path, "strength=0.25,0.5,0.75")
    assert (
        line.startswith(f"prompts: row 0: image={file}: is another file: its sha256 is ") and "restore the old" in line
    )
    assert "is another file" in line_of_refusal(path, "strength=0.75", "dry_run=true")
    assert grown(path).status == 0  # what is complete needs no picture
    file.write_bytes(data)
    assert grown(path, "strength=0.25,0.5,0.75").status == 0
    assert len({manifest(path / run.name)[0]["image_sha256"] for run in read_sweep(path).runs}) == 1


def test_new_runs_have_the_loras_of_those_that_are_there(tmp_path, capsys):
    file = lora(tmp_path / "l.safetensors")
    path = sweep(tmp_path / "s", f"loras=[{{path: {file}}}]", "loras.0.scale=0.5,1")
    lora(file, seed=1)
    line = line_of_refusal(path, "loras.0.scale=0.5,1,2")
    assert line.startswith(f"loras[0].path={file}: has changed: sha256 ") and "on_changed_weights=warn" in line
    capsys.readouterr()
    assert grown(path, "loras.0.scale=0.5,1,2", "on_changed_weights=warn").status == 0
    assert f"{file}: has changed: sha256 " in capsys.readouterr().err
    assert len(read_sweep(path).runs) == 3
    assert "has changed" in line_of_refusal(path, "loras.0.scale=3", "on_changed_weights=error")


def test_runs_that_a_killed_sweep_had_not_begun_are_bound_too(tmp_path):
    file = picture(tmp_path / "a.png")
    with pytest.raises(KeyboardInterrupt):
        sweep(tmp_path / "s", f"image={file}", "strength=0.25,0.5,0.75", make_pipeline=Killed)
    there = [(tmp_path / "s" / run.name / "config.yaml").exists() for run in read_sweep(tmp_path / "s").runs]
    assert there == [True, False, False]
    picture(file, seed=1)
    assert "is another file" in line_of_refusal(tmp_path / "s")


def test_a_run_with_an_image_less_and_one_that_is_new_are_refused_in_one_line(tmp_path, capsys):
    file = picture(tmp_path / "a.png")
    path = sweep(tmp_path / "s", f"image={file}", "strength=0.25,0.5")
    (image,) = (path / read_sweep(path).runs[1].name / "images").iterdir()
    image.unlink()
    picture(file, seed=1)
    capsys.readouterr()
    with pytest.raises(ChangedFile):
        grown(path, "strength=0.25,0.5,0.75")
    assert "failed" not in capsys.readouterr().err and len(read_sweep(path).runs) == 2


def test_new_runs_have_the_checkpoint_of_those_that_are_there(tmp_path):
    path = tmp_path / "s"
    rows = f"prompts.rows={hydra_value([{'prompt': 'a fox'}])}"
    assert make("seed=0,1", rows, f"output={path}").status == 0

    def prepare_changed(config):
        checkpoint = stand_in_checkpoint()
        checkpoint.identity.sha256 = SHA256 | {"unet/weights.safetensors": "1" * 64}
        return dataclasses.replace(prepare(config), checkpoint=checkpoint)

    before = contents(path)
    with pytest.raises(ChangedFile, match="model=tiny: its files have changed: sha256 "):
        go_on(path, "seed=0,1,2", prepare=prepare_changed)
    assert contents(path) == before
    assert go_on(path, "seed=0,1,2").status == 0
