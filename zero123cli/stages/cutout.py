"""Stage 1, photo -> cutout: the object alone, centred in a square, with soft alpha and clean edge colours.

The mask comes from the photo's own alpha or from a cutter. The frame is a square around the object's box, its side such
that the box's longer side is `foreground_ratio` of it; it may reach beyond the photo. Edge colours are unmixed from the
background by blur fusion (Forte, 2021), so that no fringe shows on another ground.
Letters: H height, W width of the photo, h and w of the reduced picture that masks are made from, S side of the cutout.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from ..artifacts import Cutout, Photo, Picture
from ..cutters import Cutter
from ..errors import NothingFoundError, PhotoError
from ..framing import FAINT, Box, crop, find_box, frame
from ..photos import decode
from ..settings import CutoutSettings
from ..watch import Caution, Watch

MASK_SIDE = 1024  # px; no cutter reads more
CORE = 0.5  # alpha from which a pixel belongs to an object
NEARLY_EMPTY = 0.0005  # share of the picture below which a mask is noise
NEARLY_FULL = 0.95
TINY = 64  # px of the photo; a smaller object has little to show
ISLAND = 0.01  # share of the largest object below which another is dropped, also by --keep all
RIVAL = 0.2  # share of the largest object from which another is worth a warning


def cut_out(photo: Photo, settings: CutoutSettings, cutter: Cutter, watch: Watch) -> Cutout:
    """The stage."""
    picture = decode(photo, watch)
    height, width = picture.rgba.shape[:2]
    small = shrink(picture.rgba, MASK_SIDE)
    scale = max(height, width) / max(small.shape[:2])  # px of the photo in one of `small`
    source = mask_source(picture, settings, photo.name)

    if source == "cutter":
        if cutter.caution:
            watch(cutter.caution)
        found = cutter.find_mask(on_white(small))
    else:
        found = np.ones(small.shape[:2], np.float32)
    mask = found * (small[..., 3] / np.float32(255))
    if source != "keep":
        chosen = choose_objects(mask, settings.keep, photo.name, watch)
        mask, found = mask * chosen, found * chosen
        look_for_trouble(mask, find_box(mask, FAINT).scaled(scale), watch)
    box = find_box(mask, FAINT).scaled(scale)

    whole = Image.fromarray(picture.rgba)
    mask_map = Image.fromarray(found)
    for _ in range(2):  # the second time with the box as measured in the first frame, where it is sharpest
        square = frame(box, settings.foreground_ratio)
        rgba = np.asarray(crop(whole, square, settings.size))
        alpha = np.asarray(crop(mask_map, square.scaled(1 / scale), settings.size)) * (rgba[..., 3] / np.float32(255))
        step = square.longer / settings.size
        if (alpha >= FAINT).any():
            box = find_box(alpha, FAINT).scaled(step).moved(square.left, square.top)
    if not (alpha >= CORE).any():
        raise nothing(photo.name, "no object was found")
    return Cutout(
        rgba=assemble(rgba[..., :3], alpha, unmix=source == "cutter"),
        left=square.left,
        top=square.top,
        side=square.longer,
        photo_width=width,
        photo_height=height,
        foreground_ratio=settings.foreground_ratio,
        cutter=cutter.name if source == "cutter" else source,
    )


# The mask -------------------------------------------------------------------------------------------------------------


def mask_source(picture: Picture, settings: CutoutSettings, name: str) -> str:
    """ "alpha", "cutter" or "keep"."""
    if settings.mask == "alpha" and not picture.has_alpha:
        raise PhotoError("it has no alpha to take as the mask", where=name, remedy="try --mask auto")
    if settings.mask == "auto":
        return "alpha" if has_useful_alpha(picture) else "cutter"
    return {"alpha": "alpha", "remove": "cutter", "keep": "keep"}[settings.mask]


def has_useful_alpha(picture: Picture) -> bool:
    """Whether the alpha parts something from something: an all-opaque one, or a faint watermark's, does not."""
    alpha = picture.rgba[..., 3]
    return picture.has_alpha and bool((alpha < 16).mean() >= 0.005 and (alpha > 239).mean() >= NEARLY_EMPTY)


def shrink(rgba: np.ndarray, side: int) -> np.ndarray:  # uint8 (H, W, 4) -> uint8 (h, w, 4)
    """The picture with its longer side at most `side`."""
    height, width = rgba.shape[:2]
    factor = side / max(height, width)
    if factor >= 1:
        return rgba
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    return np.asarray(Image.fromarray(rgba).resize(size, Image.Resampling.BOX, reducing_gap=2.0))


def on_white(rgba: np.ndarray) -> np.ndarray:  # uint8 (h, w, 4) -> uint8 (h, w, 3)
    """Cutters know no alpha: what is transparent becomes white."""
    if (rgba[..., 3] == 255).all():
        return np.ascontiguousarray(rgba[..., :3])
    alpha = rgba[..., 3:] / np.float32(255)
    return np.round(rgba[..., :3] * alpha + 255 * (1 - alpha)).astype(np.uint8)


