"""What the machine refuses is one line and status 2, in every command."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from support.runs import INLINE, StandInPipeline, config, prepare

from tpusd import cli
from tpusd.config.compose import compose_jobs
from tpusd.errors import UserError
from tpusd.process.exit import exit_status
from tpusd.process.report import report
from tpusd.runs.resume import resume_run
from tpusd.runs.start import start_run

ROOT = Path(__file__).resolve().parents[2]
LONG = "x" * 300  # longer than a name may be on any common file system
COMMANDS = [
    ["run", f"resume={LONG}"],
    ["run", f"output={LONG}"],
    ["run", "prompts=file", f"prompts.path={LONG}"],
    ["run", "model=local", f"model.path={LONG}"],
    ["reproduce", LONG],
    ["validate", LONG],
    ["results", LONG],
    ["export", LONG, "out", "--format=webdataset"],
    ["recipe", LONG],
]


@pytest.mark.slow
@pytest.mark.parametrize("argv", COMMANDS, ids=" ".join)
def test_a_name_that_is_too_long_is_one_line(argv, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    assert cli.main(argv) in (1, 2)
    err = capfd.readouterr().err
    assert "Traceback" not in err and err.count("\n") == 1
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def run(argv: list[str], **options) -> subprocess.CompletedProcess:
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-m", *argv], env=env, stderr=subprocess.PIPE, text=True, timeout=120, **options
    )


@pytest.mark.slow
def test_stdout_on_a_full_disk_is_one_line():
    with open("/dev/full", "w") as full:
        done = run(["tpusd.run", "--help"], stdout=full, cwd=ROOT)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "No space left" in done.stderr


@pytest.mark.slow
def test_a_working_directory_that_is_gone_is_one_line(tmp_path):
    gone = tmp_path / "gone"
    gone.mkdir()
    script = f"cd {gone} && rmdir {gone} && exec {sys.executable} -m tpusd.run prompt=x"
    done = subprocess.run(
        ["bash", "-c", script], env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2 and done.stderr.count("tpusd: ") == 1 and "Traceback" not in done.stderr
    assert "working directory does not exist" in done.stderr


def test_memory_of_the_machine_is_one_line(capsys):
    with exit_status() as status:
        raise MemoryError
    assert status[0] == 2 and "out of memory on this machine" in capsys.readouterr().err


def test_any_other_error_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError), exit_status():
        1 / 0  # noqa: B018


@pytest.mark.parametrize("flag", [["--cfg", "job"], ["--info", "defaults"]])
def test_showing_a_config_and_a_sweep_do_not_go_together(flag):
    with pytest.raises(UserError, match="leave out -m"):
        compose_jobs(["-m", *flag, "seed=0,1"])


def test_a_stderr_that_nobody_reads_does_not_stop_the_work(monkeypatch):
    class Gone:
        def write(self, text):
            raise BrokenPipeError

        def flush(self):
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stderr", Gone())
    report("hello")


def test_an_empty_resume_is_said_to_be_empty(capsys):
    assert cli.main(["run", "resume="]) == 2
    assert capsys.readouterr().err == "tpusd: resume=: is empty; give the directory of a run or a sweep\n"


def test_no_more_threads_is_one_line(tmp_path, monkeypatch, capsys):
    """Also where a signal's own thread cannot be started."""

    def refuses(self):
        raise RuntimeError("can't start new thread")  # as Python words it

    path = tmp_path / "run"
    with monkeypatch.context() as patched, exit_status() as status:
        patched.setattr(threading.Thread, "start", refuses)
        start_run(config(f"output={path}", INLINE), prepare=prepare, load=lambda *_: StandInPipeline())
    err = capsys.readouterr().err
    assert status[0] == 2 and "starts no more threads" in err and "Traceback" not in err
    assert not path.exists() or resume_run(path, prepare=prepare, load=lambda *_: StandInPipeline())
    monkeypatch.setattr(threading.Thread, "start", refuses)
    assert cli.main(["--version"]) == 0


def test_no_file_gets_the_number_of_a_standard_stream_that_is_closed(tmp_path):
    """What a library prints on stderr would land in it."""
    code = (
        "import os, sys\n"
        "from tpusd.process.exit import exit_status\n"
        "with exit_status():\n"
        "    with open(sys.argv[1], 'w') as file:\n"
        "        file.write(f'{file.fileno() > 2}')\n"
        "        file.flush()\n"
        "        for number in (1, 2):\n"
        "            os.write(number, b'of a library')\n"
        "    print('gone', file=sys.stdout)\n"
        "    print('gone', file=sys.stderr)\n"
    )
    script = 'exec "$0" -c "$1" "$2" <&- >&- 2>&-'
    done = subprocess.run(["sh", "-c", script, sys.executable, code, str(tmp_path / "file")], cwd=ROOT, timeout=60)
    assert done.returncode == 0 and (tmp_path / "file").read_text() == "True"


def test_a_letter_that_stdout_lacks_is_an_escape():
    code = "from tpusd.process.exit import exit_status\nwith exit_status(): print('caf\\u00e9')"
    env = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "caf\\xe9\n", "")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    path = tmp_path_factory.mktemp("made") / "run"
    return start_run(config(f"output={path}", INLINE), prepare=prepare, load=lambda *_: StandInPipeline())


@pytest.mark.parametrize(
    "argv",
    [
        ["validate", "RUN"],
        ["results", "RUN"],
        ["recipe", "RUN/images/00000-000.png"],
        ["export", "RUN", "OUT", "--format=geneval"],
        ["run", "resume=RUN"],
        ["run", "resume=RUN", "dry_run=true"],
        ["run", "--cfg", "job", "prompt=x"],
        ["reproduce", "RUN", "dry_run=true"],
        ["--help"],
    ],
    ids=" ".join,
)
def test_a_result_that_cannot_be_printed_is_one_line_and_status_2(made, tmp_path, argv, monkeypatch, capsys):
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        status = cli.main([word.replace("RUN", str(made)).replace("OUT", str(tmp_path / "out")) for word in argv])
    err = capsys.readouterr().err
    assert status == 2 and err.count("No space left on device") == 1 and "Traceback" not in err, err
