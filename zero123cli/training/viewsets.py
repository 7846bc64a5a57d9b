"""Objects as training sees them: pictures from many sides with poses, depth and normals, and what is inside.

One object is one file, named by the digest of what it was made from: a run that was broken off goes on where it was.
Letters: N views, S side of a picture, R resolution of the occupancy.
"""

from __future__ import annotations

import contextlib
import filecmp
import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import load, save

from .. import durable
from ..artifacts import HEAD, read_head, with_head
from ..cameras import TRAINING_FOV_DEG, Viewpoint
from ..errors import MeshError, MissingInputError, SettingsError, writing_failed
from ..framing import FAINT, crop, find_box, frame

VERSION = 1  # of what a view set holds; another number is another file
FRAMED = 0.80  # where `cutout` puts an object
FARTHEST, WIDEST = 1000.0, 100.0  # distances and squares that a file may name
SOLID = "solid:"  # the name of a made-up object is this, its kind where one was asked for, and its number

Truth = Literal["winding", "carved"]  # winding numbers, or all that the views do not see


@dataclass(frozen=True)
class Rig:
    """How objects are photographed."""

    kind: Literal["pocket", "paper"] = "pocket"
    views: int = 12
    size: int = 64  # px
    samples: int = 2  # rays a pixel's side
    retexture: float = 0.5  # share of objects that get another texture
    occupancy: int = 64  # cells a side; 0 for none
    inside: Truth = "winding"
    seed: int = 0


@dataclass(frozen=True)
class ViewSet:
    """One object. A view's square in the plane at distance 1 is its middle (x right, y up) and half its side."""

    name: str
    rgba: np.ndarray  # uint8 (N, S, S, 4)
    poses: np.ndarray  # float32 (N, 3): azimuth and elevation in degrees, distance
    squares: np.ndarray  # float32 (N, 3): x, y, half side
    depth: np.ndarray  # float16 (N, S, S), inf where nothing is
    normal: np.ndarray  # int8 (N, S, S, 3), 127 is 1
    inside: np.ndarray  # bool (R, R, R) over x, y, z in [-0.5, 0.5]
    truth: Truth = "winding"  # by which that is inside


def photograph(source: str, rig: Rig) -> ViewSet:
    """Renders a mesh file, or a made-up solid when `source` says so."""
    from ..scenes import carving, filling, looks, raycast, solids
    from ..scenes.meshes import read_surface
    from ..scenes.surface import normalise

    chance = np.random.default_rng([rig.seed, int(digest(source)[:12], 16)])
    if source.startswith(SOLID):
        *kind, _ = source.removeprefix(SOLID).split(":")
        surface = solids.make_solid(chance, *kind)
    else:
        surface = normalise(read_surface(Path(source)))
    if chance.random() < rig.retexture:
        surface = looks.retexture(surface, chance)
    prepared = raycast.prepare(surface)
    light = raycast.draw_lighting(chance)
    viewpoints = draw_viewpoints(rig, chance)
    pictures = []
    for viewpoint in viewpoints:
        fov = TRAINING_FOV_DEG if rig.kind == "paper" else widest(viewpoint.distance)
        side = rig.size if rig.kind == "paper" else 2 * rig.size  # cropped and halved below
        samples = rig.samples if rig.kind == "paper" else 1
        picture = raycast.render(prepared, viewpoint, size=side, fov_deg=fov, light=light, samples=samples)
        pictures.append(frame_view(picture, rig, math.tan(math.radians(fov) / 2)))
    rgba, squares, depth, normal = zip(*pictures, strict=True)
    inside = np.zeros((0, 0, 0), bool)
    if rig.occupancy and rig.inside == "carved":
        sides = zip(viewpoints, squares, rgba, depth, normal, strict=True)
        seen = [carving.Glimpse(at, where, shown[..., 3], far, facing / 127) for at, where, shown, far, facing in sides]
        inside = carving.carve(seen, rig.occupancy)
    elif rig.occupancy:
        inside = filling.occupancy(prepared, rig.occupancy)
    if rig.occupancy and not inside.any():
        raise MeshError("nothing is inside it", where=source)
    return ViewSet(
        name=source,
        rgba=np.stack(rgba),
        poses=np.array([[v.azimuth_deg, v.elevation_deg, v.distance] for v in viewpoints], np.float32),
        squares=np.array(squares, np.float32),
        depth=np.stack(depth),
        normal=np.stack(normal),
        inside=inside,
        truth=rig.inside,
    )


