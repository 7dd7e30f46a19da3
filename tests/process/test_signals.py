"""Real signals to real processes: each test runs a stand-in pipeline in a process of its own."""

import gc
import os
import signal
import subprocess
import sys
import time
import weakref
from pathlib import Path

import pytest
from support.runs import HEAR_SIGNALS, INLINE, manifest

from tpusd.process import signals
from tpusd.records.run_json import read_run
from tpusd.records.validate import faults

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
RUN = """
import sys, time, hashlib
sys.path.insert(0, 'tests')
from support.runs import *
from tpusd.process.exit import exit_status
from tpusd.runs.resume import resume_run
from tpusd.runs.start import start_run
from pathlib import Path

class Slow(StandInPipeline):
    def generate(self, *a, **k):
        print('batch', flush=True)
        WAIT
        return super().generate(*a, **k)

def load(*_):
    return Slow()

def prepared(config):
    PREPARE
    return prepare(config)

with exit_status() as status:
    if sys.argv[1].startswith('resume='):
        resume_run(Path(sys.argv[1][7:]), prepare=prepared, load=load)
    else:
        start_run(config(*sys.argv[1:]), prepare=prepared, load=load)
sys.exit(status[0])
"""
UNTIL_KILLED = "hashlib.pbkdf2_hmac('sha256', b'x', b'y', 2**31 - 1)"  # compiled code, which no handler interrupts


def start(*arguments, wait="time.sleep(0.02)", preparing="pass", before=()):
    code = ("" if before else HEAR_SIGNALS) + RUN.replace("WAIT", wait).replace("PREPARE", preparing)
    return subprocess.Popen(
        [*before, sys.executable, "-c", code, *map(str, arguments)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""},
    )


def batches(process, number):
    for _ in range(number):
        assert process.stdout.readline() == "batch\n", process.stderr.read()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signal_ends_a_run_in_good_order_and_it_can_go_on(tmp_path, number):
    path = tmp_path / "run"
    process = start(f"output={path}", INLINE, "num_images_per_prompt=30")
    batches(process, 5)
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert error.splitlines()[-1] == (
        f"tpusd: interrupted ({number.name}); every image in the manifest is whole; "
        f"continue with: python -m tpusd.run resume={path}"
    )
    records = list(manifest(path))
    assert 4 <= len(records) < 90
    assert {f"images/{name}" for name in os.listdir(path / "images")} == {record["file_name"] for record in records}
    if number == signal.SIGTERM:
        again = start(f"resume={path}", wait="pass")
        assert again.communicate(timeout=60)[1].count("Error") == 0 and again.returncode == 0
        assert list(faults(path)) == [] and len(read_run(path)["sessions"]) == 2


def test_second_ctrl_c_ends_the_process_at_once(tmp_path):
    """Even where it is deep in compiled code, and the first one could not be heard yet."""
    process = start(f"output={tmp_path / 'run'}", INLINE, wait=UNTIL_KILLED)
    batches(process, 1)
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    assert process.poll() is None
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130 and time.monotonic() - began < 5


def test_sigterm_is_ours_after_jax_distributed_took_it(tmp_path):
    preparing = (
        "import jax, socket; s = socket.socket(); s.bind(('localhost', 0)); port = s.getsockname()[1]; s.close(); "
        "jax.distributed.initialize(f'localhost:{port}', num_processes=1, process_id=0)"
    )
    process = start(f"output={tmp_path / 'run'}", INLINE, "num_images_per_prompt=100", preparing=preparing)
    batches(process, 2)
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 143 and "tpusd: interrupted (SIGTERM)" in error, error


def test_nohup_stays_in_force(tmp_path):
    process = start(f"output={tmp_path / 'run'}", INLINE, before=("sh", "-c", "trap '' HUP; exec \"$@\"", "sh"))
    batches(process, 1)
    process.send_signal(signal.SIGHUP)
    process.communicate(timeout=60)
    assert process.returncode == 0 and len(list(manifest(tmp_path / "run"))) == 3


def test_signal_between_two_steps_that_belong_together_waits_for_the_second():
    done = []
    with pytest.raises(signals.Interrupted), signals.handled():
        with signals.deferred():
            signal.raise_signal(signal.SIGTERM)
            done.append("second")
        done.append("later")
    assert done == ["second"]


class InDel:
    def __del__(self):
        signal.raise_signal(signal.SIGTERM)


class Thing:
    pass


def in_a_finalizer():
    InDel()


def in_a_callback_of_a_weakref():
    thing = Thing()
    reference = weakref.ref(thing, lambda _: signal.raise_signal(signal.SIGTERM))
    del thing
    assert reference() is None


def in_a_callback_of_the_garbage_collector():
    def callback(phase, info):
        gc.callbacks.remove(callback)
        signal.raise_signal(signal.SIGTERM)

    gc.callbacks.append(callback)
    gc.collect()


def in_many_finalizers():
    """The handler is called again until the exception gets through."""

    class InTime(Thing):
        def __del__(self):
            for _ in range(20):
                time.sleep(0.001)

    in_a_finalizer()
    for _ in range(100):
        InTime()


@pytest.mark.parametrize(
    "where",
    [
        in_a_finalizer,
        in_a_callback_of_a_weakref,
        in_a_callback_of_the_garbage_collector,
        in_many_finalizers,
    ],
)
def test_a_signal_where_python_drops_exceptions_stops_the_work_and_prints_no_traceback(where, capfd):
    began = time.monotonic()
    with pytest.raises(signals.Interrupted, match="SIGTERM"), signals.handled():
        where()
        while time.monotonic() - began < 10:
            time.sleep(0.001)
    assert time.monotonic() - began < 5
    assert capfd.readouterr().err == "tpusd: stopping; Ctrl-C again stops at once\n"


def test_a_second_ctrl_c_after_a_dropped_one_ends_the_process_at_once():
    code = (
        "import os, signal, time\n"
        "from tpusd.process import signals\n"
        "class InDel:\n"
        "    def __del__(self): os.kill(os.getpid(), signal.SIGINT); time.sleep(0.05)\n"
        "with signals.handled():\n"
        "    try:\n"
        "        InDel()\n"
        "        time.sleep(10)\n"
        "    except KeyboardInterrupt:\n"
        "        time.sleep(0.2)\n"
        "        print('stopping in good order', flush=True)\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "        time.sleep(10)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", HEAR_SIGNALS + code], cwd=ROOT, capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 130 and done.stdout == "stopping in good order\n"
    assert done.stderr == "tpusd: stopping; Ctrl-C again stops at once\n"


def test_other_exceptions_that_python_cannot_raise_are_shown_as_before(monkeypatch):
    class Broken:
        def __del__(self):
            raise ZeroDivisionError("broken")

    shown = []
    monkeypatch.setattr(sys, "unraisablehook", lambda dropped: shown.append(dropped.exc_value))
    with signals.handled():
        Broken()
    assert [str(error) for error in shown] == ["broken"]
