"""Many photos in one process: memory stays flat. (`make bench`)"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from conftest import Photographer, facts_of

pytestmark = [pytest.mark.bench, pytest.mark.usefixtures("desk")]
RUNS = 20
GROWTH = 1.03  # of the most that is ever held, over the second half of the runs


def test_memory_is_flat_over_many_runs(reconstruct: Callable[..., Any], photo: Photographer) -> None:
    for number in range(RUNS):
        photo(f"in/{number:02}.png", number)
    runs = facts_of(reconstruct("in", "-o", "out/", "--json")[0])
    peaks = [run["stages"]["mesh"]["process_peak_bytes"] for run in runs]
    print("\nmost MB held until the end of each run:", *(f"{peak / 1e6:.0f}" for peak in peaks))
    print("seconds of each run:", *(f"{run['seconds']:.1f}" for run in runs))
    assert len(peaks) == RUNS and not any(run["hits"] for run in runs)
    assert peaks[-1] <= GROWTH * peaks[RUNS // 2]
