"""Configs, run directories and prompts from strangers: no code of theirs runs, and nothing outside is touched."""

import json
import os
import shutil
import time

import pytest
from support.runs import INLINE, StandInPipeline, config, manifest, prepare

from tpusd.config.compose import compose_jobs
from tpusd.config.schema import make_config
from tpusd.config.yaml_files import parse_yaml, to_yaml
from tpusd.errors import UserError
from tpusd.records.provenance import FLAG_VARIABLES, flags, scrub
from tpusd.records.saved import read_config
from tpusd.records.validate import faults
from tpusd.reproduce import main as reproduce_main
from tpusd.run import main as run_main
from tpusd.runs.reproduce import reproduce
from tpusd.runs.resume import resume_run
from tpusd.runs.start import start_run
from tpusd.validate import main as validate_main

pytestmark = pytest.mark.usefixtures("one_device")

SECONDS = 5.0


def aliases(levels):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, levels)]
    return "\n".join(lines) + "\n"


PROMPTS = "name: mine\nrows: [{prompt: a}]\npath: null\ncolumn: null\n"
CODE = "!!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path [ran]]"
CONFIGS = {
    "aliases": (PROMPTS + aliases(9), "aliases expand to over"),
    "itself": (PROMPTS + "more: &more [*more]\n", "contains itself"),
    "number": ("name: 1" + ":00" * 100_000, "too many digits"),
    "nested": (PROMPTS + "more: " + "[" * 100 + "]" * 100, "nested over"),
    "tag": (f"name: {CODE}\n", "apply:pathlib.Path.touch makes no"),
    "target": (PROMPTS + "_target_: pathlib.Path.touch\n", "prompts._target_=pathlib.Path.touch: no such field"),
    "environment": (PROMPTS.replace("mine", "${oc.env:HOME}"), "config is data"),
    "interpolations": (PROMPTS.replace("mine", '"' + "${name}" * 1000 + '"'), "config is data"),
    "resolver": (PROMPTS.replace("{prompt: a}", "{prompt: '${oc.create:x}'}"), "config is data"),
    "huge": (PROMPTS + "#" * (17 << 20), "is over 16 MiB"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_strangers_configs_are_data(tmp_path, monkeypatch, name):
    text, expected = CONFIGS[name]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "conf" / "prompts").mkdir(parents=True)
    (tmp_path / "conf" / "prompts" / "evil.yaml").write_text(text)
    start = time.process_time()
    with pytest.raises(UserError) as error:
        (job,) = compose_jobs([f"--config-dir={tmp_path / 'conf'}", "prompts=evil"])
        make_config(job.values)
    assert expected in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 600
    assert time.process_time() - start < SECONDS and not (tmp_path / "ran").exists()


@pytest.mark.slow
@pytest.mark.parametrize("argv", [["--cfg", "job"], ["--info", "config"], ["--help"], ["--hydra-help"], []])
def test_logging_of_a_config_runs_no_code(tmp_path, monkeypatch, capsys, argv):
    """Hydra would build whatever job_logging names. None of what we let it do gets that far."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "conf" / "prompts").mkdir(parents=True)
    logging = "{version: 1, handlers: {x: {(): pathlib.Path.touch, self: ran}}, root: {handlers: [x]}}"
    (tmp_path / "conf" / "prompts" / "evil.yaml").write_text(
        f"# @package _global_\nhydra: {{job_logging: {logging}, hydra_logging: {logging}, run: {{dir: ran}}, "
        "callbacks: {x: {_target_: os.mkdir, path: ran}}}\n"
        "prompts: {name: x, rows: [{prompt: a}], path: null, column: null}\n"
    )
    with pytest.raises(UserError, match="which can run code"):
        compose_jobs([f"--config-dir={tmp_path / 'conf'}", "prompts=evil", *argv])
    assert sorted(os.listdir(tmp_path)) == ["conf"]


def test_pipe_among_configs_does_not_block(tmp_path):
    (tmp_path / "prompts").mkdir()
    os.mkfifo(tmp_path / "prompts" / "evil.yaml")
    with pytest.raises(UserError, match="is not a file"):
        compose_jobs([f"--config-dir={tmp_path}", "prompts=portraits"])


# Run directories.


@pytest.fixture(scope="module")
def whole(tmp_path_factory, one_device):
    path = tmp_path_factory.mktemp("whole") / "run"
    return start_run(config(f"output={path}", INLINE), prepare=prepare, load=lambda *_: StandInPipeline())


@pytest.fixture
def path(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "run")


def commands(path, capsys):
    """The lines of the three commands that take a run directory, each of which ends with status 1 or 2 and no more."""
    lines = []
    for main, argv in (
        (run_main, [f"resume={path}"]),
        (validate_main, [str(path)]),
        (reproduce_main, [str(path), f"output={path.parent / 'again'}"]),
    ):
        status = main(argv)
        told = capsys.readouterr()
        assert status in (1, 2) and "Traceback" not in told.err
        assert told.err.count("\n") <= 1 and all(len(line) < 700 for line in (told.err + told.out).splitlines())
        lines.append(told.err + told.out)
    return lines


SAVED = {
    "tag": (lambda text: text.replace("seed: 0", f"seed: {CODE}"), "is not YAML"),
    "target": (lambda text: text + "_target_: os.system\n", "_target_=os.system: no such field"),
    "aliases": (lambda text: text + aliases(9), "aliases expand to over"),
    "environment": (lambda text: text.replace("output: ", "negative_prompt: ${oc.env:HOME}\noutput: "), None),
    "prompts file": (lambda text: text.replace("path: null\n  column", "path: /etc/passwd\n  column"), "prompts"),
    "size": (lambda text: text.replace("height: 24", "height: 1000000000"), "height=1000000000: must be"),
    "no size": (lambda text: text.replace("height: 24", "height: null"), "height and width must be set"),
    "rows": (lambda text: text.replace("prompt: a red fox", "prompt: [a]"), "must be text"),
    "copies": (lambda text: text.replace("num_images_per_prompt: 1", "num_images_per_prompt: 99999999999"), "must be"),
    "empty": (lambda text: "", "must be a group of fields"),
    "list": (lambda text: "[1, 2]", "must be a group of fields"),
    "bytes": (lambda text: "\x00\x01", "is not YAML"),
    "key": (lambda text: text + "? [a, b]\n: 3\n", "is not YAML"),
}


@pytest.mark.parametrize("name", [name for name in SAVED if name != "environment"])
def test_strangers_saved_configs_are_one_line(path, capsys, monkeypatch, name):
    monkeypatch.chdir(path.parent)
    change, expected = SAVED[name]
    file = path / "config.yaml"
    before = file.read_text()
    file.write_text(change(before))
    assert file.read_text() != before
    for line in commands(path, capsys):
        assert expected in line
    assert sorted(os.listdir(path.parent)) == ["run"]


def test_interpolation_in_a_saved_config_is_text(path, capsys):
    """It is what a user wrote as \\${...}: it stays as it is, and nothing is looked up."""
    values = read_config(path) | {"negative_prompt": "${oc.env:HOME}"}
    (path / "config.yaml").write_text(to_yaml(values))
    (path / "manifest.jsonl").write_text("")
    resume_run(path, prepare=prepare, load=lambda *_: StandInPipeline())
    assert {record["negative_prompt"] for record in manifest(path)} == {"${oc.env:HOME}", "dark"}
    assert os.environ["HOME"] not in (path / "manifest.jsonl").read_text()


@pytest.mark.parametrize("name", ["images", ".hydra", ".thumbs"])
def test_directory_that_is_a_link_is_refused(path, capsys, name):
    outside = path.parent / "outside"
    outside.mkdir()
    shutil.rmtree(path / name, ignore_errors=True)
    (path / name).symlink_to(outside)
    for line in commands(path, capsys):
        assert f"{name}: is a link or a file, and must be a directory" in line
    assert os.listdir(outside) == []


@pytest.mark.parametrize("name", ["config.yaml", "manifest.jsonl", "run.log", "run.json"])
@pytest.mark.parametrize("kind", ["link", "pipe", "directory"])
def test_file_that_is_none_is_refused(path, capsys, name, kind):
    outside = path.parent / "outside"
    outside.write_bytes((path / name).read_bytes())
    (path / name).unlink()
    if kind == "link":
        (path / name).symlink_to(outside)
    elif kind == "pipe":
        os.mkfifo(path / name)
    else:
        (path / name).mkdir()
    before = outside.read_bytes()
    told = [line for line in (_told(path, capsys, main) for main in (run_main, validate_main)) if line]
    assert told and all("\n" not in line.strip() or "run" in line for line in told)
    assert outside.read_bytes() == before


def _told(path, capsys, main):
    status = main([f"resume={path}" if main is run_main else str(path)])
    told = capsys.readouterr()
    assert status in (0, 1, 2) and "Traceback" not in told.err + told.out
    return told.err if status == 2 else told.out if status == 1 else ""


def test_writes_do_not_follow_links(path):
    """A link in the place of a file that is about to be written is replaced, and what it leads to stays."""
    outside = path.parent / "outside"
    outside.write_text("mine")
    for name in (
        "images/00001-000.png",
        "images/00001-000.png.tmp",
        "run.json.tmp",
        "index.html",
        "metadata.jsonl.tmp",
    ):
        (path / name).unlink(missing_ok=True)
        (path / name).symlink_to(outside)
    resume_run(path, prepare=prepare, load=lambda *_: StandInPipeline())
    assert outside.read_text() == "mine" and list(faults(path)) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "file_name",
    [
        "../outside.png",
        "/etc/passwd",
        "images/../../outside.png",
        "images/\x00.png",
        "images/00000-000.png\n",
        "images/x",
    ],
)
def test_manifest_leads_nowhere_else(path, capsys, file_name):
    (path.parent / "outside.png").write_bytes((path / "images" / "00000-000.png").read_bytes())
    lines = [json.loads(line) for line in (path / "manifest.jsonl").read_text().splitlines()]
    lines[0]["file_name"] = file_name
    (path / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert any("line 1: is not a line of an image" in fault for fault in faults(path))
    reproduce(path, [f"output={path.parent / 'again'}"], prepare=prepare, load=lambda *_: StandInPipeline())
    assert {record["file_name"] for record in manifest(path.parent / "again")} == {
        "images/00001-000.png",
        "images/00002-000.png",
    }
    resume_run(path, prepare=prepare, load=lambda *_: StandInPipeline())
    assert list(faults(path)) == []


def test_absurd_manifests_are_told_or_healed(path):
    lines = (path / "manifest.jsonl").read_bytes()
    for line in (
        b"[" * 100_000,
        b'{"row": 1' + b"0" * 5000 + b', "copy": 0, "file_name": "images/00000-000.png"}',
        b'{"row": 1e400, "copy": 0, "file_name": "images/00000-000.png"}',
        b'{"row": true, "copy": false, "file_name": "images/00001-000.png"}',
        b'{"row": -1, "copy": 0, "file_name": "images/-0001-000.png"}',
        b"\xff" * 100,
    ):
        (path / "manifest.jsonl").write_bytes(line + b"\n" + lines)
        assert any("line 1: is not a line of an image" in fault for fault in faults(path))
        resume_run(path, prepare=prepare, load=lambda *_: StandInPipeline())
        assert (path / "manifest.jsonl").read_bytes() == lines


@pytest.mark.parametrize(
    "text", ["[]", "{", "null", "[" * 100_000, '{"environments": 3, "sessions": {"a": 1}, "state": []}']
)
def test_absurd_run_json_is_told_or_replaced(path, text):
    (path / "run.json").write_text(text)
    assert list(faults(path))
    try:
        resume_run(path, prepare=prepare, load=lambda *_: StandInPipeline())
    except UserError as error:
        assert "run.json: is not the JSON of a run" in str(error)
        (path / "run.json").unlink()
        resume_run(path, prepare=prepare, load=lambda *_: StandInPipeline())


# Prompts.


HOSTILE = {
    "control": "a\x07b\x1b[2Jc\x7f\u0085d",
    "bidi": "abc \u202egpj.exe\u202c \u2066x\u2069",
    "emoji": "👩‍👩‍👧‍👦 🏳️‍🌈 \U0001f9ff e\u0301 \ufeff",
    "nul": "before\0after",
    "long": "many words " * 9091,  # 100 kB
    "lines": "one\ntwo\r\nthree\u2028four\x0bfive",
    "yaml": "- yes: &a *b !!python/name:os.system # {} | > ' \" \\ ${oc.env:HOME} \\${x}",
    "html": "</script><script>alert(1)</script><!-- ${7*7} {{7*7}}",
    "path": "../../../../etc/passwd %00 CON NUL C:\\",
}


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_prompts_are_only_text(tmp_path, name):
    text = HOSTILE[name]
    file = tmp_path / "p.jsonl"
    file.write_text(json.dumps({"prompt": text, "negative_prompt": text, "note": text}) + "\n")
    made = config(f"output={tmp_path / 'run'}", "prompts=file", f"prompts.path={file}")
    path = start_run(made, prepare=prepare, load=lambda *_: StandInPipeline())
    (record,) = manifest(path)
    assert record["prompt"] == record["negative_prompt"] == record["note"] == text
    assert read_config(path)["prompts"]["rows"] == [{"prompt": text, "negative_prompt": text, "note": text}]
    assert list(faults(path)) == [] and os.listdir(path / "images") == ["00000-000.png"]
    (path / "images" / "00000-000.png").unlink()
    resume_run(path, ["num_images_per_prompt=2"], prepare=prepare, load=lambda *_: StandInPipeline())
    assert list(faults(path)) == [] and sorted(os.listdir(tmp_path)) == ["p.jsonl", "run"]


# Secrets.


@pytest.mark.slow
def test_no_secret_reaches_a_file(tmp_path, monkeypatch):
    """Planted where secrets live; then every byte that a run, a failing run and a resumed run leave is searched."""
    secrets = {
        "HF_TOKEN": "hf_" + "Planted" * 5,
        "HUGGING_FACE_HUB_TOKEN": "hf_" + "Sown" * 9,
        "WANDB_API_KEY": "0123456789abcdefplanted",
        "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/planted/KEY",
        "GOOGLE_APPLICATION_CREDENTIALS": "/home/planted/key.json",
        "DB_PASSWORD": "correct horse planted",
        "HARMLESS_NAME": "planted-under-a-harmless-name",
    }
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("XLA_FLAGS", f"--xla_foo={secrets['HF_TOKEN']} --xla_dump_to=/home/planted/dump --xla_bar=1")

    class Leaking(StandInPipeline):
        def generate(self, *arguments, **options):
            if self.batches:
                raise RuntimeError(f"401 for https://me:{secrets['WANDB_API_KEY']}@host with {secrets['HF_TOKEN']} "
                                   f"and {secrets['DB_PASSWORD']} and https://user:hunter2pw@host/")  # fmt: skip
            return super().generate(*arguments, **options)

    made = config(f"output={tmp_path / 'run'}", INLINE)
    with pytest.raises(RuntimeError):
        start_run(made, hydra_files={"overrides.yaml": []}, prepare=prepare, load=lambda *_: Leaking())
    resume_run(tmp_path / "run", prepare=prepare, load=lambda *_: StandInPipeline())
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert len(files) >= 9
    for file in files:
        data = file.read_bytes()
        for secret in [*secrets.values(), "/home/planted", "hunter2pw"]:
            assert secret.encode() not in data, (file, secret)
    assert b"401 for https://" in (tmp_path / "run" / "run.log").read_bytes()
    (environment,) = json.loads((tmp_path / "run" / "run.json").read_text())["environments"].values()
    assert environment["flags"]["XLA_FLAGS"] == "--xla_foo=*** --xla_bar=1"


def test_only_named_variables_are_read():
    environ = {name: "x=1" for name in FLAG_VARIABLES} | {"HOME": "/root", "SECRET": "y", "XLA_OTHER": "z"}
    assert flags(environ) == {name: "x=1" for name in FLAG_VARIABLES}


def test_scrubbing_leaves_ordinary_text_alone():
    text = "portrait of a token girl, key light, hf_short, http://host:80/path, a@b, 12:30"
    assert scrub(text, {"A_TOKEN": "short", "KEYBOARD": "portrait"}) == text


# YAML.


def test_what_is_saved_can_be_read_however_odd():
    values = {
        "a": ["0x10", "1e5", "null", "~", "yes", "1:30", "2026-11-24", "=", "<<", "!x", "f" * 5000, "9" * 5000, ""]
    }
    assert parse_yaml(to_yaml(values).encode(), "x") == values
