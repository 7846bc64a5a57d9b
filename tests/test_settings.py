"""The settings reader: each rule, each rung of the precedence ladder, and the hostile files of the reliability plan."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import pytest

from zero123cli import models, settings
from zero123cli.errors import MissingInputError, SettingsError, UsageError, Zero123Error
from zero123cli.settings import (
    CutoutSettings,
    Loaded,
    Settings,
    describe,
    differences,
    flatten,
    knob,
    list_presets,
    load,
)

SHIPPED = Path(settings.__file__).parent.parent / "presets"


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def write_preset(folder: Path, name: str, text: str = "") -> Path:
    return write(folder / f"{name}.toml", f'summary = "a test"\n{text}')


def refuse(error: type[Zero123Error], **arguments: Any) -> str:
    """The message of a refused call."""
    with pytest.raises(error) as caught:
        load(**arguments)
    assert type(caught.value) is error
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 600
    return str(caught.value)


# Defaults, knobs and their description


def test_nothing_stated_gives_the_defaults() -> None:
    loaded = load()
    assert loaded.settings == Settings()
    assert loaded.preset == "cpu"
    assert set(loaded.origins.values()) == {"default"}


def test_every_knob_has_a_meaning_and_a_default_that_it_accepts() -> None:
    for row in describe():
        assert row.meaning.strip()
        assert row.type_text
        assert flatten(load(flags={row.key: row.default}).settings)[row.key] == row.default


def test_every_knob_has_its_own_variable() -> None:
    variables = [row.variable for row in describe()] + [*settings.OTHER_VARIABLES, "ZERO123_PRESET"]
    assert len(set(variables)) == len(variables)


def test_description_flat_view_and_origins_name_the_same_keys() -> None:
    keys = [row.key for row in describe()]
    assert keys == list(flatten(Settings())) == list(load().origins)
    cutout = [key for key in keys if key.startswith("cutout.")]
    assert cutout == [f"cutout.{member.name}" for member in fields(CutoutSettings)]


def test_a_row_says_bounds_and_choices() -> None:
    rows = {row.key: row for row in describe()}
    assert rows["cutout.size"].allowed == "from 64 to 4096"
    assert rows["cutout.keep"].allowed == "largest, all"
    assert rows["cutout.keep"].choices == ("largest", "all")


def test_differences_are_the_values_off_their_default() -> None:
    assert differences(Settings()) == {}
    assert differences(Settings(cutout=CutoutSettings(size=100))) == {"cutout.size": 100}


def test_import_is_light() -> None:
    code = "import sys, zero123cli.settings; print([m for m in ('numpy', 'torch', 'typer') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


# Precedence and origins

STATE = {
    "preset": "preset mine",
    "user file": "user file {folder}/user.toml",
    "project file": "project file {folder}/zero123.toml",
    "environment": "environment ZERO123_CUTOUT_SIZE",
    "--set": "flag --set cutout.size",
    "flag": "flag --size",
}
LADDER = list(STATE)


def load_rungs(folder: Path, sizes: Mapping[str, int]) -> Loaded:
    def table(rung: str) -> str:
        return f"[cutout]\nsize = {sizes[rung]}\n" if rung in sizes else ""

    write_preset(folder / "presets", "mine", table("preset"))
    return load(
        preset="mine",
        preset_folders=[folder / "presets"],
        user_file=write(folder / "user.toml", table("user file")),
        project_file=write(folder / "zero123.toml", table("project file")),
        environ={"ZERO123_CUTOUT_SIZE": str(sizes["environment"])} if "environment" in sizes else {},
        set_flags=[f"cutout.size={sizes['--set']}"] if "--set" in sizes else [],
        flags={"cutout.size": sizes.get("flag")},
    )


@pytest.mark.parametrize("rung", LADDER)
def test_each_rung_beats_the_default_and_is_named(tmp_path: Path, rung: str) -> None:
    loaded = load_rungs(tmp_path, {rung: 100})
    assert differences(loaded.settings) == {"cutout.size": 100}
    assert loaded.origins["cutout.size"] == STATE[rung].format(folder=tmp_path)
    assert loaded.origins["cutout.mask"] == "default"


@pytest.mark.parametrize(("weak", "strong"), list(pairwise(LADDER)))
def test_each_rung_beats_the_one_below(tmp_path: Path, weak: str, strong: str) -> None:
    loaded = load_rungs(tmp_path, {weak: 100, strong: 200})
    assert loaded.settings.cutout.size == 200
    assert loaded.origins["cutout.size"] == STATE[strong].format(folder=tmp_path)


@pytest.mark.parametrize("top", range(len(LADDER)))
def test_the_highest_of_all_lower_rungs_wins(tmp_path: Path, top: int) -> None:
    loaded = load_rungs(tmp_path, {rung: 100 + index for index, rung in enumerate(LADDER[: top + 1])})
    assert loaded.settings.cutout.size == 100 + top


def test_rungs_state_different_knobs_side_by_side(tmp_path: Path) -> None:
    project = write(tmp_path / "zero123.toml", "[cutout]\nsize = 100\nforeground_ratio = 1\n")
    loaded = load(project_file=project, set_flags=["cutout.keep=all"], flags={"cutout.foreground_ratio": 0.5})
    assert loaded.settings.cutout == CutoutSettings(size=100, foreground_ratio=0.5, keep="all")
    assert {key: origin for key, origin in loaded.origins.items() if key.startswith("cutout.")} == {
        "cutout.cutter": "default",
        "cutout.mask": "default",
        "cutout.keep": "flag --set cutout.keep",
        "cutout.foreground_ratio": "flag --foreground-ratio",
        "cutout.size": f"project file {project}",
    }


def test_a_mistake_is_refused_also_where_a_stronger_rung_overrides_it(tmp_path: Path) -> None:
    refuse(SettingsError, project_file=write(tmp_path / "p.toml", "[cutout]\nsize = 3\n"), flags={"cutout.size": 100})


def test_a_configuration_file_that_is_not_there_states_nothing(tmp_path: Path) -> None:
    assert load(project_file=tmp_path / "no.toml", user_file=tmp_path / "no" / "no.toml").settings == Settings()


def test_an_empty_table_and_an_empty_file_state_nothing(tmp_path: Path) -> None:
    assert load(project_file=write(tmp_path / "p.toml", "[cutout]\n")).settings == Settings()
    assert load(project_file=write(tmp_path / "p.toml", "")).settings == Settings()
    assert load(project_file=write(tmp_path / "p.toml", "\ufeff[cutout]\r\nsize = 64\r\n")).settings.cutout.size == 64


# The environment and --set


def test_an_unknown_variable_is_refused_with_the_nearest_name() -> None:
    message = refuse(SettingsError, environ={"ZERO123_CUTOUT_SZIE": "100"})
    assert message.endswith('unknown variable "ZERO123_CUTOUT_SZIE"; did you mean "ZERO123_CUTOUT_SIZE"?')
    assert "ZERO123_OFFLINE" in refuse(SettingsError, environ={"ZERO123_OFLINE": "1"})


def test_known_foreign_and_empty_variables_state_nothing() -> None:
    environ = dict.fromkeys(settings.OTHER_VARIABLES, "1")
    environ |= {"HOME": "/root", "ZERO123_CUTOUT_SIZE": "", "ZERO123_PRESET": ""}
    assert set(load(environ=environ).origins.values()) == {"default"}


@pytest.mark.parametrize("text", ["cutout.keep=all", "cutout.keep = all", 'cutout.keep="all"', "cutout.keep='all'"])
def test_a_set_text_may_be_bare_or_quoted(text: str) -> None:
    assert load(set_flags=[text]).settings.cutout.keep == "all"


@pytest.mark.parametrize("text", ["cutout.size", "=3", "", "cutout.size=", "cutout.size=1e3", "cutout.size=100.0"])
def test_a_malformed_set_text_is_a_usage_error(text: str) -> None:
    assert "flag --set" in refuse(UsageError, set_flags=[text])


def test_a_key_set_twice_is_refused() -> None:
    assert "given twice" in refuse(UsageError, set_flags=["cutout.size=100", "cutout.size=200"])


# Checks of values

WRONG = {
    "cutout.size": [63, 4097, 512.0, True, "512", [512], 2**70, {"a": 1}, -1, 0],
    "cutout.foreground_ratio": [0.09, 1.01, float("nan"), float("inf"), 1e309, True, "0.5", 10**400],
    "cutout.mask": ["alhpa", "", 1, True, ["auto"]],
}
WRONG_CASES = [(key, value) for key, values in WRONG.items() for value in values]


@pytest.mark.parametrize(
    ("key", "value"), WRONG_CASES, ids=[f"{key}-{index}" for index, (key, _) in enumerate(WRONG_CASES)]
)
def test_a_wrong_value_of_a_flag_is_a_usage_error_that_names_it(key: str, value: object) -> None:
    message = refuse(UsageError, flags={key: value})
    assert message.startswith(f'flag --{key.removeprefix("cutout.").replace("_", "-")}: "{key}" is ')
    assert "expected" in message


@pytest.mark.parametrize("text", ["nan", "inf", "1e309", "9" * 5000, "abc", "true", "-1", "0x50"])
@pytest.mark.parametrize("key", ["cutout.size", "cutout.foreground_ratio"])
def test_a_wrong_text_is_refused_with_the_code_of_its_source(key: str, text: str) -> None:
    variable = next(row.variable for row in describe() if row.key == key)
    assert UsageError.exit_code == 2
    assert SettingsError.exit_code == 78
    refuse(UsageError, set_flags=[f"{key}={text}"])
    assert variable in refuse(SettingsError, environ={variable: text})


@pytest.mark.parametrize("value", [64, 4096])
def test_bounds_are_inclusive(value: int) -> None:
    assert load(set_flags=[f"cutout.size={value}"]).settings.cutout.size == value


def test_a_whole_number_is_also_a_number() -> None:
    ratio = load(flags={"cutout.foreground_ratio": 1}).settings.cutout.foreground_ratio
    assert ratio == 1.0
    assert type(ratio) is float


def test_a_bad_choice_names_the_choices_and_the_nearest() -> None:
    message = refuse(UsageError, set_flags=["cutout.mask=alhpa"])
    assert message.endswith(
        '"cutout.mask" is "alhpa", expected one of auto, alpha, remove, keep; did you mean "alpha"?'
    )


def test_an_unknown_key_names_the_nearest(tmp_path: Path) -> None:
    def message(text: str) -> str:
        path = write(tmp_path / "zero123.toml", text)
        return refuse(SettingsError, project_file=path).removeprefix(f"{path}: ")

    wrong = 'unknown key "cutout.forground_ratio"; did you mean "foreground_ratio"?'
    assert message("[cutout]\nforground_ratio = 0.5") == wrong
    assert message("[cutuot]\nsize = 100") == 'unknown key "cutuot.size"; did you mean "cutout.size"?'
    assert message("foreground_ratio = 1") == 'unknown key "foreground_ratio"; did you mean "cutout.foreground_ratio"?'
    twice = 'did you mean "cutout.size"? did you mean "lift.size"?'
    assert message("[zzzzzzz]\nsize = 1") == f'unknown key "zzzzzzz.size"; {twice}'
    assert message("zzzz = 100") == 'unknown key "zzzz"; `zero123 presets show` lists every key'
    assert message("cutout = 5") == '"cutout" is 5, expected a table of settings'
    assert "unknown key" in refuse(UsageError, flags={"cutout.sise": 100})
    assert "unknown key" in refuse(UsageError, set_flags=["\x1b[31mcutout.size=100"])


def test_a_single_step_of_a_walk_that_drops_its_first_is_refused(tmp_path: Path) -> None:
    message = refuse(SettingsError, project_file=write(tmp_path / "p.toml", "[views]\nsteps = 1\n"))
    assert "drops the first" in message and f"project file {tmp_path}" in message
    assert "flag --steps" in refuse(UsageError, flags={"views.steps": 1})
    assert load(flags={"views.steps": 1, "views.sampler": "ddim"}).settings.views.steps == 1
    assert load(flags={"views.steps": 2}).settings.views.steps == 2


@pytest.mark.parametrize("mask", ["alpha", "keep"])
def test_a_cutter_that_would_never_run_is_refused(tmp_path: Path, mask: str) -> None:
    table = f'[cutout]\ncutter = "u2net"\nmask = "{mask}"\n'
    message = refuse(SettingsError, project_file=write(tmp_path / "p.toml", table))
    assert "never run" in message
    assert f"project file {tmp_path}" in message
    assert "flag --mask" in refuse(UsageError, flags={"cutout.mask": mask}, environ={"ZERO123_CUTOUT_CUTTER": "u2net"})
    assert load(flags={"cutout.mask": mask, "cutout.cutter": "auto"}).settings.cutout.mask == mask
    assert load(flags={"cutout.mask": "remove", "cutout.cutter": "u2net"}).settings.cutout.cutter == "u2net"


# A wider tree than today's: top-level knobs, every type of value


@dataclass(frozen=True)
class LiftSettings(settings.LiftSettings):
    lengths: tuple[float, ...] = knob((1.0, 2.0), "lengths, in sides of the box", low=0)
    exact: bool = knob(False, "whether to be exact")
    note: str = knob("", "free text")
    limit: float | None = knob(None, "a limit, s; none when left out", low=1.5)
    factor: Literal[1, 2, 4] = knob(1, "how much finer")


@dataclass(frozen=True)
class WiderSettings:
    seed: int = knob(0, "where randomness starts", low=0)
    cutout: CutoutSettings = field(default_factory=CutoutSettings)
    views: settings.ViewsSettings = field(default_factory=settings.ViewsSettings)
    lift: LiftSettings = field(default_factory=LiftSettings)


@pytest.fixture
def wider(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "Settings", WiderSettings)


VALUES: dict[str, tuple[object, str]] = {
    "seed": (7, "7"),
    "cutout.keep": ("all", "all"),
    "lift.lengths": ((0.5, 3.0), "[0.5, 3]"),
    "lift.exact": (True, "true"),
    "lift.note": ("a=b", '"a=b"'),
    "lift.limit": (2.0, "2"),
    "lift.factor": (4, "4"),
}
TOML = 'seed = 7\ncutout.keep = "all"\n[lift]\nlengths = [0.5, 3]\nexact = true\nnote = "a=b"\nlimit = 2\nfactor = 4\n'


@pytest.mark.usefixtures("wider")
def test_every_type_reads_alike_from_every_source(tmp_path: Path) -> None:
    expected = {key: value for key, (value, _) in VALUES.items()}
    rows = {row.key: row for row in describe(WiderSettings)}
    sources: list[Loaded] = [
        load(project_file=write(tmp_path / "p.toml", TOML)),
        load(environ={rows[key].variable: text for key, (_, text) in VALUES.items()}),
        load(set_flags=[f"{key}={text}" for key, (_, text) in VALUES.items()]),
        load(flags=expected),
    ]
    for loaded in sources:
        assert differences(loaded.settings) == expected
        assert {key for key, origin in loaded.origins.items() if origin != "default"} == set(expected)


@pytest.mark.usefixtures("wider")
def test_knobs_left_out_keep_their_default() -> None:
    loaded: Any = load().settings
    assert loaded == WiderSettings()
    assert loaded.lift.limit is None


@pytest.mark.usefixtures("wider")
@pytest.mark.parametrize(
    "text",
    [
        "seed = -1",
        "seed = true",
        "seed = 9223372036854775808",
        "[seed]\na = 1",
        "[lift]\nlengths = 1.0",
        "[lift]\nlengths = [1, true]",
        "[lift]\nlengths = [1, nan]",
        "[lift]\nlengths = [1, -1]",
        "[lift]\nexact = 1",
        '[lift]\nexact = "yes"',
        "[lift]\nnote = 1979-05-27",
        "[lift]\nlimit = 1",
        "[lift]\nfactor = 3",
        "[lift]\nfactor = true",
        "[lift]\nfactor = 1.0",
    ],
)
def test_every_type_refuses_what_does_not_fit(tmp_path: Path, text: str) -> None:
    refuse(SettingsError, project_file=write(tmp_path / "p.toml", text))


def test_one_sided_bounds_are_described() -> None:
    rows = {row.key: row for row in describe(WiderSettings)}
    assert rows["seed"].allowed == "at least 0"
    assert rows["lift.note"].allowed == ""
    assert rows["lift.lengths"].type_text == "a list of numbers"


# Presets


def test_every_shipped_preset_loads_and_has_a_summary() -> None:
    shown = settings.list_presets([SHIPPED])
    assert {"cpu", "fine", "original-framing"} <= {info.name for info in shown}
    for info in shown:
        assert info.summary.strip()
        loaded = load(preset=info.name, preset_folders=[SHIPPED])
        assert loaded.preset == info.name
        stated = {key for key, origin in loaded.origins.items() if origin == f"preset {info.name}"}
        extends = settings._read_preset(info.path)[1]
        base = flatten(load(preset=extends or "cpu", preset_folders=[SHIPPED]).settings)
        own = flatten(loaded.settings)
        assert stated == {key for key in own if own[key] != base[key]}  # a preset states only differences


def test_shipped_presets_say_what_they_promise() -> None:
    framing = load(preset="original-framing", preset_folders=[SHIPPED]).settings.cutout
    assert framing.size * framing.foreground_ratio == 200
    assert load(preset="fine", preset_folders=[SHIPPED]).settings.cutout.size == 1024
    assert load(preset_folders=[SHIPPED]).settings == Settings()


def test_who_asks_for_a_preset_follows_the_ladder(tmp_path: Path) -> None:
    names = ["cpu", "from-user", "from-project", "from-environment", "from-flag"]
    for name in names:
        write_preset(tmp_path / "presets", name)
    given: dict[str, Any] = {"preset_folders": [tmp_path / "presets"]}
    steps: list[dict[str, Any]] = [
        {},
        {"user_file": write(tmp_path / "user.toml", 'preset = "from-user"')},
        {"project_file": write(tmp_path / "zero123.toml", 'preset = "from-project"')},
        {"environ": {"ZERO123_PRESET": "from-environment"}},
        {"preset": "from-flag"},
    ]
    for name, step in zip(names, steps, strict=True):
        given |= step
        assert load(**given).preset == name


def test_the_first_folder_that_has_a_name_wins(tmp_path: Path) -> None:
    first = write_preset(tmp_path / "a", "mine", "cutout.size = 100")
    write_preset(tmp_path / "b", "mine", "cutout.size = 200")
    write_preset(tmp_path / "b", "other")
    folders = [tmp_path / "a", tmp_path / "b", tmp_path / "missing"]
    assert load(preset="mine", preset_folders=folders).settings.cutout.size == 100
    assert [info.name for info in settings.list_presets(folders)] == ["mine", "other"]
    assert settings.list_presets(folders)[0].path == first


def test_a_preset_may_be_a_file(tmp_path: Path) -> None:
    path = str(write_preset(tmp_path, "My Own", 'extends = "fine"\ncutout.keep = "all"'))
    loaded = load(preset=path, preset_folders=[SHIPPED])
    assert (loaded.preset, loaded.settings.cutout) == (path, CutoutSettings(size=1024, keep="all"))
    assert loaded.origins["cutout.keep"] == f"preset {path}"
    assert loaded.origins["cutout.size"] == "preset fine"


@pytest.mark.parametrize("name", ["./missing", "missing.toml", "../missing.toml"])
def test_a_preset_file_that_is_not_there_is_a_missing_input(name: str) -> None:
    refuse(MissingInputError, preset=name, preset_folders=[SHIPPED])


def test_an_unknown_preset_is_the_fault_of_who_asked(tmp_path: Path) -> None:
    folders = [SHIPPED]
    message = refuse(UsageError, preset="fien", preset_folders=folders)
    assert 'unknown preset "fien"; did you mean "fine"?' in message
    assert "`zero123 presets list`" in message
    assert "ZERO123_PRESET" in refuse(SettingsError, environ={"ZERO123_PRESET": "fien"}, preset_folders=folders)
    path = write(tmp_path / "zero123.toml", 'preset = "fien"')
    assert str(path) in refuse(SettingsError, project_file=path, preset_folders=folders)
    asking = write_preset(tmp_path, "asking", 'extends = "fien"')
    assert str(asking) in refuse(SettingsError, preset=str(asking), preset_folders=folders)
    refuse(SettingsError, preset_folders=[tmp_path / "none"])
    refuse(UsageError, preset="", preset_folders=folders)


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "..", "a/../../secret", "secret.toml", "Secret", "x\\y"])
def test_files_and_the_environment_cannot_name_a_path(tmp_path: Path, name: str) -> None:
    write_preset(tmp_path, "secret", "cutout.size = 100")
    write_preset(tmp_path, "Secret", "cutout.size = 100")
    folder = tmp_path / "presets"
    write_preset(folder, "asking", f"extends = '{name}'")
    refuse(SettingsError, preset="asking", preset_folders=[folder])
    refuse(SettingsError, environ={"ZERO123_PRESET": name}, preset_folders=[folder])
    refuse(SettingsError, project_file=write(tmp_path / "p.toml", f"preset = '{name}'"), preset_folders=[folder])


def test_an_extended_preset_is_weaker_than_the_one_that_extends_it(tmp_path: Path) -> None:
    write_preset(tmp_path, "base", 'cutout.size = 100\ncutout.keep = "all"')
    write_preset(tmp_path, "top", 'extends = "base"\ncutout.size = 200')
    loaded = load(preset="top", preset_folders=[tmp_path])
    assert loaded.settings.cutout == CutoutSettings(size=200, keep="all")
    assert loaded.origins["cutout.size"] == "preset top"
    assert loaded.origins["cutout.keep"] == "preset base"


def test_a_circle_of_presets_is_refused(tmp_path: Path) -> None:
    for name, extended in {"self": "self", "a": "b", "b": "a"}.items():
        write_preset(tmp_path, name, f'extends = "{extended}"')
    assert "extends itself" in refuse(SettingsError, preset="self", preset_folders=[tmp_path])
    assert "extends itself" in refuse(SettingsError, preset="a", preset_folders=[tmp_path])


def test_a_chain_of_four_presets_is_the_longest(tmp_path: Path) -> None:
    write_preset(tmp_path, "p1", "cutout.size = 100")
    for number in range(2, 6):
        write_preset(tmp_path, f"p{number}", f'extends = "p{number - 1}"')
    assert load(preset="p4", preset_folders=[tmp_path]).settings.cutout.size == 100
    refuse(SettingsError, preset="p5", preset_folders=[tmp_path])


@pytest.mark.parametrize("text", ["", 'summary = ""', "summary = 5", 'summary = "a\\nb"', f'summary = "{"x" * 201}"'])
def test_a_preset_needs_a_summary_of_one_line(tmp_path: Path, text: str) -> None:
    write(tmp_path / "mine.toml", text)
    assert "summary" in refuse(SettingsError, preset="mine", preset_folders=[tmp_path])
    with pytest.raises(SettingsError):
        settings.list_presets([tmp_path])


def test_words_of_presets_and_of_configurations_stay_apart(tmp_path: Path) -> None:
    write_preset(tmp_path, "mine", 'preset = "mine"')
    assert "unknown key" in refuse(SettingsError, preset="mine", preset_folders=[tmp_path])
    for text in ('summary = "a"', 'extends = "cpu"', "preset = 5"):
        refuse(SettingsError, project_file=write(tmp_path / "p.toml", text))


# Hostile files (reliability plan, 7.I)

HOSTILE: dict[str, str | bytes] = {
    "I1 code tag": '!!python/object/apply:os.system ["touch marker"]',
    "I1 code tag as a value": "[cutout]\nsize = !!python/name:os.system",
    "I1 dotted target": '[cutout]\ntarget = "os.system"\n',
    "I1 target table": '[cutout._target_]\n_target_ = "os.system"\nargs = ["touch marker"]\n',
    "I1 interpolation": '[cutout]\nsize = "${oc.env:HOME}"\n',
    "I1 shell": '[cutout]\nmask = "$(touch marker)"\n',
    "I1 backticks": '[cutout]\ncutter = "`touch marker`"\n',
    "I1 dunder": '__class__ = "os"\n',
    "I1 expression": "[cutout]\nsize = \"__import__('os').system('touch marker')\"\n",
    "I2 duplicate key": "[cutout]\nsize = 100\nsize = 200\n",
    "I2 duplicate table": "[cutout]\nsize = 100\n[cutout]\nsize = 200\n",
    "I2 duplicate by dots": "cutout.size = 100\n[cutout]\nsize = 200\n",
    "I2 quoted dotted key": '"cutout.size" = 100\n',
    "I2 unknown key": "[cutout]\nsise = 100\n",
    "I2 unknown empty table": "[zzz]\n",
    "I2 yaml yes": "[cutout]\nsize = yes\n",
    "I2 yaml norway": "[cutout]\nkeep = no\n",
    "I2 yaml octal": "[cutout]\nsize = 0100\n",
    "I2 yaml sexagesimal": "[cutout]\nsize = 1:30\n",
    "I2 two documents": "---\ncutout: {}\n---\ncutout: {}\n",
    "I2 list at the top": "[1, 2, 3]",
    "I2 text at the top": '"cutout"',
    "I2 array of tables": "[[cutout]]\nsize = 100\n",
    "I2 json": '{"cutout": {"size": 100}}',
    "I3 alias bomb": "a: &a [1]\nb: &b [*a, *a]\n",
    "I3 nested lists": "x = " + "[" * 100_000 + "]" * 100_000,
    "I3 nested tables": "x = " + "{a=" * 50_000,
    "I3 dotted key": ".".join(["a"] * 100_000) + " = 1",
    "I3 dotted table": "[" + ".".join(["a"] * 100_000) + "]",
    "I3 dots under one table": "[" + ".".join("a" * 65) + "]\n" + "\n".join(f"b{n} = 1" for n in range(25_000)),
    "I3 whole number of 5,000 digits": "[cutout]\nsize = " + "9" * 5000,
    "I3 hexadecimal of 100,000 digits": "[cutout]\nsize = 0x" + "f" * 100_000,
    "I3 number of 5,000 digits": "[cutout]\nforeground_ratio = " + "9" * 5000 + ".5",
    "I3 infinity": "[cutout]\nforeground_ratio = 1e309",
    "I3 nan": "[cutout]\nforeground_ratio = nan",
    "I3 text of 1 MB": '[cutout]\nmask = "' + "a" * 2**20 + '"',
    "I3 text of 200 kB": '[cutout]\nmask = "' + "a" * 200_000 + '"',
    "I3 key of 200 kB": "[cutout]\n" + "a" * 200_000 + " = 1",
    "I3 table of 200 kB declared twice": ("[" + "a" * 100_000 + "]\n") * 2,
    "I3 open text": '[cutout]\nmask = """' + "a\n" * 100_000,
    "I3 NUL": "[cutout]\nsize = 100\x00\n",
    "I3 escape": "\x1b[2J = 1\n",
    "I3 escaped control in a key": '"\\u001b[2J\\n" = 1\n',
    "I3 right-to-left override": '"\u202egnp" = 1\n',
    "I3 UTF-16": "[cutout]\nsize = 100\n".encode("utf-16"),
    "I3 UTF-16 without a mark": "[cutout]\nsize = 100\n".encode("utf-16-le"),
    "I3 Latin-1": '[cutout]\nmask = "\u00e9"\n'.encode("latin-1"),
    "I3 surrogate": b'[cutout]\nmask = "\xed\xa0\x80"\n',
    "I3 random": bytes(range(256)) * 100,
    "I4 too small": "[cutout]\nsize = 0\n",
    "I4 too large": "[cutout]\nsize = 1000000000000000000\n",
    "I4 negative": "[cutout]\nforeground_ratio = -0.5\n",
    "I4 climbing extends": 'extends = "../../etc/passwd"\n',
    "I4 absolute extends": 'extends = "/etc/passwd"\n',
    "I4 self-include": 'extends = "hostile"\n',
}


