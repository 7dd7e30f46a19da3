import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.runs import HEAR_SIGNALS, INLINE, StandInPipeline, config, generated, manifest, pixels, prepare, tokenize

from tpusd.config.schema import make_config
from tpusd.errors import UserError
from tpusd.plan.batches import Batch
from tpusd.plan.specs import make_specs
from tpusd.process.exit import exit_status
from tpusd.process.progress import Progress
from tpusd.records.directory import Claim, RunDir
from tpusd.records.manifest import FIELDS
from tpusd.records.provenance import BatchProvenance
from tpusd.records.saved import override, read_config
from tpusd.run import main
from tpusd.runs.executors.base import MadeBatch
from tpusd.runs.executors.local import LocalExecutor
from tpusd.runs.make import make_runs
from tpusd.runs.session import RunSession, summary_line
from tpusd.runs.start import start_run
from tpusd.runs.texts import count_tokens
from tpusd.runs.writer import BatchWriter

pytestmark = pytest.mark.usefixtures("one_device")

ROOT = Path(__file__).resolve().parent.parent


def generate(tmp_path, *overrides, pipeline=None, name="run"):
    pipeline = pipeline or StandInPipeline()
    made = config(f"output={tmp_path / name}", *overrides)
    return start_run(made, prepare=prepare, load=lambda *_, **__: pipeline), made, pipeline


def images(path):
    return {record["file_name"]: record["sha256"] for record in manifest(path)}


@pytest.mark.slow
def test_run_directory_explains_itself(tmp_path, capsys):
    path, made, _ = generate(tmp_path, INLINE, "num_images_per_prompt=2")
    assert sorted(os.listdir(path)) == [
        ".hydra",
        "config.yaml",
        "contact_sheet.png",
        "images",
        "index.html",
        "manifest.jsonl",
        "metadata.jsonl",
        "run.json",
        "run.log",
    ]
    records = list(manifest(path))
    assert [(record["row"], record["copy"]) for record in records] == [
        (row, copy) for row in range(3) for copy in range(2)
    ]
    assert {f"images/{name}" for name in os.listdir(path / "images")} == {record["file_name"] for record in records}
    elsewhere = ("file_name", "sha256", "num_bytes", "environment", "trace")
    for record, spec in zip(records, make_specs(prepare(made).config), strict=True):
        data = (path / record["file_name"]).read_bytes()
        assert record["sha256"] == hashlib.sha256(data).hexdigest()
        with Image.open(io.BytesIO(data)) as image:
            assert np.array_equal(np.asarray(image), pixels(spec))
            recipe = json.loads(image.text["tpusd"])
        assert recipe.items() >= {key: value for key, value in record.items() if key not in elsewhere}.items()
        assert recipe["sampler_settings"]["num_inference_steps"] == record["num_inference_steps"]
    facts = json.loads((path / "run.json").read_text())
    assert facts["state"] == "finished" and facts["num_images"] == 6
    (environment,) = facts["environments"].values()
    assert environment["devices"]["count"] == 1 and environment["versions"]["jax"] and environment["programs"]
    assert {record["environment"] for record in records} == set(facts["environments"])
    assert facts["checkpoint"]["sha256"] == {"unet/weights.safetensors": "0" * 64}
    out = capsys.readouterr().out
    assert out.count("\n") == 2 and out.startswith(f"{path}: 6 images in ")
    assert out.splitlines()[-1] == f"see {path / 'index.html'}"
    assert "start-up" in out and "first batch" in out and "images/s" in out
    (session,) = facts["sessions"]
    assert session["seconds"].keys() == {"compile", "weights", "first_batch", "load", "generate"}
    assert str(path) in (path / "run.log").read_text()


