"""The cutters: our own network and the graph cut against known masks, rembg's sessions where weights are at hand."""

from __future__ import annotations

import itertools
import os
import socket
import subprocess
import sys
import typing
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from zero123cli import cutters, models, settings
from zero123cli.errors import UnavailableError, WeightsError

SHARED = Path(__file__).resolve().parents[2] / "shared"


def weights() -> Path | None:
    """u2netp's weights, beside the project or where U2NET_HOME says."""
    for folder in (SHARED / "data" / "weights", Path(os.environ.get("U2NET_HOME", "/nowhere"))):
        if (folder / "u2netp.onnx").is_file():
            return folder / "u2netp.onnx"
    return None


WEIGHTS = weights()
needs_weights = pytest.mark.skipif(WEIGHTS is None, reason="u2netp.onnx is neither in ../shared nor in U2NET_HOME")


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / (a | b).sum())


def textured(shape: tuple[int, int], base: tuple[int, int, int], seed: int, contrast: float = 14) -> np.ndarray:
    """A colour with smooth light and noise on it, as surfaces have."""
    chance = np.random.default_rng(seed)
    light = np.linspace(-1, 1, shape[1])[None, :, None] * 18 * chance.uniform(-1, 1)
    noise = chance.normal(0, contrast, (*shape, 1)) + chance.normal(0, 4, (*shape, 3))
    return np.clip(np.array(base) + light + noise, 0, 255)


SCENES = {
    "plain": ((205, 205, 200), (150, 40, 30)),
    "dark on mid": ((120, 130, 120), (30, 30, 60)),
    "blue on wood": ((150, 110, 70), (40, 80, 160)),
    "white on green": ((60, 120, 60), (235, 235, 230)),
}


@pytest.mark.parametrize("name", SCENES)
@pytest.mark.parametrize("shape", ["disc", "ring", "two colours", "at the lower edge"])
def test_graph_cut_finds_objects_on_plain_grounds(name: str, shape: str) -> None:
    ground, colour = SCENES[name]
    rows, columns = np.mgrid[:240, :320]
    distance = np.hypot(columns - 160, rows - 120)
    truth = distance < 75
    if shape == "ring":
        truth &= distance > 30
    if shape == "at the lower edge":
        truth = (abs(columns - 160) < 60) & (rows > 90)
    front = textured((240, 320), colour, 1)
    if shape == "two colours":
        front = np.where((rows < 120)[..., None], front, textured((240, 320), (220, 180, 40), 2))
    picture = np.where(truth[..., None], front, textured((240, 320), ground, 3)).astype(np.uint8)
    mask = cutters.cut_by_colour(picture)
    assert mask.shape == (240, 320)
    assert mask.dtype == np.float32
    assert mask.min() >= 0
    assert mask.max() <= 1
    assert iou(mask > 0.5, truth) > 0.9


@pytest.mark.parametrize("value", [0, 128, 255])
def test_graph_cut_finds_nothing_in_an_empty_picture(value: int) -> None:
    assert not cutters.cut_by_colour(np.full((100, 150, 3), value, np.uint8)).any()


@pytest.mark.parametrize("shape", [(32, 640), (640, 32), (33, 33)])
def test_graph_cut_takes_odd_shapes(shape: tuple[int, int]) -> None:
    chance = np.random.default_rng(0)
    mask = cutters.cut_by_colour(chance.integers(0, 256, (*shape, 3), dtype=np.uint8))
    assert mask.shape == shape
    assert np.isfinite(mask).all()


def test_min_cut_is_the_cheapest_of_all_divisions() -> None:
    chance = np.random.default_rng(4)
    for _ in range(10):
        balance = chance.normal(0, 1, (3, 3))
        left, right, weight = cutters.grid_edges(chance.uniform(0, 1, (3, 3, 3)), strength=1.0)

        def price(inside: np.ndarray, balance=balance, left=left, right=right, weight=weight) -> float:  # type: ignore[no-untyped-def]  # defaults bind the loop's values
            flat = inside.ravel()
            paid = np.where(flat, np.maximum(-balance.ravel(), 0), np.maximum(balance.ravel(), 0)).sum()
            return float(paid + weight[flat[left] != flat[right]].sum())

        cheapest = min(price(np.array(bits).reshape(3, 3)) for bits in itertools.product([False, True], repeat=9))
        found = price(cutters.min_cut(balance, (left, right, weight)))
        assert found == pytest.approx(cheapest, abs=0.02)  # capacities are rounded to thousandths