def draw_viewpoints(rig: Rig, chance: np.random.Generator) -> list[Viewpoint]:
    """Where the cameras stand: as people hold theirs, or over the whole sphere as in the paper."""
    found = []
    for _ in range(rig.views):
        azimuth = chance.uniform(0, 360)
        if rig.kind == "paper":
            elevation, distance = math.degrees(math.asin(chance.uniform(-1, 1))), chance.uniform(1.5, 2.2)
        else:
            elevation, distance = chance.uniform(-15, 60), chance.uniform(1.6, 3.5)
        found.append(Viewpoint(azimuth, elevation, distance))
    return found


def widest(distance: float) -> float:
    """The field of view, degrees, that holds the ball around any normalised object."""
    return 2 * math.degrees(math.asin(min(0.95, 3**0.5 / 2 / distance))) * 1.02


def frame_view(
    picture: Any, rig: Rig, half: float
) -> tuple[np.ndarray, tuple[float, float, float], np.ndarray, np.ndarray]:
    """Picture, square, depth and normals, framed as `cutout` frames a photo; the paper's rig frames nothing."""
    side = len(picture.rgba)
    alpha = picture.rgba[..., 3] / 255
    if not (alpha >= 0.5).any():
        raise MeshError("a view shows nothing of it")
    normal = np.round(picture.normal * 127).astype(np.int8)
    if rig.kind == "paper":
        return picture.rgba, (0.0, 0.0, half), picture.depth.astype(np.float16), normal
    square = frame(find_box(alpha, FAINT), FRAMED)
    rgba = np.asarray(crop(Image.fromarray(picture.rgba), square, rig.size))
    # Depth and normals are picked, never mixed across an edge.
    steps = (np.arange(rig.size) + 0.5) / rig.size * square.longer
    rows, columns = np.floor(square.top + steps).astype(int), np.floor(square.left + steps).astype(int)
    seen = ((rows >= 0) & (rows < side))[:, None] & ((columns >= 0) & (columns < side))
    place = np.ix_(rows.clip(0, side - 1), columns.clip(0, side - 1))
    depth = np.where(seen, picture.depth[place], np.inf).astype(np.float16)
    to_plane = 2 * half / side
    middle_x = ((square.left + square.right) / 2 - side / 2) * to_plane
    middle_y = (side / 2 - (square.top + square.bottom) / 2) * to_plane
    return rgba, (middle_x, middle_y, square.longer / 2 * to_plane), depth, normal[place] * seen[..., None]


# Files ----------------------------------------------------------------------------------------------------------------


def digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def file_of(folder: Path, source: str, rig: Rig, content: bytes = b"") -> Path:
    """Where an object's view set lies: known before it is made, and mostly without reading the mesh."""
    how = asdict(rig)
    if rig.inside == "winding":
        del how["inside"]  # as files were named when there was nothing else
    apart = [hashlib.sha256(content).hexdigest()] if content else []
    key = digest(json.dumps([VERSION, source_identity(source) + apart, how]))
    return folder / "objects" / key[:2] / f"{key[:32]}.safetensors"


def source_identity(source: str) -> list[Any]:
    """What a file was when it was rendered, without reading it."""
    if source.startswith(SOLID):
        return [source]
    state = Path(source).stat()
    return [Path(source).name, state.st_size, state.st_mtime_ns]


def write(path: Path, views: ViewSet) -> None:
    arrays = {part: getattr(views, part) for part in ("rgba", "poses", "squares", "depth", "normal")}
    side = views.inside.shape[0]
    arrays["inside"] = np.packbits(views.inside.ravel())
    path.parent.mkdir(parents=True, exist_ok=True)
    head = with_head({"name": views.name, "side": side, "truth": views.truth, "version": VERSION})
    durable.write_file(path, save({name: np.ascontiguousarray(a) for name, a in arrays.items()}, head), overwrite=True)