def test_summary_says_what_start_up_took():
    seconds = {"import": 1.5, "compile": 6.0, "weights": 0.5, "first_batch": 2.0, "load": 1.0, "generate": 10.5}
    assert summary_line(8, seconds) == (
        "8 images in 12.0 s, start-up 8.0 s (import 1.5, compile 6.0, weights 0.5), first batch 2.0 s, 2.00 images/s"
    )
    assert summary_line(0, {"import": 1.5, "load": 0.1, "generate": 0.2}) == (
        "0 images in 1.7 s, start-up 1.5 s (import 1.5)"
    )


@pytest.mark.slow
def test_seconds_of_a_run_are_its_own(tmp_path):
    """A pipeline that several runs share has compiled before; one may compile more after its first batch."""
    shared = StandInPipeline()
    shared.seconds = {"compile": 100.0, "weights": 10.0}
    path = start_run(config(INLINE, f"output={tmp_path / 'run'}"), prepare=prepare, load=lambda *_: shared)
    (session,) = json.loads((path / "run.json").read_text())["sessions"]
    assert session["seconds"]["compile"] == session["seconds"]["weights"] == 0
    assert 0 <= session["seconds"]["first_batch"] <= session["seconds"]["generate"] < 60

    class Compiling(StandInPipeline):
        def generate(self, specs, tables, **options):
            self.seconds = {"compile": self.seconds["compile"] + 1000.0, "weights": 0.0}
            return super().generate(specs, tables, **options)

    path = start_run(config(INLINE, f"output={tmp_path / 'more'}"), prepare=prepare, load=lambda *_: Compiling())
    (session,) = json.loads((path / "run.json").read_text())["sessions"]
    assert session["seconds"]["compile"] == 3000.0  # three batches


def test_manifest_line_holds_the_contracts_fields_and_further_columns(tmp_path):
    rows = 'prompts.rows=[{prompt: "a red fox", seed: 7, guidance_scale: 1, id: 5, tags: [x]}]'
    path, _, _ = generate(tmp_path, rows, "seed=3")
    (record,) = manifest(path)
    assert set(record) == {*FIELDS} | {"id", "tags"}
    assert (record["seed"], record["row_seed"], record["guidance_scale"], record["id"], record["num_tokens"]) == (
        7,
        7,
        1,
        5,
        5,
    )


@pytest.mark.slow
def test_saved_config_alone_makes_the_run_again(tmp_path):
    path, _, _ = generate(tmp_path, INLINE, "num_images_per_prompt=2", "height=16")
    again = make_config(read_config(path) | {"output": str(tmp_path / "again")})
    assert images(start_run(again, prepare=prepare, load=lambda *_, **__: StandInPipeline())) == images(path)


@pytest.mark.slow
def test_image_files_do_not_depend_on_batch_size(tmp_path):
    first, _, pipeline = generate(tmp_path, INLINE, "num_images_per_prompt=3")
    second, _, packed = generate(tmp_path, INLINE, "num_images_per_prompt=3", "batch_size_per_device=4", name="other")
    assert images(first) == images(second) and len(packed.batches) < len(pipeline.batches)


def test_failure_before_the_first_image_leaves_no_directory(tmp_path):
    pipeline = StandInPipeline(fails_at=0, error=UserError("unet: a truncated file"))
    with pytest.raises(UserError, match="truncated"):
        generate(tmp_path, INLINE, pipeline=pipeline, name="a/b/run")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_failure_later_keeps_every_finished_image(tmp_path):
    for error in (UserError("no more memory"), KeyboardInterrupt(), ZeroDivisionError("ours")):
        name = type(error).__name__
        with pytest.raises(type(error)):
            generate(
                tmp_path,
                INLINE,
                "batch_size_per_device=1",
                pipeline=StandInPipeline(fails_at=2, error=error),
                name=name,
            )
        path = tmp_path / name
        assert images(path) == {
            record: hashlib.sha256((path / record).read_bytes()).hexdigest()
            for record in ("images/00000-000.png", "images/00001-000.png")
        }
        assert json.loads((path / "run.json").read_text())["state"] == "running"
        assert "stopped" in (path / "run.log").read_text()
    assert "Traceback" in (tmp_path / "ZeroDivisionError" / "run.log").read_text()


