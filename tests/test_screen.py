"""What is printed where: results alone on stdout, all else on stderr, and manners towards pipes and terminals."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import types
from collections.abc import Mapping
from pathlib import Path

import pytest
from conftest import PROGRAM, TIME_OUT, Photographer, Program, as_text, environment, plain_bytes
from test_signals import read_all

from zero123cli import models
from zero123cli.cli.bars import outcome_table
from zero123cli.cli.screen import Screen, printable
from zero123cli.watch import Caution, Progress

SUCCESS = {"input", "output", "status", "code", "hit", "key", "cutter", "seconds", "warnings", "preset", "settings"}
NO_WEIGHTS = "no-cutter-weights"
OWN = (
    models.POCKET_CUTTER.name if models.find(models.POCKET_CUTTER) else "classical"
)  # what cuts without installed weights


# stdout ---------------------------------------------------------------------------------------------------------------


def test_one_photo_prints_exactly_its_path(zero123: Program, photo: Photographer) -> None:
    photo("disc.jpg")
    run = zero123("cutout", "disc.jpg")
    assert run.stdout == "disc_cutout.png\n"
    lines = run.stderr.splitlines()
    assert lines[0] == "cutout: disc.jpg"
    assert lines[1].startswith(f"zero123: warning[{NO_WEIGHTS}]: ")
    assert lines[2].startswith(f"cutout: disc.jpg: {OWN}, ") and lines[2].endswith(" s -> disc_cutout.png")
    assert len(lines) == 3


def test_json_says_everything_about_a_result(zero123: Program, photo: Photographer) -> None:
    photo("disc.jpg")
    run = zero123("cutout", "disc.jpg", "--json", "--size", "128", "--set", "cutout.keep=all", "-o", "x.png")
    assert run.stdout.count("\n") == 1
    facts = json.loads(run.stdout)
    assert facts.keys() >= SUCCESS
    assert (facts["input"], facts["output"], facts["status"], facts["code"]) == ("disc.jpg", "x.png", "ok", 0)
    assert (facts["cutter"], facts["hit"], facts["preset"]) == (OWN, False, "cpu")
    assert facts["settings"] == {
        "cutout.size": [128, "flag --size"],
        "cutout.keep": ["all", "flag --set cutout.keep"],
    }
    assert [warning["code"] for warning in facts["warnings"]] == [NO_WEIGHTS]
    assert isinstance(facts["seconds"], float) and len(facts["key"]) == 64


@pytest.mark.slow
def test_quiet_prints_only_errors(zero123: Program, photo: Photographer) -> None:
    photo("disc.jpg")
    photo("white.png", data=plain_bytes())
    run = zero123("cutout", "disc.jpg", "-q")
    assert (run.stdout, run.stderr) == ("disc_cutout.png\n", "")
    run = zero123("cutout", "disc.jpg", "white.png", "-q", code=82)
    assert run.stdout == "disc_cutout.png\n"
    assert run.stderr.startswith("zero123: error[82]: white.png: ") and run.stderr.count("\n") == 1


@pytest.mark.parametrize("how", [["-vv"], ["ZERO123_DEBUG"]])
def test_a_traceback_is_shown_only_to_who_asks(zero123: Program, photo: Photographer, how: list[str]) -> None:
    """A cut JPEG: the decoder's own exception stands behind ours."""
    whole = (zero123.folder / photo("whole.jpg")).read_bytes()
    photo("cut.jpg", data=whole[: len(whole) // 2])
    if how == ["-vv"]:
        shown = zero123("cutout", "cut.jpg", "-vv", code=65, traceback=True)
        zero123("cutout", "cut.jpg", "-v", code=65)
    else:
        shown = zero123("cutout", "cut.jpg", code=65, traceback=True, env={"ZERO123_DEBUG": "1"})
    assert "error[65]: cut.jpg: " in shown.stderr.splitlines()[-1]


# Pipes that close and disks that are full ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    ["--help", "--version", "cutout --help", "presets", "presets list", "presets show", "cache dir", "cache list"],
)
def test_a_closed_pipe_ends_quietly(zero123: Program, arguments: str) -> None:
    code = 2 if arguments == "presets" else 0
    run = zero123(*arguments.split(), stdout=closed_pipe(), code=code)
    assert "rror" not in run.stderr or code


def test_work_is_done_though_nobody_reads_the_results(zero123: Program, photo: Photographer) -> None:
    photo("a.png", 1)
    photo("b.png", 2)
    zero123("cutout", "a.png", "b.png", "-o", "out", "--json", stdout=closed_pipe())
    assert sorted(os.listdir(zero123.folder / "out")) == ["a.png", "b.png"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
@pytest.mark.parametrize("arguments", ["--help", "--version", "presets list"])
def test_a_full_device_behind_stdout_is_a_writing_error(zero123: Program, arguments: str) -> None:
    with open("/dev/full", "wb") as full:
        run = zero123(*arguments.split(), stdout=full, code=74)
    assert run.stderr.splitlines()[-1].startswith("zero123: error[74]: ")
    assert "no space left on device" in run.stderr
    assert "Exception ignored" not in run.stderr


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
def test_an_error_that_cannot_be_said_in_json_is_no_crash(zero123: Program) -> None:
    with open("/dev/full", "wb") as full:
        run = zero123("bogus", "--json", stdout=full, code=2)
    assert "zero123: error[2]: No such command 'bogus'" in run.stderr


@pytest.mark.skipif(not shutil.which("bash"), reason="there is no bash to close the streams with")
@pytest.mark.parametrize("closing", [">&-", "2>&-", "<&-", ">&- 2>&- <&-"])
def test_closed_streams_lose_no_work(zero123: Program, photo: Photographer, closing: str) -> None:
    photo("a.png")
    photo("text.jpg", data=b"this is no photo\n")
    command = f'"$@" {closing}'
    bash = ("bash", "-c", command, "bash", *PROGRAM)
    run = zero123("cutout", "a.png", "text.jpg", "-o", "out", prefix=bash, code=65)
    assert run.stdout == ("" if " >" in f" {closing}" else "out/a.png\n")
    assert os.listdir(zero123.folder / "out") == ["a.png"]


def closed_pipe() -> int:
    """The writing end of a pipe that nobody reads, as after `| head -0`."""
    reading, writing = os.pipe()
    os.close(reading)
    return writing


# Progress -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("progress", ["auto", "lines", "bar", "none"])
def test_off_a_terminal_nothing_moves(zero123: Program, photo: Photographer, progress: str) -> None:
    """The oracle of every run looks for carriage returns."""
    photo("a.png", 1)
    photo("b.png", 2)
    run = zero123("cutout", "a.png", "b.png", "--progress", progress, env={"TERM": "xterm"})
    assert "\x1b" not in run.stderr + run.stdout
    if progress in ("auto", "lines"):
        assert "cutout: a.png (1 of 2)\n" in run.stderr and "cutout: b.png (2 of 2)\n" in run.stderr
    if progress == "none":
        assert run.stderr == "2 of 2 done\n"


def on_terminal(folder: os.PathLike[str], *arguments: str, env: Mapping[str, str]) -> tuple[int, str, str]:
    """Exit code, stdout, and what a person saw on the terminal that stderr is."""
    import pty

    master, slave = pty.openpty()
    try:
        process = subprocess.Popen(
            [*PROGRAM, *arguments], cwd=folder, env=environment(env), stdout=subprocess.PIPE, stderr=slave
        )
        os.close(slave)
        shown = read_all(master)
        stdout, _ = process.communicate(timeout=TIME_OUT)
    finally:
        os.close(master)
    return process.returncode, as_text(stdout), shown


ON_TERMINAL = pytest.mark.skipif(os.name == "nt", reason="needs a pseudo-terminal")
ESCAPED = "es\x1b]0;title\x07\x1b[31mcape\n.png"


@ON_TERMINAL
def test_a_terminal_gets_a_bar(zero123: Program, photo: Photographer) -> None:
    photo()
    code, stdout, shown = on_terminal(zero123.folder, "cutout", "disc.png", env={"TERM": "xterm"})
    assert (code, stdout) == (0, "disc_cutout.png\n")
    assert "\x1b[" in shown and "━" in shown
    assert "disc.png: alpha" in shown
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h")  # the cursor is back


@ON_TERMINAL
@pytest.mark.parametrize("env", [{"TERM": "dumb"}, {"TERM": "xterm", "CI": "true"}, {}], ids=["dumb", "CI", "no TERM"])
def test_a_terminal_that_is_none_gets_lines(zero123: Program, photo: Photographer, env: dict[str, str]) -> None:
    photo()
    code, stdout, shown = on_terminal(zero123.folder, "cutout", "disc.png", env=env)
    assert (code, stdout) == (0, "disc_cutout.png\n")
    assert "\x1b" not in shown
    assert shown.splitlines()[0] == "cutout: disc.png"


@ON_TERMINAL
def test_no_colour_is_used_where_none_is_wanted(zero123: Program, photo: Photographer) -> None:
    photo("text.jpg", data=b"this is no photo\n")
    _, _, coloured = on_terminal(zero123.folder, "cutout", "text.jpg", env={"TERM": "xterm"})
    assert "\x1b[31m" in coloured
    for extra, env in (([], {"NO_COLOR": "1"}), (["--color", "never"], {})):
        _, _, plain = on_terminal(zero123.folder, "cutout", "text.jpg", *extra, env={"TERM": "xterm", **env})
        assert "\x1b[31m" not in plain and "error[65]" in plain


@ON_TERMINAL
def test_a_name_does_not_steer_the_terminal_through_the_bar(zero123: Program) -> None:
    (zero123.folder / ESCAPED).write_bytes(b"this is no photo\n")
    code, _, shown = on_terminal(
        zero123.folder, "cutout", ESCAPED, "missing.png", env={"TERM": "xterm", "NO_COLOR": "1"}
    )
    assert code == 66
    assert "\x1b]0;title" not in shown and "\x1b[31m" not in shown


def test_colour_can_be_asked_for(zero123: Program) -> None:
    run = zero123("cutout", "missing.png", "--color", "always", code=66)
    assert run.stderr.startswith("\x1b[31mzero123: error[66]")
    assert run.stderr.endswith("\x1b[0m\n")


def test_lines_come_seldom(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    now = 100.0
    # By its module: in the package zero123cli.cli the name `screen` is the one screen there is.
    clock = types.SimpleNamespace(monotonic=lambda: now)
    monkeypatch.setattr(sys.modules["zero123cli.cli.screen"], "time", clock)
    page = Screen()
    page.configure(json=False, quiet=False, verbose=0, progress="auto", color="auto")
    watch = page.watcher("a.png")
    page.start("mesh: a.png", 1, 1)
    for step in range(300):  # a tenth of a second each
        now = 100 + step / 10
        watch(Progress("mesh", step, 300))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "mesh: a.png"
    assert 3 <= len(lines) <= 7
    assert all(line.startswith("mesh") for line in lines)


def test_a_warning_is_said_once_and_names_its_photo(capsys: pytest.CaptureFixture[str]) -> None:
    page = Screen()
    for name in ("a.png", "b.png", "a.png"):
        page.watcher(name)(Caution("tiny-object", "it is small", "try a closer photo"))
        page.watcher(name)(Caution("no-weights", "none", about_run=True))
    assert capsys.readouterr().err.splitlines() == [
        "zero123: warning[tiny-object]: a.png: it is small; try a closer photo",
        "zero123: warning[no-weights]: none",
        "zero123: warning[tiny-object]: b.png: it is small; try a closer photo",
    ]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain ümläut", "plain ümläut"),
        ("a\nb\tc\rd", r"a\nb\tc\rd"),
        ("\x1b[31m", r"\x1b[31m"),
        ("\x9b31m", r"\x9b31m"),
        ("\udcff", r"\udcff"),
        ("\u202egnp.exe", r"\u202egnp.exe"),  # turns the reading direction
    ],
)
def test_what_is_not_printable_is_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert printable(shown) == shown


def test_the_table_of_outcomes_fits_and_is_plain_text() -> None:
    from zero123cli.batch import Outcome
    from zero123cli.errors import PhotoError

    rows = [Outcome("a.png", facts={}), Outcome("[red]b[/red].png", PhotoError("no photo", where="b"))]
    table = outcome_table(rows, coloured=False).splitlines()
    assert table[0].split() == ["input", "code", "what"]
    assert table[1].split() == ["a.png", "0", "done"]
    assert table[2].split() == ["[red]b[/red].png", "65", "no", "photo"]


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="this system has no pseudo-terminals")
def test_results_and_the_bar_do_not_share_a_line(photo: Photographer, tmp_path: Path) -> None:
    """Both streams on one terminal: each path stands on a line of its own."""
    import pty
    import re

    for number in range(3):
        photo(f"p{number}.png", number)
    raw = bytearray()

    def read(descriptor: int) -> bytes:
        raw.extend(data := os.read(descriptor, 65536))
        return data

    program = " ".join(PROGRAM)
    script = f"cd '{tmp_path}' && TERM=xterm exec {program} cutout p0.png p1.png p2.png -o out/ --progress bar"
    status = pty.spawn(["/bin/sh", "-c", script], read, lambda descriptor: b"")
    assert os.waitstatus_to_exitcode(status) == 0
    plain = re.sub(rb"\x1b\[[0-9;?]*[a-zA-Z]", b"", bytes(raw)).decode()
    shown = {line.split("\r")[-1].strip() for line in plain.replace("\r\n", "\n").split("\n")}
    assert {"out/p0.png", "out/p1.png", "out/p2.png"} <= shown
