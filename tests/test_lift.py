"""The lift: with an oracle that knows the shape, with a real view model of random weights, killed and continued."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small
import torch
import trimesh
from torch import Tensor

from zero123cli.artifacts import Cutout, PhotoCamera, Views, pack, unpack
from zero123cli.artifacts import Field as Kept
from zero123cli.cameras import Viewpoint
from zero123cli.diffusion import guidance
from zero123cli.diffusion.viewmodel import Description, ViewModel, look_from
from zero123cli.diffusion.volume import Framing, Volume, VolumeDescription, volume_grid
from zero123cli.errors import DivergedError
from zero123cli.evaluation.oracle import Oracle
from zero123cli.radiance.field import density_at
from zero123cli.scenes.surface import Material, Surface
from zero123cli.settings import LiftSettings
from zero123cli.stages import lift as stage
from zero123cli.stages import views as views_stage
from zero123cli.stages.lift import Reference, lift, to_field
from zero123cli.watch import Caution, Progress, silent

TINY = LiftSettings(steps=6, size=(16,), photo_size=(16,), fineness=48, cells=16, samples=24)


def surface_of(mesh: trimesh.Trimesh, colour: tuple[float, float, float]) -> Surface:
    faces = np.asarray(mesh.faces, np.int32)
    return Surface(
        np.asarray(mesh.vertices, np.float32), faces, (Material((*colour, 1.0)),), np.zeros(len(faces), np.int32)
    )


@pytest.fixture(scope="module")
def ball() -> Oracle:
    return Oracle(surface_of(trimesh.creation.icosphere(3, 0.5), (0.8, 0.3, 0.2)), size=24)


def photo_of(oracle: Oracle, azimuth: float = 0.0, elevation: float = 10.0) -> Reference:
    """A photo of what the oracle knows."""
    shown = ((oracle.look(Viewpoint(azimuth, elevation)) + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    alpha = shown[..., 3:].astype(np.float32) / 255
    colour = (shown[..., :3].astype(np.float32) / 255 - 1 + alpha) / np.maximum(alpha, 1 / 255)
    rgba = np.concatenate([(colour.clip(0, 1) * 255).astype(np.uint8), shown[..., 3:]], -1)
    empty = np.zeros(0, np.float32)
    views = Views(np.zeros((1, 1), np.float32), np.zeros((4, 24, 24), np.float32), elevation, 1.85, empty, empty, empty)
    side = len(rgba)
    return Reference(Cutout(rgba, 0, 0, side, side, side, 0.8, "alpha"), views, azimuth)


def real(description: Description = small.SMALL, azimuth: float = 0.0) -> tuple[ViewModel, Reference]:
    """A view model of random weights and a photo before it."""
    model = small.make_model(description).eval().requires_grad_(False)
    rgba = np.full((32, 32, 4), 255, np.uint8)
    rgba[..., 3] = 0
    rgba[6:26, 8:24] = [200, 90, 40, 255]
    cutout = Cutout(rgba, 0, 0, 32, 32, 32, 0.8, "alpha")
    return model, Reference(cutout, views_stage.condition(cutout, PhotoCamera(5.0), model), azimuth)


def overlap(artifact: Kept, truth: Any, bound: float = TINY.bound) -> float:
    """IoU of the best level with a function that tells inside from outside."""
    along = ((np.arange(48) + 0.5) / 48 * 2 - 1) * bound
    points = np.stack(np.meshgrid(along, along, along, indexing="ij"), -1).astype(np.float32)
    density, inside = density_at(to_field(artifact), points), truth(points)
    found = [(density > level) for level in (2, 5, 10, 20)]
    return max((one & inside).sum() / max(1, (one | inside).sum()) for one in found)


# With an oracle -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["clean", "sds", "sjc"])
def test_an_oracle_and_the_lift_recover_a_ball(ball: Oracle, kind: str) -> None:
    weights = {"clean": (0.3,), "sds": (0.3,), "sjc": (0.3,)}
    settings = replace(
        TINY, kind=kind, guidance=weights[kind], steps=60, size=(24,), photo_size=(24,), batch=(4,), start="blob"
    )
    artifact = lift([photo_of(ball)], ball, settings, 0, silent)
    assert overlap(artifact, lambda p: (p**2).sum(-1) < 0.25) > 0.8


def test_a_second_photo_says_what_the_first_cannot(ball: Oracle) -> None:
    """Without guidance a single silhouette leaves depth open; one from the side closes it."""
    slab = Oracle(surface_of(trimesh.creation.box((0.8, 0.8, 0.2)), (0.2, 0.5, 0.9)), size=24)
    settings = replace(TINY, steps=60, photo_size=(24,), guidance=(0.0,), start="blob")

    def inside(points: np.ndarray) -> np.ndarray:
        return (np.abs(points) < np.array([0.4, 0.4, 0.1])).all(-1)

    one = overlap(lift([photo_of(slab)], slab, settings, 0, silent), inside)
    two = overlap(lift([photo_of(slab), photo_of(slab, 90)], slab, settings, 0, silent), inside)
    assert two > one + 0.1


def test_guidance_is_conditioned_on_the_nearest_photo(ball: Oracle) -> None:
    bench = stage.Bench([photo_of(ball), photo_of(ball, 180)], ball, TINY, 0)
    assert [bench.nearest(Viewpoint(angle, 10)) for angle in (0, 80, 100, 180, 260, 280)] == [0, 0, 1, 1, 1, 0]


# With a real view model -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["small", "voxels"])
@pytest.mark.parametrize("kind", guidance.GUIDANCE)
def test_a_real_view_model_moves_the_field(field: Any, kind: Any) -> None:
    model, photo = real()
    settings = replace(
        TINY, field=field, kind=kind, steps=2, size=(8,), photo_size=(4,), depth_photo=(1.0,), depth_around=(1.0,),
        near_view=(1.0,), emptiness=(1.0,), sparsity=(1.0,), variation=(1.0,), bound=1.0,
    )  # fmt: skip
    if field == "small":
        settings = replace(settings, orientation=(1.0,), normal_smoothness=(1.0,), normal_change=(1.0,))
    terms: list[str] = []

    def watch(message: Progress | Caution) -> None:
        if isinstance(message, Progress):
            terms.append(message.text)

    first = lift([photo], model, settings, 0, watch)
    again = lift([photo], model, settings, 0, silent)
    other = lift([photo], model, settings, 1, silent)
    assert (first.weights == again.weights).all()
    assert (first.weights != other.weights).any()
    expected = {"opaque", "depth", "colour", "near", "empty", "sparse", "variation", "guidance"}
    if field == "small":
        expected |= {"mask", "orient", "normals", "bends"}
    assert expected <= set(terms[0].split()[::2])


def test_the_field_is_an_artifact_that_answers_as_it_did() -> None:
    model, photo = real(small.PIXELS)
    made = lift([photo], model, TINY, 0, silent)
    back = unpack(Kept, pack(made))
    points = np.random.default_rng(0).uniform(-0.7, 0.7, (50, 3)).astype(np.float32)
    assert (density_at(to_field(made), points) == density_at(to_field(back), points)).all()


def test_a_field_begins_as_the_volume_that_the_model_offers() -> None:
    net = VolumeDescription(size=32, depth=16, colour=16, fine=16, channels=(16, 32), blocks=1, attention=(False, True))
    model, photo = real(replace(small.PIXELS, volume=vars(net).copy()))
    bench = stage.Bench([photo], model, replace(TINY, solid=60.0), 0)
    # A cube in the middle of the frame, blue: what a net would have said.
    logits = torch.full((1, 32, 32, 32), -10.0)
    logits[:, 10:22, 10:22, 10:22] = 10
    colour = torch.full((1, 3, 8, 8, 8), -1.0)
    colour[:, 2] = 1
    condition = bench.conditions[0]
    bench.conditions[0] = replace(condition, volume=Volume(logits, colour, torch.zeros(1, 19)))
    state = stage.begin(bench, silent)
    middle, outside = torch.zeros(1, 3), torch.tensor([[0.5, 0.5, 0.5]])
    assert state.field.density(middle).item() > 10 > 1 > state.field.density(outside).item()
    assert state.field.colour(middle)[0, 2].item() > 0.8 > 0.2 > state.field.colour(middle)[0, 0].item()


def test_a_volume_stands_in_the_world_where_its_camera_saw_it() -> None:
    """What lies low in a picture taken from straight above lies towards the camera's side of the world, +Z."""
    logits = torch.full((1, 16, 16, 16), -10.0)
    logits[:, 7:9, 12:15, 7:9] = 10
    volume = Volume(logits, torch.zeros(1, 3, 4, 4, 4), torch.zeros(1, 19))
    level, above = (
        volume_grid(volume, Framing(torch.tensor([[0.0, angle, 1.85]]), torch.tensor([[0.0, 0.0, 0.35]])), 0.8, 32)[3]
        for angle in (0.0, 90.0)
    )
    for grid, axis, sign in ((level, 1, -1), (above, 2, 1)):
        middle = (grid > 0.5).nonzero().float().mean(0) / 32 * 2 - 1
        assert middle[axis] * sign > 0.3
        assert abs(float(middle[3 - axis])) < 0.15


