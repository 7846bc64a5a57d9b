"""Compiled functions where numba finds no place to keep them."""

from __future__ import annotations

from pathlib import Path

import pytest
from numba.core import caching

from zero123cli import compiled


def double(x: float) -> float:
    return 2 * x


def test_without_a_place_to_keep_it_a_function_is_compiled_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caching.CacheImpl, "_locator_classes", [])
    for place in (True, False):
        monkeypatch.setattr(compiled, "has_place", lambda place=place: place)
        assert compiled.compiled(nogil=True)(double)(2.5) == 5.0


def test_without_a_home_nothing_is_kept_in_the_current_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("platformdirs.user_cache_dir", lambda *_, **__: "~/.cache/zero123")
    assert compiled.has_place()  # beside the program
    monkeypatch.setattr(compiled, "__file__", str(tmp_path / "nowhere" / "compiled.py"))
    assert not compiled.has_place()
