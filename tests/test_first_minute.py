"""The README from top to bottom, as a newcomer types it: on a terminal of 80 and of 200 columns, and into a log.

Run it alone, because it measures seconds of stillness: `python -m pytest -m terminal`.
"""

import os
import re
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.terminal,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:os.fork"),  # of JAX, where it works already; the child becomes another program
]

ROOT = Path(__file__).resolve().parents[1]
STILL = 3.0  # seconds without a word of what is going on
FOREIGN = re.compile(
    r"Traceback|Warning|\[transformers\]|PyTorch was|None of PyTorch|deprecat|\b[EWI]0000|jax\.|xla|absl|"
    r"huggingface_hub\.",
    re.IGNORECASE,
)
FEW_STEPS = "sampler.num_inference_steps=2"
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@dataclass
class Shown:
    """What a command showed."""

    status: int
    text: str  # as it came, with carriage returns
    stillness: float  # the longest time without output, in seconds
    before: str  # what had been shown by then

    @property
    def lines(self) -> list[str]:
        """Every state of every line."""
        return [line for line in re.split(r"[\r\n]+", ESCAPES.sub("", self.text)) if line.strip()]

    @property
    def kept(self) -> list[str]:
        """What stays on the terminal: the last state of every line."""
        lines = [line.rstrip("\r").rpartition("\r")[2] for line in ESCAPES.sub("", self.text).split("\n")]
        return [line for line in lines if line.strip()]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A user's empty home, in which the commands are typed."""
    return tmp_path_factory.mktemp("home")


def environment(home):
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "XLA_", "TF_", "HF_"))}
    return kept | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "HOME": str(home),
        "XDG_CACHE_HOME": str(home / ".cache"),
        "HF_HUB_OFFLINE": "1",  # as on a machine without a network
        "TERM": "xterm-256color",
    }


def typed(command, home, columns):
    import pexpect

    words = ["-c", f"exec {command}"]
    child = pexpect.spawn(
        "bash", words, cwd=str(home), env=environment(home), dimensions=(24, columns), encoding="utf-8"
    )
    text, before, last, longest = "", "", time.monotonic(), 0.0
    while True:
        try:
            new = child.read_nonblocking(1 << 16, timeout=0.2)
        except pexpect.TIMEOUT:
            continue
        except pexpect.EOF:
            new = ""
        if time.monotonic() - last > longest:
            longest, before = time.monotonic() - last, text[-200:]
        if not new:
            break
        text, last = text + new, time.monotonic()
    child.close()
    return Shown(status=child.exitstatus, text=text, stillness=longest, before=before)


def check(shown, command, columns=None, statuses=(0,)):
    told = f"{command}\n{shown.text[-3000:]}"
    assert shown.status in statuses, told
    assert not FOREIGN.search(shown.text), told
    busy = max(1.0, os.getloadavg()[0] / os.cpu_count())  # other programs' work makes every program slower
    assert shown.stillness <= STILL * busy, f"{shown.stillness:.1f} s without a word after {shown.before!r}: {told}"
    print(f"{shown.stillness:4.1f} s still at most, after {shown.before[-30:]!r}: {command}")
    if shown.status:
        assert len(shown.kept) == 1 and shown.kept[0].startswith("tpusd: "), told
    if columns is not None:
        bars = [line for line in shown.lines if "%|" in line]
        assert all(len(line) <= columns for line in bars), told
        assert not bars or max(map(len, bars)) >= columns - 2, told


def readme_commands():
    """The README's commands that call tpusd, in order, without their comments."""
    lines = [line[4:] for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("    ")]
    lines = [re.split(r"\s{2,}#", line)[0].split("&& .venv/bin/")[-1].strip() for line in lines]
    return [line for line in lines if line.startswith("python -m tpusd.")]


def newest(home, pattern):
    return max((home / "runs").glob(pattern), key=lambda path: path.stat().st_mtime)


def as_typed(command, home):
    """A README's command with the names that its capitals stand for, and fewer steps for a sweep."""
    if "runs/SWEEP" in command:
        command = command.replace("runs/SWEEP", f"runs/{newest(home, '*_sweep_*').name}")
    if "runs/DIR" in command:
        command = command.replace("runs/DIR", f"runs/{newest(home, '*_portraits').name}")
    if command.endswith("image.png"):
        command = command.replace("image.png", str(next(newest(home, "*_portraits").glob("images/*.png"))))
    if " -m " in command.removeprefix("python -m"):
        command += f" {FEW_STEPS}"
    return command + " dry_run=true" if "experiment=" in command else command


# What cannot be done here: no network, no libtpu, no such directory or file.
REFUSED = ("model=sd15", "model=sdxl", "model=local", "preflight", "inspect")


def test_the_readme_works_from_top_to_bottom(home):
    commands = readme_commands()
    assert len(commands) >= 12 and "prompts=portraits seed=0" in commands[0]
    for line in commands:
        command = as_typed(line, home)
        shown = typed(command, home, 80)
        check(shown, command, 80, statuses=(2,) if any(word in line for word in REFUSED) else (0,))
        if "shard=" in line:
            assert "the last shard completes the run" in shown.text
        elif "tpusd.run" in line and shown.status == 0 and "dry_run" not in command:
            assert "index.html" in "".join(shown.lines[-3:]), shown.text[-2000:]


def test_a_wide_terminal_has_a_wide_bar(home):
    command = f"python -m tpusd.run 'prompt=portrait of a sad man' {FEW_STEPS} num_images_per_prompt=8"
    shown = typed(command, home, 200)
    check(shown, command, 200)
    assert any("%|" in line for line in shown.lines)


def test_a_prompt_of_the_command_line_compiles_with_a_word(home, tmp_path):
    """In a fresh cache, where compiling takes longest."""
    command = f"python -m tpusd.run prompt='portrait of a man, smiling' {FEW_STEPS}"
    shown = typed(f"env XDG_CACHE_HOME={tmp_path} {command}", home, 80)
    check(shown, command, 80)
    assert any("reading weights and compiling, once: 0:0" in line for line in shown.lines)


@pytest.mark.parametrize("command", ["run", "preflight", "reproduce", "validate", "results", "export", "recipe"])
def test_every_command_has_help(home, command):
    for columns in (80, 200):
        shown = typed(f"python -m tpusd.{command} --help", home, columns)
        check(shown, command)
        assert f"tpusd.{command}" in shown.text


def test_a_log_file_has_lines_with_times(home, tmp_path):
    words = shlex.split(f"python -m tpusd.run prompts=portraits {FEW_STEPS}")
    with open(tmp_path / "log", "wb") as log:
        env = environment(home) | {"XDG_CACHE_HOME": str(tmp_path / "cache")}
        done = subprocess.run(words, cwd=home, env=env, stdout=log, stderr=log, timeout=600)
    text = (tmp_path / "log").read_text()
    assert done.returncode == 0 and not FOREIGN.search(text), text
    assert "\r" not in text and "\x1b" not in text
    assert re.search(r"reading weights and compiling, once: 0:00\n", text), text
    assert re.search(r"reading weights and compiling, once: done in \d+\.\d s\n", text), text
    assert text.splitlines()[-1].endswith("index.html") and text.count("\n") < 15, text
