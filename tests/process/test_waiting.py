import io
import time

import pytest

from tpusd.process import waiting as module
from tpusd.process.waiting import waiting


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(module, "PATIENCE", 0.05)
    monkeypatch.setattr(module, "PLAIN_PATIENCE", 0.05)
    monkeypatch.setattr(module, "INTERVAL", 0.05)


def test_what_is_quick_needs_no_word():
    for stream in (Terminal(), io.StringIO()):
        with waiting("loading JAX", stream=stream):
            pass
        assert stream.getvalue() == ""


def test_a_terminal_shows_what_takes_long_and_erases_it():
    stream = Terminal()
    with waiting("loading JAX", stream=stream):
        time.sleep(0.3)
    assert stream.getvalue().startswith("\rtpusd: loading JAX: 0:00") and "\n" not in stream.getvalue()
    assert stream.getvalue().endswith(f"\r{' ' * len('tpusd: loading JAX: 0:00')}\r")


@pytest.mark.slow
def test_a_log_has_one_line_of_it():
    stream = io.StringIO()
    with waiting("loading JAX", stream=stream):
        time.sleep(0.3)
    assert stream.getvalue() == "tpusd: loading JAX\n"


def test_an_error_of_the_block_is_raised_after_the_line_is_erased():
    stream = Terminal()
    with pytest.raises(ZeroDivisionError), waiting("loading JAX", stream=stream):
        time.sleep(0.2)
        raise ZeroDivisionError
    assert stream.getvalue().endswith("\r")


def test_a_stream_that_is_closed_stops_nothing():
    stream = Terminal()
    stream.close()
    with waiting("loading JAX", stream=stream):
        time.sleep(0.1)
