"""Many inputs: what they name, where the outputs go, which failure decides, and names that bite."""

from __future__ import annotations

import errno
import itertools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Photographer, Program, photo_bytes, plain_bytes

from zero123cli import errors
from zero123cli.batch import Item, gather, plan, run_one
from zero123cli.errors import GRAVITY, UsageError, Zero123Error, gravest


def targets(sources: list[str], out: str | None) -> list[str]:
    return [str(item.target) for item in plan(sources, out, default="{stem}_cutout", suffixes=(".png",))]


def json_lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


# Which code decides ---------------------------------------------------------------------------------------------------


def test_the_gravest_code_decides_in_the_order_of_the_contract() -> None:
    order = (70, 74, 77, 69, 73, 75, 78, 80, 81, 66, 65, 82)
    assert order == GRAVITY
    assert gravest([]) == gravest([0, 0]) == 0
    for graver, lighter in itertools.combinations(order, 2):
        assert gravest([0, lighter, graver]) == gravest([graver, 0, lighter]) == graver


def test_every_error_has_a_code_of_the_contract() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.Zero123Error)]
    assert {kind.exit_code for kind in kinds} == {2, *GRAVITY}


def test_all_that_can_be_done_is_done(zero123: Program, photo: Photographer) -> None:
    photo("good.png", 1)
    photo("also.png", 2)
    photo("text.jpg", data=b"this is no photo\n")
    photo("white.png", data=plain_bytes())
    names = ["good.png", "text.jpg", "missing.png", "white.png", "also.png"]
    run = zero123("cutout", *names, "-o", "out", "--json", code=66)
    rows = {row["input"]: row for row in json_lines(run.stdout)}
    codes = {"good.png": 0, "text.jpg": 65, "missing.png": 66, "white.png": 82, "also.png": 0}
    assert {name: row["code"] for name, row in rows.items()} == codes
    assert len(run.stdout.splitlines()) == len(names)
    assert {name: row["status"] for name, row in rows.items()} == {
        name: "error" if code else "ok" for name, code in codes.items()
    }
    assert sorted(path.name for path in (zero123.folder / "out").iterdir()) == ["also.png", "good.png"]
    table = [line.split() for line in run.stderr.splitlines()]
    for name, code in codes.items():
        assert any(words[:2] == [name, str(code)] for words in table), run.stderr
    assert "2 of 5 done, 3 failed" in run.stderr
    assert sum(line.startswith("zero123: error[") for line in run.stderr.splitlines()) == 3


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
def test_a_full_standard_output_does_not_stop_the_work(zero123: Program, photo: Photographer) -> None:
    photo("a.png", 1)
    photo("b.png", 2)
    with open("/dev/full", "wb") as full:
        run = zero123("cutout", "a.png", "b.png", "-o", "out", code=74, stdout=full)
    assert "error[74]: standard output: no space left on device" in run.stderr
    assert sorted(path.name for path in (zero123.folder / "out").iterdir()) == ["a.png", "b.png"]


def test_an_unreadable_folder_is_a_missing_input_and_stops_nothing(
    zero123: Program, photo: Photographer, ordinary: tuple[str, ...]
) -> None:
    photo("good.png")
    (zero123.folder / "shut").mkdir(mode=0o000)
    run = zero123("cutout", "shut", "good.png", code=66, prefix=ordinary)
    assert "error[66]: shut: " in run.stderr
    assert run.stdout == "good_cutout.png\n"


# What inputs name -----------------------------------------------------------------------------------------------------


def test_folders_patterns_and_repetitions_name_each_photo_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, photo: Photographer
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("in/b.png", "in/a.JPG", "in/c.webp", "in/.hidden.png", "in/notes.txt", "in/deep/d.png"):
        photo(name)
    os.symlink("in", tmp_path / "too")
    assert gather(["in"]) == (["in/a.JPG", "in/b.png", "in/c.webp"], [])
    assert gather(["in/b.png", "in", "./in/b.png", "too/b.png"]) == (["in/b.png", "in/a.JPG", "in/c.webp"], [])
    assert gather(["in/*.png"]) == (["in/b.png"], [])
    assert gather(["-", "-"]) == (["-"], [])
    found, missing = gather(["in/*.gif", "none.png", "in/deep"])
    assert found == ["in/deep/d.png"]
    assert [outcome.source for outcome in missing] == ["in/*.gif", "none.png"]
    assert {outcome.exit_code for outcome in missing} == {66}


def test_each_name_of_a_photo_has_its_output(here: Program, photo: Photographer, tmp_path: Path) -> None:
    """As where large files are links into a store."""
    photo("store/1.png")
    (tmp_path / "in").mkdir()
    for name in ("a.png", "b.png"):
        os.symlink("../store/1.png", tmp_path / "in" / name)
    run = here("cutout", "in/a.png", "in/b.png", "-o", "out")
    assert run.stdout.splitlines() == ["out/a.png", "out/b.png"]