@pytest.mark.parametrize("kind", ["preset", "project file", "user file"])
@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_file_is_refused_quickly_and_runs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | bytes, kind: str
) -> None:
    monkeypatch.chdir(tmp_path)
    data = content.encode() if isinstance(content, str) else content
    path = tmp_path / "hostile.toml"
    path.write_bytes(b'summary = "hostile"\n' + data if kind == "preset" else data)
    by_kind: dict[str, dict[str, Any]] = {
        "preset": {"preset": "hostile", "preset_folders": [tmp_path]},
        "project file": {"project_file": path},
        "user file": {"user_file": path},
    }
    start = time.perf_counter()
    message = refuse(SettingsError, **by_kind[kind])
    assert time.perf_counter() - start < 1
    assert message.startswith(f"{path}: ")
    assert [left.name for left in tmp_path.iterdir()] == ["hostile.toml"]


def make_folder(path: Path) -> None:
    path.mkdir()


def make_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def make_loop(path: Path) -> None:
    path.symlink_to(path)


def make_large(path: Path) -> None:
    path.write_bytes(b'summary = "a"\n' + b"#" * 256 * 1024)


@pytest.mark.parametrize("make", [make_folder, os.mkfifo, make_device, make_loop, make_large])
def test_what_is_no_small_plain_file_is_refused(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "odd.toml")
    start = time.perf_counter()
    refuse(SettingsError, project_file=tmp_path / "odd.toml")
    refuse(SettingsError, preset="odd", preset_folders=[tmp_path])
    refuse(SettingsError, preset=str(tmp_path / "odd.toml"))
    assert time.perf_counter() - start < 1


