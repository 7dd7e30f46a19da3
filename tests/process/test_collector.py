"""Commands collect cycles less often than Python does by itself, and leave a caller's numbers as they were."""

import gc

import pytest

from tpusd.process.collector import OBJECTS, fewer_collections
from tpusd.process.exit import exit_status


@pytest.fixture
def threshold():
    before = gc.get_threshold()
    yield gc.set_threshold
    gc.set_threshold(*before)


def test_a_command_collects_less_often_and_cycles_still_go(threshold):
    threshold(700, 10, 10)
    collected = []
    callback = lambda phase, info: collected.append(info["collected"]) if phase == "stop" else None  # noqa: E731
    with exit_status():
        gc.collect()
        gc.callbacks.append(callback)
        try:
            for _ in range(2 * OBJECTS):
                cycle = []
                cycle.append(cycle)
        finally:
            gc.callbacks.remove(callback)
    assert 1 <= len(collected) <= 3 and sum(collected) > 0.9 * OBJECTS
    assert gc.get_threshold() == (700, 10, 10)


@pytest.mark.parametrize("own", [(0, 10, 10), (OBJECTS * 5, 3, 2)])
def test_a_callers_own_choice_stays(threshold, own):
    threshold(*own)
    with fewer_collections():
        assert gc.get_threshold() == own
    assert gc.get_threshold() == own


def test_an_error_leaves_the_numbers_too(threshold):
    threshold(700, 10, 10)
    with pytest.raises(RuntimeError), fewer_collections():
        raise RuntimeError("of the block")
    assert gc.get_threshold() == (700, 10, 10)
