"""How long work tells what it does: it calls a `Watch`; only the command line passes one that draws."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """`done` of `total` steps of a stage are over."""

    stage: str
    done: int
    total: int
    text: str = ""
    picture: str = ""  # a file that shows how it looks so far


@dataclass(frozen=True)
class Caution:
    """A warning with a code that scripts can look for."""

    code: str  # such as "touches-border"
    text: str
    remedy: str = ""
    about_run: bool = False  # not about one photo: said once however many there are

    def __str__(self) -> str:
        return f"{self.text}; {self.remedy}" if self.remedy else self.text


Watch = Callable[[Progress | Caution], None]


def silent(message: Progress | Caution) -> None:
    """The watch of whoever does not want to know."""
