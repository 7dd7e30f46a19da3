import importlib
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import tpusd
from tpusd import __version__
from tpusd.cli import COMMANDS, WITH_FIELDS, main

ROOT = Path(__file__).resolve().parents[1]


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
        (["a red fox"], "tpusd run 'a red fox'"),
        ([str(ROOT)], "a command comes first, as in tpusd validate"),
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_missing_dependency_is_one_line():
    """As in a shell whose environment is not activated. -S: without the packages of the environment."""
    for command in COMMANDS:
        words = [sys.executable, "-S", "-m", f"tpusd.{command}", "--help"]
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 1 and done.stdout == "" and done.stderr.count("\n") == 1, done.stderr
        assert "tpusd needs pillow" in done.stderr and ". .venv/bin/activate" in done.stderr


def test_what_tpusd_needs_is_what_it_declares():
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert {name.split(">")[0].strip() for name in declared} == set(tpusd._NEEDED.values())


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command, capsys):
    try:
        assert main([command, "--help"]) == 0
    except SystemExit as stop:  # argparse
        assert stop.code == 0
    out, error = capsys.readouterr()
    assert f"tpusd.{command}" in out and error == ""


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("tpusd ", " ".join(COMMANDS)),
        ("tpusd r", "run reproduce results recipe"),
        ("tpusd run precision=f", "precision=fp16 precision=fp32"),
        ("tpusd run seed=3 sampler.num_", "sampler.num_inference_steps="),
        ("tpusd reproduce runs/x see", "seed="),
        ("tpusd validate ru", ""),
    ],
)
def test_completion_of_a_line(line, expected, capsys, monkeypatch):
    monkeypatch.setenv("COMP_LINE", line)
    assert main(["-sc", "query=bash"]) == 0
    assert capsys.readouterr().out == f"{expected}\n"
    assert main(["-sc", "query=fish"]) == 0
    assert capsys.readouterr().out.split() == expected.split()


def test_commands_with_fields_are_commands():
    assert set(WITH_FIELDS) < set(COMMANDS)


def test_a_flag_of_reproduce_that_is_a_field_is_said_as_a_field(capsys):
    assert main(["reproduce", "runs/x", "--seed=3"]) == 2
    assert "--seed=3: no such option; write seed=3" in capsys.readouterr().err
