import hashlib
import json
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from support.runs import INLINE, StandInPipeline, config, manifest, prepare

from tpusd.checkpoints import weights_digest
from tpusd.errors import UserError
from tpusd.records.directory import RunDir
from tpusd.records.run_json import read_run
from tpusd.records.saved import read_config
from tpusd.run import main
from tpusd.runs.resume import resume_run
from tpusd.runs.start import start_run

pytestmark = pytest.mark.usefixtures("one_device")

ROOT = Path(__file__).resolve().parents[2]


def made(path, *overrides, pipeline=None):
    return start_run(
        config(f"output={path}", *overrides), prepare=prepare, load=lambda *_: pipeline or StandInPipeline()
    )


def resumed(path, *argv, pipeline=None):
    pipeline = pipeline or StandInPipeline()
    resume_run(path, argv, prepare=prepare, load=lambda *_: pipeline)
    return pipeline


def stopped(path, *overrides, after=2):
    """A run that stopped after `after` batches of one image."""
    with pytest.raises(KeyboardInterrupt):
        made(path, *overrides, pipeline=StandInPipeline(fails_at=after, error=KeyboardInterrupt()))
    return path


def content(path: Path):
    """All of a run directory but times: image bytes, manifest lines as a set, the config, other names."""
    files = sorted(str(file.relative_to(path)) for file in path.rglob("*") if file.is_file())
    lines = (path / "manifest.jsonl").read_bytes()
    assert lines.endswith(b"\n") and len(set(lines.splitlines())) == lines.count(b"\n")
    hashes = {name: hashlib.sha256((path / name).read_bytes()).hexdigest() for name in files if name[-4:] == ".png"}
    return files, hashes, set(lines.splitlines()), read_config(path) | {"output": None}, read_run(path)["state"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory, one_device):
    path = tmp_path_factory.mktemp("whole") / "run"
    return content(made(path, INLINE, "num_images_per_prompt=2"))


@pytest.mark.slow
def test_resumed_run_equals_an_uninterrupted_one_file_for_file(tmp_path, whole):
    path = stopped(tmp_path / "run", INLINE, "num_images_per_prompt=2")
    assert len(resumed(path).batches) == 4
    assert content(path) == whole
    assert len(read_run(path)["sessions"]) == 2 and len(read_run(path)["environments"]) == 1


def test_finished_run_is_told_so_without_its_model(tmp_path, capsys):
    path = made(tmp_path / "run", INLINE)
    before = {file: file.stat().st_mtime_ns for file in path.rglob("*") if file.name != "run.log"}
    resume_run(path, prepare=None, load=None)
    assert capsys.readouterr().out.endswith(f"{path}: complete, 3 images; see {path / 'index.html'}\n")
    assert {file: file.stat().st_mtime_ns for file in before} == before


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize(
    ("start", "growth"),
    [
        (["num_images_per_prompt=1"], ["num_images_per_prompt=2"]),
        (['prompts.rows=[{prompt: "a red fox"}]', "num_images_per_prompt=2"], [INLINE]),
        (["images=[00001-001]", "num_images_per_prompt=2"], ["images=null"]),
        (["limit=1", "num_images_per_prompt=2"], ["limit=null"]),
        (["rows=1:2", "num_images_per_prompt=2"], ["rows=null"]),
    ],
)
def test_growing_is_resuming_and_makes_only_what_is_new(tmp_path, whole, start, growth):
    path = made(tmp_path / "run", INLINE, *start) if "prompts" not in start[0] else made(tmp_path / "run", *start)
    before = {record["file_name"] for record in manifest(path)}
    pipeline = resumed(path, *growth)
    assert sum(map(len, pipeline.batches)) == 6 - len(before) > 0
    assert content(path) == whole
    resume_run(path, prepare=None, load=None)  # what it grew by is part of it


