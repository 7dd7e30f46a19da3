"""Every part of a run and a sweep as a link, given to every command: nothing behind it is read or changed."""

import os
import shutil
import sys
from pathlib import Path

import pytest
from support.runs import INLINE, StandInPipeline, config, prepare
from support.sweeps import make

from tpusd import export, recipe, results, validate
from tpusd.process.exit import exit_status
from tpusd.runs.reproduce import reproduce
from tpusd.runs.resume import resume_run
from tpusd.runs.start import start_run
from tpusd.runs.sweep import resume_sweep

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_device")]

RUN_PARTS = [
    "config.yaml", "run.json", "manifest.jsonl", "run.log", "images", "images/00000-000.png", ".hydra", ".thumbs",
    ".thumbs/00000-000.webp", "contact_sheet.png", "index.html", "metadata.jsonl",
]  # fmt: skip
SWEEP_PARTS = ["000_seed=0", "sweep.json", "sweep.log", "index.html", "grid.png", "index.jsonl"]
FOLDERS = {"images", ".hydra", ".thumbs", "000_seed=0"}


def load(*_, **__):
    return StandInPipeline()


def resume_any(path: Path) -> None:
    if (path / "sweep.json").exists():
        resume_sweep(path, ["seed=0,1,2"], prepare=prepare, load=load)
    else:
        resume_run(path, ["num_images_per_prompt=2"], prepare=prepare, load=load)


COMMANDS = {
    "validate": lambda path, out: validate.main([str(path)]),
    "results": lambda path, out: results.main([str(path)]),
    "grid": lambda path, out: results.main([str(path), "--grid-columns=prompt"]),
    "export": lambda path, out: export.main([str(path), str(out), "--format=geneval"]),
    "recipe": lambda path, out: recipe.main([str(path / "images" / "00000-000.png")]),
    "resume": lambda path, out: resume_any(path),
    "reproduce": lambda path, out: reproduce(path, [f"output={out}"], prepare=prepare, load=load),
}


watched: Path | None = None  # what must not be opened
opened: list[str] = []  # what was opened in it


def _hook(event: str, arguments: tuple) -> None:
    """What Python calls before it opens or lists anything."""
    if watched is None or event not in ("open", "os.listdir", "os.scandir") or isinstance(arguments[0], int):
        return
    path = Path(os.fsdecode(arguments[0] or "."))
    refuses_links = event == "open" and arguments[2] & os.O_NOFOLLOW  # then the last part is the link itself
    real = path.parent.resolve() / path.name if refuses_links else path.resolve()
    if real.is_relative_to(watched):
        opened.append(str(path))


sys.addaudithook(_hook)  # it stays until the process ends


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run and a sweep. The run lacks an image, and the sweep's results are gone, so that each command writes."""
    folder = tmp_path_factory.mktemp("made")
    run = start_run(config(f"output={folder / 'run'}", INLINE, "height=264"), prepare=prepare, load=load)
    (run / "images" / "00001-000.png").unlink()
    assert make("seed=0,1", f"output={folder / 'sweep'}", INLINE).status == 0
    return folder


def state(folder: Path):
    """Everything in a folder: names, bytes and times."""
    return {
        str(file.relative_to(folder)): (file.read_bytes() if file.is_file() else None, file.lstat().st_mtime_ns)
        for file in [folder, *folder.rglob("*")]
    }


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("kind", ["run", "sweep"])
def test_nothing_behind_a_link_is_read_or_changed(made, tmp_path, kind, command, monkeypatch):
    parts = RUN_PARTS if kind == "run" else SWEEP_PARTS
    temporary = [f"{part}.tmp" for part in parts if part not in FOLDERS]
    for number, part in enumerate([*parts, *temporary]):
        path, outside = tmp_path / str(number) / kind, tmp_path / str(number) / "outside"
        shutil.copytree(made / kind, path, symlinks=True)
        outside.mkdir()
        victim, link = outside / Path(part).name, path / part
        if link.exists():
            link.rename(victim)
        else:
            victim.write_text("precious")
        link.symlink_to(victim)
        before = state(outside)
        monkeypatch.setattr(sys.modules[__name__], "watched", outside.resolve())
        with exit_status():
            COMMANDS[command](path, tmp_path / str(number) / "out")
        monkeypatch.undo()
        assert state(outside) == before, (part, command)
        if (command, part) != ("recipe", "images"):  # there the user names the folder
            assert opened == [], (part, command)
        opened.clear()


@pytest.mark.parametrize("command", ["validate", "results", "export", "resume", "reproduce"])
def test_the_directory_that_a_user_names_may_be_a_link(made, tmp_path, command, capsys):
    shutil.copytree(made / "run", tmp_path / "run")
    os.symlink(tmp_path / "run", tmp_path / "link")
    with exit_status() as status:
        COMMANDS[command](tmp_path / "link", tmp_path / "out")
    assert status == [0] and "link" not in capsys.readouterr().err.replace(str(tmp_path / "link"), "")