def test_bad_toml_names_the_line(tmp_path: Path) -> None:
    assert "line 3" in refuse(SettingsError, project_file=write(tmp_path / "p.toml", "[cutout]\nsize = 100\nkeep = no"))
    path = tmp_path / "p.toml"
    path.write_bytes(b"[cutout]\n# \xe9\n")
    assert "line 2" in refuse(SettingsError, project_file=path)


def test_auto_states_that_a_knob_has_no_value(tmp_path: Path) -> None:
    """A stronger place can take back what a weaker one states."""
    file = tmp_path / "zero123.toml"
    file.write_text("[views]\nphoto_elevation = 40\n")
    key = "views.photo_elevation"
    assert load(project_file=file).settings.views.photo_elevation == 40
    for how in (
        {"flags": {key: "auto"}},
        {"set_flags": [f"{key}=auto"]},
        {"environ": {"ZERO123_VIEWS_PHOTO_ELEVATION": " auto "}},
    ):
        loaded = load(project_file=file, **how)  # type: ignore[arg-type]
        assert loaded.settings.views.photo_elevation is None
        assert not loaded.origins[key].endswith("zero123.toml")
    file.write_text('[views]\nphoto_elevation = "auto"\n')
    assert load(project_file=file, environ={"ZERO123_VIEWS_PHOTO_ELEVATION": "7"}).settings.views.photo_elevation == 7
    assert load(project_file=file).settings.views.photo_elevation is None
    with pytest.raises(UsageError, match=r'is "high", expected a number from -90 to 90, or "auto"'):
        load(flags={key: "high"})
    with pytest.raises(UsageError, match="expected a whole number"):
        load(set_flags=["seed=auto"])


