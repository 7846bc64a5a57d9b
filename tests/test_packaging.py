"""What `pip` makes of the checkout: a wheel that carries presets and assets, and pins that agree with the ranges."""

from __future__ import annotations

import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINS = {
    need.name.lower().replace("_", "-"): next(iter(need.specifier)).version
    for line in (ROOT / "constraints.txt").read_text().splitlines()
    if (need := Requirement(line) if line and not line.startswith("#") else None)
}
BARRED = {"pymaxflow", "pymeshlab", "pymeshfix", "nvdiffrast", "diso", "torchvision", "tinycudann"}


def needs(extra: str = "") -> list[Requirement]:
    lines = PROJECT["optional-dependencies"][extra] if extra else PROJECT["dependencies"]
    return [Requirement(line) for line in lines]


def test_every_dependency_is_pinned_inside_its_range() -> None:
    for need in needs() + needs("heic") + needs("test"):
        name = need.name.lower().replace("_", "-")
        assert name in PINS, name
        assert need.specifier.contains(PINS[name]), f"{name}: {PINS[name]} is not in {need.specifier}"


def test_pyproject_keeps_ranges() -> None:
    for need in needs():
        assert not any(part.operator == "==" for part in need.specifier), need


def test_nothing_barred_is_asked_for() -> None:
    for extra in ("", *PROJECT["optional-dependencies"]):
        assert not BARRED & {need.name.lower() for need in needs(extra)}


def test_marching_cubes_are_to_be_had_on_every_python() -> None:
    """PyMCubes has no wheel for 3.13; scikit-image is always there."""
    (cubes,) = (need for need in needs() if need.name == "PyMCubes")
    assert cubes.marker
    assert cubes.marker.evaluate({"python_version": "3.12"})
    assert not cubes.marker.evaluate({"python_version": "3.13"})
    assert any(need.name == "scikit-image" for need in needs())


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pytest.importorskip("hatchling", reason="the build backend is not installed")
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet"]
    subprocess.run([*pip, "--wheel-dir", str(folder), str(ROOT)], check=True, timeout=120, capture_output=True)
    (made,) = folder.glob("*.whl")
    return made


def test_wheel_carries_presets_and_assets(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder in ("presets", "assets"):
        for path in (ROOT / folder).iterdir():
            assert f"zero123cli/{folder}/{path.name}" in names
    assert not any(name.startswith(("tests/", "presets/", "assets/")) for name in names)


def test_program_runs_from_the_wheel_alone(wheel: Path, tmp_path: Path) -> None:
    """Unpacked and first on the path, far from the checkout: the presets are those inside."""
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r})\n"
        "from zero123cli import machine\n"
        "assert 'site' in str(machine.shipped('presets')), machine.shipped('presets')\n"
        "from zero123cli.cli import main\nmain(['presets', 'list'])"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    assert "cpu" in run.stdout
