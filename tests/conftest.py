"""What all tests share: a private home, small photos, and the program run as people and scripts run it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from zero123cli.cache import entries

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when triton is first imported, which diffusers does

SHARED = Path(__file__).resolve().parents[2] / "shared"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the folder shared/ is not beside this checkout")

PROGRAM = (sys.executable, "-W", "error", "-m", "zero123cli")
PRIVATE = ("CACHE", "CONFIG", "DATA", "STATE")  # XDG_..._HOME
STRAY = [
    "U2NET_HOME",
    "REMBG_HOME",
    "NO_COLOR",
    "CI",
    "GITHUB_ACTIONS",
    "FORCE_COLOR",
    "PY_COLORS",
    "COLUMNS",
    "LINES",
    "TERM",
    "PYTHONDONTWRITEBYTECODE",  # every start would compile the program anew
]
TIME_OUT = 60.0  # s; a run that takes longer hangs

Finished = subprocess.CompletedProcess[str]
Fixtures = tuple[pytest.MonkeyPatch, pytest.CaptureFixture[str]]


@pytest.fixture(autouse=True)
def private_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nothing of the person who runs the tests is read or written."""
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(home))
    for name in PRIVATE:
        monkeypatch.setenv(f"XDG_{name}_HOME", str(home / name.lower()))
    for name in [*STRAY, *(name for name in os.environ if name.startswith("ZERO123_"))]:
        monkeypatch.delenv(name, raising=False)
    return home


@pytest.fixture
def cache_root(private_home: Path) -> Path:
    """Where the program keeps its stages unless told otherwise."""
    return private_home / "cache" / "zero123"


# Photos ---------------------------------------------------------------------------------------------------------------


