import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from support.checkpoints import tiny
from support.pipelines import SIZE, generate, pipeline, prompts
from support.runs import StandInPipeline, manifest, prepare
from support.sweeps import contents, go_on, make

import tpusd.engine.pipeline
from tpusd import cli
from tpusd.config.compose import compose_jobs
from tpusd.config.schema import make_config
from tpusd.engine.devices import Devices
from tpusd.errors import UserError
from tpusd.records.sweep import read_sweep
from tpusd.records.validate import faults
from tpusd.results import main as results_main
from tpusd.run import main
from tpusd.runs.requests import plan_sweep
from tpusd.runs.resume import resume_run
from tpusd.runs.start import start_run
from tpusd.validate import main as validate

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_device")]

ROOT = Path(__file__).resolve().parents[2]
ROWS = 'prompts.rows=[{prompt: "a red fox"}, {prompt: "an owl", negative_prompt: dark}, {prompt: "a moose", seed: 7}]'
SWEEP = ("sampler=ddim,pndm", "guidance_scale=3,7.5", ROWS)
NUM_RUNS, NUM_IMAGES = 4, 12
RESULTS = {"index.html", "grid.png", "index.jsonl", "contact_sheet.png", "metadata.jsonl"}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The sweep without any interruption."""
    path = tmp_path_factory.mktemp("whole") / "sweep"
    assert make(*SWEEP, f"output={path}", "batch_size_per_device=5").status == 0
    return path


def images(path):
    return {record["file_name"]: record["sha256"] for record in manifest(path)}


def test_sweep_loads_once_and_fills_its_batches_across_runs(tmp_path):
    done = make(*SWEEP, f"output={tmp_path / 's'}", "batch_size_per_device=5")
    assert done.status == 0 and len(done.loads.pipelines) == 1
    sizes = [len(batch) for batch in done.loads.batches]
    assert sizes == [5, 5, 2]
    assert any(len({spec.sampler.name for spec in batch}) == 2 for batch in done.loads.batches)


def test_packed_images_are_those_of_each_run_alone(tmp_path, whole):
    for number, job in enumerate(compose_jobs(["-m", *SWEEP])):
        values = job.values | {"output": str(tmp_path / f"{number}")}
        alone = start_run(make_config(values), prepare=prepare, load=lambda *_: StandInPipeline())
        name = read_sweep(whole).runs[number].name
        assert images(alone) == images(whole / name) and len(images(alone)) == 3
        saved = (whole / name / "config.yaml").read_text()
        assert saved.replace("batch_size_per_device: 5", "batch_size_per_device: 1") == (
            alone / "config.yaml"
        ).read_text().replace(f"output: {alone}", "output: null")


def test_runs_with_other_programs_come_after_each_other_and_share_weights(tmp_path):
    done = make("height=16,24", "seed=0,1", "precision=fp32,bf16", ROWS, f"output={tmp_path / 's'}")
    assert len(done.loads.pipelines) == 4 and done.loads.shared == 2
    for loaded in done.loads.pipelines:
        assert len({(spec.height, spec.width) for batch in loaded.batches for spec in batch}) == 1


def test_images_with_and_without_guidance_never_share_a_batch_and_equal_lengths_do(tmp_path):
    argv = ("guidance_scale=1,5", "sampler.num_inference_steps=4,9", "num_images_per_prompt=4", ROWS)
    done = make(*argv, f"output={tmp_path / 's'}", "batch_size_per_device=6")
    for batch in done.loads.batches:
        assert len({spec.guidance_scale > 1 for spec in batch}) == 1
        assert len({spec.sampler.num_inference_steps for spec in batch}) == 1  # 12 images of each kind, in batches of 6
    assert [len(batch) for batch in done.loads.batches] == [6] * 8


def test_directory_says_what_it_holds(whole, capsys):
    sweep = read_sweep(whole)
    assert sweep.axes == {"sampler": ("ddim", "pndm"), "guidance_scale": ("3", "7.5")}
    assert [run.name for run in sweep.runs] == [
        "000_sampler=ddim_guidance_scale=3",
        "001_sampler=ddim_guidance_scale=7.5",
        "002_sampler=pndm_guidance_scale=3",
        "003_sampler=pndm_guidance_scale=7.5",
    ]
    assert {"grid.png", "index.html", "index.jsonl", "sweep.json", "sweep.log"} <= set(os.listdir(whole))
    lines = [json.loads(line) for line in (whole / "index.jsonl").read_text().splitlines()]
    assert len(lines) == NUM_IMAGES and all((whole / line["file_name"]).is_file() for line in lines)
    assert {line["run"] for line in lines} == {run.name for run in sweep.runs}
    assert lines[-1]["guidance_scale"] == 7.5 and "guidance_scale=7.5" in lines[-1]["overrides"]
    assert (whole / sweep.runs[0].name / ".hydra" / "overrides.yaml").read_text().startswith("- sampler=ddim\n")


def test_results_of_a_sweep_can_be_made_again(tmp_path):
    path = tmp_path / "s"
    make("seed=0,1", ROWS, f"output={path}")
    before = {file: file.read_bytes() for file in path.rglob("*.*") if file.name in RESULTS}
    assert len(before) == 3 + 2 * 3
    for file in before:
        file.unlink()
    assert results_main([str(path)]) == 0
    assert {file: file.read_bytes() for file in before} == before


def test_sweep_is_validated_run_by_run(tmp_path, capsys):
    path = tmp_path / "s"
    make("seed=0,1,2", ROWS, f"output={path}")
    capsys.readouterr()
    assert validate([str(path)]) == 0
    assert capsys.readouterr().out.count(": whole\n") == 3
    (path / "001_seed=1" / "images" / "00001-000.png").write_bytes(b"")
    shutil.rmtree(path / "002_seed=2")
    assert validate([str(path)]) == 1
    out = capsys.readouterr().out
    assert "000_seed=0: whole" in out and "is not the manifest's" in out and "002_seed=2: was never made" in out


def test_end_of_a_sweep_is_a_table(tmp_path, capsys):
    make("seed=0,1", ROWS, f"output={tmp_path / 's'}")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["run", "images", "images/s"]
    assert lines[1].split()[:2] == ["000_seed=0", "3"] and lines[2].split()[:2] == ["001_seed=1", "3"]
    assert lines[3].startswith(f"{tmp_path / 's'}: 2 runs, 6 images in ") and lines[3].endswith("index.html")


@pytest.mark.long
@pytest.mark.slow
def test_real_sweep_reads_weights_once_and_compiles_each_program_once(tmp_path, monkeypatch):
    """Two samplers by three guidance scales by two seeds, on a tiny random checkpoint, packed three to a batch."""
    compiled, read = [], []
    compile_program, fill = Devices.compile, tpusd.engine.pipeline.fill
    monkeypatch.setattr(
        Devices, "compile", lambda *a, **k: compiled.append(a[1].function.__name__) or compile_program(*a, **k)
    )
    monkeypatch.setattr(
        tpusd.engine.pipeline, "fill", lambda m, **k: read.append(Path(m.where).parent.name) or fill(m, **k)
    )
    model = ["model=local", f"model.path={tiny('sd1')}", "precision=fp32", f"height={SIZE}", f"width={SIZE}"]
    fields = ["sampler.num_inference_steps=4", prompts("a red fox")]
    swept = ["sampler=ddim,dpmpp_2m", "guidance_scale=3,7.5,12", "seed=0,1"]
    argv = ["-m", *swept, *fields, *model, "batch_size_per_device=3", f"output={tmp_path / 's'}"]
    assert main(argv) == 0
    assert sorted(read) == ["text_encoder", "unet", "vae"] and sorted(compiled) == ["decode", "denoise", "encode"]
    for one in read_sweep(tmp_path / "s").runs:
        (record,) = manifest(tmp_path / "s" / one.name)
        alone = generate(pipeline(per_device=3), *one.overrides[:3], *fields)[0, 0]
        with Image.open(tmp_path / "s" / one.name / record["file_name"]) as image:
            assert np.array_equal(np.asarray(image), alone.pixels)
        assert record["trace"] == alone.trace


# Failures.


class Fussy(StandInPipeline):
    """Fails at every batch with an image of guidance 7.5."""

    def generate(self, specs, tables, **options):
        if any(spec.guidance_scale == 7.5 for spec in specs):
            raise RuntimeError("INTERNAL: a fault of the program")
        return super().generate(specs, tables, **options)


def test_failing_run_is_told_and_the_others_go_on(tmp_path, whole, capsys):
    path = tmp_path / "s"
    done = make(*SWEEP, f"output={path}", "batch_size_per_device=5", make=Fussy)
    assert done.status == 1
    failed = [run for run in read_sweep(path).runs if run.error]
    assert {run.at["guidance_scale"] for run in failed} == {"7.5"} and len(failed) == 2
    out, err = capsys.readouterr()
    assert err.count("failed: RuntimeError: INTERNAL: a fault of the program") == 2 and f"resume={path}" in err
    assert "4 runs, 6 images" in out and ", 2 failed; see " in out and "Traceback" in (path / "sweep.log").read_text()
    for one in read_sweep(path).runs:
        if one.error:
            assert not (path / one.name).exists()
        else:
            assert images(path / one.name) == images(whole / one.name)
    assert go_on(path).status == 0
    assert contents(path).keys() == contents(whole).keys()


def test_failure_while_preparing_is_of_that_run_alone(tmp_path, capsys):
    def fussy(config):
        if config.seed == 1:
            raise UserError("seed=1: does not suit this checkpoint")
        return prepare(config)

    assert make("seed=0,1,2", ROWS, f"output={tmp_path / 's'}", prepare=fussy).status == 1
    assert "001_seed=1: failed: seed=1: does not suit" in capsys.readouterr().err
    assert [bool(run.error) for run in read_sweep(tmp_path / "s").runs] == [False, True, False]
    assert (tmp_path / "s" / "002_seed=2" / "index.html").exists()


def test_failure_while_writing_is_of_that_run_alone(tmp_path, monkeypatch):
    import tpusd.records.directory

    write = tpusd.records.directory.RunDir.write_image

    def fussy(self, name, data):
        if self.path.name == "001_seed=1" and name.startswith("00001"):
            raise UserError("output=DIR: cannot be written: No space left on device")
        return write(self, name, data)

    monkeypatch.setattr(tpusd.records.directory.RunDir, "write_image", fussy)
    assert make("seed=0,1,2", ROWS, f"output={tmp_path / 's'}", "batch_size_per_device=2").status == 1
    assert [bool(run.error) for run in read_sweep(tmp_path / "s").runs] == [False, True, False]
    assert len(images(tmp_path / "s" / "002_seed=2")) == 3 and len(images(tmp_path / "s" / "001_seed=1")) < 3


def test_on_error_stop_ends_the_sweep(tmp_path):
    done = make(*SWEEP, f"output={tmp_path / 's'}", "on_error=stop", make=Fussy)
    assert done.status == 1
    assert len([run for run in read_sweep(tmp_path / "s").runs if run.error]) == 1
    assert len(done.loads.batches) < 6
    assert go_on(tmp_path / "s").status == 0 and len(list((tmp_path / "s").glob("*/index.html"))) == NUM_RUNS


def test_table_does_not_say_that_a_run_was_there_which_has_no_image(tmp_path, capsys):
    def fussy(config):
        if config.seed == 1:
            raise UserError("seed=1: does not suit this checkpoint")
        return prepare(config)

    assert make("seed=0,1", ROWS, f"output={tmp_path / 's'}", "on_error=stop", prepare=fussy).status == 1
    table = [line.split(None, 2) for line in capsys.readouterr().out.splitlines()[1:3]]
    assert table == [["000_seed=0", "0", "not finished"], ["001_seed=1", "0", "failed"]]


# Going on.


def test_finished_sweep_makes_nothing_again_and_opens_no_model(whole):
    before = contents(whole)

    def prepare_none(config):
        raise AssertionError("nothing is missing")

    done = go_on(whole, prepare=prepare_none)
    assert done.status == 0 and not done.loads.pipelines and contents(whole) == before


@pytest.mark.long
@pytest.mark.slow
def test_sweep_grows_by_new_values(tmp_path):
    path = tmp_path / "s"
    make("sampler=ddim,pndm", "guidance_scale=3,5", ROWS, f"output={path}")
    before = contents(path)
    done = go_on(path, "guidance_scale=3,8,5", "seed=0,1")
    assert {(spec.guidance_scale, spec.seed) for batch in done.loads.batches for spec in batch} == {
        (3.0, 1),
        (5.0, 1),
        (8.0, 0),
        (8.0, 1),
    }
    sweep = read_sweep(path)
    assert (
        len(sweep.runs) == 12 and sweep.axes["guidance_scale"] == ("3", "8", "5") and sweep.axes["seed"] == ("0", "1")
    )
    assert all(run.at["seed"] == "0" for run in sweep.runs[:4])
    after = contents(path)
    whole_files = {"grid.png", "index.jsonl", "sweep.json"}
    assert {name: after[name] for name in before if name not in whole_files} == {
        name: data for name, data in before.items() if name not in whole_files
    }
    assert not go_on(path).loads.pipelines


def test_values_that_are_left_out_stay_in_the_sweep(tmp_path):
    path = tmp_path / "s"
    make("seed=0,1,2", ROWS, f"output={path}")
    assert not go_on(path, "seed=1,2").loads.pipelines
    assert len(read_sweep(path).runs) == 3 and len((path / "index.jsonl").read_text().splitlines()) == 9


class Stopping(StandInPipeline):
    """Interrupted when the `after`th batch of the process begins, as Ctrl-C would."""

    after, begun = 0, 0

    def generate(self, specs, tables, **options):
        if type(self).begun == type(self).after:
            raise KeyboardInterrupt
        type(self).begun += 1
        return super().generate(specs, tables, **options)


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("after", [0, 1, 2])
def test_interrupted_sweep_goes_on_to_the_same_directory(tmp_path, whole, after):
    path = tmp_path / "sweep"
    stopping = type("Stopping", (Stopping,), {"after": after, "begun": 0})
    with pytest.raises(KeyboardInterrupt):
        make(*SWEEP, f"output={path}", "batch_size_per_device=5", make=stopping)
    assert sum(len(images(file.parent)) for file in path.glob("*/manifest.jsonl")) == 5 * after
    done = go_on(path)
    assert done.status == 0 and sum(map(len, done.loads.batches)) == NUM_IMAGES - 5 * after
    same_output(path, whole)


def same_output(path, whole):
    """Equal but for the name of the directory itself, which the saved command line holds."""
    ours, theirs = contents(path), contents(whole)
    for found, where in ((ours, path), (theirs, whole)):
        for name, data in found.items():
            if isinstance(data, bytes):
                found[name] = data.replace(str(where).encode(), b"DIR")
    assert ours == theirs


CODE = """
import sys, time
sys.path.insert(0, 'tests')
import jax
devices = jax.local_devices()
jax.local_devices = lambda: devices[:1]
from support.runs import StandInPipeline, prepare
from tpusd.runs.sweep import start_sweep
class Slow(StandInPipeline):
    def generate(self, *a, **k):
        time.sleep(0.03)
        print('batch', flush=True)
        return super().generate(*a, **k)