def read(path: Path) -> ViewSet:
    """A view set, if it is whole."""
    with told_if_damaged(path):
        raw = path.read_bytes()
        head = read_head(raw)
        arrays = load(raw)
        side = head["side"]
        packed = arrays.pop("inside")
        if head["version"] != VERSION or packed.size != -(-(side**3) // 8):
            raise ValueError("of another kind")
        inside = np.unpackbits(packed, count=side**3).astype(bool).reshape(side, side, side)
        found = ViewSet(name=read_name(head), inside=inside, truth=read_truth(head), **arrays)
        if not is_sound(found):
            raise ValueError("its parts do not fit together")
    return found


def is_sound(one: ViewSet) -> bool:
    """Whether all parts are of so many views, and all cameras stand somewhere and look at something."""
    count, side = one.rgba.shape[:2]
    forms = {
        "rgba": (count, side, side, 4),
        "poses": (count, 3),
        "squares": (count, 3),
        "depth": (count, side, side),
        "normal": (count, side, side, 3),
    }
    return (
        min(count, side) > 0
        and one.rgba.dtype == np.uint8
        and all(getattr(one, part).shape == form for part, form in forms.items())
        and stand_somewhere(one.poses, one.squares)
    )


def stand_somewhere(poses: np.ndarray, squares: np.ndarray) -> bool:  # (..., 3), both
    """Whether all cameras do, and look at something; numbers that are none do not."""
    return bool(
        (np.abs(poses) <= (360, 90, FARTHEST)).all()
        and (np.abs(squares) <= WIDEST).all()
        and (poses[..., 2] > 0).all()
        and (squares[..., 2] >= 1 / WIDEST).all()
    )


@dataclass(frozen=True)
class Label:
    """What a file says of its view set before the pictures are read."""

    name: str
    size: int  # px
    cells: int  # a side of the occupancy
    truth: Truth


def read_label(path: Path) -> Label:
    with told_if_damaged(path), safe_open(path, "np") as file:
        head = json.loads(file.metadata()[HEAD])
        size = int(file.get_slice("rgba").get_shape()[1])
        return Label(read_name(head), size, int(head["side"]), read_truth(head))


def read_truth(head: dict[str, Any]) -> Truth:
    truth: Truth = head.get("truth", "winding")
    if truth not in get_args(Truth):
        raise ValueError(truth)
    return truth


def read_name(head: dict[str, Any]) -> str:
    """A name as files have them: other parts of the program take it for one."""
    name = str(head["name"])
    if not Path(name).name or "\0" in name or not name.encode("utf-8", "surrogateescape"):
        raise ValueError("it names nothing")
    return name


@contextlib.contextmanager
def told_if_damaged(path: Path, kind: str = "view set", maker: str = "render") -> Iterator[None]:
    """What reading a file may raise, as what a user can mend."""
    try:
        yield
    except OSError as error:
        reason = (error.strerror or "unreadable").lower()
        raise MissingInputError(reason, where=str(path), remedy="check the path and its permissions") from error
    except Exception as error:  # whatever a damaged file, or one of another kind, lacks
        remedy = f"make it again with `zero123 data {maker}`"
        raise MeshError(f"no {kind}, or damaged", where=str(path), remedy=remedy) from error


def list_objects(folder: Path) -> list[Path]:
    """All view sets of a dataset, in an order of their own that never changes."""
    return sorted((folder / "objects").glob("*/*.safetensors"))


def refuse_empty(data: Path, names: Sequence[str]) -> None:
    if not names:
        raise MissingInputError("the dataset is empty", where=str(data), remedy="run `zero123 data render` first")


def refuse_mixed(data: Path, kinds: Iterable[Any]) -> None:
    """Whatever tells kinds of view sets apart has to be one and the same."""
    if len({*kinds}) > 1:
        remedy = "render them again into a folder of their own"
        raise MeshError("its view sets are not all of one kind", where=str(data), remedy=remedy)


def refuse_size(data: Path, found: int, wanted: int) -> None:
    """Pictures of another side than a model's, px."""
    if found != wanted:
        raise SettingsError(
            f"its pictures are of {found} px, the model's of {wanted}",
            where=str(data),
            remedy=f"run `zero123 data render` with --size {wanted}",
        )


def hold_out(names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """The numbers of those that are learnt from, and of those that are kept for tuning; where there is none, all."""
    held = np.array([hold_back(name) for name in names], bool)
    if not held.any():  # all files may be called model.obj: then by their folders
        held = np.array([hold_back(name.replace("/", " ")) for name in names], bool)
    own, kept = (np.flatnonzero(part if part.any() else ~part) for part in (~held, held))
    return own, kept


def hold_back(name: str, share: float = 0.03) -> bool:
    """Whether an object is kept for tuning: decided by its name, the same in every run."""
    return int(digest(Path(name).name)[:8], 16) / 2**32 < share


def make(job: tuple[str, str, Rig]) -> str:
    """What a worker does: renders an object into its file."""
    source, path, rig = job
    made = photograph(source, rig)
    try:
        write(Path(path), made)
    except OSError as error:
        raise writing_failed(error, path) from error
    return path


def pending(sources: Sequence[str], folder: Path, rig: Rig) -> Iterator[tuple[str, str, Rig]]:
    """The jobs that are not done yet: what to render, into which file.

    Two meshes that would be one by their names, sizes and times are told apart by what is in them.
    """
    owners: dict[Path, str] = {}
    for source in sources:
        try:
            path = file_of(folder, source, rig)
            owner = owners.setdefault(path, source)
            if owner != source and not filecmp.cmp(owner, source, shallow=False):
                path = file_of(folder, source, rig, Path(source).read_bytes())
                owner = owners.setdefault(path, source)
            done = owner != source or path.is_file()
        except OSError:  # a link to nowhere: making it says so
            path, done = folder, False
        if not done:
            yield source, str(path), rig
