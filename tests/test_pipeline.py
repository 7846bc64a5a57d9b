"""Photo to cutout through the cache, with the real stage and, where weights are at hand, the real network."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors import serialize as serialise
from test_cutout import composite, disc, listen, photo_of
from test_cutters import WEIGHTS, needs_weights

from zero123cli import artifacts, machine, pipeline
from zero123cli.cache import Cache, file_digest, open_cache
from zero123cli.errors import MissingInputError, RefusedError, UnavailableError, WeightsError
from zero123cli.settings import CutoutSettings
from zero123cli.watch import silent

PHOTO = photo_of(composite(disc(200, 260, 100, 100, 60)))


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return open_cache(tmp_path / "cache")


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without any cutter's weights; the folder where rembg would look for them."""
    monkeypatch.setenv("U2NET_HOME", str(tmp_path / "u2net"))
    (tmp_path / "u2net").mkdir()
    return tmp_path / "u2net"


def test_cutout_is_made_once(cache: Cache, bare: Path) -> None:
    settings = CutoutSettings(size=96)
    tool = pipeline.pick_cutter(settings, cache)
    assert not pipeline.has_cutout(PHOTO, settings, tool, cache)
    first = pipeline.cutout(PHOTO, settings, tool, cache, silent)
    assert pipeline.has_cutout(PHOTO, settings, tool, cache)
    second = pipeline.cutout(PHOTO, settings, tool, cache, silent)
    assert (first.hit, second.hit) == (False, True)
    assert (first.artifact.rgba == second.artifact.rgba).all()
    assert first.key == second.key


def test_name_of_the_photo_does_not_matter(cache: Cache, bare: Path) -> None:
    settings = CutoutSettings(size=96)
    tool = pipeline.pick_cutter(settings, cache)
    pipeline.cutout(PHOTO, settings, tool, cache, silent)
    assert pipeline.cutout(artifacts.Photo("other.png", PHOTO.data), settings, tool, cache, silent).hit


def test_without_weights_our_own_network_does_it_and_says_so(cache: Cache, bare: Path) -> None:
    codes, watch = listen()
    tool = pipeline.pick_cutter(CutoutSettings(), cache)
    kept = pipeline.cutout(PHOTO, CutoutSettings(size=96), tool, cache, watch)
    assert kept.artifact.cutter == "pocket-cutter"
    assert codes == ["no-cutter-weights"]
    assert "zero123 models pull u2net" in kept.cautions[0].remedy


def test_asked_for_our_own_network_is_not_warned_of(cache: Cache, bare: Path) -> None:
    settings = CutoutSettings(cutter="pocket-cutter", size=96)
    codes, watch = listen()
    kept = pipeline.cutout(PHOTO, settings, pipeline.pick_cutter(settings, cache), cache, watch)
    assert kept.artifact.cutter == "pocket-cutter"
    assert codes == []


