"""The stages through the cache, written out in order."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import models
from .artifacts import Ask, Cutout, Field, Photo, PhotoCamera, View, Views, peek_head, to_json
from .cache import Cache, FileDigest, Kept, Stage, digest, entry_key, file_digest, holds, partial_folder, recall, step
from .cutters import CLASSICAL, Cutter, embedded_cutter, rembg_cutter
from .errors import MissingInputError, RefusedError, UnavailableError, UsageError, WeightsError, reason_of
from .machine import Backend
from .meshing.mesh import Made
from .models import (
    CUTTERS,
    POCKET,
    POCKET_CUTTER,
    PREFERRED_CUTTERS,
    check_cutter,
    fetch_command,
    find,
    find_cutter,
)
from .settings import CutoutSettings, LiftSettings, MeshSettings, ModelSettings, Settings
from .stages.cutout import cut_out
from .watch import Caution, Watch

if TYPE_CHECKING:  # torch waits until a network is needed
    from .cameras import PoseKind
    from .diffusion.viewmodel import ViewModel


CUTOUT = Stage("cutout", 2, Cutout)
VIEWS = Stage("views", 2, Views)
VIEW = Stage("view", 3, View)
FIELD = Stage("lift", 3, Field)
MESH = Stage("mesh", 9, Made)


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
            own = POCKET_CUTTER.name if find(POCKET_CUTTER) else CLASSICAL.name
            return replace(pick_own_cutter(own, cache), caution=no_weights(own))
    if name in (POCKET_CUTTER.name, CLASSICAL.name):
        return pick_own_cutter(name, cache)
    if CUTTERS[name].must_accept and not licence_accepted:
        raise RefusedError(
            f"{name} is under {CUTTERS[name].licence}",
            where="--cutter",
            remedy="add --accept-licence if you agree to it",
        )
    path = find_cutter(name)
    if path is None:
        raise models.missing(name, "--cutter")
    found = weights_digest(cache, path, "--cutter")
    check_cutter(name, path, vars(found))
    return rembg_cutter(name, path, found.sha256)


def pick_own_cutter(name: str, cache: Cache) -> Cutter:
    """One of those that need nothing installed."""
    if name == CLASSICAL.name:
        return CLASSICAL
    weights = find(POCKET_CUTTER)
    if weights is None:
        raise WeightsError(
            f"{name} did not come with this zero123", where=str(POCKET_CUTTER.path), remedy="try --cutter classical"
        )
    return embedded_cutter(weights, weights_digest(cache, weights, "--cutter").sha256)


def no_weights(own: str) -> Caution:
    what = {
        POCKET_CUTTER.name: "by the small network that comes with zero123",
        CLASSICAL.name: "by colour alone, which suits plain backgrounds",
    }
    return Caution(
        "no-cutter-weights",
        f"no cutter weights are installed: the object is cut out {what[own]}",
        f"for a better mask run: {fetch_command(PREFERRED_CUTTERS[0])}",
        about_run=True,
    )


@dataclass(frozen=True)
class Prior:
    """A view model that is installed: known by its digest, loaded when a network is first needed."""

    name: str
    digest: str
    backend: Backend
    load: Callable[[Watch], ViewModel]
    licence: str = ""

    @property
    def device(self) -> str:
        """What of the backend decides the numbers."""
        return f"{self.backend.device.partition(':')[0]}/{self.backend.dtype}"


def views(cutout: Kept[Cutout], camera: PhotoCamera, prior: Prior, cache: Cache, watch: Watch) -> Kept[Views]:
    """Cutout -> views: the photo as the view model sees it."""

    def make(listen: Watch) -> Views:
        from .stages.views import condition

        return condition(cutout.artifact, camera, prior.load(listen), listen)

    return step(
        cache,
        VIEWS,
        inputs=[cutout.key],
        settings=camera,
        model=prior.digest,
        device=prior.device,
        make=make,
        watch=watch,
    )


def sampled(
    conditioned: Kept[Views], asks: Sequence[Ask], prior: Prior, cache: Cache, batch: int, watch: Watch
) -> Iterator[Kept[View]]:
    """Views -> pictures, each an entry of its own; those that are not kept are sampled `batch` at a time."""
    ready: dict[Ask, View] = {}
    missing = [ask for ask in asks if not holds(cache, view_key(conditioned.key, ask, prior))]

    def make(ask: Ask, listen: Watch) -> View:
        from .stages.views import sample_views

        if ask not in ready:
            others = [other for other in missing if other != ask and other not in ready and how(other) == how(ask)]
            group = [ask, *others][:batch]
            ready.update(zip(group, sample_views(conditioned.artifact, group, prior.load(listen), listen), strict=True))
        return ready.pop(ask)

    for ask in asks:
        yield step(
            cache,
            VIEW,
            inputs=[conditioned.key],
            settings=ask,
            model=prior.digest,
            device=prior.device,
            make=functools.partial(make, ask),
            watch=watch,
        )
        missing = [other for other in missing if other != ask]


@dataclass(frozen=True)
class Posed:
    """A photo on its way: its cutout, how the view model sees it, and where it stands."""

    cutout: Kept[Cutout]
    views: Kept[Views]
    azimuth_deg: float = 0.0  # from the first photo's
    source: str = ""  # where it was read
    sha256: str = ""


@dataclass(frozen=True)
class Lifted:
    """A field and all that led to it."""

    photos: Sequence[Posed]
    field: Kept[Field]
    model: str
    licence: str
    device: str  # what people call it
    dtype: str


@dataclass(frozen=True)
class LiftCall:
    """What decides a field besides the photos and the model."""

    settings: LiftSettings
    seed: int
    azimuths_deg: tuple[float, ...]


def lifted(
    photos: Sequence[Posed], settings: LiftSettings, seed: int, prior: Prior, cache: Cache, watch: Watch
) -> Kept[Field]:
    """Views -> field. What is cut off goes on."""
    call = LiftCall(settings, seed, tuple(photo.azimuth_deg for photo in photos))
    inputs = [photo.views.key for photo in photos]
    # What was cut off for want of memory goes on where --allow-degrade is given.
    plain = replace(call, settings=replace(settings, allow_degrade=False))
    partial = entry_key(FIELD, inputs, plain, prior.digest, prior.device)

    def make(listen: Watch) -> Field:
        from .stages.lift import Reference, lift

        references = [Reference(one.cutout.artifact, one.views.artifact, one.azimuth_deg) for one in photos]
        return lift(references, prior.load(listen), settings, seed, listen, partial_folder(cache, partial))

    return step(
        cache,
        FIELD,
        inputs=inputs,
        settings=call,
        model=prior.digest,
        device=prior.device,
        partial=partial,
        make=make,
        watch=watch,
    )


@dataclass(frozen=True)
class MeshCall:
    """What decides a mesh besides the field and the photos."""

    settings: MeshSettings
    distance: float  # of the lift's cameras
    fov_deg: float


def mesh_call(settings: MeshSettings, lift: LiftSettings) -> MeshCall:
    return MeshCall(settings, lift.distance, lift.fov_deg)


def remember(record: Mapping[str, Any], cache: Cache, watch: Watch) -> Lifted:
    """The way of a run on record up to its field, out of the cache."""
    photos = [
        Posed(
            recall(cache, CUTOUT, one["cutout"], watch),
            recall(cache, VIEWS, one["views"], watch),
            one["azimuth"],
            one["input"],
            one["sha256"],
        )
        for one in record["photos"]
    ]
    field = recall(cache, FIELD, record["stages"]["lift"]["key"], watch)
    return Lifted(photos, field, record["model"], record["licence"], record["device"], record["dtype"])


def meshed(
    photos: Sequence[Posed], field: Kept[Field], settings: MeshSettings, lift: LiftSettings, cache: Cache, watch: Watch
) -> Kept[Made]:
    """Field -> mesh."""

    def make(listen: Watch) -> Made:
        from .stages.lift import Reference
        from .stages.mesh import make_mesh

        references = [Reference(one.cutout.artifact, one.views.artifact, one.azimuth_deg) for one in photos]
        return make_mesh(field.artifact, references, settings, lift, listen)

    return step(
        cache,
        MESH,
        inputs=[field.key],
        settings=mesh_call(settings, lift),
        make=make,
        watch=watch,
    )


def how(ask: Ask) -> tuple[object, ...]:
    """What views that are sampled side by side have in common."""
    return ask.sampler, ask.steps, ask.guidance, ask.eta


def has_mesh(
    photos: Sequence[tuple[Photo, float, float | None]],  # with azimuth and elevation
    settings: Settings,
    cutter: Cutter,
    prior: Prior,
    cache: Cache,
) -> bool:
    """Whether the whole way to this mesh would be hits."""
    cuts = [entry_key(CUTOUT, [digest(photo.data)], settings.cutout, cutter.digest) for photo, _, _ in photos]
    seen = [
        entry_key(VIEWS, [cut], PhotoCamera(elevation), prior.digest, prior.device)
        for cut, (_, _, elevation) in zip(cuts, photos, strict=True)
    ]
    lift = LiftCall(settings.lift, settings.seed, tuple(azimuth for _, azimuth, _ in photos))
    field = entry_key(FIELD, seen, lift, prior.digest, prior.device)
    return is_meshed(field, settings, cache)


def is_meshed(field: str, settings: Settings, cache: Cache) -> bool:
    """Whether `meshed` would be a hit for the field of this key."""
    return holds(cache, entry_key(MESH, [field], mesh_call(settings.mesh, settings.lift)))


def view_key(conditioned: str, ask: Ask, prior: Prior) -> str:
    return entry_key(VIEW, [conditioned], ask, prior.digest, prior.device)


def has_views(
    photo: Photo,
    settings: CutoutSettings,
    cutter: Cutter,
    camera: PhotoCamera,
    asks: Sequence[Ask],
    prior: Prior,
    cache: Cache,
) -> bool:
    """Whether all these pictures would be hits."""
    cut = entry_key(CUTOUT, [digest(photo.data)], settings, cutter.digest)
    seen = entry_key(VIEWS, [cut], camera, prior.digest, prior.device)
    return all(holds(cache, view_key(seen, ask, prior)) for ask in asks)


def pick_prior(settings: ModelSettings, backend: Backend, cache: Cache) -> Prior:
    """The view model that the settings name: one of the table, a file or a folder."""
    name = settings.name
    path = locate_model(name)
    identity = model_digest(cache, path)
    pose_kind = pick_pose_kind(settings, name, identity)
    loaded: list[ViewModel] = []

    def load(watch: Watch) -> ViewModel:
        from .diffusion import checkpoints

        if not loaded:
            how = {"ema": settings.ema, "lean": settings.lean}
            loaded.append(checkpoints.load(path, backend, **how, pose_kind=pose_kind, watch=watch))
        return loaded[0]

    licence = models.KNOWN[name].licence if name in models.KNOWN else written_licence(path)
    return Prior(name, digest(f"{identity} {settings.ema} {pose_kind}".encode()), backend, load, licence)


def written_licence(path: Path) -> str:
    """What weights of ours say of their use; nothing of others."""
    return str(peek_head(path).get("licence", ""))


def locate_model(name: str) -> Path:
    """The file or folder of a view model: installed under that name, or simply there."""
    if not name:
        remedy = f"leave it out for {POCKET.name}, or name one of `zero123 models list`, a file or a folder"
        raise UsageError("no view model is named", where="--model", remedy=remedy)
    if name == POCKET.name:
        own = find(POCKET)
        if own is None:
            raise UnavailableError(
                "the embedded model did not come with this zero123",
                where="--model",
                remedy=f"run: {fetch_command(POCKET.name)}, or name one of `zero123 models list`",
            )
        return own
    if name in models.KNOWN:
        found = models.find_model(name)
        if found is None:
            raise models.model_missing(name)
        return found
    path = Path(name)
    if path.exists():
        return path
    if path.suffix or len(path.parts) > 1:
        raise MissingInputError("there is no such file", where=name, remedy="check --model")
    if name in models.table():
        raise UsageError(f"{name} is a cutter, not a view model", where="--model", remedy="see: zero123 models list")
    raise models.unknown(name, [POCKET.name, *models.KNOWN])


def model_digest(cache: Cache, path: Path) -> str:
    """Digest of a weights file, or of all that shapes the networks of a folder."""
    if not path.is_dir():
        return weights_digest(cache, path, "--model").sha256
    parts = [part for part in sorted(path.glob("*/*")) if part.suffix in (".json", ".safetensors", ".bin")]
    digests = [weights_digest(cache, part, "--model").sha256 for part in parts]
    return digest(to_json([[part.relative_to(path).as_posix(), one] for part, one in zip(parts, digests, strict=True)]))


def weights_digest(cache: Cache, path: Path, flag: str) -> FileDigest:
    """Of one file; `flag` is what names the weights."""
    try:
        return file_digest(cache, path)
    except OSError as error:
        raise MissingInputError(reason_of(error), where=str(path), remedy=f"check {flag}") from error


def pick_pose_kind(settings: ModelSettings, name: str, identity: str) -> PoseKind | None:
    """What the settings say, else what is known of these weights; None leaves it to what the file says of itself."""
    if settings.pose_kind != "auto":
        return settings.pose_kind
    if name in models.KNOWN:
        return models.KNOWN[name].pose_kind
    return next((known.pose_kind for known in models.KNOWN.values() if known.sha256 == identity), None)