@pytest.mark.parametrize(("folder", "where"), [("in", ("-o", "in/{stem}_cut.png")), ("in", ("-o", "in/")), (".", ())])
def test_a_folder_that_holds_its_own_outputs_can_be_run_again(
    here: Program, photo: Photographer, tmp_path: Path, folder: str, where: tuple[str, ...]
) -> None:
    photo(f"{folder}/a.jpg", 1)
    photo(f"{folder}/b.jpg", 2)
    first = here("cutout", folder, *where)
    again = here("cutout", folder, *where)
    assert again.stdout == first.stdout and len(again.stdout.splitlines()) == 2
    assert again.stderr.count("is what another photo becomes: left out") == 2
    made = tmp_path / first.stdout.splitlines()[0]
    before = made.read_bytes()
    made.write_bytes(photo_bytes(5))
    assert "it exists" in here("cutout", folder, *where, code=73).stderr
    made.write_bytes(before)
    assert "would replace an input" in here("cutout", folder, *where, "--force", code=2).stderr
    assert "would replace an input" in here("cutout", folder, made, *where, code=2).stderr


def test_what_only_looks_like_an_output_is_a_photo(here: Program, photo: Photographer) -> None:
    photo("in/a_cut_cut.png", 1)
    photo("in/a.png", 2)
    run = here("cutout", "in", "-o", "in/{stem}_cut.png")
    assert run.stdout.splitlines() == ["in/a_cut.png", "in/a_cut_cut_cut.png"]


def test_a_folder_that_is_called_like_a_photo_is_none(tmp_path: Path) -> None:
    (tmp_path / "sub.png").mkdir()
    (tmp_path / "a.png").write_bytes(b"")
    sources, missing = gather([str(tmp_path)])
    assert [Path(source).name for source in sources] == ["a.png"] and not missing


def test_a_photo_whose_name_is_also_a_pattern_is_taken_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, photo: Photographer
) -> None:
    monkeypatch.chdir(tmp_path)
    photo("shot[1].png")
    photo("shot1.png")
    assert gather(["shot[1].png"]) == (["shot[1].png"], [])


def test_a_missing_photo_counts_among_those_that_an_output_is_for(here: Program, photo: Photographer) -> None:
    photo("a.png")
    run = here("cutout", "a.png", "gone.png", "-o", "out", code=66)
    assert run.stdout == "out/a.png\n" and "gone.png" in run.stderr
    assert "for 2 inputs" in here("cutout", "a.png", "gone.png", "-o", "one.png", code=2).stderr


def test_a_folder_and_a_pattern_that_meet_are_done_once(here: Program, photo: Photographer) -> None:
    photo("in/a.png", 1)
    photo("in/b.png", 2)
    run = here("cutout", "in", "in/*.png", "in/a.png", "-o", "out")
    assert run.stdout.splitlines() == ["out/a.png", "out/b.png"]
    assert "2 of 2 done" in run.stderr


def test_standard_input_is_a_photo(zero123: Program, photo: Photographer) -> None:
    run = zero123("cutout", "-", stdin=photo_bytes(), code=0)
    assert run.stdout == "stdin_cutout.png\n"
    photo()
    zero123("cutout", "disc.png", "-o", "file.png")
    assert (zero123.folder / "file.png").read_bytes() == (zero123.folder / "stdin_cutout.png").read_bytes()
    empty = zero123("cutout", "-", stdin=b"", code=65)
    assert "error[65]: stdin: empty" in empty.stderr


# Where outputs go -----------------------------------------------------------------------------------------------------


def test_outputs_keep_the_names_of_their_inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    assert targets(["in/a.jpg"], None) == ["a_cutout.png"]
    assert targets(["in/a.jpg"], "x.png") == ["x.png"]
    assert targets(["in/a.jpg"], "x.PNG") == ["x.PNG"]
    assert targets(["in/a.jpg"], "new/") == ["new/a.png"]
    assert targets(["in/a.jpg"], "there") == ["there/a.png"]
    assert targets(["in/a.jpg", "b.png"], "new") == ["new/a.png", "new/b.png"]
    assert targets(["in/a.jpg", "-"], "new/{stem}-x.png") == ["new/a-x.png", "new/stdin-x.png"]
    (tmp_path / "a{b}").mkdir()
    assert targets(["in/a.jpg"], "a{b}") == ["a{b}/a.png"]
    assert targets(["{stem}.jpg", "%s{0}.jpg"], "new/{stem}.png") == ["new/{stem}.png", "new/%s{0}.png"]


