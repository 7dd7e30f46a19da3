"""How much guidance a model call gets."""

import math

import numpy as np
import pytest

from tpusd.families.guidance import scale_at


def scales(schedule, num_calls, scale=7.5):
    return np.array([scale_at(scale, schedule, call, num_calls) for call in range(num_calls)])


def test_constant_is_the_scale_to_the_last_bit():
    assert set(scales("constant", 50, scale=7.3)) == {7.3}


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("num_calls", [1, 2, 7, 50])
def test_a_schedule_has_the_mean_of_constant_and_grows(schedule, num_calls):
    made = scales(schedule, num_calls)
    assert np.isclose(made.mean(), 7.5) and (made > 1).all() and (np.diff(made) > 0).all()


def test_schedules_are_those_of_the_paper():
    """Wang et al. 2024, with w the part beyond 1: 2 (1 - t/T) w and (1 + cos(pi t/T)) w; t falls from T to 0."""
    for progress, call in ((0.25, 0), (0.75, 1)):
        t = 1 - progress
        assert math.isclose(scales("linear", 2)[call], 1 + 6.5 * 2 * (1 - t))
        assert math.isclose(scales("cosine", 2)[call], 1 + 6.5 * (1 + math.cos(math.pi * t)))
