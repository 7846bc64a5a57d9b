"""The stages through the cache, written out in order."""

from __future__ import annotations

from .artifacts import Cutout, Photo
from .cache import Cache, Kept, Stage, digest, entry_key, file_digest, holds, step
from .cutters import CLASSICAL, Cutter, rembg_cutter
from .errors import RefusedError, UnavailableError
from .models import CUTTERS, PREFERRED_CUTTERS, check_cutter, fetch_command, find_cutter
from .settings import CutoutSettings
from .stages.cutout import cut_out
from .watch import Caution, Watch

CUTOUT = Stage("cutout", 1, Cutout)


def cutout(photo: Photo, settings: CutoutSettings, cutter: Cutter, cache: Cache, watch: Watch) -> Kept[Cutout]:
    """Photo -> cutout."""
    return step(
        cache,
        CUTOUT,
        inputs=[digest(photo.data)],
        settings=settings,
        model=cutter.digest,
        make=lambda listen: cut_out(photo, settings, cutter, listen),
        watch=watch,
    )


def has_cutout(photo: Photo, settings: CutoutSettings, cutter: Cutter, cache: Cache) -> bool:
    """Whether `cutout` would be a hit."""
    return holds(cache, entry_key(CUTOUT, [digest(photo.data)], settings, cutter.digest))


def pick_cutter(settings: CutoutSettings, cache: Cache, *, licence_accepted: bool = False) -> Cutter:
    """The cutter that the settings ask for; "auto" takes the first whose weights are installed."""
    name: str = settings.cutter
    if name == "auto":
        name = next((known for known in PREFERRED_CUTTERS if find_cutter(known)), "")
        if not name:
            return Cutter(CLASSICAL.name, CLASSICAL.digest, CLASSICAL.find_mask, no_weights())
    if name == CLASSICAL.name:
        return CLASSICAL
    if CUTTERS[name].must_accept and not licence_accepted:
        raise RefusedError(
            f"{name} is under {CUTTERS[name].licence}",
            where="--cutter",
            remedy="add --accept-licence if you agree to it",
        )
    path = find_cutter(name)
    if path is None:
        raise UnavailableError(
            f"the weights of {name} are not installed",
            where="--cutter",
            remedy=f"fetch them with: {fetch_command(name)}",
        )
    found = file_digest(cache, path)
    check_cutter(name, path, found.md5)
    return rembg_cutter(name, path, found.sha256)


def no_weights() -> Caution:
    return Caution(
        "no-cutter-weights",
        "no cutter weights are installed: the object is cut out by colour alone, which suits plain backgrounds",
        f"for a better mask run: {fetch_command(PREFERRED_CUTTERS[0])}",
        about_run=True,
    )
