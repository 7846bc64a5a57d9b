"""Values over the steps of a run."""

from __future__ import annotations

import numpy as np
import pytest

from zero123cli.schedules import is_schedule, stage_at, value_at

PUBLISHED = (50, 0.7, 200, 0.3)  # the smallest share of the noise in Stable Zero123's recipe


def test_a_single_value_is_constant() -> None:
    assert {value_at((3.5,), step) for step in (0, 7, 10**6)} == {3.5}
    assert {stage_at((3.5,), step) for step in (0, 7, 10**6)} == {3.5}


def test_values_between_steps_are_those_of_a_line() -> None:
    for step in range(0, 300, 7):
        assert value_at(PUBLISHED, step) == pytest.approx(np.interp(step, [50, 200], [0.7, 0.3]))
    assert value_at((100, 7, 150, 5, 200, 10), 175) == pytest.approx(7.5)


def test_jumps_happen_at_the_step_itself() -> None:
    sizes = (0, 64, 200, 128, 300, 256)
    assert [stage_at(sizes, step) for step in (0, 199, 200, 299, 300, 9999)] == [64, 64, 128, 128, 256, 256]
    assert stage_at((10, 5, 20, 6), 0) == 5  # before the first step, its value


def test_what_is_no_schedule() -> None:
    assert is_schedule((1.0,))
    assert is_schedule(PUBLISHED)
    assert not is_schedule(())
    assert not is_schedule((0, 1, 2))
    assert not is_schedule((5, 1, 5, 2))
    assert not is_schedule((5, 1, 3, 2))