@pytest.fixture
def stripped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installation without the weights that come with it."""
    monkeypatch.setattr(machine, "shipped", lambda name: tmp_path / "nowhere" / name)


def test_our_own_network_is_missed_by_name(cache: Cache, bare: Path, stripped: None) -> None:
    with pytest.raises(WeightsError, match="pocket-cutter did not come"):
        pipeline.pick_cutter(CutoutSettings(cutter="pocket-cutter"), cache)


def test_without_any_weights_colour_does_it_and_says_so(cache: Cache, bare: Path, stripped: None) -> None:
    codes, watch = listen()
    tool = pipeline.pick_cutter(CutoutSettings(), cache)
    kept = pipeline.cutout(PHOTO, CutoutSettings(size=96), tool, cache, watch)
    assert kept.artifact.cutter == "classical"
    assert codes == ["no-cutter-weights"]
    assert "zero123 models pull u2net" in kept.cautions[0].remedy


def test_asked_for_colour_is_not_warned_of(cache: Cache, bare: Path) -> None:
    settings = CutoutSettings(cutter="classical", size=96)
    codes, watch = listen()
    pipeline.cutout(PHOTO, settings, pipeline.pick_cutter(settings, cache), cache, watch)
    assert codes == []


def test_missing_weights_of_a_named_cutter_are_an_error_with_the_command(cache: Cache, bare: Path) -> None:
    with pytest.raises(UnavailableError, match="zero123 models pull birefnet-general"):
        pipeline.pick_cutter(CutoutSettings(cutter="birefnet-general"), cache)


def test_wrong_weights_are_refused_before_they_are_loaded(cache: Cache, bare: Path) -> None:
    (bare / "u2netp.onnx").write_bytes(b"something else")
    for name in ("u2netp", "auto"):
        with pytest.raises(WeightsError, match="not the published u2netp"):
            pipeline.pick_cutter(CutoutSettings(cutter=name), cache)  # type: ignore[arg-type]  # a loop over literals


def test_licence_has_to_be_accepted(cache: Cache, bare: Path) -> None:
    settings = CutoutSettings(cutter="bria-rmbg")
    with pytest.raises(RefusedError, match="non-commercial"):
        pipeline.pick_cutter(settings, cache)
    with pytest.raises(UnavailableError, match="not installed"):
        pipeline.pick_cutter(settings, cache, licence_accepted=True)


@needs_weights
def test_installed_weights_are_taken_and_part_of_the_key(cache: Cache, bare: Path) -> None:
    settings = CutoutSettings(size=96)
    by_colour = pipeline.cutout(PHOTO, settings, pipeline.pick_cutter(settings, cache), cache, silent)
    assert WEIGHTS
    shutil.copy(WEIGHTS, bare / "u2netp.onnx")
    tool = pipeline.pick_cutter(settings, cache)
    assert tool.name == "u2netp"
    by_network = pipeline.cutout(PHOTO, settings, tool, cache, silent)
    assert by_network.artifact.cutter == "u2netp"
    assert by_network.key != by_colour.key
    a, b = (kept.artifact.rgba[..., 3] > 127 for kept in (by_colour, by_network))
    assert (a & b).sum() / (a | b).sum() > 0.85


def test_artifacts_come_back_as_they_went() -> None:
    chance = np.random.default_rng(0)
    cutout = artifacts.Cutout(
        chance.integers(0, 256, (8, 8, 4), dtype=np.uint8), -1.5, 0.1, 1e-9, 640, 480, 0.8, "näme\n"
    )
    back = artifacts.unpack(artifacts.Cutout, artifacts.pack(cutout))
    assert (back.rgba == cutout.rgba).all()
    assert [getattr(back, name) for name in ("left", "top", "side", "photo_width", "cutter")] == [
        -1.5, 0.1, 1e-9, 640, "näme\n",
    ]  # fmt: skip
    assert artifacts.pack(back) == artifacts.pack(cutout)


def test_numbers_that_are_none_are_never_kept() -> None:
    cutout = artifacts.Cutout(np.zeros((2, 2, 4), np.uint8), float("nan"), 0, 1, 2, 2, 0.8, "x")
    with pytest.raises(ValueError, match="JSON compliant"):
        artifacts.pack(cutout)


def with_header(head: object) -> bytes:
    """The beginning of a safetensors file of ours."""
    return serialise({}, metadata={artifacts.HEAD: json.dumps(head)})


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (with_header({"kind": "volume", "licence": "CC0-1.0"}), "CC0-1.0"),
        (with_header({"kind": "volume"}), ""),
        (with_header([]), ""),
        (b"", ""),
        (b"\xff" * 100, ""),
        ((1 << 62).to_bytes(8, "little") + b"{", ""),
    ],
    ids=["told", "untold", "no table", "empty", "noise", "endless"],
)
def test_weights_say_what_may_be_done_with_them(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(content)
    assert pipeline.written_licence(path) == said
    assert pipeline.written_licence(tmp_path) == ""


# What cannot be read --------------------------------------------------------------------------------------------------


def test_weights_that_cannot_be_read_are_missing_input(tmp_path: Path) -> None:
    """As a diffusers folder is whose blobs were pruned."""
    part = tmp_path / "model" / "unet" / "weights.safetensors"
    part.parent.mkdir(parents=True)
    part.symlink_to(tmp_path / "nowhere")
    with pytest.raises(MissingInputError, match="no such file") as caught:
        pipeline.model_digest(Cache(None), tmp_path / "model")
    assert "check --model" in caught.value.remedy


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_named_pipe_for_weights_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "weights")
    assert artifacts.peek_head(tmp_path / "weights") == {}
    with pytest.raises(OSError, match="a named pipe"):
        file_digest(Cache(None), tmp_path / "weights")