def test_a_flag_is_called_as_people_spell_it() -> None:
    for key, option in (("lift.scale", "--guidance"), ("lift.refine_steps", "--steps"), ("model.name", "--model")):
        assert load(flags={key: {"model.name": "x"}.get(key, 3)}).origins[key] == f"flag {option}"


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"lift.low_noise": [0.95]}, 'above the 0.9 of "lift.high_noise"'),
        ({"lift.high_noise": [0, 0.9, 100, 0.01]}, "at step 100, above the 0.01"),
        ({"views.sampler": "ddim", "views.steps": 600}, "that of step 600 of 1000"),
        ({"views.sampler": "ddim", "views.steps": 400}, "that of step 800 of 1000"),
    ],
)
def test_noise_that_cannot_be_is_refused(flags: dict[str, Any], said: str) -> None:
    assert said in refuse(UsageError, flags=flags)


@pytest.mark.parametrize("steps", [1, 4, 50, 250, 300, 500, 999])
def test_numbers_of_steps_that_span_the_schedule_pass(steps: int) -> None:
    assert load(flags={"views.sampler": "ddim", "views.steps": steps}).settings.views.steps == steps


def test_a_model_s_own_recipe_is_for_who_asks_for_no_preset(tmp_path: Path) -> None:
    for name in ("cpu", "its-own"):
        (tmp_path / f"{name}.toml").write_text(f'summary = "s"\n[lift]\nsteps = {len(name)}\n')
    (tmp_path / "user.toml").write_text('[model]\nname = "known"\n')
    recipes = {"known": "its-own"}
    plain = {"preset_folders": [tmp_path], "recipes": recipes}
    assert (load(**plain).preset, load(**plain).settings.lift.steps) == ("cpu", 3)
    for stated in ({"flags": {"model.name": "known"}}, {"user_file": tmp_path / "user.toml"}):
        found = load(**plain, **stated)
        assert (found.preset, found.settings.lift.steps) == ("its-own", 7)
        assert load(**plain, **stated, preset="cpu").preset == "cpu"
        assert load(**plain, **stated, environ={"ZERO123_PRESET": "cpu"}).preset == "cpu"


def test_every_published_model_has_a_recipe_here_and_on_a_card() -> None:
    presets = {info.name for info in list_presets([SHIPPED])}
    assert {*models.recipes(on_card=True).values(), *models.recipes(on_card=False).values()} <= presets
    assert models.recipes(on_card=True)["stable-zero123"] == "stable-zero123"
    assert models.recipes(on_card=True)["zero123-xl"] == "zero123-xl"