def choose_objects(mask: np.ndarray, keep: str, name: str, watch: Watch) -> np.ndarray:  # float32 (h, w), both
    """1 where the chosen objects are with their soft edges, 0 on other objects, islands and stray haze."""
    from scipy import ndimage

    cores, count = ndimage.label(mask >= CORE)
    areas = np.bincount(cores.ravel(), minlength=count + 1)[1:]
    if count == 0:
        raise nothing(name, "no object was found")
    if areas.max() < NEARLY_EMPTY * mask.size:
        raise nothing(name, "the mask is nearly empty: no object was found")
    largest = int(areas.argmax())
    rivals = int((areas >= RIVAL * areas[largest]).sum())
    kept = areas >= ISLAND * areas[largest] if keep == "all" else np.arange(count) == largest
    if rivals > 1 and keep == "largest":
        watch(Caution("several-objects", f"{rivals} objects; the largest is taken", "--keep all takes them together"))
    # A soft pixel belongs to the nearest core, and only if it hangs together with a kept one.
    nearest = ndimage.distance_transform_edt(cores == 0, return_distances=False, return_indices=True)
    belongs = np.concatenate([[False], kept])[cores[tuple(nearest)]]
    patches, _ = ndimage.label((mask > 0.02) & belongs)
    touching = np.unique(patches[np.concatenate([[False], kept])[cores]])
    return np.asarray(np.isin(patches, touching[touching > 0]), np.float32)


def look_for_trouble(mask: np.ndarray, box: Box, watch: Watch) -> None:  # float32 (h, w); box in px of the photo
    """Warns of what makes a poor mesh."""
    core = mask >= CORE
    if core.mean() > NEARLY_FULL:
        watch(Caution("nearly-full-mask", "nearly the whole picture counts as object", "try another --cutter"))
    elif touches_border(core):
        watch(
            Caution(
                "touches-border",
                "the object touches the picture's border and may be cut off",
                "a photo with room around the object gives a better mesh",
            )
        )
    if box.longer < TINY:
        watch(Caution("tiny-object", f"the object is only {box.longer:.0f} px large", "try a closer photo"))


def touches_border(core: np.ndarray) -> bool:  # bool (h, w)
    """Whether more than a tenth of a side is covered; a tight crop around a round thing covers less."""
    return any(bool(side.mean() > 0.1) for side in (core[0], core[-1], core[:, 0], core[:, -1]))


def nothing(name: str, what: str) -> NothingFoundError:
    remedy = "try another --cutter, a photo with a plainer background, or a picture with alpha"
    return NothingFoundError(what, where=name, remedy=remedy)


# The edge -------------------------------------------------------------------------------------------------------------


def assemble(rgb: np.ndarray, alpha: np.ndarray, *, unmix: bool) -> np.ndarray:  # (S, S, 3), (S, S) -> uint8 (S, S, 4)
    """Colours and alpha in one picture: edges freed of the background, the object's colours carried on outside it."""
    alpha = np.clip(alpha, 0, 1).astype(np.float32)
    colour = rgb.astype(np.float32) / 255
    if unmix:
        mixed, behind = colour, colour
        for radius in (len(rgb) // 12, max(2, len(rgb) // 128)):  # wide for wide edges, then close
            colour, behind = unmix_colours(mixed, colour, behind, alpha, radius)
    colour = np.where(alpha[..., None] > 0, colour, blur_ratio(colour, alpha, max(2, len(rgb) // 64)))
    return np.round(np.clip(np.concatenate([colour, alpha[..., None]], -1), 0, 1) * 255).astype(np.uint8)


def unmix_colours(
    mixed: np.ndarray, front: np.ndarray, behind: np.ndarray, alpha: np.ndarray, radius: int
) -> tuple[np.ndarray, np.ndarray]:
    """One step of blur fusion: F near its blurred estimate that explains I = a F + (1 - a) B best, and B blurred."""
    near_front, near_behind = blur_ratio(front, alpha, radius), blur_ratio(behind, 1 - alpha, radius)
    weight = alpha[..., None]
    left_over = mixed - weight * near_front - (1 - weight) * near_behind
    return np.clip(near_front + weight * left_over, 0, 1), near_behind


def blur_ratio(colour: np.ndarray, weight: np.ndarray, radius: int) -> np.ndarray:  # (S, S, 3), (S, S)
    """The mean colour around each pixel by weight; 0 where no weight is near."""
    from scipy.ndimage import uniform_filter

    def mean(values: np.ndarray) -> np.ndarray:
        return np.asarray(uniform_filter(values, 2 * radius + 1, mode="constant"))

    total = mean(weight.astype(np.float64))
    summed = np.stack([mean(colour[..., c].astype(np.float64) * weight) for c in range(3)], -1)
    return np.where(total[..., None] > 1e-6, summed / np.maximum(total, 1e-6)[..., None], 0).astype(np.float32)
