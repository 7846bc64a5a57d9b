"""The command line contract: help, refusals and their exit codes, settings, the cache and the doctor's verbs."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import PROGRAM, Photographer, Program, environment, plain_bytes

from zero123cli.cli.cache import as_size, parse_size
from zero123cli.errors import UsageError

Inside = Callable[..., int]

VOICE = "--json --quiet -q --verbose -v --progress --color --offline"
COMMON = "--preset --set --force --cache-dir --no-cache " + VOICE
HELPS = {
    "": "cutout presets cache doctor --version --help",
    "cutout": "--output -o --cutter --mask --keep --foreground-ratio --size --accept-licence --refresh --shared-cache "
    "--lock-timeout --help INPUT " + COMMON,
    "presets": "list show",
    "presets list": VOICE,
    "presets show": "--origin --set " + VOICE,
    "cache": "dir list verify prune clear",
    "cache dir": "--cache-dir " + VOICE,
    "cache list": "--cache-dir " + VOICE,
    "cache runs": "--cache-dir " + VOICE,
    "cache verify": "--repair --cache-dir " + VOICE,
    "cache prune": "--max-size --cache-dir --shared-cache " + VOICE,
    "cache clear": "--cache-dir --shared-cache " + VOICE,
    "models list": VOICE,
    "models path": "NAME " + VOICE,
    "models verify": "NAME " + VOICE,
    "models rm": "--yes -y NAME " + VOICE,
    "models inspect": "MODEL --cache-dir " + VOICE,
    "models convert": "MODEL --output -o --raw --force " + VOICE,
    "data pack": "DATASET --output -o --views --force " + VOICE,
    "doctor": "--cache-dir --shared-cache " + VOICE,
}
VERBS = ["", "cutout", "presets", "cache", "doctor"]


# Help -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", HELPS)
def test_help_names_every_option_and_imports_nothing_heavy(zero123: Program, verb: str) -> None:
    heavy = """
    import atexit, sys
    loaded = lambda: {"torch", "numpy", "PIL", "scipy"} & set(sys.modules)
    atexit.register(lambda: print(*loaded(), file=sys.stderr))
    """
    run = zero123.wrapped(heavy, *verb.split(), "--help")
    words = set(re.findall(r"[-\w]+", run.stdout))
    assert set(HELPS[verb].split()) - words == set()
    assert run.stderr == "\n", "imported for a help text"
    assert max(map(len, run.stdout.splitlines())) <= 80
    assert "\x1b" not in run.stdout


def seconds_of(*arguments: str, rounds: int) -> float:
    """The median wall time of a call."""
    taken = []
    for _ in range(rounds):
        started = time.perf_counter()
        subprocess.run([*PROGRAM[:1], *PROGRAM[3:], *arguments], env=environment(), capture_output=True, check=True)
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)


def test_help_comes_within_a_second() -> None:
    assert seconds_of("--help", rounds=1) < 1.0


@pytest.mark.bench
@pytest.mark.parametrize("verb", VERBS)
def test_help_is_instant(verb: str) -> None:
    assert seconds_of(*verb.split(), "--help", rounds=5) < 0.3


def test_short_help_and_version(inside: Inside, capfd: pytest.CaptureFixture[str]) -> None:
    from zero123cli import __version__

    assert inside("cutout", "-h") == 0
    assert "--foreground-ratio" in capfd.readouterr().out
    assert inside("--version") == 0
    assert capfd.readouterr().out == f"zero123 {__version__}\n"


# Wrong calls ----------------------------------------------------------------------------------------------------------


def refused(inside: Inside, capfd: pytest.CaptureFixture[str], *arguments: str, code: int = 2) -> str:
    """The one line that a wrong call gets, before any work."""
    before = sorted(os.listdir())
    assert inside(*arguments) == code, arguments
    out, err = capfd.readouterr()
    assert err.count("\n") == 1 and err.startswith(f"zero123: error[{code}]: "), err
    assert sorted(os.listdir()) == before
    assert "Traceback" not in err
    if "--json" in arguments:
        row = json.loads(out)
        assert (row["status"], row["code"]) == ("error", code)
    else:
        assert out == ""
    return err


@pytest.mark.parametrize(
    ("call", "named"),
    [
        ("cutout disc.png --forse", "--force"),
        ("cutout disc.png --no-such-thing", "--no-such-thing"),
        ("cutout", "INPUT"),
        ("cutout disc.png -o", "-o"),
        ("cutout disc.png --cutter u2nett", 'did you mean "u2net"'),
        ("cutout disc.png --cutter=", "--cutter"),
        ("cutout disc.png --mask automatic", "--mask"),
        ("cutout disc.png --keep larges", 'did you mean "largest"'),
        ("cutout disc.png --preset fien", 'did you mean "fine"'),
        ("cutout disc.png --preset=", "--preset"),
        ("cutout disc.png --progress bxr", "--progress"),
        ("cutout disc.png --color red", "--color"),
        ("cutout disc.png --set", "--set"),
        ("cutout disc.png --set cutout.size", "--set"),
        ("cutout disc.png --set =3", "--set"),
        ("cutout disc.png --set cutout.siez=300", 'did you mean "size"'),
        ("cutout disc.png --set cutout=3", "expected a table"),
        ("cutout disc.png --set cutout.size=100 --set cutout.size=200", "twice"),
        ("cutout disc.png --mask alpha --cutter classical", "never run"),
        ("cutout disc.png -o {stam}.png", "{stem}"),
        ("cutout disc.png -o disc.png", "replace an input"),
        ("cutout disc.png -o disc.jpg", ".png"),
        ("cutout disc.png other.png -o one.png", "one.png"),
        ("cutout disc.png --cache-dir=", "--cache-dir"),
        ("cutot disc.png", "Did you mean 'cutout'"),
        ("cache prune", "--max-size"),
        ("cache clear --cache-dir=", "--cache-dir"),
        ("presets show fien", 'did you mean "fine"'),
        ("presets show --orijin", "--origin"),
        ("doctor extra", "extra"),
    ],
)
def test_a_wrong_call_is_refused_in_one_line_that_names_it(
    inside: Inside, capfd: pytest.CaptureFixture[str], photo: Photographer, call: str, named: str
) -> None:
    photo()
    photo("other.png", 1)
    assert named in refused(inside, capfd, *call.split())
    refused(inside, capfd, *call.split(), *([] if call.endswith(("-o", "--set")) else ["--json"]))


def test_a_wrong_verb_is_not_sent_to_a_help_that_is_not_there(
    inside: Inside, capfd: pytest.CaptureFixture[str]
) -> None:
    said = refused(inside, capfd, "cutot", "disc.png")
    assert "see: zero123 --help" in said
    assert "see: zero123 cache prune --help" in refused(inside, capfd, "cache", "prune")


@pytest.mark.parametrize("call", ["", "presets", "cache"])
def test_a_call_without_a_verb_says_what_is_missing(zero123: Program, call: str) -> None:
    run = zero123(*call.split(), code=2)
    line = run.stderr.splitlines()[-1]
    assert re.match(r"zero123: error\[2\]: \w", line), line
    assert run.stdout == "", "help that nobody asked for is no result"


NUMBERS = ["", "-1", "0", "nan", "1e309", "inf", str(10**18), "many", "1,5", "0x10"]
NUMERIC = {  # option -> which of these it takes
    "cutout disc.png --size=": [],
    "cutout disc.png --foreground-ratio=": [],
    "cutout disc.png --lock-timeout=": ["0"],  # not to wait at all
    "cutout disc.png --set=cutout.size=": [],
    "cutout disc.png --set=cutout.foreground_ratio=": [],
    "cache prune --max-size=": ["0"],  # to keep nothing
}
IMPOSSIBLE = [(option, number) for option, fine in NUMERIC.items() for number in NUMBERS if number not in fine]


@pytest.mark.parametrize(("option", "number"), IMPOSSIBLE)
def test_an_impossible_number_is_refused_and_its_option_named(
    inside: Inside, capfd: pytest.CaptureFixture[str], photo: Photographer, option: str, number: str
) -> None:
    photo()
    said = refused(inside, capfd, *(option + number).split())
    assert option.split()[-1].partition("=")[0] in said


@pytest.mark.parametrize("size", ["63", "4097", "512.5", "9" * 5000])
def test_the_bounds_of_the_size(inside: Inside, capfd: pytest.CaptureFixture[str], size: str) -> None:
    said = refused(inside, capfd, "cutout", "disc.png", f"--size={size}")
    assert "--size" in said and len(said) < 400


# Codes of their own ---------------------------------------------------------------------------------------------------


def fails(zero123: Program, code: int, *arguments: str, **options: Any) -> tuple[str, dict[str, Any]]:
    """The last line on stderr and the object on stdout of a run with --json that fails."""
    run = zero123(*arguments, "--json", code=code, **options)
    line = run.stderr.splitlines()[-1]
    assert line.startswith(f"zero123: error[{code}]: ")
    row = json.loads(run.stdout.splitlines()[-1])
    assert (row["code"], row["status"]) == (code, "error")
    assert row["what"] in line and row["remedy"] in line
    return line, row


def test_no_photo_is_65(here: Program, photo: Photographer) -> None:
    photo("text.jpg", data=b"this is no photo\n")
    line, row = fails(here, 65, "cutout", "text.jpg")
    assert "text.jpg: a text file, not a photo" in line
    assert row["input"] == "text.jpg"
    whole = (here.folder / photo("whole.jpg")).read_bytes()
    photo("cut.jpg", data=whole[: len(whole) // 2])
    line, _ = fails(here, 65, "cutout", "cut.jpg")
    assert "truncated" in line


def test_a_missing_photo_is_66(here: Program) -> None:
    (here.folder / "empty").mkdir()
    os.symlink("nowhere.png", here.folder / "dangling.png")
    for name, said in (("missing.png", "no such file"), ("empty", "holds no photos"), ("dangling.png", "no such file")):
        line, row = fails(here, 66, "cutout", name)
        assert said in line and row["input"] == name


def test_a_missing_photo_is_66_also_where_the_output_is_named(here: Program) -> None:
    for verb, name in (("cutout", "a.png"), ("reconstruct", "a.glb")):
        line, row = fails(here, 66, verb, "nowhere.jpg", "-o", name)
        assert "no such file" in line and row["input"] == "nowhere.jpg"


def test_an_unreadable_photo_is_66(zero123: Program, photo: Photographer, ordinary: tuple[str, ...]) -> None:
    (zero123.folder / photo()).chmod(0o000)
    line, _ = fails(zero123, 66, "cutout", "disc.png", prefix=ordinary)
    assert "permission denied" in line


def test_missing_weights_are_69_and_the_command_is_said(here: Program, photo: Photographer) -> None:
    photo("disc.jpg")
    line, row = fails(here, 69, "cutout", "disc.jpg", "--cutter", "u2net")
    assert "zero123 models pull u2net" in row["remedy"] and row["remedy"] in line


@pytest.mark.parametrize(
    ("call", "verb"),
    [("views -o", "views"), ("eval shape --limit", "eval shape"), ("--nothing", ""), ("cache", "cache")],
)
def test_a_wrong_call_points_to_the_help_of_its_verb(here: Program, call: str, verb: str) -> None:
    line, _ = fails(here, 2, *call.split())
    assert line.endswith(f"see: {' '.join(['zero123', *verb.split()])} --help")


def test_what_the_cache_tells_is_also_json(here: Program, photo: Photographer) -> None:
    photo()
    here("cutout", "disc.png")
    assert Path(json.loads(here("cache", "dir", "--json").stdout)["path"]).is_dir()
    assert json.loads(here("cache", "prune", "--max-size", "0", "--json").stdout)["dropped"] == 1
    assert json.loads(here("cache", "clear", "--json").stdout) == {
        "dropped": 0,
        "freed": 0,
        "status": "ok",
        "code": 0,
    }


def test_an_output_that_exists_is_73_until_forced(here: Program, photo: Photographer) -> None:
    photo()
    (here.folder / "mine.png").write_bytes(b"mine")
    line, _ = fails(here, 73, "cutout", "disc.png", "-o", "mine.png")
    assert "--force" in line
    assert (here.folder / "mine.png").read_bytes() == b"mine"
    here("cutout", "disc.png", "-o", "mine.png", "--force")
    assert (here.folder / "mine.png").read_bytes().startswith(b"\x89PNG")


def test_a_licence_that_was_not_accepted_is_77(here: Program, photo: Photographer) -> None:
    photo("disc.jpg")
    line, _ = fails(here, 77, "cutout", "disc.jpg", "--cutter", "bria-rmbg")
    assert "--accept-licence" in line
    fails(here, 69, "cutout", "disc.jpg", "--cutter", "bria-rmbg", "--accept-licence")
    for verb in (("reconstruct",), ("views", "--azimuth", "90")):
        assert "--accept-licence" in fails(here, 77, *verb, "disc.jpg", "--cutter", "bria-rmbg")[0]
        fails(here, 69, *verb, "disc.jpg", "--cutter", "bria-rmbg", "--accept-licence")


@pytest.mark.skipif(os.name == "nt", reason="permissions work otherwise on Windows")
def test_a_cache_that_others_can_write_to_is_77_unless_trusted(here: Program, photo: Photographer) -> None:
    photo()
    shared = here.folder / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    line, _ = fails(here, 77, "cutout", "disc.png", "--cache-dir", "shared")
    assert "--shared-cache" in line
    (here.folder / "objects").mkdir()
    line, _ = fails(here, 77, "eval", "shape", "objects", "--model", "sphere", "--cache-dir", "shared")
    assert "--shared-cache" in line
    assert os.listdir(shared) == []
    fails(here, 66, "eval", "shape", "objects", "--model", "sphere", "--cache-dir", "shared", "--shared-cache")
    fails(here, 69, "doctor", "--cache-dir", "shared")
    here("cutout", "disc.png", "--cache-dir", "shared", "--shared-cache")
    here("cutout", "disc.png", "--cache-dir", "shared", env={"ZERO123_SHARED_CACHE": "1"})
    assert list(shared.glob("entries/*/*"))


@pytest.mark.parametrize("colour", [(255, 255, 255), (0, 0, 0), (10, 200, 90, 0)], ids=["white", "black", "clear"])
def test_a_photo_of_nothing_is_82_and_is_not_kept(
    here: Program, photo: Photographer, cache_root: Path, colour: tuple[int, ...]
) -> None:
    photo("nothing.png", data=plain_bytes(colour))
    fails(here, 82, "cutout", "nothing.png")
    assert not list(cache_root.glob("entries/*/*"))
    assert not (here.folder / "nothing_cutout.png").exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[cutout\n", "is not TOML"),
        ("[cutout]\nsiez = 300\n", 'did you mean "size"'),
        ("[cutuot]\nsize = 300\n", 'did you mean "cutout.size"'),
        ("[cutout]\nsize = 'big'\n", "a whole number"),
        ("[cutout]\nsize = 3\n", "from 64 to 4096"),
        ("preset = 'fien'\n", 'did you mean "fine"'),
        ("\xff", "UTF-8"),
    ],
)
def test_a_bad_configuration_is_78(
    inside: Inside, capfd: pytest.CaptureFixture[str], tmp_path: Path, text: str, said: str
) -> None:
    (tmp_path / "zero123.toml").write_bytes(text.encode("latin-1"))
    line = refused(inside, capfd, "cutout", "disc.png", code=78)
    assert "zero123.toml" in line and said in line
    refused(inside, capfd, "presets", "show", "--json", code=78)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("ZERO123_CUTOUT_SIZE", "big", "ZERO123_CUTOUT_SIZE"),
        ("ZERO123_CUTOUT_SIZ", "300", 'did you mean "ZERO123_CUTOUT_SIZE"'),
        ("ZERO123_CUTOUT_FOREGROUND_RATIO", "nan", "ZERO123_CUTOUT_FOREGROUND_RATIO"),
        ("ZERO123_PRESET", "fien", "ZERO123_PRESET"),
        ("ZERO123_LOCK_TIMEOUT", "long", "ZERO123_LOCK_TIMEOUT"),
        ("ZERO123_OFFLINE", "perhaps", "ZERO123_OFFLINE"),
        ("ZERO123_SHARED_CACHE", "perhaps", "ZERO123_SHARED_CACHE"),
    ],
)
def test_a_bad_variable_is_78(
    inside: Inside,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    photo: Photographer,
    name: str,
    value: str,
    said: str,
) -> None:
    photo()
    monkeypatch.setenv(name, value)
    assert said in refused(inside, capfd, "cutout", "disc.png", code=78)


def test_empty_variables_state_nothing(here: Program, photo: Photographer, cache_root: Path) -> None:
    photo()
    names = ["CUTOUT_SIZE", "PRESET", "CACHE_DIR", "OFFLINE", "DEBUG", "SHARED_CACHE", "LOCK_TIMEOUT"]
    here("cutout", "disc.png", env={f"ZERO123_{name}": "" for name in names})
    assert list(cache_root.glob("entries/*/*"))


# What should not happen -----------------------------------------------------------------------------------------------

BREAK = """
from zero123cli import pipeline
work = pipeline.cutout
def cutout(photo, *rest):
    if "bad" in photo.name:
        raise {error}("secret " + photo.name)
    return work(photo, *rest)
