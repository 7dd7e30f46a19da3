"""Foreign text in what a command says: it cannot steer a terminal."""

import io
import os
import sys

import pytest
from support.runs import INLINE, StandInPipeline, config, prepare

from tpusd import cli
from tpusd.process.report import report, say
from tpusd.runs.resume import resume_run
from tpusd.runs.start import start_run

pytestmark = pytest.mark.slow

NASTY = "a\x1b[2J\x1b]0;owned\x07\u202eb\u0085c\x7f"


def assert_harmless(text: str) -> None:
    assert all(line.isprintable() for line in text.split("\n")), repr(text)


@pytest.fixture
def directory(tmp_path, monkeypatch):
    """A run and a sweep in a directory of such a name."""
    path = tmp_path / NASTY
    path.mkdir()
    start_run(config(f"output={tmp_path / 'run'}", INLINE), prepare=prepare, load=lambda *_: StandInPipeline())
    os.rename(tmp_path / "run", path / "run")
    return path


@pytest.mark.parametrize(
    "argv",
    [
        ["validate", "DIR/run"],
        ["validate", "DIR"],
        ["results", "DIR/run"],
        ["results", "DIR/none"],
        ["export", "DIR/run", "DIR/out", "--format=geneval"],
        ["export", "DIR/run", "DIR/run", "--format=geneval"],
        ["recipe", "DIR/run/images/00000-000.png"],
        ["recipe", "DIR/none.png"],
        ["reproduce", "DIR/none"],
        ["run", "resume=DIR/run"],
        ["run", "resume=DIR/none"],
        ["run", "prompts=file", "prompts.path=DIR/none.txt"],
        ["run", "model=local", "model.path=DIR/none"],
        ["run", "DIR"],
        ["run", "--config-dir=DIR/none"],
    ],
    ids=" ".join,
)
def test_a_directorys_name_is_shown_harmless(directory, argv, capsys):
    capsys.readouterr()
    cli.main([word.replace("DIR", str(directory)) for word in argv])
    out, err = capsys.readouterr()
    assert out + err
    assert_harmless(out)
    assert_harmless(err)


def test_the_log_of_a_run_is_harmless(directory, capsys):
    (directory / "run" / "images" / "00001-000.png").unlink()
    resume_run(directory / "run", prepare=prepare, load=lambda *_: StandInPipeline())
    assert_harmless((directory / "run" / "run.log").read_text())
    out, err = capsys.readouterr()
    assert_harmless(out)
    assert_harmless(err)


def test_say_and_report_show_every_control_character_as_an_escape(capsys):
    every = "".join(map(chr, [*range(0x20), *range(0x7F, 0xA0), 0x200E, 0x202E, 0x2066, 0x2028, 0xFEFF, 0xDC80]))
    say(every)
    report(every)
    out, err = capsys.readouterr()
    assert_harmless(out)
    assert_harmless(err)
    assert "\\x1b" in out and "\\x1b" in err


def test_a_result_is_shown_on_a_terminal_of_any_encoding(monkeypatch):
    for encoding, shown in (("ascii", "F\\xfc\\xdfe \\u72d0\n"), ("latin-1", "Füße \\u72d0\n"), ("utf-8", "Füße 狐\n")):
        raw = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding, write_through=True))
        say("Füße 狐")
        assert raw.getvalue().decode(encoding) == shown