def test_guided_filter_draws_a_coarse_edge_to_the_pictures_edge() -> None:
    guide = np.zeros((160, 160, 3), np.float32)
    guide[:, 83:] = 1
    coarse = np.zeros((20, 20), np.float32)
    coarse[:, 10:] = 1  # an edge at 80 px, where the picture has it at 83
    fine = cutters.guided_filter(guide, coarse, radius=2)
    assert (fine[:, :82] < 0.5).all()
    assert (fine[:, 84:] > 0.5).all()


EMBEDDED = models.POCKET_CUTTER.path


@pytest.fixture(scope="module")
def own() -> cutters.Cutter:
    return cutters.embedded_cutter(EMBEDDED, "digest")


@pytest.mark.parametrize("name", SCENES)
def test_own_network_finds_objects_on_plain_grounds(own: cutters.Cutter, name: str) -> None:
    ground, colour = SCENES[name]
    rows, columns = np.mgrid[:240, :320]
    truth = np.hypot(columns - 160, rows - 120) < 75
    picture = np.where(truth[..., None], textured((240, 320), colour, 1), textured((240, 320), ground, 3))
    mask = own.find_mask(picture.astype(np.uint8))
    assert mask.shape == (240, 320)
    assert mask.dtype == np.float32
    assert mask.min() >= 0
    assert mask.max() <= 1
    assert iou(mask > 0.5, truth) > 0.9


@pytest.mark.parametrize("value", [0, 128, 255])
def test_own_network_sees_no_object_in_an_empty_picture(own: cutters.Cutter, value: int) -> None:
    assert not own.find_mask(np.full((100, 150, 3), value, np.uint8)).any()


@pytest.mark.parametrize("shape", [(32, 640), (640, 32), (33, 33), (1, 1)])
def test_own_network_takes_odd_shapes(own: cutters.Cutter, shape: tuple[int, int]) -> None:
    mask = own.find_mask(np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8))
    assert mask.shape == shape
    assert np.isfinite(mask).all()


def test_own_network_is_small_and_says_what_it_is() -> None:
    import onnxruntime

    assert EMBEDDED.stat().st_size <= 2_000_000
    said = onnxruntime.InferenceSession(EMBEDDED).get_modelmeta().custom_metadata_map
    assert {"description", "licence", "recipe", "data"} <= set(said)