# Long runs ------------------------------------------------------------------------------------------------------------


def test_a_run_that_was_cut_off_ends_with_the_same_bits(ball: Oracle, tmp_path: Path) -> None:
    whole = lift([photo_of(ball)], ball, replace(TINY, steps=40), 0, silent)

    class Cut(BaseException):
        pass

    def cut(message: Progress | Caution) -> None:
        if isinstance(message, Progress) and message.done == 23:
            raise Cut

    with pytest.raises(Cut):
        lift([photo_of(ball)], ball, replace(TINY, steps=40), 0, cut, tmp_path)
    said: list[Any] = []
    again = lift([photo_of(ball)], ball, replace(TINY, steps=40), 0, said.append, tmp_path)
    assert [message.code for message in said if isinstance(message, Caution)] == ["resumed"]
    assert next(message.done for message in said if isinstance(message, Progress)) == 24
    assert (again.weights == whole.weights).all()


def test_a_damaged_unfinished_run_starts_anew(ball: Oracle, tmp_path: Path) -> None:
    (tmp_path / stage.CHECKPOINT).write_bytes(b"nonsense")
    said: list[Any] = []
    lift([photo_of(ball)], ball, TINY, 0, said.append, tmp_path)
    assert [message.code for message in said if isinstance(message, Caution)] == ["checkpoint-damaged"]


