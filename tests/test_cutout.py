"""The cutout stage on pictures whose true object is known."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from zero123cli.artifacts import Cutout, Photo
from zero123cli.cutters import CLASSICAL, Cutter
from zero123cli.errors import NothingFoundError, PhotoError
from zero123cli.framing import FAINT, find_box
from zero123cli.settings import CutoutSettings
from zero123cli.stages.cutout import cut_out
from zero123cli.watch import Caution, Progress, silent

RED, GREEN = np.array([200.0, 40.0, 40.0]), np.array([30.0, 220.0, 30.0])


def disc(height: int, width: int, x: float, y: float, radius: float, soft: float = 1.0) -> np.ndarray:
    """Alpha of a disc, its edge `soft` px wide."""
    rows, columns = np.mgrid[:height, :width] + 0.5
    return np.clip((radius - np.hypot(columns - x, rows - y)) / soft + 0.5, 0, 1)


def composite(alpha: np.ndarray, front: np.ndarray = RED, behind: np.ndarray = GREEN) -> np.ndarray:
    return np.round(alpha[..., None] * front + (1 - alpha[..., None]) * behind).astype(np.uint8)


def photo_of(pixels: np.ndarray) -> Photo:
    page = io.BytesIO()
    Image.fromarray(pixels).save(page, "PNG")
    return Photo("photo.png", page.getvalue())


def knows(alpha: np.ndarray) -> Cutter:
    """A cutter that knows the true mask at any size it is asked for."""

    def find_mask(rgb: np.ndarray) -> np.ndarray:
        size = (rgb.shape[1], rgb.shape[0])
        return np.asarray(Image.fromarray(alpha.astype(np.float32)).resize(size, Image.Resampling.BOX))

    return Cutter("known", "", find_mask)


def box_of(cutout: Cutout) -> tuple[float, float, float]:
    """Longer side and middle of the object, as shares of the frame."""
    side = len(cutout.rgba)
    box = find_box(cutout.rgba[..., 3] / 255, FAINT)
    return box.longer / side, (box.left + box.right) / 2 / side, (box.top + box.bottom) / 2 / side


def listen() -> tuple[list[str], Callable[[Progress | Caution], None]]:
    codes: list[str] = []

    def watch(message: Progress | Caution) -> None:
        if isinstance(message, Caution):
            codes.append(message.code)

    return codes, watch


# The frame ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ratio", "size"), [(0.5, 512), (0.78125, 256), (0.8, 64), (0.8, 512), (0.95, 256)])
@pytest.mark.parametrize(
    ("height", "width", "x", "y", "radius"),
    [(300, 400, 120, 140, 60), (200, 200, 100, 100, 90), (900, 2400, 2100, 300, 40), (1500, 1000, 450, 750, 400)],
    ids=["off centre", "filling", "small in a large photo", "larger than the frame"],
)
def test_longer_side_is_at_the_ratio_and_the_object_in_the_middle(
    height: int, width: int, x: float, y: float, radius: float, ratio: float, size: int
) -> None:
    alpha = disc(height, width, x, y, radius)
    settings = CutoutSettings(foreground_ratio=ratio, size=size)
    cutout = cut_out(photo_of(composite(alpha)), settings, knows(alpha), silent)
    longer, middle_x, middle_y = box_of(cutout)
    blurred = max(height, width) / 1024 / (2 * radius)  # masks are made at 1024 px
    tolerance = 1.6 / size + 1.2 * blurred * ratio
    assert longer == pytest.approx(ratio, abs=tolerance)
    assert (middle_x, middle_y) == pytest.approx((0.5, 0.5), abs=tolerance)
    assert cutout.rgba.shape == (size, size, 4)
    assert (cutout.photo_width, cutout.photo_height) == (width, height)
    # Where the square lies in the photo agrees with where the disc is.
    assert cutout.left + cutout.side / 2 == pytest.approx(x, abs=cutout.side * tolerance)
    assert cutout.top + cutout.side / 2 == pytest.approx(y, abs=cutout.side * tolerance)


def test_wide_object_is_measured_by_its_longer_side() -> None:
    alpha = np.zeros((200, 500))
    alpha[80:120, 50:450] = 1
    cutout = cut_out(photo_of(composite(alpha)), CutoutSettings(), knows(alpha), silent)
    box = find_box(cutout.rgba[..., 3] / 255, 0.5)
    assert (box.right - box.left) / 512 == pytest.approx(0.8, abs=0.006)
    assert (box.bottom - box.top) / 512 == pytest.approx(0.08, abs=0.006)


# The edge -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("soft", [1.0, 4.0, 12.0])
@pytest.mark.parametrize(
    "behind", [GREEN, np.array([250.0, 250, 250]), np.array([5.0, 5, 5])], ids=["green", "white", "black"]
)
def test_no_background_fringe_survives_on_white(soft: float, behind: np.ndarray) -> None:
    alpha = disc(400, 400, 200, 200, 120, soft)
    cutout = cut_out(photo_of(composite(alpha, RED, behind)), CutoutSettings(), knows(alpha), silent)
    own = cutout.rgba[..., 3:] / 255
    on_white = cutout.rgba[..., :3] * own + 255 * (1 - own)
    ideal = RED * own + 255 * (1 - own)
    edge = (own[..., 0] > 0.02) & (own[..., 0] < 0.98)
    assert edge.sum() > 300
    assert np.abs(on_white - ideal)[edge].mean() < 5  # of 255
    raw = np.asarray(Image.fromarray(composite(alpha, RED, behind)), np.float64)
    true_edge = (alpha > 0.02) & (alpha < 0.98)
    untouched = np.abs((raw - RED) * alpha[..., None])[true_edge].mean()  # what a plain cutout would show
    assert np.abs(on_white - ideal)[edge].mean() < 0.25 * untouched


def test_soft_alpha_stays_soft() -> None:
    alpha = disc(512, 512, 256, 256, 200, soft=60)
    cutout = cut_out(photo_of(composite(alpha)), CutoutSettings(), knows(alpha), silent)
    levels = np.unique(cutout.rgba[256, :, 3])
    assert len(levels) > 50


def test_hidden_pixels_near_the_edge_carry_the_objects_colour() -> None:
    alpha = disc(300, 300, 150, 150, 80)
    cutout = cut_out(photo_of(composite(alpha)), CutoutSettings(), knows(alpha), silent)
    opaque = cutout.rgba[..., 3] > 250
    hidden = (cutout.rgba[..., 3] == 0) & (np.roll(opaque, 5, 1) | np.roll(opaque, -5, 1))
    assert hidden.sum() > 100
    assert np.abs(cutout.rgba[..., :3][hidden].astype(float) - RED).mean() < 12


def test_photo_with_alpha_keeps_its_own_colours_and_alpha() -> None:
    alpha = disc(400, 400, 200, 200, 160, soft=6)
    rgba = np.dstack([np.broadcast_to(RED, (400, 400, 3)), alpha * 255]).round().astype(np.uint8)
    cutout = cut_out(photo_of(rgba), CutoutSettings(size=400), CLASSICAL, silent)
    assert cutout.cutter == "alpha"
    own = cutout.rgba[..., 3:] / 255
    assert np.abs((cutout.rgba[..., :3] - RED) * own).max() <= 3  # as seen on any ground; faint colours are rounded
    assert own.mean() == pytest.approx(alpha.mean(), rel=0.04)


# Which object ---------------------------------------------------------------------------------------------------------


def two_discs() -> np.ndarray:
    return np.maximum(disc(300, 600, 160, 150, 90), disc(300, 600, 450, 150, 60))


def test_largest_object_is_taken_and_the_other_named() -> None:
    codes, watch = listen()
    alpha = two_discs()
    cutout = cut_out(photo_of(composite(alpha)), CutoutSettings(), knows(alpha), watch)
    assert codes == ["several-objects"]
    assert box_of(cutout)[0] == pytest.approx(0.8, abs=0.01)
    assert cutout.left + cutout.side / 2 == pytest.approx(160, abs=2)


def test_keep_all_takes_both() -> None:
    codes, watch = listen()
    alpha = two_discs()
    cutout = cut_out(photo_of(composite(alpha)), CutoutSettings(keep="all"), knows(alpha), watch)
    assert codes == []
    assert cutout.left + cutout.side / 2 == pytest.approx((70 + 510) / 2, abs=2)


@pytest.mark.parametrize("keep", ["largest", "all"])
def test_small_islands_are_dropped(keep: str) -> None:
    alpha = np.maximum(disc(300, 600, 160, 150, 90), disc(300, 600, 550, 50, 5))
    cutout = cut_out(photo_of(composite(alpha)), CutoutSettings(keep=keep), knows(alpha), silent)  # type: ignore[arg-type]  # parametrised
    assert cutout.left + cutout.side / 2 == pytest.approx(160, abs=2)
    assert cutout.left + cutout.side < 500


def test_stray_haze_is_dropped_and_joined_haze_kept() -> None:
    alpha = np.maximum(disc(300, 600, 160, 150, 90), 0.3 * disc(300, 600, 500, 150, 60))
    cutout = cut_out(photo_of(composite(alpha)), CutoutSettings(), knows(alpha), silent)
    assert cutout.left + cutout.side / 2 == pytest.approx(160, abs=2)
    alpha = np.maximum(disc(300, 600, 160, 150, 90), 0.3 * disc(300, 600, 260, 150, 40))
    cutout = cut_out(photo_of(composite(alpha)), CutoutSettings(), knows(alpha), silent)
    assert cutout.left + cutout.side / 2 == pytest.approx((70 + 300) / 2, abs=3)


# Named problems -------------------------------------------------------------------------------------------------------


def test_no_object_is_named() -> None:
    blank = photo_of(np.full((200, 200, 3), 255, np.uint8))
    for cutter in (knows(np.zeros((200, 200))), CLASSICAL):
        with pytest.raises(NothingFoundError, match="no object was found") as error:
            cut_out(blank, CutoutSettings(), cutter, silent)
        assert error.value.exit_code == 82
        assert error.value.remedy


def test_nearly_empty_mask_is_named() -> None:
    alpha = disc(600, 600, 300, 300, 4)
    with pytest.raises(NothingFoundError, match="nearly empty"):
        cut_out(photo_of(composite(alpha)), CutoutSettings(), knows(alpha), silent)


@pytest.mark.parametrize(
    ("alpha", "code"),
    [
        (disc(300, 300, 20, 150, 100), "touches-border"),
        (np.ones((300, 300)), "nearly-full-mask"),
        (disc(600, 600, 300, 300, 20), "tiny-object"),
    ],
    ids=["border", "full", "tiny"],
)
def test_poor_masks_are_warned_of(alpha: np.ndarray, code: str) -> None:
    codes, watch = listen()
    cut_out(photo_of(composite(alpha)), CutoutSettings(), knows(alpha), watch)
    assert codes == [code]


def test_tight_crop_around_a_round_thing_is_not_warned_of() -> None:
    codes, watch = listen()
    alpha = disc(300, 300, 150, 150, 150)
    cut_out(photo_of(composite(alpha)), CutoutSettings(), knows(alpha), watch)
    assert codes == []


# Where the mask comes from --------------------------------------------------------------------------------------------


def refuses(rgb: np.ndarray) -> np.ndarray:
    raise AssertionError("the cutter must not be asked")


def test_useful_alpha_is_the_mask_and_the_cutter_not_asked() -> None:
    rgba = np.dstack([composite(disc(200, 200, 100, 100, 60)), disc(200, 200, 100, 100, 60) * 255]).astype(np.uint8)
    for mask in ("auto", "alpha"):
        cutout = cut_out(photo_of(rgba), replace(CutoutSettings(), mask=mask), Cutter("x", "", refuses), silent)
        assert cutout.cutter == "alpha"


def test_all_opaque_alpha_is_no_mask() -> None:
    alpha = disc(200, 200, 100, 100, 60)
    rgba = np.dstack([composite(alpha), np.full((200, 200), 255)]).astype(np.uint8)
    assert cut_out(photo_of(rgba), CutoutSettings(), knows(alpha), silent).cutter == "known"


def test_remove_asks_the_cutter_within_the_alpha() -> None:
    left = disc(200, 400, 100, 100, 60)
    window = np.zeros((200, 400))
    window[:, :250] = 255
    rgba = np.dstack([composite(np.maximum(left, disc(200, 400, 300, 100, 80))), window]).astype(np.uint8)
    both = knows(np.maximum(left, disc(200, 400, 300, 100, 80)))
    cutout = cut_out(photo_of(rgba), CutoutSettings(mask="remove"), both, silent)
    assert cutout.cutter == "known"
    assert cutout.left + cutout.side / 2 == pytest.approx(100, abs=2)


def test_keep_keeps_the_whole_picture() -> None:
    pixels = composite(disc(100, 200, 50, 50, 30))
    cutout = cut_out(photo_of(pixels), CutoutSettings(mask="keep", size=250), Cutter("x", "", refuses), silent)
    assert cutout.cutter == "keep"
    assert box_of(cutout)[0] == pytest.approx(0.8, abs=0.01)
    assert cutout.rgba[125, 125 - 50, :3] == pytest.approx(RED, abs=3)


def test_alpha_asked_for_and_not_there_is_refused() -> None:
    with pytest.raises(PhotoError, match="no alpha"):
        cut_out(photo_of(composite(disc(200, 200, 100, 100, 60))), CutoutSettings(mask="alpha"), CLASSICAL, silent)


def test_cutters_own_warning_is_given_only_when_it_is_used() -> None:
    alpha = disc(200, 200, 100, 100, 60)
    cutter = replace(knows(alpha), caution=Caution("no-cutter-weights", "none"))
    codes, watch = listen()
    cut_out(photo_of(composite(alpha)), CutoutSettings(), cutter, watch)
    assert codes == ["no-cutter-weights"]
    codes.clear()
    rgba = np.dstack([composite(alpha), alpha * 255]).astype(np.uint8)
    cut_out(photo_of(rgba), CutoutSettings(), cutter, watch)
    assert codes == []


def test_same_photo_gives_the_same_bytes() -> None:
    photo = photo_of(composite(disc(200, 260, 100, 100, 60)))
    one, two = (cut_out(photo, CutoutSettings(size=128), CLASSICAL, silent) for _ in range(2))
    assert one.rgba.tobytes() == two.rgba.tobytes()