def two_discs() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A red one and a green one on grey, and where each is."""
    rows, columns = np.mgrid[:160, :200]
    red, green = (np.hypot(columns - x, rows - 80) < 35 for x in (55, 145))
    picture = textured((160, 200), (128, 128, 128), 3)
    picture = np.where(red[..., None], textured((160, 200), (190, 60, 50), 1), picture)
    return np.where(green[..., None], textured((160, 200), (60, 170, 60), 2), picture).astype(np.uint8), red, green


def squeezed(mask: np.ndarray, value: float = 1.0) -> np.ndarray:
    """What a network would answer."""
    small = Image.fromarray(mask.astype(np.float32)).resize((64, 64), Image.Resampling.BOX)
    return np.asarray(small, np.float32) * np.float32(value)


def test_where_network_and_colours_differ_the_network_decides() -> None:
    picture, red, green = two_discs()
    assert iou(cutters.cut_by_colour(picture) > 0.5, red | green) > 0.9
    for one in (red, green):
        assert iou(cutters.settle(picture, squeezed(one)) > 0.5, one) > 0.9


def test_where_both_see_the_same_the_colours_draw_the_edge() -> None:
    picture, red, green = two_discs()
    shifted = np.roll(red | green, 3, 1)  # nearly right
    assert np.array_equal(cutters.settle(picture, squeezed(shifted)), cutters.cut_by_colour(picture))


@pytest.mark.parametrize("value", [0.0, 0.3, 0.55, 0.9])
def test_a_network_that_sees_next_to_nothing_leaves_it_to_the_colours(value: float) -> None:
    picture, _, _ = two_discs()
    speck = np.zeros((64, 64), np.float32)
    speck[30:32, 30:31] = value
    assert np.array_equal(cutters.settle(picture, speck), cutters.cut_by_colour(picture))


def test_a_runtime_that_does_not_load_is_no_fault_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UnavailableError, match="onnxruntime does not load") as error:
        cutters.embedded_cutter(EMBEDDED, "").find_mask(np.zeros((64, 64, 3), np.uint8))
    assert "--cutter classical" in str(error.value)


def test_broken_own_weights_are_named(tmp_path: Path) -> None:
    broken = tmp_path / "pocket-cutter.onnx"
    broken.write_bytes(b"not a network")
    with pytest.raises(WeightsError, match="cannot load") as error:
        cutters.embedded_cutter(broken, "").find_mask(np.zeros((64, 64, 3), np.uint8))
    assert str(broken) in str(error.value)


def test_every_cutter_in_the_settings_is_known_and_the_other_way_round() -> None:
    offered = set(typing.get_args(settings.Cutter))
    assert offered == {"auto", "classical", models.POCKET_CUTTER.name, *models.CUTTERS}
    assert set(models.PREFERRED_CUTTERS) <= set(models.CUTTERS)
    assert not any(models.CUTTERS[name].must_accept for name in models.PREFERRED_CUTTERS)


def test_only_sessions_that_run_here_are_offered() -> None:
    sessions = cutters.import_sessions()
    for name in models.CUTTERS:
        assert sessions[name].is_local()  # type: ignore[attr-defined]  # rembg's own classes
    assert not {"withoutbg", "atlascloud"} & set(models.CUTTERS)


def test_published_digests_agree_with_those_that_rembg_pins() -> None:
    """The table is ours; rembg's own source is the oracle."""
    import inspect

    for name, session in cutters.import_sessions().items():
        if name in models.CUTTERS and models.CUTTERS[name].md5:
            assert f"md5:{models.CUTTERS[name].md5}" in inspect.getsource(sys.modules[session.__module__]), name


def test_sessions_load_without_rembgs_slow_front_door() -> None:
    code = (
        "import sys; from zero123cli import cutters; cutters.import_sessions(); "
        "assert 'pymatting' not in sys.modules and 'rembg' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> cutters.Cutter:
    """The real u2netp, with the network cut."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the network must not be touched")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert WEIGHTS
    return cutters.rembg_cutter("u2netp", WEIGHTS, "digest")


@needs_weights
def test_real_session_finds_the_object_and_fetches_nothing(network: cutters.Cutter) -> None:
    rows, columns = np.mgrid[:240, :320]
    truth = np.hypot(columns - 160, rows - 120) < 75
    picture = np.where(
        truth[..., None], textured((240, 320), (150, 40, 30), 1), textured((240, 320), (205, 205, 200), 3)
    )
    mask = network.find_mask(picture.astype(np.uint8))
    assert mask.dtype == np.float32
    assert iou(mask > 0.5, truth) > 0.9


@needs_weights
@pytest.mark.parametrize("value", [0, 128, 255])
def test_real_session_sees_no_object_in_an_empty_picture(network: cutters.Cutter, value: int) -> None:
    """rembg itself stretches the answer and would call something an object here."""
    assert not network.find_mask(np.full((200, 300, 3), value, np.uint8)).any()


@needs_weights
@pytest.mark.skipif(not SHARED.is_dir(), reason="../shared is not here")
def test_real_session_agrees_with_plain_rembg(network: cutters.Cutter) -> None:
    """Where it is sure, our session is rembg's own to the last bit."""
    picture = Image.open(SHARED / "data" / "photos" / "clean" / "coffee.png").convert("RGB").resize((300, 200))
    assert WEIGHTS
    plain = cutters.open_session("u2netp", WEIGHTS).predict(picture)[0]
    assert (np.asarray(plain, np.float32) / 255 == network.find_mask(np.asarray(picture))).all()


def test_broken_weights_are_named(tmp_path: Path) -> None:
    broken = tmp_path / "u2netp.onnx"
    broken.write_bytes(b"not a network")
    with pytest.raises(WeightsError, match="cannot load") as error:
        cutters.rembg_cutter("u2netp", broken, "").find_mask(np.zeros((64, 64, 3), np.uint8))
    assert str(broken) in str(error.value)