@pytest.mark.parametrize(
    ("sources", "out", "named"),
    [
        (["a.jpg", "b.jpg"], "one.png", "one.png"),
        (["a/x.jpg", "b/x.jpg"], "out/", "a/x.jpg and b/x.jpg"),
        (["a/x.jpg", "b/x.png"], None, "a/x.jpg and b/x.png"),
        (["x.png"], "x.png", "replace an input"),
        (["x.png"], "./d/../x.png", "replace an input"),
        (["x.png", "y.png"], "{stem}.png", "replace an input"),
        (["x.png"], "{stam}.png", "{stem}"),
        (["x.png"], "{}.png", "{stem}"),
        (["x.png"], "{stem.png", "{stem}"),
        (["x.png"], "x.jpg", ".png"),
        (["x.png"], "x", "with a slash for a folder"),
        (["x.png"], "", ".png"),
        (["x.png"], "-", ".png"),
    ],
)
def test_impossible_outputs_are_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sources: list[str], out: str | None, named: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "d").mkdir()
    with pytest.raises(UsageError) as refused:
        targets(sources, out)
    assert named in str(refused.value)
    assert os.listdir(tmp_path) == ["d"]


def test_two_inputs_for_one_output_are_refused_by_the_program(here: Program, photo: Photographer) -> None:
    photo("a/x.png", 1)
    photo("b/x.png", 2)
    run = here("cutout", "a/x.png", "b/x.png", "-o", "out/", code=2)
    assert run.stderr.startswith("zero123: error[2]: ") and run.stderr.count("\n") == 1
    assert "a/x.png" in run.stderr and "b/x.png" in run.stderr
    assert not (here.folder / "out").exists()


# Names that bite ------------------------------------------------------------------------------------------------------

NAMES = [
    b"-o.png",
    b"--help.png",
    b"with space.png",
    b'it\'s "quoted".png',
    b"$(touch marker).png",
    b"`touch marker`;touch marker;.png",
    b"new\nline.png",
    b"tab\there.png",
    b"es\x1b]0;title\x07\x1b[31mcape.png",
    b"bell\x07back\x08.png",
    b"csi\xc2\x9b31m.png",
    b"not-utf8-\xff\xfe.png",
    b"nfd-e\xcc\x81.png",
    b"%s{0}%n.png",
    b"{stem}.png",
    b"[b]rich[b].png",
    b"a" * 240 + b".png",
]


def test_any_name_works_and_none_steers_the_terminal(zero123: Program) -> None:
    data = photo_bytes()
    for name in NAMES:
        (zero123.folder / os.fsdecode(name)).write_bytes(data)
    run = zero123("cutout", "--json", "--", *NAMES)
    rows = json_lines(run.stdout)
    assert [os.fsencode(row["input"]) for row in rows] == NAMES
    for name, row in zip(NAMES, rows, strict=True):
        assert os.fsencode(row["output"]) == name.removesuffix(b".png") + b"_cutout.png"
        assert (zero123.folder / row["output"]).is_file()
    assert not (zero123.folder / "marker").exists()
    assert_tame(run.stderr)


def test_the_names_of_failures_are_tame_too(zero123: Program) -> None:
    """The table of what failed shows names as well."""
    for name in NAMES:
        (zero123.folder / os.fsdecode(name)).write_bytes(b"this is no photo\n")
    run = zero123("cutout", "--", *NAMES, code=65)
    assert_tame(run.stderr)
    rows = [line for line in run.stderr.splitlines() if "a text file, not a photo" in line]
    assert len(rows) == 2 * len(NAMES)  # an error each, and a row of the table


def assert_tame(text: str) -> None:
    odd = {letter for letter in text if not letter.isprintable() and letter != "\n"}
    assert not odd, ascii(text)
    assert not [line for line in text.splitlines() if line.startswith("line.png")], "a name broke a line in two"


def test_a_result_is_the_path_byte_for_byte(zero123: Program) -> None:
    (zero123.folder / os.fsdecode(b"\xff x.png")).write_bytes(photo_bytes())
    run = zero123("cutout", b"\xff x.png")
    assert os.fsencode(run.stdout) == b"\xff x_cutout.png\n"


def test_a_name_of_255_bytes_has_no_room_for_a_cutout(zero123: Program, photo: Photographer) -> None:
    photo("b" * 251 + ".png")
    run = zero123("cutout", "b" * 251 + ".png", "--json", code=73)
    assert "too long" in run.stderr
    assert json.loads(run.stdout)["code"] == 73
    zero123("cutout", "b" * 251 + ".png", "-o", "c" * 251 + ".png")


# Places where an output cannot be -------------------------------------------------------------------------------------