def test_error_of_the_pool_stops_the_run(tmp_path, monkeypatch):
    def full(self, name, data):
        raise UserError("output=DIR: cannot be written: No space left on device")

    monkeypatch.setattr(RunDir, "write_image", full)
    pipeline = StandInPipeline()
    with pytest.raises(UserError, match="No space left"):
        generate(tmp_path, INLINE, "num_images_per_prompt=50", pipeline=pipeline)
    assert len(pipeline.batches) < 50 and list(tmp_path.iterdir()) == []


def test_device_works_while_the_pool_writes(tmp_path, monkeypatch):
    """The second batch is generated while the first is still being written."""
    second_started, overlapped = threading.Event(), []
    write = RunDir.write_image

    def slow_write(self, name, data):
        overlapped.append(second_started.wait(20))
        return write(self, name, data)

    class Pipeline(StandInPipeline):
        def generate(self, specs, tables, **options):
            if self.batches:
                second_started.set()
            return super().generate(specs, tables, **options)

    monkeypatch.setattr(RunDir, "write_image", slow_write)
    path, _, _ = generate(tmp_path, INLINE, pipeline=Pipeline())
    assert overlapped == [True] * 3 and len(images(path)) == 3


@pytest.mark.slow
def test_pending_images_are_bounded(tmp_path, monkeypatch):
    prepared = prepare(config(INLINE, "num_images_per_prompt=9"))
    run = RunSession(prepared, Claim(output=tmp_path / "run"), name="run")
    specs, failures = list(run.specs()), []
    gate, write = threading.Event(), RunDir.write_image
    monkeypatch.setattr(RunDir, "write_image", lambda *arguments: gate.wait(20) and write(*arguments))
    provenance = BatchProvenance(environment={"weights": "0" * 64}, programs={}, checkpoint={})
    with BatchWriter(max_pending=3, num_threads=4, on_failure=lambda *failure: failures.append(failure)) as writer:
        submitted = []

        def submit():
            for spec in specs:
                batch = Batch(entries=((run, spec),))
                writer.submit(MadeBatch(batch=batch, images=[generated(spec)], provenance=lambda: provenance))
                submitted.append(spec)

        thread = threading.Thread(target=submit)
        thread.start()
        time.sleep(0.2)
        assert len(submitted) == 3
        gate.set()
        thread.join()
    assert failures == []
    lines = manifest(tmp_path / "run")
    assert [(line["row"], line["copy"]) for line in lines] == [(spec.row, spec.copy) for spec in specs]


@pytest.mark.slow
def test_device_waits_for_a_slow_disk(tmp_path, monkeypatch):
    gate, pipeline = threading.Event(), StandInPipeline()
    write = RunDir.write_image
    monkeypatch.setattr(RunDir, "write_image", lambda *arguments: gate.wait(120) and write(*arguments))
    thread = threading.Thread(
        target=generate, args=(tmp_path, INLINE, "num_images_per_prompt=9"), kwargs={"pipeline": pipeline}
    )
    thread.start()
    deadline = time.monotonic() + 60
    while not pipeline.batches and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.5)  # for more than it should make
    assert 1 <= len(pipeline.batches) <= 4  # two batches' worth may wait, one more is finished, one is made meanwhile
    gate.set()
    thread.join()
    assert sum(map(len, pipeline.batches)) == 27


def test_runs_are_made_without_the_images_that_they_have(tmp_path):
    prepared = prepare(config(INLINE))
    run = RunSession(prepared, Claim(output=tmp_path / "run"), name="run", done=frozenset({(1, 0)}))
    progress = Progress(run.num_images, len(run.done), stream=io.StringIO())
    make_runs([run], LocalExecutor(progress, load=lambda *_: StandInPipeline()))
    assert run.error is None and not run.num_missing
    assert sorted(images(run.path)) == ["images/00000-000.png", "images/00002-000.png"]
    assert progress.text().startswith("3/3 images")


