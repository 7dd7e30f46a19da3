import importlib
import os
import subprocess
import sys

import pytest

from tpusd import __version__
from tpusd.cli import COMMANDS, main


def test_every_command_has_a_module_with_a_main():
    for module, _ in COMMANDS.values():
        assert callable(importlib.import_module(module).main)


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"]])
def test_help_lists_the_commands(argv, capsys):
    assert main(argv) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in COMMANDS)


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"tpusd {__version__}\n"


def test_run_is_the_module(capsys):
    assert main(["run", "seed=-1"]) == 2
    assert capsys.readouterr().err.startswith("tpusd: seed=-1: must be from 0")


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["runn"], "runn: no such command; did you mean run"),
        (["seed=1"], "tpusd run seed=1"),
        (["--frob"], "--frob: no such command"),
    ],
)
def test_unknown_commands_are_one_line(argv, expected, capsys):
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert expected in error and error.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("module", ["cli", "run", "preflight"])
def test_reader_that_stops_reading_is_no_traceback(module, unbuffered):
    reader, writer = os.pipe()
    os.close(reader)
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    command = [sys.executable, "-m", f"tpusd.{module}", "--help"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, env=environment)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize("module", ["cli", "run", "preflight"])
def test_stdout_that_was_closed_before_is_no_traceback(module):
    command = ["sh", "-c", 'exec "$0" -m "$1" --help >&-', sys.executable, f"tpusd.{module}"]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("command", COMMANDS)
def test_an_unknown_flag_is_one_line_and_status_2(command, capsys):
    assert main([command, "--frob"]) == 2
    out, error = capsys.readouterr()
    assert out == "" and error.startswith("tpusd: ") and error.count("\n") == 1