@pytest.mark.slow
def test_prompts_file_with_lines_at_its_end_grows_a_run(tmp_path):
    file = tmp_path / "p.csv"
    file.write_text("prompt,seed,id\na red fox,7,x\n")
    path = made(tmp_path / "run", "prompts=file", f"prompts.path={file}")
    file.write_text("prompt,seed,id\na red fox,7,x\nan owl,,y\n")
    resumed(path, "prompts=file", f"prompts.path={file}")
    assert [(record["prompt"], record["id"]) for record in manifest(path)] == [("a red fox", "x"), ("an owl", "y")]


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["seed=5"], "seed=5: the run was made with 0, and continues as it was made"),
        (["sampler.num_inference_steps=3"], "sampler.num_inference_steps=3: the run was made with 50"),
        (["precision=fp32"], r"precision\.\S+=\S+: the run was made with"),
        (["model=sd15"], "model.name=sd15: the run was made with tiny"),
        (["height=16"], "height=16: the run was made with 24"),
        (["num_images_per_prompt=1"], "num_images_per_prompt=1: the run was made with 2"),
        (["prompts.rows=[{prompt: a red fox}]"], "row 1 of the run, an owl, is removed"),
        (["prompts=landscapes"], "row 0 of the run, a red fox, is now a wide valley"),
        (["limit=1"], "rows=null limit=1: the run has rows 0 to 2, and a run can only be extended"),
        (["rows=1:"], "rows=1: limit=null: the run has rows 0 to 2"),
        (["images=[00000-000]"], "images: the run was made with others or with all"),
        (["output=x"], "output=x: the run was made with"),
        (["-m", "seed=1,2"], "-m: resume and reproduce work on one run"),
        (["--cfg", "job"], "only shows something"),
        (["sead=1"], "did you mean seed"),
    ],
)
def test_other_config_is_refused_and_nothing_is_touched(tmp_path, capsys, argv, expected):
    path = stopped(tmp_path / "run", INLINE, "num_images_per_prompt=2")
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file() and file.name != "run.log"}
    with pytest.raises(UserError, match=expected) as error:
        resume_run(path, argv, prepare=None, load=None)
    assert "\n" not in str(error.value)
    assert {file: file.read_bytes() for file in before} == before


@pytest.mark.slow
def test_batch_size_may_change(tmp_path, whole):
    path = stopped(tmp_path / "run", INLINE, "num_images_per_prompt=2")
    resumed(path, "batch_size_per_device=3")
    files, hashes, *_ = content(path)
    assert (files, hashes) == whole[:2]
    environments = read_run(path)["environments"]
    assert sorted(e["batch_size_per_device"] for e in environments.values()) == [1, 3]
    sizes = [environments[record["environment"]]["batch_size_per_device"] for record in manifest(path)]
    assert sizes == [1] * 2 + [3] * 4


@pytest.mark.slow
def test_changed_weights_are_refused_unless_told_otherwise(tmp_path, monkeypatch, capsys):
    path = stopped(tmp_path / "run", INLINE)
    old = read_config(path)["model"]["sha256"]
    assert old == weights_digest({"unet/weights.safetensors": "0" * 64})
    changed = {"unet/weights.safetensors": "1" * 64}
    monkeypatch.setattr("support.runs.SHA256", changed)
    with pytest.raises(UserError, match="model=tiny: its files have changed: sha256 .*set on_changed_weights=warn"):
        resumed(path)
    assert len(list(manifest(path))) == 2
    resumed(path, "on_changed_weights=warn")
    assert "its files have changed" in capsys.readouterr().err and read_config(path)["model"]["sha256"] == old
    weights = {e["weights"] for e in read_run(path)["environments"].values()}
    assert weights == {old, weights_digest(changed)}
    assert read_config(path)["on_changed_weights"] == "error"


class Unguided(StandInPipeline):
    """As every release after 0.1.0 makes images of a guidance scale up to 1."""

    fingerprints = {"encode": "e" * 64, "denoise_unguided": "d" * 64, "decode": "c" * 64}


@pytest.mark.slow
def test_images_of_the_older_rule_for_low_guidance_are_said_where_others_join_them(tmp_path, capsys):
    """StandInPipeline runs the program with guidance, as 0.1.0 did for every scale other than 1."""
    path = stopped(tmp_path / "run", INLINE, "guidance_scale=0.5")
    resumed(path, pipeline=Unguided())
    line = "guidance_scale below 1: when this run was made, such a scale weakened the prompt"
    assert line in capsys.readouterr().err and line in (path / "run.log").read_text()
    resumed(path, pipeline=Unguided())  # nothing is missing
    assert line not in capsys.readouterr().err
    resumed(stopped(tmp_path / "guided", INLINE), pipeline=Unguided())
    newer = made(tmp_path / "newer", INLINE, "guidance_scale=0.5", pipeline=Unguided())
    resumed(newer, "num_images_per_prompt=2", pipeline=Unguided())
    assert line not in capsys.readouterr().err