start_sweep(sys.argv[1:], prepare=prepare, load=lambda *a, **k: Slow())
"""
KILLS = int(os.environ.get("TPUSD_SWEEP_KILLS", "2"))


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("kill", range(KILLS))
def test_killed_sweep_goes_on_to_the_same_directory(tmp_path, whole, kill):
    """SIGKILL to a real process, at a random moment of its work."""
    chance = random.Random(kill)
    path = tmp_path / "sweep"
    process = subprocess.Popen(
        [sys.executable, "-c", CODE, "-m", *SWEEP, f"output={path}", "batch_size_per_device=5"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )
    for _ in range(chance.randint(1, 3)):
        process.stdout.readline()
    time.sleep(chance.random() * 0.06)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert go_on(path).status == 0
    same_output(path, whole)


# The command line.


def test_dry_run_says_what_would_be_made_and_makes_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = make("height=16,24", "guidance_scale=1,5", "seed=0,1", ROWS, "dry_run=true", "batch_size_per_device=4")
    out = capsys.readouterr().out.splitlines()
    assert done.status == 0 and not done.loads.pipelines and not list(tmp_path.iterdir())
    assert len(out) == 11 and out[0] == "000_height=16_guidance_scale=1_seed=0: 3 images"
    assert out[8] == "model=tiny precision=bf16 40x16: 4 runs, 12 images in 4 batches of 4, 4 programs"
    assert out[10] == "8 runs, 24 images, 2 sizes, 1 load, 8 compilations; nothing was made"
    assert make("seed=0,1", ROWS, f"output={tmp_path / 's'}").status == 0
    before = contents(tmp_path / "s")
    assert go_on(tmp_path / "s", "seed=0,1,2", "dry_run=true").status == 0 and contents(tmp_path / "s") == before


@pytest.mark.long
@pytest.mark.slow
def test_sweep_directory_is_new_or_gone_on_with(tmp_path, whole, capsys, monkeypatch):
    assert main(["-m", "seed=0,1", f"output={whole}"]) == 2
    assert f"holds a sweep; continue it with resume={whole}" in capsys.readouterr().err
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").write_text("x")
    for argv, words in (
        (["seed=0,1", f"output={tmp_path / 'taken'}"], "exists and is not empty"),
        (["seed=0,1", f"output={tmp_path / 'a'},{tmp_path / 'b'}"], "output: a sweep has one directory"),
        (["seed=0,1", "guidance_scale=1,-1"], "guidance_scale=-1"),
    ):
        assert main(["-m", *argv]) == 2
        assert words in capsys.readouterr().err
    monkeypatch.chdir(tmp_path)
    now = datetime(2026, 11, 25, 7, 53, 59)
    monkeypatch.setattr("tpusd.runs.sweep.datetime", SimpleNamespace(now=lambda: now))
    for _ in range(2):  # within one second
        make("seed=0,1", "sampler.num_inference_steps=2,3", ROWS)
    name = "2026-11-25_07-53-59_sweep_seed_num_inference_steps"
    assert sorted(os.listdir("runs")) == [name, f"{name}_2"]


def test_second_process_is_refused(whole, capsys):
    from tpusd.runs.sweep import _locked

    with _locked(whole), pytest.raises(UserError, match="another process is working on this sweep"):
        go_on(whole)


def test_prompts_never_reach_a_path(tmp_path):
    make('negative_prompt="../a","<b>",plain', ROWS, f"output={tmp_path / 's'}")
    assert [run.name for run in read_sweep(tmp_path / "s").runs] == ["000", "001", "002_negative_prompt=plain"]
    assert [run.at["negative_prompt"] for run in read_sweep(tmp_path / "s").runs] == ["../a", "<b>", "plain"]


def test_names_of_a_hostile_sweep_are_refused_by_an_interpreter_that_skips_assertions(tmp_path, whole):
    run = {"name": "../x", "overrides": [], "at": {}, "digest": "", "error": None}
    (tmp_path / "sweep.json").write_text(json.dumps(json.loads((whole / "sweep.json").read_text()) | {"runs": [run]}))
    code = f"from pathlib import Path; from tpusd.records.sweep import read_sweep; read_sweep(Path({str(tmp_path)!r}))"
    done = subprocess.run([sys.executable, "-O", "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert "does not describe a sweep" in done.stderr


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"runs": [{"name": "../x", "overrides": [], "at": {}, "digest": "", "error": None}]},
        {"runs": [{"name": "/etc", "overrides": [], "at": {}, "digest": "", "error": None}]},
        {"runs": 7},
        {"axes": {"seed": [1]}},
        {"overrides": None},
        {"runs": [{"name": "000", "overrides": [["seed=0"]], "at": {}, "digest": "", "error": None}]},
        {"runs": [{"name": "000", "overrides": [], "at": {"seed": [0]}, "digest": "", "error": None}]},
        {"runs": [{"name": "000", "overrides": [], "at": {}, "digest": [], "error": None}]},
        {"runs": [{"name": "000", "overrides": [], "at": {}, "digest": "", "error": {}}]},
    ],
)
def test_hostile_sweep_files_are_one_line(tmp_path, whole, capsys, change):
    values = json.loads((whole / "sweep.json").read_text()) | change
    (tmp_path / "sweep.json").write_text(json.dumps(values))
    assert main([f"resume={tmp_path}"]) == 2
    err = capsys.readouterr().err
    assert "does not describe a sweep" in err and err.count("\n") == 1


@pytest.mark.parametrize("name", sorted(file.stem for file in (ROOT / "conf" / "experiment").glob("*.yaml")))
def test_every_experiment_begins_with_the_command_that_runs_it(name):
    package, first = (ROOT / "conf" / "experiment" / f"{name}.yaml").read_text().splitlines()[:2]
    assert package == "# @package _global_"  # which Hydra wants to stand first
    assert first == f"# python -m tpusd.run -m experiment={name}"
    command = first.removeprefix("# python -m tpusd.run ").split()
    plan, requests = plan_sweep(
        compose_jobs([*command, "seed=0", "sampler.num_inference_steps=5"]), []
    )  # fewer of them
    assert len(requests) > 3 and len(plan.axes) == 1


def test_command_line_wins_over_an_experiments_values():
    jobs = compose_jobs(["-m", "experiment=guidance", "guidance_scale=4", "seed=5,6"])
    assert [(job.values["guidance_scale"], job.values["seed"]) for job in jobs] == [(4, 5), (4, 6)]
    assert jobs[0].values["sampler"]["name"] == "dpmpp_2m"
    for argv, words in (
        (["experiment=samplers"], "experiment=samplers: is a sweep; add -m"),
        (["-m", "experiment=sampler"], "experiment=sampler: no such experiment; did you mean experiment=samplers"),
        (["-m", "experiment=samplers,guidance"], "is a list; choose one experiment"),
    ):
        with pytest.raises(UserError, match=words):
            compose_jobs(argv)


@pytest.mark.parametrize("command", ["results", "validate", "export", "resume"])
def test_a_run_of_a_sweep_that_is_a_link_is_refused_and_nothing_is_written_behind_it(tmp_path, capsys, command):
    """A sweep from a stranger would otherwise have its own run rewritten, or another one."""
    path, other = tmp_path / "s", tmp_path / "other"
    assert make("seed=0,1", f"output={path}", ROWS).status == 0
    linked = sorted(run for run in path.iterdir() if run.is_dir())[1]
    linked.rename(other)
    linked.symlink_to(other)
    before = {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in other.rglob("*") if file.is_file()}
    capsys.readouterr()
    argv = {
        "results": ["results", str(path)],
        "validate": ["validate", str(path)],
        "export": ["export", str(path), str(tmp_path / "out"), "--format=geneval"],
        "resume": ["run", f"resume={path}"],
    }[command]
    assert cli.main(argv) == 2
    assert "is a link or a file, and a run must be a directory" in capsys.readouterr().err
    assert before == {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in other.rglob("*") if file.is_file()}


def test_a_fault_of_the_program_while_preparing_is_of_that_run_alone(tmp_path, capsys):
    """Its traceback is in the log, and the other runs are made."""

    def fussy(config):
        if config.seed == 1:
            raise ZeroDivisionError("a fault of the program")
        return prepare(config)

    path = tmp_path / "s"
    assert make("seed=0,1,2", f"output={path}", ROWS, prepare=fussy).status == 1
    assert [run.error for run in read_sweep(path).runs] == [None, "ZeroDivisionError: a fault of the program", None]
    assert "Traceback" in (path / "sweep.log").read_text() and "Traceback" not in capsys.readouterr().err


def test_reproduce_of_a_sweep_asks_for_one_of_its_runs(tmp_path, capsys):
    path = tmp_path / "s"
    make("seed=0,1", f"output={path}", ROWS)
    capsys.readouterr()
    assert cli.main(["reproduce", str(path)]) == 2
    assert capsys.readouterr().err == f"tpusd: {path}: is a sweep; give one of its runs, such as {path}/000_seed=0\n"


def test_a_run_that_another_process_completed_meanwhile_gets_no_line_twice(tmp_path, capsys):
    path = tmp_path / "s"
    make("seed=0,1", f"output={path}", ROWS)
    first, second = sorted(path.glob("00*"))
    for run in (first, second):
        (run / "images" / "00001-000.png").unlink()
    prepared = []

    def prepare_slowly(config):
        prepared.append(config.seed)
        if config.seed == 1:  # the first run was looked at, and is not open
            resume_run(first, prepare=prepare, load=lambda *_: StandInPipeline())
        return prepare(config)

    assert go_on(path, prepare=prepare_slowly).status == 1 and prepared == [0, 1]
    assert "another process continued this run since" in capsys.readouterr().err
    assert list(faults(first)) == list(faults(second)) == []
    assert go_on(path, prepare=None).status == 0


def test_a_sweep_of_which_no_run_can_be_made_is_one_line_and_leaves_nothing(tmp_path, capsys):
    path = tmp_path / "sweep"
    with pytest.raises(UserError, match=r"^strength=0\.2: there is no image .* \(all 4 runs fail\)$"):
        make('prompts.rows=[{prompt: "a red fox"}]', f"output={path}", "strength=0.2,0.5", "seed=0,1", prepare=None)
    assert not path.exists() and "failed" not in capsys.readouterr().err