class Sick(Oracle):
    """Answers with numbers that are none at the codec, where guidance does not catch them."""

    def encode(self, pictures: Tensor, noise: Tensor | None = None) -> Tensor:
        return pictures * float("nan")


def test_a_run_without_finite_gradients_ends_and_keeps_its_last_good_field(ball: Oracle, tmp_path: Path) -> None:
    sick = Sick(surface_of(trimesh.creation.icosphere(1, 0.5), (1, 1, 1)), size=24)
    with pytest.raises(DivergedError, match="no finite gradient"):
        lift([photo_of(ball)], sick, replace(TINY, steps=100), 0, silent, tmp_path)


def test_an_empty_field_is_noticed_early(ball: Oracle) -> None:
    settings = replace(TINY, steps=200, guidance=(1e-9,), colour=(0.0,), mask=(0.0,), sparsity=(1e4,), rate=0.3)
    with pytest.raises(DivergedError, match="went empty"):
        lift([photo_of(ball)], ball, settings, 0, silent)


def test_memory_that_is_short_is_met_in_parts(ball: Oracle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures that don't fit side by side are rendered one after another, to the same gradient."""
    true, limit = stage.see, 2

    def see(bench: Any, state: Any, poses: Any, *rest: Any) -> Any:
        if len(poses) > limit:
            raise torch.OutOfMemoryError("not enough")
        return true(bench, state, poses, *rest)

    monkeypatch.setattr(stage, "see", see)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    said: list[Any] = []
    lift([photo_of(ball)], ball, replace(TINY, batch=(4,), steps=3), 0, said.append)
    assert [message.code for message in said if isinstance(message, Caution)] == ["memory-backoff"]
    assert len([message for message in said if isinstance(message, Progress)]) == 3


def test_cameras_of_poses_keep_their_direction_and_take_the_recipes_distance(ball: Oracle) -> None:
    bench = stage.Bench([photo_of(ball)], ball, replace(TINY, distance=3.8), 0)
    camera = stage.camera_at(bench, Viewpoint(30, 20, 1.85))
    assert camera == Viewpoint(30, 20, pytest.approx(3.8))
    near = stage.beside(camera, bench.chance(0, 0))
    assert np.linalg.norm(np.array(near.position()) - camera.position()) == pytest.approx(stage.NEAR)


def test_drawn_poses_keep_to_the_band_and_come_from_the_seed(ball: Oracle) -> None:
    bench = stage.Bench([photo_of(ball)], ball, TINY, 0)
    settings = replace(TINY, elevations=(-10.0, 45.0), distance_spread=0.1)
    poses = stage.draw_poses(settings, 500, bench.chance(0, 3), Viewpoint(0, 10, 2.0))
    assert poses == stage.draw_poses(settings, 500, bench.chance(0, 3), Viewpoint(0, 10, 2.0))
    assert all(-10 <= pose.elevation_deg <= 45 and 1.8 <= pose.distance <= 2.2 for pose in poses)
    assert len({round(pose.azimuth_deg / 30) for pose in poses}) >= 12
    assert look_from(poses).poses.shape == (500, 3)