pipeline.cutout = cutout
"""


def test_a_bug_is_70_and_each_has_a_log_of_its_own(zero123: Program, photo: Photographer) -> None:
    """Also of two bugs in the same second."""
    names = ["bad-1.png", "bad-2.png", "good.png"]
    for name in names:
        photo(name)
    frozen = "\nimport time\nstrftime = time.strftime\ntime.strftime = lambda text: strftime(text, time.gmtime(0))\n"
    run = zero123.wrapped(BREAK.format(error="ZeroDivisionError") + frozen, "cutout", *names, "--json", code=70)
    rows = {row["input"]: row for row in map(json.loads, run.stdout.splitlines())}
    assert {name: row["code"] for name, row in rows.items()} == {"bad-1.png": 70, "good.png": 0, "bad-2.png": 70}
    for name in ("bad-1.png", "bad-2.png"):
        assert rows[name]["what"] == "internal error (ZeroDivisionError)"
        log = Path(rows[name]["remedy"].rpartition(" ")[2])
        text = log.read_text()
        assert "Traceback" in text and f"ZeroDivisionError: secret {name}" in text
        assert str(log) in run.stderr


def test_a_bug_outside_the_work_on_a_photo_is_70_too(zero123: Program, photo: Photographer) -> None:
    photo()
    broken = "from zero123cli import batch\nbatch.plan = lambda *rest, **more: 1 / 0\n"
    line = zero123.wrapped(broken, "cutout", "disc.png", code=70).stderr
    assert Path(line.split()[-1]).read_text().rstrip().endswith("ZeroDivisionError: division by zero")
    shown = zero123.wrapped(broken, "cutout", "disc.png", "-vv", code=70, traceback=True).stderr
    assert "ZeroDivisionError: division by zero" in shown


def test_a_bug_where_no_log_can_be_written_is_still_70(zero123: Program, photo: Photographer) -> None:
    photo("bad.png")
    nowhere = {"HOME": "/proc/nowhere", "XDG_STATE_HOME": None, "XDG_CACHE_HOME": None}
    run = zero123.wrapped(BREAK.format(error="KeyError"), "cutout", "bad.png", "--no-cache", code=70, env=nowhere)
    assert "internal error (KeyError)" in run.stderr


def test_running_out_of_memory_is_80_and_stops_nothing(zero123: Program, photo: Photographer) -> None:
    photo("bad.png", 1)
    photo("good.png", 2)
    run = zero123.wrapped(BREAK.format(error="MemoryError"), "cutout", "bad.png", "good.png", code=80)
    assert run.stdout == "good_cutout.png\n"
    assert "error[80]: bad.png: out of memory" in run.stderr


# Odd places -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "env",
    [{"HOME": None}, {"HOME": "/proc/nowhere", "XDG_CACHE_HOME": None}, {"LC_ALL": "C"}, {"TMPDIR": "/proc/nowhere"}],
    ids=["no HOME", "HOME nowhere", "C locale", "TMPDIR nowhere"],
)
def test_odd_environments_work(zero123: Program, photo: Photographer, env: dict[str, str | None]) -> None:
    photo("dïsc.png")
    assert zero123("cutout", "dïsc.png", env=env).stdout == "dïsc_cutout.png\n"


@pytest.mark.skipif(os.name == "nt", reason="Windows does not delete a folder in use")
def test_a_current_folder_that_is_gone_is_no_crash(zero123: Program, photo: Photographer) -> None:
    photo()
    place, out = zero123.folder / "disc.png", zero123.folder / "out.png"
    for code, arguments in (
        (0, ["cutout", place, "-o", out]),
        (66, ["cutout", "disc.png"]),
        (0, ["presets", "list"]),
    ):
        (zero123.folder / "gone").mkdir()
        gone = ("sh", "-c", 'cd gone && rmdir ../gone && exec "$@"', "sh", *PROGRAM)
        if code:
            run = subprocess.run([*gone, *arguments], cwd=zero123.folder, env=environment(), capture_output=True)
            assert run.returncode in (66, 73) and b"Traceback" not in run.stderr, run
        else:
            zero123(*arguments, prefix=gone)
    assert out.is_file()


# Kept from before -----------------------------------------------------------------------------------------------------


def test_the_same_again_is_kept_from_before(here: Program, photo: Photographer) -> None:
    photo("disc.jpg")
    first = json.loads(here("cutout", "disc.jpg", "--json").stdout)
    made = (here.folder / "disc_cutout.png").read_bytes()
    started = time.monotonic()
    run = here("cutout", "disc.jpg", "--json")
    assert time.monotonic() - started < 3.0
    second = json.loads(run.stdout)
    assert (first["hit"], second["hit"]) == (False, True)
    assert first["key"] == second["key"] and first["warnings"] == second["warnings"]
    assert "kept from before" in run.stderr
    assert (here.folder / "disc_cutout.png").read_bytes() == made

    here("cutout", "disc.jpg", "--size", "64", code=73)
    assert (here.folder / "disc_cutout.png").read_bytes() == made

    again = json.loads(here("cutout", "disc.jpg", "--refresh", "--force", "--json").stdout)
    assert again["hit"] is False and again["key"] == first["key"]
    assert (here.folder / "disc_cutout.png").read_bytes() == made


def test_an_output_of_another_photo_is_never_replaced_by_a_hit(here: Program, photo: Photographer) -> None:
    photo("a.png", 1)
    photo("b.png", 2)
    here("cutout", "a.png", "-o", "x.png", "--size", "64")
    here("cutout", "b.png", "-o", "y.png", "--size", "100")
    made = (here.folder / "x.png").read_bytes()
    line, _ = fails(here, 73, "cutout", "b.png", "-o", "x.png", "--size", "100")
    assert "--force" in line
    assert (here.folder / "x.png").read_bytes() == made


@pytest.mark.bench
def test_a_hit_takes_less_than_a_second_and_a_half(tmp_path: Path, photo: Photographer) -> None:
    place = tmp_path / photo("disc.jpg")
    call = ["cutout", str(place), "-o", str(tmp_path / "out.png")]
    seconds_of(*call, rounds=1)
    assert seconds_of(*call, rounds=5) < 1.5


def test_where_the_cache_is_can_be_chosen(here: Program, photo: Photographer, cache_root: Path) -> None:
    photo()
    here.caches |= {here.folder / "flag", here.folder / "variable"}
    here("cutout", "disc.png", "--no-cache")
    assert not cache_root.exists()
    here("cutout", "disc.png", "--cache-dir", "flag", env={"ZERO123_CACHE_DIR": "variable"}, code=73)
    here("cutout", "disc.png", "--cache-dir", "flag", "--force", env={"ZERO123_CACHE_DIR": "variable"})
    assert (here.folder / "flag").is_dir() and not (here.folder / "variable").exists()
    here("cutout", "disc.png", "--force", env={"ZERO123_CACHE_DIR": "variable"})
    assert list((here.folder / "variable").glob("entries/*/*"))
    assert (here.folder / "flag" / "CACHEDIR.TAG").is_file()
    assert here("cache", "dir", "--cache-dir", "flag").stdout == f"{here.folder / 'flag'}\n"
    assert here("cache", "dir").stdout == f"{cache_root}\n"
    assert not cache_root.exists()
    (here.folder / "file").write_text("mine")
    line, _ = fails(here, 73, "cutout", "disc.png", "--cache-dir", "file")
    assert "--cache-dir" in line


def test_the_cache_is_listed_checked_mended_pruned_and_cleared(
    here: Program, inside: Inside, capfd: pytest.CaptureFixture[str], photo: Photographer, cache_root: Path
) -> None:
    assert here("cache", "list").stdout == ""
    here("cache", "verify")
    names = [photo(f"{seed}.png", seed) for seed in range(3)]
    keys = [
        json.loads(line)["key"]
        for line in here("cutout", *names, "--size", "64", "--json", "-o", "out").stdout.splitlines()
    ]
    rows = [json.loads(line) for line in here("cache", "list", "--json").stdout.splitlines()]
    assert {row["key"] for row in rows} == set(keys)
    assert {row["stage"] for row in rows} == {"cutout"} and not any(row["damage"] for row in rows)
    assert {line.split()[0] for line in here("cache", "list").stdout.splitlines()} == {key[:16] for key in keys}
    assert "3 entries, all sound" in here("cache", "verify").stderr

    victim = cache_root / "entries" / keys[0][:2] / keys[0] / "arrays.safetensors"
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(data)
    for options in ([], ["--repair"]):
        assert inside("cache", "verify", "--json", *options) == 65
        shown = capfd.readouterr()
        found, error = map(json.loads, shown.out.splitlines())
        assert found["key"] == keys[0] and error["code"] == 65
        assert "Traceback" not in shown.err
    assert "2 entries, all sound" in here("cache", "verify").stderr
    again = json.loads(here("cutout", names[0], "--size", "64", "-o", "out", "--force", "--json").stdout)
    assert again["hit"] is False and again["key"] == keys[0]

    size = rows[0]["bytes"]
    here("cache", "prune", "--max-size", str(2 * size + size // 2))
    left = [json.loads(line)["key"] for line in here("cache", "list", "--json").stdout.splitlines()]
    assert len(left) == 2 and keys[0] in left, "what was used last stays"
    assert "2 entries dropped" in here("cache", "clear").stderr
    assert here("cache", "list").stdout == ""
    assert not [path for path in cache_root.rglob("*") if path.is_file() and path.name != "CACHEDIR.TAG"]


def test_clearing_a_folder_that_is_no_cache_deletes_nothing(here: Program) -> None:
    """`--cache-dir` may be mistyped: what others keep in folders of the same names is not ours."""
    for place in ("drafts", "quarantine", "digests", "partial", "locks"):
        for call in (["clear"], ["prune", "--max-size", "0"]):
            novel = here.folder / "writing" / place / "novel.txt"
            novel.parent.mkdir(parents=True, exist_ok=True)
            novel.write_text("mine")
            os.utime(novel, (0, 0))
            here("cache", *call, "--cache-dir", "writing", code=77)
            assert novel.exists(), (place, call)


def test_repairing_a_folder_that_is_no_cache_moves_nothing(here: Program) -> None:
    post = here.folder / "blog" / "entries" / "2024" / "first-post" / "index.md"
    post.parent.mkdir(parents=True)
    post.write_text("mine")
    here("cache", "verify", "--repair", "--cache-dir", "blog", code=77)
    assert post.read_text() == "mine"


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("2000", 2000),
        ("500M", 500_000_000),
        ("500MB", 500_000_000),
        ("1.5g", 1_500_000_000),
        (" 20 GB ", 20_000_000_000),
        ("3k", 3000),
        ("1T", 10**12),
        ("12b", 12),
    ],
)
def test_sizes_are_read(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "M", "-1", "1e3", "nan", "inf", "1.M", ".5G", "5X", "5 0", "9" * 13, "1\n2"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="max-size"):
        parse_size(text)


def test_binary_units_are_binary_or_refused() -> None:
    """1 GiB is not 1 GB."""
    with contextlib.suppress(UsageError):
        assert parse_size("1GiB") == 1 << 30


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (2_500_000, "2.5 MB"), (7 * 10**12, "7000.0 GB")]
)
def test_sizes_are_shown(count: int, text: str) -> None:
    assert as_size(count) == text


# Presets --------------------------------------------------------------------------------------------------------------


def test_presets_are_listed_and_shown(inside: Inside, capfd: pytest.CaptureFixture[str]) -> None:
    assert inside("presets", "list") == 0
    names = [line.split()[0] for line in capfd.readouterr().out.splitlines()]
    assert names == sorted(names) and {"cpu", "fine", "original-framing"} <= set(names)
    assert inside("presets", "list", "--json") == 0
    rows = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert [row["name"] for row in rows] == names
    assert all(row["summary"] and Path(row["path"]).is_file() for row in rows)
    for name in names:
        assert inside("presets", "show", name, "--json") == 0
        shown = json.loads(capfd.readouterr().out)
        assert shown["preset"] == name and "cutout.size" in shown["settings"]


def test_what_is_shown_can_be_used_as_a_configuration(
    inside: Inside, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert inside("presets", "show", "fine", "--set", "cutout.keep=all") == 0
    (tmp_path / "zero123.toml").write_text(capfd.readouterr().out)
    assert inside("presets", "show", "--json") == 0
    settings = json.loads(capfd.readouterr().out)["settings"]
    assert settings["cutout.size"]["value"] == 1024 and settings["cutout.keep"]["value"] == "all"
    assert settings["cutout.size"]["origin"] == f"project file {tmp_path / 'zero123.toml'}"


def test_the_origin_of_every_value_is_shown(
    inside: Inside,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    private_home: Path,
) -> None:
    """One knob from each layer, and the stronger layer wins."""
    user = private_home / "config" / "zero123"
    (user / "presets").mkdir(parents=True)
    (user / "presets" / "mine.toml").write_text(
        'summary = "ours"\n[cutout]\nforeground_ratio = 0.7\nkeep = "all"\nmask = "keep"\nsize = 100\n'
    )
    (user / "config.toml").write_text('preset = "mine"\n[cutout]\nkeep = "largest"\nmask = "keep"\nsize = 200\n')
    (tmp_path / "zero123.toml").write_text('[cutout]\nmask = "remove"\nsize = 300\n')
    monkeypatch.setenv("ZERO123_CUTOUT_SIZE", "400")
    expected = {
        "cutter": ("classical", "flag --set cutout.cutter"),
        "mask": ("remove", f"project file {tmp_path / 'zero123.toml'}"),
        "keep": ("largest", f"user file {user / 'config.toml'}"),
        "foreground_ratio": (0.7, "preset mine"),
        "size": (400, "environment ZERO123_CUTOUT_SIZE"),
    }
    assert inside("presets", "show", "--set", "cutout.cutter=classical", "--json") == 0
    shown = json.loads(capfd.readouterr().out)
    assert shown["preset"] == "mine"
    rows = {key: (row["value"], row["origin"]) for key, row in shown["settings"].items() if key.startswith("cutout.")}
    assert {key.removeprefix("cutout."): row for key, row in rows.items()} == expected
    assert inside("presets", "show", "--set", "cutout.cutter=classical", "--origin") == 0
    lines = capfd.readouterr().out.splitlines()
    for name, (value, origin) in expected.items():
        assert any(
            line.startswith(f"{name} = {json.dumps(value)}") and line.endswith(f"# {origin}") for line in lines
        ), name
    monkeypatch.delenv("ZERO123_CUTOUT_SIZE")
    assert inside("presets", "show", "cpu", "--origin") == 0
    assert "# default" in capfd.readouterr().out


def test_the_layers_reach_the_work(here: Program, photo: Photographer) -> None:
    photo()
    (here.folder / "zero123.toml").write_text("[cutout]\nsize = 100\n")
    facts = json.loads(here("cutout", "disc.png", "--json", "--preset", "original-framing").stdout)
    assert facts["preset"] == "original-framing"
    assert facts["settings"] == {
        "cutout.size": [100, f"project file {here.folder / 'zero123.toml'}"],
        "cutout.foreground_ratio": [0.78125, "preset original-framing"],
    }


# Doctor ---------------------------------------------------------------------------------------------------------------


def findings(text: str) -> dict[str, dict[str, str]]:
    return {finding["what"]: finding for finding in json.loads(text.splitlines()[0])["findings"]}


def test_a_sound_installation_is_well(zero123: Program, cache_root: Path) -> None:
    found = findings(zero123("doctor", "--json").stdout)
    assert {"zero123", "numpy", "torch", "device", "memory", "cache", "cutter"} <= found.keys()
    assert found["model pocket"]["state"] == found["cutter pocket-cutter"]["state"] == "ok"
    assert {finding["state"] for finding in found.values()} <= {"ok", "could"}
    assert found["cutter"]["state"] == "could" and found["cutter"]["mend"] == "zero123 models pull u2net"
    assert str(cache_root) in found["cache"]["found"]


@pytest.mark.slow
def test_every_ailment_has_a_remedy_and_ends_in_69(zero123: Program) -> None:
    """A missing package, damaged weights, the package's own too, and a cache that is not ours to use, all at once."""
    models, shared = zero123.folder / "models", zero123.folder / "shared"
    models.mkdir()
    (models / "u2netp.onnx").write_bytes(b"half of a download")
    (models / "pocket.safetensors").write_bytes(b"half of an installation")
    shared.mkdir()
    shared.chmod(0o777)
    broken = """
    import importlib.metadata as metadata
    import pathlib
    from zero123cli import machine
    own = machine.shipped
    machine.shipped = lambda name: pathlib.Path("models") if name == "assets" else own(name)
    version = metadata.version
    def pretend(name):
        if name == "trimesh":
            raise metadata.PackageNotFoundError(name)
        return "0.1" if name == "scipy" else version(name)
    metadata.version = pretend
    """
    options = {"env": {"U2NET_HOME": str(models)}, "code": 69}
    run = zero123.wrapped(broken, "doctor", "--json", "--cache-dir", "shared", **options)
    found = findings(run.stdout)
    bad = {what for what, finding in found.items() if finding["state"] == "bad"}
    assert bad == {"trimesh", "scipy", "model pocket", "cutter pocket-cutter", "cutter u2netp", "cache"}
    assert all(finding["mend"] for finding in found.values() if finding["state"] == "bad")
    assert "pip install" in found["trimesh"]["mend"] and "0.1" in found["scipy"]["found"]
    assert "u2netp.onnx" in found["cutter u2netp"]["mend"]
    assert json.loads(run.stdout.splitlines()[-1])["code"] == 69
    assert all(what in run.stderr for what in bad)

    run = zero123.wrapped(broken, "doctor", "--cache-dir", "shared", **options)
    lines = run.stdout.splitlines()
    for what in bad:
        (place,) = (n for n, line in enumerate(lines) if line.startswith(f"BAD {what} "))
        assert lines[place + 1].strip() == found[what]["mend"]


def test_a_remedy_is_for_the_cache_that_was_looked_at(
    here: Program, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zero123cli.checkup.LITTLE_DISK", 1e30)
    found = findings(here("doctor", "--json", "--cache-dir", "my cache").stdout)
    words = shlex.split(found["cache"]["mend"])
    assert words[-2:] == ["--cache-dir", str(here.folder / "my cache")]
    here(*words[1:])


def test_weights_that_are_not_the_published_ones_are_65(here: Program, photo: Photographer) -> None:
    photo("disc.jpg")
    (here.folder / "u2netp.onnx").write_bytes(b"half of a download")
    line, _ = fails(here, 65, "cutout", "disc.jpg", "--cutter", "u2netp", env={"U2NET_HOME": str(here.folder)})
    assert "u2netp.onnx" in line and "fetch it again" in line
