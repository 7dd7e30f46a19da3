import json
import shutil

import jax
import pytest
from support.runs import INLINE, StandInPipeline, config, prepare

from tpusd.runs.start import start_run
from tpusd.validate import main


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "run"
    devices = jax.local_devices()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "local_devices", lambda: devices[:1])
        made = config(f"output={path}", INLINE, "num_images_per_prompt=2")
        return start_run(made, prepare=prepare, load=lambda *_: StandInPipeline())


@pytest.fixture
def path(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "run")


def test_whole_run_has_no_fault(path, capsys):
    before = {file: file.stat().st_mtime_ns for file in path.rglob("*")}
    assert main([str(path)]) == 0
    assert capsys.readouterr().out == f"{path}: whole\n"
    assert {file: file.stat().st_mtime_ns for file in path.rglob("*")} == before  # it looks, and changes nothing


def edit_line(path, number, **changes):
    file = path / "manifest.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    lines[number] |= changes
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))


def edit_text(name, old, new):
    def edit(path):
        text = (path / name).read_text()
        assert old in text
        (path / name).write_text(text.replace(old, new))

    return edit


IMAGE = "images/00001-000.png"
FAULTS = {
    "missing": (lambda p: (p / IMAGE).unlink(), [f"{IMAGE}: is missing"]),
    "short": (
        lambda p: (p / IMAGE).write_bytes((p / IMAGE).read_bytes()[:-3]),
        [f"{IMAGE}: has ", f"{IMAGE}: its sha256 is not the manifest's"],
    ),
    "link": (
        lambda p: ((p / IMAGE).rename(p / "x.png"), (p / IMAGE).symlink_to(p / "x.png")),
        [f"{IMAGE}: is a link"],
    ),
    "other size": (
        lambda p: edit_line(p, 2, width=48),
        ["line 3: width=48, and config.yaml says 40", f"{IMAGE}: is 40x24"],
    ),
    "stray": (lambda p: (p / "images" / "00009-000.png").write_bytes(b"x"), ["images/00009-000.png: is in no line"]),
    "left over": (
        lambda p: (p / "run.json.tmp").write_bytes(b"x"),
        ["run.json.tmp: is a file that an interrupted write left"],
    ),
    "prompt": (lambda p: edit_line(p, 0, prompt="other"), ["line 1: prompt=other, and config.yaml says a red fox"]),
    "seed": (lambda p: edit_line(p, 0, seed=True), ["line 1: seed=True"]),
    "path": (
        lambda p: edit_line(p, 0, file_name="images/../../secret.png"),
        ["line 1: is not a line of an image", "00000-000: in the plan", "images/00000-000.png: is in no line"],
    ),
    "no json": (
        lambda p: (p / "manifest.jsonl").write_bytes(b"\x00\n" + (p / "manifest.jsonl").read_bytes()),
        ["line 1: is not a line of an image"],
    ),
    "twice": (
        lambda p: (p / "manifest.jsonl").write_bytes(2 * (p / "manifest.jsonl").read_bytes()),
        [f"line {n}: 0000{(n - 7) // 2}-00{(n - 7) % 2} is listed twice" for n in range(7, 13)],
    ),
    "torn": (
        lambda p: (p / "manifest.jsonl").write_bytes((p / "manifest.jsonl").read_bytes()[:-4]),
        ["its last line is torn", "00002-001: in the plan", "images/00002-001.png: is in no line"],
    ),
    "no manifest": (
        lambda p: (p / "manifest.jsonl").unlink(),
        ["00000-000 and 5 more: in the plan", *[f"images/0000{i // 2}-00{i % 2}.png: is in no line" for i in range(6)]],
    ),
    "no field": (
        lambda p: edit_text("manifest.jsonl", '"precision": "bf16", ', "")(p),
        [f"line {n}: {what}" for n in range(1, 7) for what in ("precision=null, and", "has no precision")],
    ),
    "unknown environment": (
        lambda p: edit_line(p, 5, environment="0"),
        ["line 6: run.json does not know the environment 0"],
    ),
    "not finished": (
        edit_text("run.json", '"finished"', '"running"'),
        ["run.json: the run is not finished; continue it with"],
    ),
    "grown plan": (
        edit_text("config.yaml", "num_images_per_prompt: 2", "num_images_per_prompt: 3"),
        ["00000-002 and 2 more: in the plan and not in the manifest"],
    ),
    "shrunk plan": (
        edit_text("config.yaml", "num_images_per_prompt: 2", "num_images_per_prompt: 1"),
        [f"line {n}: 0000{n // 2 - 1}-001 is not in the plan of config.yaml" for n in (2, 4, 6)],
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_is_one_line_and_no_more_is_told(path, capsys, name):
    damage, expected = FAULTS[name]
    damage(path)
    assert main([str(path)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(expected), lines
    for line, fragment in zip(lines, expected, strict=True):
        assert line.startswith(f"{path}: ") and fragment in line


def test_several_directories_have_one_status(path, whole, capsys):
    (path / IMAGE).unlink()
    assert main([str(whole), str(path)]) == 1
    assert f"{whole}: whole" in capsys.readouterr().out


def test_what_is_no_run_is_one_line(tmp_path, capsys):
    assert main([str(tmp_path)]) == 2 and main(["--frob"]) == 2 and main([]) == 2
    assert capsys.readouterr().err.count("\n") == 3
