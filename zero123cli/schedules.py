"""Numbers that change as a run goes on: `value` alone, or `step, value, step, value, ...` with rising steps."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise


def is_schedule(numbers: Sequence[float]) -> bool:
    """Whether these numbers are one: a single value, or pairs whose steps rise."""
    steps = numbers[::2]
    return len(numbers) == 1 or (len(numbers) > 0 and len(numbers) % 2 == 0 and all(a < b for a, b in pairwise(steps)))


def value_at(numbers: Sequence[float], step: int) -> float:
    """Linear between the steps that are named, constant before and after them."""
    assert is_schedule(numbers), numbers
    if len(numbers) == 1:
        return float(numbers[0])
    steps, values = numbers[::2], numbers[1::2]
    after = bisect_right(steps, step)
    if after in (0, len(steps)):
        return float(values[max(0, after - 1)])
    low, high = steps[after - 1], steps[after]
    share = (step - low) / (high - low)
    return float(values[after - 1] + share * (values[after] - values[after - 1]))


def stage_at(numbers: Sequence[float], step: int) -> float:
    """The value of the last step that is reached: for what changes by jumps."""
    assert is_schedule(numbers), numbers
    if len(numbers) == 1:
        return float(numbers[0])
    return float(numbers[1::2][max(0, bisect_right(numbers[::2], step) - 1)])