def test_config_names_its_weights_before_the_first_image_exists(tmp_path):
    """Else a crash could leave images of weights that nobody knows."""
    seen = []
    append = RunDir.append_records

    def look(self, *records):
        known = read_run(self.path)["environments"]
        seen.extend((read_config(self.path)["model"]["sha256"], record.environment in known) for record in records)
        append(self, *records)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunDir, "append_records", look)
        made(tmp_path / "run", INLINE)
    assert seen == [(weights_digest({"unet/weights.safetensors": "0" * 64}), True)] * 3


def damage(path, what):
    image = path / "images" / "00001-000.png"
    manifest = path / "manifest.jsonl"
    lines = manifest.read_bytes().splitlines(keepends=True)
    if what == "missing image":
        image.unlink()
    elif what == "empty image":
        image.write_bytes(b"")
    elif what == "short image":
        image.write_bytes(image.read_bytes()[:-1])
    elif what == "flipped bit":
        data = bytearray(image.read_bytes())
        data[-20] ^= 1
        image.write_bytes(data)
    elif what == "link in place of an image":
        image.rename(path / "elsewhere.png")
        image.symlink_to(path / "elsewhere.png")
    elif what == "torn line":
        manifest.write_bytes(b"".join(lines)[:-5])
    elif what == "lost line":
        manifest.write_bytes(b"".join(lines[:-1]))
    elif what == "doubled line":
        manifest.write_bytes(b"".join(lines + lines[:1]))
    elif what == "no line":
        manifest.write_bytes(lines[0] + b"\x00\xff nothing\n" + b"".join(lines[1:]))
    elif what == "line of another file":
        manifest.write_bytes(lines[0].replace(b"images/00000-000.png", b"../00000-000.png") + b"".join(lines[1:]))
    elif what == "temporary files":
        for name in ("images/00001-001.png.tmp", "config.yaml.tmp", ".hydra/config.yaml.tmp", "run.json.tmp"):
            (path / name).write_bytes(b"half")
    elif what == "no run.json":
        (path / "run.json").unlink()
    elif what == "no manifest":
        manifest.unlink()
    elif what == "no images":
        shutil.rmtree(path / "images")
    elif what == "no contact sheet":
        (path / "contact_sheet.png").unlink()


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize(
    "what",
    [
        "missing image",
        "empty image",
        "short image",
        "flipped bit",
        "link in place of an image",
        "torn line",
        "lost line",
        "doubled line",
        "no line",
        "line of another file",
        "temporary files",
        "no run.json",
        "no manifest",
        "no images",
        "no contact sheet",
    ],
)
def test_damage_is_found_on_opening_and_healed(tmp_path, whole, what):
    path = made(tmp_path / "run", INLINE, "num_images_per_prompt=2")
    damage(path, what)
    resumed(path)
    if what.startswith("link"):
        (path / "elsewhere.png").unlink()
    assert content(path) == whole


@pytest.mark.slow
def test_what_was_put_right_is_told(tmp_path, capsys):
    path = made(tmp_path / "run", INLINE, "num_images_per_prompt=2")
    for what in ("missing image", "temporary files"):
        damage(path, what)
    (path / "images" / "00002-001.png").unlink()
    resumed(path)
    for told in (capsys.readouterr().err, (path / "run.log").read_text()):
        assert "00001-000 and 1 more: its file is missing" in told
        assert "and 3 more: half a file of an interrupted write, removed" in told