def paint_disc(seed: int = 0, *, alpha: bool = False, height: int = 120, width: int = 160) -> np.ndarray:
    """A textured red disc on plain blue; with `alpha` what is not the disc is transparent."""
    y, x = np.mgrid[:height, :width]
    disc = (y - height / 2) ** 2 + (x - width / 2) ** 2 < (0.3 * height) ** 2
    picture = np.empty((height, width, 4), np.uint8)
    picture[...] = (70, 110, 190, 0 if alpha else 255)
    stripes = ((x // 4 + y // 6 + seed) % 2 * 60).astype(np.uint8)
    for channel, level in enumerate((180, 40, 30)):
        picture[..., channel][disc] = (level + stripes // (channel + 1))[disc]
    picture[..., 3][disc] = 255
    picture[0, 0, 2] = 190 + seed % 50  # another seed is always another photo
    return picture if alpha else picture[..., :3]


def photo_bytes(seed: int = 0, kind: str = "PNG", *, alpha: bool = True) -> bytes:
    """With alpha no cutter runs, which is quick; without it one of our own cuts the disc out."""
    page = BytesIO()
    Image.fromarray(paint_disc(seed, alpha=alpha and kind == "PNG")).save(page, kind)
    return page.getvalue()


def plain_bytes(colour: Sequence[int] = (255, 255, 255)) -> bytes:
    """A photo of nothing at all."""
    page = BytesIO()
    Image.fromarray(np.full((120, 160, len(colour)), colour, np.uint8)).save(page, "PNG")
    return page.getvalue()


Photographer = Callable[..., Path]


@pytest.fixture
def photo(tmp_path: Path) -> Photographer:
    """Puts a photo into the test's folder and hands back its name there."""

    def put(name: str = "disc.png", seed: int = 0, *, alpha: bool = True, data: bytes | None = None) -> Path:
        place = tmp_path / name
        place.parent.mkdir(parents=True, exist_ok=True)
        kind = "JPEG" if name.lower().endswith((".jpg", ".jpeg")) else "PNG"
        place.write_bytes(photo_bytes(seed, kind, alpha=alpha) if data is None else data)
        return Path(name)

    return put


# The program ----------------------------------------------------------------------------------------------------------


class Program:
    """Runs `zero123` in a folder of its own and holds every run against what the contract says of all of them."""

    def __init__(self, folder: Path, cache_root: Path) -> None:
        self.folder = folder
        self.caches = {cache_root}

    def __call__(
        self,
        *arguments: str | os.PathLike[str] | bytes,
        code: int = 0,
        stdin: bytes = b"",
        env: Mapping[str, str | None] | None = None,
        prefix: Sequence[str] = PROGRAM,
        traceback: bool = False,
        **options: Any,
    ) -> Finished:
        """Runs to the end; `env` adds variables, or takes away those that are None."""
        if "stdin" not in options:
            options["input"] = stdin
        wanted = {"cwd": self.folder, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "timeout": TIME_OUT}
        raw = subprocess.run([*prefix, *arguments], env=environment(env), **(wanted | options))
        finished = Finished(raw.args, raw.returncode, as_text(raw.stdout), as_text(raw.stderr))
        self.check(finished, code, traceback=traceback)
        return finished

    def wrapped(self, script: str, *arguments: str | os.PathLike[str], **options: Any) -> Finished:
        """As above, with something in the program changed first by a piece of Python."""
        return self(*arguments, prefix=self.wrapper(script), **options)

    def wrapper(self, script: str) -> tuple[str, ...]:
        """The command that runs `script`, then the program in the same process."""
        place = self.folder / ".wrapper.py"
        place.write_text(textwrap.dedent(script) + "\nfrom zero123cli.cli import main\nmain()\n")
        return (*PROGRAM[:-2], str(place))

    def check(self, run: Finished, code: int, *, traceback: bool = False) -> None:
        """The oracle: true of every run, whatever it was for."""
        told = f"{run.args}\nexit {run.returncode}\n{run.stdout}\n{run.stderr}"
        assert run.returncode == code, told
        assert run.returncode != 1, told
        assert ("Traceback" in run.stderr) == traceback, told
        assert "\r" not in run.stderr + run.stdout, told
        if run.stdout and "cutout" in run.args and not {"--help", "-h"} & set(run.args):
            for line in run.stdout.splitlines():
                if "--json" in run.args:
                    assert {"status", "code"} <= json.loads(line).keys(), told
                elif code == 0:
                    assert (self.folder / line).is_file(), told
        if code and "--json" in run.args and run.stdout:
            codes = [json.loads(line).get("code") for line in run.stdout.splitlines()]
            assert code in codes and codes[-1] is not None, told
        assert not leftovers(self.folder), told
        for root in self.caches:
            assert not [entry for entry in entries(root, check=True) if entry.damage], told
            assert not list(root.glob("drafts/*")), told


def leftovers(folder: Path) -> list[Path]:
    return list(folder.rglob(".zero123-*.tmp"))


def as_text(data: bytes | None) -> str:
    """What was printed, nothing lost: `os.fsencode` gives the bytes back."""
    return (data or b"").decode("utf-8", "surrogateescape")


def environment(changes: Mapping[str, str | None] | None = None) -> dict[str, str]:
    changed = {**os.environ, **(changes or {})}
    return {name: value for name, value in changed.items() if value is not None}


@pytest.fixture
def zero123(tmp_path: Path, cache_root: Path) -> Program:
    return Program(tmp_path, cache_root)


@pytest.fixture
def ordinary() -> tuple[str, ...]:
    """The program without root's right to pass over permissions."""
    if os.name == "nt":
        pytest.skip("permissions work otherwise on Windows")
    if os.geteuid() != 0:
        return PROGRAM
    if not sys.platform.startswith("linux") or not shutil.which("setpriv"):
        pytest.skip("root passes over permissions here, and there is no setpriv to give that right up")
    return ("setpriv", "--bounding-set", "-dac_override,-dac_read_search", "--inh-caps", "-all", *PROGRAM)


@pytest.fixture
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """The program in this process: its exit code, for what a subprocess would be a waste of time for."""
    from zero123cli import cli
    from zero123cli.cli.screen import screen

    def call(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["zero123", *arguments])
        screen.__init__()  # type: ignore[misc]  # as in a process of its own
        return cli.run(list(arguments))

    monkeypatch.chdir(tmp_path)
    return call


class Here(Program):
    """The same in this process, for what needs none of its own: no streams, signals, limits or imports are at stake."""

    def __init__(self, folder: Path, cache_root: Path, inside: Callable[..., int], fixtures: Fixtures) -> None:
        super().__init__(folder, cache_root)
        self.inside = inside
        self.monkeypatch, self.capfd = fixtures

    def __call__(
        self,
        *arguments: str | os.PathLike[str] | bytes,
        code: int = 0,
        env: Mapping[str, str | None] | None = None,
        traceback: bool = False,
        **options: Any,
    ) -> Finished:
        assert not options, f"a process of its own is needed for {options}"
        words = [os.fsdecode(argument) for argument in arguments]
        self.capfd.readouterr()
        with self.monkeypatch.context() as changes:
            for name, value in (env or {}).items():
                changes.delenv(name, raising=False) if value is None else changes.setenv(name, value)
            found = self.inside(*words)
        finished = Finished(["zero123", *words], found, *self.capfd.readouterr())
        self.check(finished, code, traceback=traceback)
        return finished


@pytest.fixture
def here(
    tmp_path: Path,
    cache_root: Path,
    inside: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> Program:
    return Here(tmp_path, cache_root, inside, (monkeypatch, capfd))


# `zero123 reconstruct` with a model that knows nothing and is quick about it ------------------------------------------

SMALL = (
    "--model small.safetensors --device cpu --dtype float32 --steps 8 --faces 600 --texture-size 64 --resolution 64"
    " --set lift.size=16 --set lift.photo_size=24 --set lift.fineness=48 --set lift.cells=16 --set lift.walk=1"
    " --set lift.batch=1 --set lift.guidance=0.001 --set lift.start=blob --set cutout.size=128"
)
QUICK = tuple(SMALL.split())


@pytest.fixture(scope="session")
def ball_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pocket model of random weights whose volume is a ball."""
    import small

    from zero123cli.diffusion.volume import VolumeDescription

    net = VolumeDescription(size=32, depth=16, colour=16, fine=16, channels=(16, 32), blocks=1, attention=(False, True))
    model = small.make_model(replace(small.PIXELS, tokens="patches", volume=asdict(net)))
    assert model.volume is not None
    with torch.no_grad():
        last = model.volume.last[-1]
        last.weight.zero_()
        depth = torch.arange(16).repeat_interleave(4)
        last.bias[: 4 * 16] = 12.0 - 3.0 * (depth - 7.5).abs()
    return small.write_compact(tmp_path_factory.mktemp("weights") / "small.safetensors", model)


@pytest.fixture
def desk(tmp_path: Path, ball_weights: Path, photo: Photographer) -> Path:
    """The folder of a test, with the photo of a disc and a model in it."""
    shutil.copyfile(ball_weights, tmp_path / ball_weights.name)
    photo()
    return tmp_path


@pytest.fixture
def reconstruct(inside: Callable[..., int], capfd: pytest.CaptureFixture[str], cache_root: Path) -> Callable[..., Any]:
    """`zero123 reconstruct` in this process: stdout and stderr, held against what is true of every run."""

    def run(*arguments: str, code: int = 0, quick: Sequence[str] = QUICK) -> tuple[str, str]:
        capfd.readouterr()
        found = inside("reconstruct", *arguments, *quick)
        out, err = capfd.readouterr()
        assert found == code, f"exit {found}\n{out}\n{err}"
        assert "Traceback" not in err, err
        assert not list(Path.cwd().rglob(".zero123-*.tmp"))
        assert not [entry for entry in entries(cache_root, check=True) if entry.damage]
        return out, err

    return run


@pytest.fixture(scope="session")
def stages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Room for what the program has kept of the disc: made once, by the first test that asks for it."""
    return tmp_path_factory.mktemp("stages") / "kept"


@pytest.fixture
def warm(stages: Path, reconstruct: Callable[..., Any], cache_root: Path) -> None:
    """All four stages of the disc are there already."""
    if not stages.exists():
        reconstruct("disc.png", "-o", "warm.glb")
        shutil.copytree(cache_root, stages)
    elif not cache_root.exists():
        shutil.copytree(stages, cache_root)


def facts_of(out: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.splitlines()]