def test_outputs_that_cannot_be_created_are_refused_and_said_in_json(here: Program, photo: Photographer) -> None:
    photo()
    (here.folder / "folder.png").mkdir()
    (here.folder / "plain").write_text("mine")
    for out, said in (
        ("folder.png/../nowhere/x.png", "its folder is not there"),
        ("plain/x.png", "its folder is not there"),
        ("plain/", ""),
        ("x" * 260 + ".png", "too long"),
    ):
        run = here("cutout", "disc.png", "-o", out, "--json", code=73)
        row = json.loads(run.stdout.splitlines()[-1])
        assert row["code"] == 73 and row["status"] == "error" and said in row["what"], out
    assert (here.folder / "plain").read_text() == "mine"


def test_a_plain_file_where_a_folder_of_outputs_should_be_is_refused(here: Program, photo: Photographer) -> None:
    photo("a.png", 1)
    photo("b.png", 2)
    (here.folder / "plain").write_text("mine")
    here("cutout", "a.png", "b.png", "-o", "plain", code=73)
    assert (here.folder / "plain").read_text() == "mine"


def test_a_folder_in_the_way_is_named(here: Program, photo: Photographer) -> None:
    photo()
    (here.folder / "out" / "disc.png").mkdir(parents=True)
    run = here("cutout", "disc.png", "-o", "out", "--force", code=73)
    assert "a folder of that name is in the way" in run.stderr


def test_a_read_only_folder_is_refused_before_the_work(
    zero123: Program, photo: Photographer, ordinary: tuple[str, ...], cache_root: Path
) -> None:
    photo()
    (zero123.folder / "shut").mkdir(mode=0o555)
    run = zero123("cutout", "disc.png", "-o", "shut", code=73, prefix=ordinary)
    assert "error[73]: shut/disc.png" in run.stderr
    assert not list(cache_root.glob("entries/*/*"))


def test_a_read_only_cache_is_one_warning_and_its_entries_still_serve(
    zero123: Program, photo: Photographer, ordinary: tuple[str, ...], cache_root: Path
) -> None:
    photo("a.png", 1)
    photo("b.png", 2)
    photo("c.png", 3)
    zero123("cutout", "a.png")
    shut = [cache_root, *(path for path in cache_root.rglob("*") if path.is_dir())]
    for place in shut:
        place.chmod(0o555)
    try:
        run = zero123("cutout", "a.png", "b.png", "c.png", "-o", "out", "--json", prefix=ordinary)
    finally:
        for place in shut:
            place.chmod(0o755)
    assert [row["hit"] for row in json_lines(run.stdout)] == [True, False, False]
    assert run.stderr.count("warning[cache-not-written]") == 1


def test_an_output_that_is_a_link_to_elsewhere_leaves_elsewhere_alone(here: Program, photo: Photographer) -> None:
    photo()
    (here.folder / "canary").write_text("mine")
    os.symlink("canary", here.folder / "link.png")
    here("cutout", "disc.png", "-o", "link.png", code=73)
    assert (here.folder / "link.png").is_symlink()
    here("cutout", "disc.png", "-o", "link.png", "--force")
    assert not (here.folder / "link.png").is_symlink()
    assert (here.folder / "canary").read_text() == "mine"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_named_pipe_at_the_output_does_not_hang(zero123: Program, photo: Photographer) -> None:
    """Also when the cutout is kept from before and would be compared with what is there."""
    photo()
    zero123("cutout", "disc.png")
    os.mkfifo(zero123.folder / "pipe.png")
    zero123("cutout", "disc.png", "-o", "pipe.png", code=73, timeout=10)


def test_an_output_over_another_input_is_refused() -> None:
    with pytest.raises(UsageError, match="replace an input"):
        plan(["x.png", "x_cutout.png"], None, default="{stem}_cutout", suffixes=(".png",))


# What came of an input ------------------------------------------------------------------------------------------------


def fail(error: Exception) -> None:
    raise error


@pytest.mark.parametrize(
    ("wanted", "code"),
    [
        (lambda: torch.empty(1 << 60, dtype=torch.uint8), 80),
        (lambda: np.empty(1 << 60, np.uint8), 80),
        (lambda: fail(RuntimeError("cuDNN error: CUDNN_STATUS_NOT_INITIALIZED")), 80),
        (lambda: fail(RuntimeError("unable to mmap 9 bytes: Cannot allocate memory (12)")), 80),
        (lambda: fail(OSError(errno.ENOMEM, "Cannot allocate memory")), 80),
        (lambda: torch.ones(2) @ torch.ones(3), 70),
    ],
    ids=["torch", "numpy", "cudnn", "mmap", "the system", "a bug"],
)
def test_too_little_memory_is_told_from_a_bug(wanted: Callable[[], object], code: int) -> None:
    def work(item: Item) -> dict[str, Any]:
        wanted()
        return {}

    outcome = run_one(Item("a.png", Path("a.glb")), work, lambda error, where: Zero123Error(str(error), where=where))
    assert outcome.exit_code == code