def test_edited_config_is_refused(tmp_path):
    path = stopped(tmp_path / "run", INLINE)
    text = (path / "config.yaml").read_text()
    (path / "config.yaml").write_text(text.replace("seed: 0", "seed: 3"))
    with pytest.raises(UserError, match="line 1: seed=0, and config.yaml says 3; restore the config.yaml"):
        resumed(path)
    (path / "config.yaml").write_text(text.replace("first_copy: 0", "first_copy: 1"))
    with pytest.raises(UserError, match="line 1: 00000-000 is not in the run that config.yaml describes"):
        resumed(path)


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["resume=nowhere"], "nowhere: no such directory"),
        (["resume="], "resume=: is empty; give the directory of a run or a sweep"),
        (["resume=a", "resume=b"], "resume= takes one directory"),
    ],
)
def test_what_is_no_run_is_one_line_and_stays_as_it_is(tmp_path, monkeypatch, capsys, argv, expected):
    monkeypatch.chdir(tmp_path)
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert expected in error and error.count("\n") == 1 and list(tmp_path.iterdir()) == []


def test_second_process_is_refused(tmp_path):
    """While a run goes on, nobody else can go on with it: neither in this process nor from another."""
    path = tmp_path / "run"
    gate, started = threading.Event(), threading.Event()

    class Slow(StandInPipeline):
        def generate(self, *arguments, **options):
            started.set()
            gate.wait(20)
            return super().generate(*arguments, **options)

    thread = threading.Thread(target=made, args=(path, INLINE), kwargs={"pipeline": Slow()})
    thread.start()
    started.wait(20)
    with pytest.raises(UserError, match="another process is working on this run"):
        resumed(path)
    gate.set()
    thread.join()
    resume_run(path, prepare=None, load=None)


@pytest.mark.slow
def test_lock_does_not_outlive_a_killed_process(tmp_path):
    path = made(tmp_path / "run", INLINE)
    code = (
        "import sys, time, pathlib\nfrom tpusd.records.directory import RunDir\n"
        "held = RunDir.open(pathlib.Path(sys.argv[1]))\nprint('held', flush=True)\ntime.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, path], stdout=subprocess.PIPE, cwd=ROOT)
    assert holder.stdout.readline() == b"held\n"
    with pytest.raises(UserError, match="another process is working on this run"):
        resumed(path)
    holder.kill()
    holder.communicate()
    resume_run(path, prepare=None, load=None)


@pytest.mark.slow
def test_finished_run_of_2000_images_is_opened_soon(tmp_path):
    path = made(
        tmp_path / "run",
        "prompts.rows=[{prompt: a}, {prompt: b}]",
        "num_images_per_prompt=1000",
        "height=8",
        "width=8",
        "batch_size_per_device=64",
    )
    start = time.monotonic()
    resume_run(path, prepare=None, load=None)
    assert time.monotonic() - start < 3
    facts = json.loads((path / "run.json").read_text())
    assert facts["state"] == "finished" and facts["num_images"] == 2000


@pytest.mark.slow
@pytest.mark.parametrize("name", ["metadata.jsonl", "contact_sheet.png", "index.html"])
@pytest.mark.parametrize("cut", ["half", "a line", "empty", "gone"])
def test_a_result_that_is_cut_off_is_made_again(tmp_path, name, cut):
    """A run with one is not complete, whatever run.json says. No image is made for it."""
    path = made(tmp_path / "run", INLINE)
    file = path / name
    whole = file.read_bytes()
    lines = whole.splitlines(keepends=True)
    left = {"half": whole[: len(whole) // 2], "a line": b"".join(lines[:-1]), "empty": b"", "gone": None}[cut]
    file.unlink() if left is None else file.write_bytes(left)
    assert resumed(path).batches == []
    again = file.read_bytes()
    assert (
        again.rstrip().endswith(b"</html>") if name == "index.html" else again == whole
    )  # a page has the session's facts


@pytest.mark.slow
@pytest.mark.parametrize("name", ["manifest.jsonl", "run.log"])
def test_a_manifest_or_a_lock_that_is_removed_while_the_run_goes_on_fails_it_and_its_images_stay(tmp_path, whole, name):
    """A run could end as "finished" without a manifest, and two processes could hold one run."""
    path = tmp_path / "run"

    class Removes(StandInPipeline):
        def generate(self, *arguments, **options):
            if len(self.batches) == 4:
                (path / name).unlink()
            return super().generate(*arguments, **options)

    with pytest.raises(UserError, match=f"{name}: was removed or replaced"):
        made(path, INLINE, "num_images_per_prompt=2", pipeline=Removes())
    assert list((path / "images").iterdir()) and read_run(path)["state"] == "running"
    resumed(path)
    assert content(path) == whole