@pytest.mark.slow
def test_prompts_beyond_the_window_are_counted_warned_of_and_marked(tmp_path, capsys):
    long = (
        "prompts.rows=[{prompt: short}, {prompt: 'one two three four five six'}, "
        "{prompt: x, negative_prompt: 'a b c d e f g'}, {prompt: 'a b c d e f', negative_prompt: y}]"
    )
    path, _, _ = generate(tmp_path, long)
    assert [(record["num_tokens"], record["truncated"]) for record in manifest(path)] == [
        (3, False),
        (8, True),
        (3, True),
        (8, True),
    ]
    warning = (
        "3 of 4 rows have a text of more than the 7 tokens that the model reads; their ends are left out: "
        "prompt of row 1 (8 tokens, without 'six'), negative_prompt of row 2 (9 tokens, without 'f g'), "
        "prompt of row 3 (8 tokens, without 'f')"
    )
    assert warning in capsys.readouterr().err and warning in (path / "run.log").read_text()
    with pytest.raises(UserError, match="the 7 tokens that the model reads; shorten them, or set on_truncate=warn"):
        generate(tmp_path, long, "on_truncate=error", name="refused")
    assert not (tmp_path / "refused").exists()


def test_token_count_is_the_largest_of_all_tokenizers():
    made = config("prompts.rows=[{prompt: a b}]")
    longer = lambda texts: tokenize([text + " x y z w" for text in texts])  # noqa: E731
    counts, warnings = count_tokens(made, made.prompts.rows, (tokenize, longer, tokenize))
    assert counts == {"a b": (8, True)} and len(warnings) == 1


@pytest.mark.parametrize("words", [["--cfg", "job"], ["--info"], ["--hydra-help"], ["seed=0", "--cfg=job"]])
def test_a_flag_that_shows_another_config_is_refused_where_a_run_continues(words, capsys):
    with pytest.raises(UserError, match=f"{words[-1] if '=' in words[-1] else words[0]}: only shows something"):
        override(prepare(config(INLINE)).config, words)
    assert capsys.readouterr().out == ""


def test_help_needs_no_run_to_continue(capsys):
    assert main(["resume=nothing", "--help"]) == 0 and "resume=DIR" in capsys.readouterr().out


def test_user_errors_are_one_line_whatever_they_hold(capsys):
    with exit_status() as status:
        raise UserError("a=b: first\nsecond")
    assert status == [2] and capsys.readouterr().err == "tpusd: a=b: first second\n"


@pytest.mark.slow
def test_interrupted_run_is_a_valid_directory(tmp_path):
    """Ctrl-C as it happens: a signal to the process, at no chosen moment."""
    code = (
        "import sys, time\nsys.path.insert(0, 'tests')\nfrom support.runs import *\n"
        "from tpusd.process.exit import exit_status\nfrom tpusd.runs.start import *\n"
        "class Slow(StandInPipeline):\n    def generate(self, *a, **k):\n"
        "        time.sleep(0.01); print('batch', flush=True)\n"
        "        return super().generate(*a, **k)\n"
        "with exit_status() as status:\n"
        "    start_run(config(*sys.argv[1:]), prepare=prepare, load=lambda *a, **k: Slow())\n"
        "sys.exit(status[0])"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", HEAR_SIGNALS + code, f"output={tmp_path / 'run'}", INLINE, "num_images_per_prompt=1000"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )
    for _ in range(5):
        process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130 and stderr.splitlines()[-1].startswith("tpusd: interrupted"), stderr
    path = tmp_path / "run"
    assert 4 <= len(images(path)) < 3000
    assert {f"images/{name}" for name in os.listdir(path / "images")} == set(images(path))
