"""What the machine module answers, and the table of weights on top of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import Photographer, Program

from zero123cli import machine, models
from zero123cli.cli.reports import file_report
from zero123cli.cli.session import name_root
from zero123cli.errors import UnavailableError, WeightsError


def test_shipped_folders_are_there() -> None:
    assert (machine.shipped("presets") / "cpu.toml").is_file()
    for name in ("coffee.jpg", "pocket.safetensors", "pocket-cutter.onnx"):
        assert (machine.shipped("assets") / name).is_file()


def test_everything_shipped_names_its_licence() -> None:
    told = (machine.shipped("assets") / "README.md").read_text()
    for path in machine.shipped("assets").iterdir():
        assert path.name == "README.md" or f"`{path.name}`" in told


def test_auto_takes_what_is_there() -> None:
    import torch

    backend = machine.pick()
    assert backend.device == ("cuda:0" if torch.cuda.is_available() else backend.device)
    assert backend.dtype in ("float32", "float16", "bfloat16")


def test_cpu_and_dtype_are_taken_at_their_word() -> None:
    assert machine.pick("cpu", "float32").device == "cpu"
    assert machine.pick("cpu", "float32").dtype == "float32"


def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(UnavailableError, match="no CUDA device 99") as error:
        machine.pick("cuda:99")
    assert error.value.exit_code == 69


HOMELESS = """
import platformdirs
def ask(*_, **__): raise RuntimeError("could not determine the home directory")
for kind in ("config", "cache", "log", "data"): setattr(platformdirs, f"user_{kind}_dir", ask)
"""


@pytest.mark.slow
def test_a_user_without_a_home_can_do_what_needs_none(zero123: Program, photo: Photographer) -> None:
    """As the number of a user that a container knows nothing of."""
    photo("a.png", 1)
    none = {"ZERO123_CACHE_DIR": None}
    assert zero123.wrapped(HOMELESS, "cutout", "a.png", "-o", "b.png", "--no-cache", env=none).stdout == "b.png\n"
    zero123.wrapped(HOMELESS, "cutout", "a.png", "-o", "c.png", "--cache-dir", "kept", env=none)
    Path(zero123.folder / "objects").mkdir()
    zero123.wrapped(HOMELESS, "eval", "views", "objects", "--model", "white", "--no-cache", env=none, code=66)
    for call in (("cutout", "a.png", "-o", "d.png"), ("cache", "dir")):
        run = zero123.wrapped(HOMELESS, *call, env=none, code=69)
        assert "error[69]: this user has no home folder; set HOME, or" in run.stderr


def test_a_fault_of_ours_is_told_also_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(*_: object, **__: object) -> str:
        raise RuntimeError

    monkeypatch.setattr("platformdirs.user_cache_dir", lambda *_, **__: "~/.cache/zero123")  # as older ones do
    with pytest.raises(UnavailableError, match="no home"):
        machine.cache_folder()
    assert name_root(Path("/a b")) == " --cache-dir '/a b'"
    monkeypatch.setattr("platformdirs.user_log_dir", ask)
    assert "-vv" in file_report(ValueError("x")).remedy


def test_project_file_is_the_nearest_upwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    (tmp_path / "zero123.toml").write_text("")
    monkeypatch.chdir(inner)
    assert machine.project_file() == tmp_path / "zero123.toml"
    (tmp_path / "a" / "zero123.toml").write_text("")
    assert machine.project_file() == tmp_path / "a" / "zero123.toml"


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, ["~/.rembg/models/u2net", "~/.u2net"]),
        ({"U2NET_HOME": "/w"}, ["/w/models/u2net", "/w"]),
        ({"XDG_DATA_HOME": "/d"}, ["/d/rembg/models/u2net", "/d/.u2net"]),
        ({"REMBG_HOME": "/r"}, ["/r/models/u2net", "~/.u2net"]),
        ({"REMBG_HOME": "/r", "XDG_DATA_HOME": "/d"}, ["/r/models/u2net", "/d/.u2net"]),
        ({"U2NET_HOME": "/w", "REMBG_HOME": "/r"}, ["/w/models/u2net", "/w"]),
    ],
)
def test_weights_are_looked_for_where_rembg_looks(
    environ: dict[str, str], expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("U2NET_HOME", "XDG_DATA_HOME", "REMBG_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    folders = [Path(path).expanduser() for path in expected]
    assert machine.cutter_folders("u2net", environ) == folders
    # rembg's own answer is the oracle.
    from zero123cli.cutters import import_sessions

    session = import_sessions()["u2net"]
    assert [Path(session.model_dir()), Path(session.legacy_home())] == folders  # type: ignore[attr-defined]  # rembg's class


def test_weights_are_found_and_held_against_their_digest(tmp_path: Path) -> None:
    environ = {"U2NET_HOME": str(tmp_path)}
    assert models.find_cutter("u2netp", environ) is None
    path = tmp_path / "u2netp.onnx"
    path.write_bytes(b"x")
    assert models.find_cutter("u2netp", environ) == path
    models.check_cutter("u2netp", path, {"md5": models.CUTTERS["u2netp"].md5, "sha256": ""})
    with pytest.raises(WeightsError, match="not the published u2netp weights"):
        models.check_cutter("u2netp", path, {"md5": "0" * 32, "sha256": ""})


def test_the_fetch_command_is_ours() -> None:
    assert models.fetch_command("u2net") == "zero123 models pull u2net"


def test_deleted_current_folder_is_named_before_torch_ends_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(UnavailableError, match="was deleted"):
        machine.refuse_deleted_folder()


@pytest.mark.parametrize("name", [name for name, weights in models.CUTTERS.items() if weights.digest])
def test_every_cutter_with_a_published_digest_is_held_against_it(name: str) -> None:
    """rembg pins one of them by another kind of digest than the rest."""
    with pytest.raises(WeightsError, match="not the published"):
        models.check_cutter(name, Path("x.onnx"), {"md5": "0" * 32, "sha256": "0" * 64})
