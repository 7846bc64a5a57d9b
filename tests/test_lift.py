"""The lift: with an oracle that knows the shape, with a real view model of random weights, killed and continued."""

from __future__ import annotations

import errno
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small
import torch
import trimesh
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from zero123cli.artifacts import Cutout, PhotoCamera, Views, pack, read_head, unpack, with_head
from zero123cli.artifacts import Field as Kept
from zero123cli.cameras import Viewpoint
from zero123cli.diffusion import guidance
from zero123cli.diffusion.viewmodel import Description, ViewModel, look_from
from zero123cli.diffusion.volume import Framing, Volume, VolumeDescription, volume_grid
from zero123cli.errors import DivergedError, NothingFoundError, OutOfMemoryError, UsageError
from zero123cli.evaluation.oracle import Oracle
from zero123cli.meshing.shot import look_at, project, shot_of
from zero123cli.radiance.field import density_at
from zero123cli.scenes.surface import Material, Surface
from zero123cli.settings import LiftSettings, MeshSettings
from zero123cli.stages import lift as stage
from zero123cli.stages import unfinished
from zero123cli.stages import views as views_stage
from zero123cli.stages.lift import Reference, lift, to_field
from zero123cli.stages.mesh import make_mesh
from zero123cli.stages.unfinished import CHECKPOINT, PREVIEW
from zero123cli.watch import Caution, Progress, silent

TINY = LiftSettings(steps=6, size=(16,), photo_size=(16,), fineness=48, cells=16, samples=24)


ROUND = replace(TINY, steps=60, size=(24,), photo_size=(24,), batch=(4,), start="blob", guidance=(0.3,))


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


@pytest.fixture(scope="module")
def learnt(ball: Oracle) -> Kept:
    """The ball as a field."""
    return lift([photo_of(ball)], ball, ROUND, 0, silent)


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


@pytest.mark.parametrize(
    "kind", ["clean", pytest.param("sds", marks=pytest.mark.slow), pytest.param("sjc", marks=pytest.mark.slow)]
)
def test_an_oracle_and_the_lift_recover_a_ball(ball: Oracle, learnt: Kept, kind: str) -> None:
    again = ROUND.kind != kind
    artifact = lift([photo_of(ball)], ball, replace(ROUND, kind=kind), 0, silent) if again else learnt
    assert overlap(artifact, lambda p: (p**2).sum(-1) < 0.25) > 0.8


def test_a_mesh_keeps_to_the_photos_outline(ball: Oracle, learnt: Kept) -> None:
    """Whatever the field holds beside it: here the mask is of the ball's left part only."""
    whole = photo_of(ball)
    part = whole.cutout.rgba.copy()
    side = len(part)
    part[:, 5 * side // 8 :, 3] = 0
    cut = replace(whole, cutout=replace(whole.cutout, rgba=part))
    how = MeshSettings(resolution=64, faces=2000, texture="none", smoothing=0)
    right = []
    for one in (whole, cut):
        mesh = make_mesh(learnt, [one], how, ROUND, silent)
        shot = shot_of(one.cutout.rgba, 0.0, one.views.photo_elevation_deg, ROUND.distance, ROUND.fov_deg)
        right.append(project(shot, mesh.vertices)[:, 0].max() / side)
    assert right[0] > 0.75
    assert right[1] < 0.625 + 0.03


def test_a_mesh_reaches_to_the_photos_outline(ball: Oracle, learnt: Kept) -> None:
    """Where the field ends before it: here the mask is of a somewhat larger disc."""
    whole = photo_of(ball)
    rgba = np.kron(whole.cutout.rgba, np.ones((8, 8, 1), np.uint8))
    side = len(rgba)
    radius = 1.06 * np.sqrt((rgba[..., 3] >= 128).sum() / np.pi)
    row, column = np.indices((side, side)) - (side - 1) / 2
    mask = np.hypot(row, column) < radius
    rgba[..., 3] = mask * 255
    large = replace(whole, cutout=replace(whole.cutout, rgba=rgba))
    mesh = make_mesh(learnt, [large], MeshSettings(resolution=64, faces=2000, texture="none"), ROUND, silent)
    shot = shot_of(rgba, 0.0, whole.views.photo_elevation_deg, ROUND.distance, ROUND.fov_deg)
    covered = look_at(shot, mesh.vertices, mesh.faces, side).face >= 0
    assert (mask & covered).sum() / (mask | covered).sum() > 0.99


def test_a_level_that_is_given_needs_no_search(ball: Oracle, learnt: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of a field in which no ray meets anything solid."""

    def search(*_: Any) -> Any:
        raise NothingFoundError("no ray meets anything solid")

    monkeypatch.setattr("zero123cli.stages.mesh.choose_level", search)
    how = MeshSettings(resolution=64, faces=400, texture="none", level=5.0)
    said: list[Any] = []
    mesh = make_mesh(learnt, [photo_of(ball)], how, ROUND, said.append)
    assert (mesh.level, mesh.margin) == (5.0, 1.0)
    assert 300 < len(mesh.faces) <= 400 and codes(said) == []
    mesh = make_mesh(learnt, [photo_of(ball)], replace(how, faces=1), ROUND, said.append)
    assert len(mesh.faces) > 1 and codes(said) == ["faces"]


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_run_whose_folder_is_cleared_away_goes_on(
    ball: Oracle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "SAVE_SECONDS", 0.0)
    folder = tmp_path / "partial"
    folder.mkdir()

    def clear(message: Progress | Caution) -> None:
        if isinstance(message, Progress) and message.done == 5:
            shutil.rmtree(folder)

    lift([photo_of(ball)], ball, replace(TINY, steps=8), 0, clear, folder)
    assert (folder / CHECKPOINT).is_file()


def test_what_ends_a_run_is_told_also_where_it_cannot_be_saved(
    ball: Oracle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr(stage, "save", full)

    def stop(message: Progress | Caution) -> None:
        if isinstance(message, Progress) and message.done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        lift([photo_of(ball)], ball, replace(TINY, steps=8), 0, stop, tmp_path)


def test_a_damaged_unfinished_run_starts_anew(ball: Oracle, tmp_path: Path) -> None:
    (tmp_path / CHECKPOINT).write_bytes(b"nonsense")
    said: list[Any] = []
    lift([photo_of(ball)], ball, TINY, 0, said.append, tmp_path)
    assert [message.code for message in said if isinstance(message, Caution)] == ["checkpoint-damaged"]


def test_a_checkpoint_that_is_whole_in_part_leaves_nothing_behind(ball: Oracle, tmp_path: Path) -> None:
    """Its field is read before what is wrong with it shows."""
    whole = lift([photo_of(ball)], ball, TINY, 0, silent)
    bench = stage.Bench([photo_of(ball)], ball, TINY, 0)
    state = stage.begin(bench, silent)
    with torch.no_grad():
        for weight in state.field.parameters():
            weight.fill_(0.5)
    unfinished.save(state, tmp_path)
    tensors = load_file(tmp_path / CHECKPOINT)
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith("occupancy.")}
    head = read_head((tmp_path / CHECKPOINT).read_bytes())
    save_file(kept, tmp_path / CHECKPOINT, with_head(head))
    said: list[Any] = []
    again = lift([photo_of(ball)], ball, TINY, 0, said.append, tmp_path)
    assert codes(said) == ["checkpoint-damaged"]
    assert (again.weights == whole.weights).all()


@pytest.mark.slow
def test_a_run_that_was_cut_off_within_a_step_ends_with_the_same_bits(ball: Oracle, tmp_path: Path) -> None:
    """Where something is has just been looked up: it must not be looked up twice."""
    settings = replace(TINY, steps=2 * stage.LOOK + 2)
    whole = lift([photo_of(ball)], ball, settings, 0, silent)

    class Cut(BaseException):
        pass

    class Impatient(Oracle):
        calls = 0

        def encode(self, pictures: Tensor, noise: Tensor | None = None) -> Tensor:
            self.calls += 1
            if self.calls == 2 * stage.LOOK + 1:
                raise Cut
            return pictures

    impatient = Impatient(surface_of(trimesh.creation.icosphere(3, 0.5), (0.8, 0.3, 0.2)), size=24)
    with pytest.raises(Cut):
        lift([photo_of(ball)], impatient, settings, 0, silent, tmp_path)
    said: list[Any] = []
    again = lift([photo_of(ball)], ball, settings, 0, said.append, tmp_path)
    assert next(message.done for message in said if isinstance(message, Progress)) == 2 * stage.LOOK + 1
    assert (again.weights == whole.weights).all()


class Sick(Oracle):
    """Answers with numbers that are none at the codec, where guidance does not catch them."""

    def encode(self, pictures: Tensor, noise: Tensor | None = None) -> Tensor:
        return pictures * float("nan")


def test_a_run_without_finite_gradients_ends_and_keeps_its_last_good_field(ball: Oracle, tmp_path: Path) -> None:
    sick = Sick(surface_of(trimesh.creation.icosphere(1, 0.5), (1, 1, 1)), size=24)
    with pytest.raises(DivergedError, match="no finite gradient"):
        lift([photo_of(ball)], sick, replace(TINY, steps=100), 0, silent, tmp_path)


def test_a_gradient_that_is_none_slows_nothing_afterwards(ball: Oracle) -> None:
    bench = stage.Bench([photo_of(ball)], ball, TINY, 0)
    state = stage.begin(bench, silent)
    for value in (float("nan"), 1.0):
        for parameter in state.field.parameters():
            parameter.grad = torch.full_like(parameter, value)
        before = [parameter.detach().clone() for parameter in state.field.parameters()]
        stage.move(state, bench)
        moved = [not torch.equal(a, b) for a, b in zip(before, state.field.parameters(), strict=True)]
        assert any(moved) == (value == 1.0)
    assert state.optimiser.param_groups[0]["lr"] == TINY.rate


def test_fog_of_a_voxel_field_is_never_passed_over() -> None:
    """It begins as fog everywhere: cells that count for empty would get no gradient any more."""
    model, photo = real()
    bench = stage.Bench([photo], model, replace(TINY, field="voxels", bound=1.0), 0)
    state = stage.begin(bench, silent)
    with torch.no_grad():
        for parameter in state.field.parameters():
            parameter.normal_()
    state.step = stage.LOOK
    stage.refresh(state, bench)
    assert bool(state.occupancy.occupied.all()) and bench.faint(state.occupancy) == 0.0
    assert not bench.marching.stratified, "as published"
    pixels = stage.Bench([photo], model, TINY, 0)
    assert pixels.marching.stratified and pixels.faint(state.occupancy) == 1e-3
    full = stage.Bench([photo], model, replace(TINY, field="full"), 0)
    state.occupancy.opacity.fill_(0.004)
    assert full.faint(state.occupancy) == pytest.approx(0.004)
    state.occupancy.opacity.fill_(0.4)
    assert full.faint(state.occupancy) == pytest.approx(0.01)


def test_an_empty_field_is_noticed_early(ball: Oracle) -> None:
    settings = replace(TINY, steps=200, guidance=(1e-9,), colour=(0.0,), mask=(0.0,), sparsity=(1e4,), rate=0.3)
    with pytest.raises(DivergedError, match="went empty"):
        lift([photo_of(ball)], ball, settings, 0, silent)


def test_what_went_wrong_goes_wrong_again(ball: Oracle, tmp_path: Path) -> None:
    """The last check of a run is at its last step: it may not be got past by going on from there."""
    settings = replace(TINY, steps=60, guidance=(1e-9,), colour=(0.0,), mask=(0.0,), sparsity=(1e4,), rate=0.3)
    for _ in range(2):
        with pytest.raises(DivergedError, match="went empty"):
            lift([photo_of(ball)], ball, settings, 0, silent, tmp_path)


def test_a_run_whose_progress_cannot_be_kept_goes_on(
    ball: Oracle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(stage, "SAVE_SECONDS", -1.0)
    monkeypatch.setattr(unfinished, "save", full)
    said: list[Any] = []
    lift([photo_of(ball)], ball, TINY, 0, said.append, tmp_path)
    assert set(codes(said)) == {"checkpoint-not-written"}


def test_an_unfinished_run_that_cannot_be_read_starts_anew(ball: Oracle, tmp_path: Path) -> None:
    (tmp_path / CHECKPOINT).mkdir()
    said: list[Any] = []
    lift([photo_of(ball)], ball, TINY, 0, said.append, tmp_path)
    assert codes(said) == ["checkpoint-damaged"]


def test_an_unfinished_run_is_not_taken_for_damaged_for_want_of_memory(
    ball: Oracle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / CHECKPOINT).write_bytes(b"whole")

    def read(raw: bytes) -> Any:
        raise MemoryError

    monkeypatch.setattr(unfinished, "read_head", read)
    with pytest.raises((MemoryError, OutOfMemoryError)):
        lift([photo_of(ball)], ball, TINY, 0, silent, tmp_path)
    assert (tmp_path / CHECKPOINT).read_bytes() == b"whole"


def test_latents_of_a_model_that_has_none_are_refused() -> None:
    model, photo = real(small.PIXELS)
    with pytest.raises(UsageError, match="no latents"):
        stage.Bench([photo], model, replace(TINY, field="voxels"), 0)


def test_steps_that_ask_nothing_of_the_field_pass(ball: Oracle) -> None:
    nothing = replace(TINY, guidance=(0.0,), photo_every=3, start="blob")
    lift([photo_of(ball)], ball, nothing, 0, silent)


# Pictures of a run ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_preview_shows_the_field_from_four_sides_and_changes_nothing(
    ball: Oracle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = replace(TINY, steps=30, photo_size=(24,))
    whole = lift([photo_of(ball)], ball, settings, 0, silent)
    monkeypatch.setattr(stage, "SAVE_SECONDS", -1.0)  # one each step
    monkeypatch.setattr(unfinished, "SHARE", np.inf)
    monkeypatch.setattr(stage, "PREVIEW_SIDE", 32)
    said: list[Any] = []
    before = torch.get_rng_state()
    again = lift([photo_of(ball)], ball, settings, 0, said.append, tmp_path)
    assert (again.weights == whole.weights).all()
    assert (torch.get_rng_state() == before).all()
    told = [message.picture for message in said if isinstance(message, Progress)]
    assert told == [""] + [str(tmp_path / PREVIEW)] * 29
    shown = np.asarray(Image.open(tmp_path / PREVIEW)).astype(int)
    assert shown.shape == (32, 128, 3)
    for view in np.hsplit(shown, 4):
        red, green, blue = view[14:18, 14:18].mean((0, 1))
        assert red > green + 50 and red > blue + 50
        assert (view[[0, 0, -1, -1], [0, -1, 0, -1]] > 240).all()


def test_latents_are_previewed_in_colours() -> None:
    """A box full of the latent of an orange, before the latent of white."""
    model, photo = real()
    bench = stage.Bench([photo], model, replace(TINY, field="voxels", bound=0.5, start="blob"), 0)
    state = stage.begin(bench, silent)
    orange, white = (
        torch.from_numpy((np.array(colour) * 2 - 1) @ np.linalg.pinv(stage.LATENT_COLOURS)).float()
        for colour in ((0.9, 0.5, 0.1), (1, 1, 1))
    )
    bench.white = white
    with torch.no_grad():
        state.field.table[:, 0], state.field.table[:, 1:] = 1e4, orange
    shown = stage.portray(bench, state)
    assert shown.shape == (128, 512, 3) and shown.dtype == np.uint8
    for view in np.hsplit(shown.astype(int), 4):
        assert np.abs(view[64, 64] - np.array([0.9, 0.5, 0.1]) * 255).max() < 3
        assert np.abs(view[0, 0] - 255).max() < 3


def test_a_preview_that_cannot_be_written_harms_no_run(
    ball: Oracle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "SAVE_SECONDS", -1.0)
    (tmp_path / PREVIEW).mkdir()  # what no file replaces
    said: list[Any] = []
    lift([photo_of(ball)], ball, TINY, 0, said.append, tmp_path)
    assert (tmp_path / CHECKPOINT).is_file() and not list((tmp_path / PREVIEW).iterdir())
    assert not any(message.picture for message in said)


def test_previews_take_a_small_share_of_the_time(tmp_path: Path) -> None:
    made: list[float] = []

    def portray() -> np.ndarray:
        time.sleep(0.002)
        made.append(time.monotonic())
        return np.zeros((2, 2, 3), np.uint8)

    preview, began = unfinished.Preview(tmp_path), time.monotonic()
    while len(made) < 3:
        preview.renew(portray)
    assert 2 * 0.002 / (made[-1] - began) < unfinished.SHARE * 1.1
    assert min(np.diff(made)) > 0.002 / unfinished.SHARE


# Memory ---------------------------------------------------------------------------------------------------------------


def hold_rays(monkeypatch: pytest.MonkeyPatch, limit: int, pieces: int = 1) -> list[int]:
    """A GPU whose memory holds the rendering of so many rays at once; the rays of each that it was asked for.

    A picture is rendered in so many `pieces` at most.
    """
    true, asked = stage.render, []

    def render(field: Any, rays: Any, *rest: Any, **options: Any) -> Any:
        asked.append(len(rays))
        if len(rays) > limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        return true(field, rays, *rest, **options)

    monkeypatch.setattr(stage, "render", render)
    monkeypatch.setattr(stage, "MOST_PIECES", pieces)
    return asked


def codes(said: list[Any]) -> list[str]:
    return [message.code for message in said if isinstance(message, Caution)]


def test_memory_that_is_short_is_met_in_parts(ball: Oracle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures that don't fit side by side are rendered one after another."""
    hold_rays(monkeypatch, 2 * 16**2)
    said: list[Any] = []
    lift([photo_of(ball)], ball, replace(TINY, batch=(4,), steps=3), 0, said.append)
    assert codes(said) == ["memory-backoff"]
    assert len([message for message in said if isinstance(message, Progress)]) == 3


@pytest.mark.slow
def test_one_picture_that_is_too_large_is_rendered_in_pieces(ball: Oracle, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = hold_rays(monkeypatch, 24**2 // 4, pieces=64)
    said: list[Any] = []
    settings = replace(ROUND, batch=(2,), normal_smoothness=(1.0,), orientation=(1.0,), normal_change=(1.0,))
    made = lift([photo_of(ball)], ball, settings, 0, said.append)
    assert codes(said) == ["memory-backoff", "memory-backoff"]  # two parts, then four pieces
    assert max(asked[3:]) == 24**2 // 4
    assert overlap(made, lambda p: (p**2).sum(-1) < 0.25) > 0.8


@pytest.mark.parametrize("normals", [False, True])
def test_pieces_have_the_gradient_of_the_whole(ball: Oracle, normals: bool) -> None:
    weights = {"normal_smoothness": (3.0,), "orientation": (2.0,)} if normals else {}
    settings = replace(TINY, start="blob", depth_photo=(1.0,), guidance=(0.0,), opaqueness=(0.5,), **weights)
    found = []
    for pieces in (1, 7):
        bench = stage.Bench([photo_of(ball)], ball, settings, 0)
        still = replace(bench.marching, stratified=False)  # chance is drawn anew for each piece
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(stage.Bench, "marching", property(lambda self, still=still: still))
            state = stage.begin(bench, silent)
            state.pieces = pieces
            terms = stage.look_at_photos(bench, state, silent)
        found.append((terms, [parameter.grad for parameter in state.field.parameters()]))
    (whole, gradients), (parts, others) = found
    assert whole == pytest.approx(parts, rel=1e-4)
    for one, other in zip(gradients, others, strict=True):
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5 * float(one.abs().max()))


@pytest.mark.parametrize(
    "ask",
    [lambda: torch.empty(1 << 45), lambda: np.empty(1 << 45), lambda: torch.zeros(1).expand(1 << 45).clone()],
    ids=["torch", "numpy", "copy"],
)
def test_a_machine_whose_memory_is_short_backs_off_and_then_says_so(ball: Oracle, ask: Any) -> None:
    """The real errors of the allocators of torch and of numpy, which are of two kinds."""

    class Greedy(Oracle):
        most = 1

        def encode(self, pictures: Tensor, noise: Tensor | None = None) -> Tensor:
            if len(pictures) > self.most:
                ask()
            return pictures

    greedy = Greedy(surface_of(trimesh.creation.icosphere(1, 0.5), (1, 1, 1)), size=24)
    said: list[Any] = []
    lift([photo_of(ball)], greedy, replace(TINY, batch=(3,)), 0, said.append)
    assert codes(said) == ["memory-backoff", "memory-backoff"]  # two parts, then three
    greedy.most = 0
    with pytest.raises(OutOfMemoryError, match=r"machine's memory.*--allow-degrade") as caught:
        lift([photo_of(ball)], greedy, replace(TINY, batch=(3,)), 0, silent)
    assert caught.value.exit_code == 80


def test_other_errors_are_not_taken_for_a_want_of_memory(ball: Oracle) -> None:
    class Broken(Oracle):
        def encode(self, pictures: Tensor, noise: Tensor | None = None) -> Tensor:
            return pictures @ torch.zeros(1, 1)

    broken = Broken(surface_of(trimesh.creation.icosphere(1, 0.5), (1, 1, 1)), size=24)
    said: list[Any] = []
    with pytest.raises(RuntimeError, match=r"shape|size"):
        lift([photo_of(ball)], broken, TINY, 0, said.append)
    assert codes(said) == []


LARGE = replace(TINY, size=(64,), photo_size=(128,), batch=(2,), steps=3)


def test_pictures_shrink_only_where_that_is_allowed(ball: Oracle, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, said = hold_rays(monkeypatch, 40**2), []
    with pytest.raises(OutOfMemoryError, match="--allow-degrade"):
        lift([photo_of(ball)], ball, LARGE, 0, said.append)
    assert codes(said) == ["memory-backoff"]
    said.clear(), asked.clear()
    lift([photo_of(ball)], ball, replace(LARGE, allow_degrade=True), 0, said.append)
    assert codes(said) == ["memory-backoff", "degraded", "degraded"]
    assert asked == [128**2, 128**2, 64**2, *[32**2] * 9]  # then each step a photo and two views, one by one


def test_no_picture_is_made_smaller_than_32(ball: Oracle, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, said = hold_rays(monkeypatch, 31**2), []
    settings = replace(LARGE, size=(16,), allow_degrade=True)
    with pytest.raises(OutOfMemoryError) as caught:
        lift([photo_of(ball)], ball, settings, 0, said.append)
    assert caught.value.exit_code == 80 and "--allow-degrade" not in str(caught.value)
    assert codes(said) == ["memory-backoff", "degraded", "degraded"]
    assert asked == [128**2, 128**2, 64**2, 32**2]
    bench = stage.Bench([photo_of(ball)], ball, settings, 0)
    assert [bench.side((0, 64, 5, 200), step, 3) for step in (0, 5)] == [32, 32]
    assert bench.side(settings.size, 0, 9) == 16


def test_latents_are_never_made_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    model, photo = real()
    hold_rays(monkeypatch, 0)
    said: list[Any] = []
    with pytest.raises(OutOfMemoryError):
        lift([photo], model, replace(TINY, field="voxels", bound=1.0, allow_degrade=True), 0, said.append)
    assert codes(said) == ["memory-backoff"]


def test_a_degraded_run_that_was_cut_off_goes_on_as_it_was(
    ball: Oracle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = replace(LARGE, size=(48,), allow_degrade=True, steps=6)
    asked = hold_rays(monkeypatch, 32**2)
    whole = lift([photo_of(ball)], ball, settings, 0, silent)

    class Cut(BaseException):
        pass

    def cut(message: Progress | Caution) -> None:
        if isinstance(message, Progress) and message.done == 3:
            raise Cut

    with pytest.raises(Cut):
        lift([photo_of(ball)], ball, settings, 0, cut, tmp_path)
    asked.clear()
    said: list[Any] = []
    again = lift([photo_of(ball)], ball, settings, 0, said.append, tmp_path)
    assert codes(said) == ["resumed", "degraded"]
    assert asked == [32**2] * 9  # nothing is tried in vain
    assert (again.weights == whole.weights).all()


def test_what_was_made_coarser_is_not_gone_on_with_where_that_is_not_allowed(
    ball: Oracle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = lift([photo_of(ball)], ball, LARGE, 0, silent)
    bench = stage.Bench([photo_of(ball)], ball, LARGE, 0)
    state = stage.begin(bench, silent)
    state.step, state.halved = 2, 1
    unfinished.save(state, tmp_path)
    said: list[Any] = []
    again = lift([photo_of(ball)], ball, LARGE, 0, said.append, tmp_path)
    assert codes(said) == ["checkpoint-coarse"]
    assert (again.weights == whole.weights).all()


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


def test_directions_of_a_cube_s_points_are_seldom_overhead(ball: Oracle) -> None:
    """Shares of the published way of drawing, counted from a million of its draws."""
    bench = stage.Bench([photo_of(ball)], ball, TINY, 0)
    settings = replace(TINY, elevations=(-14.5, 90.0), directions="cube")
    poses = stage.draw_poses(settings, 4000, bench.chance(0, 3), Viewpoint(0, 10, 2.0))
    found = np.array([pose.elevation_deg for pose in poses])
    assert found.min() >= -14.5
    vectors = np.random.default_rng(0).uniform(-1, 1, (1_000_000, 3))
    degrees = np.degrees(np.arcsin(vectors[:, 2] / np.linalg.norm(vectors, axis=1)))
    wanted = degrees[degrees >= -14.5]
    for limit in (0, 30, 60, 75):
        assert (found > limit).mean() == pytest.approx((wanted > limit).mean(), abs=0.025)
    turns = np.histogram([pose.azimuth_deg for pose in poses], 8, (0, 360))[0]
    assert turns.min() > 400
    nowhere = stage.draw_poses(replace(settings, elevations=(10.0, 10.0)), 3, bench.chance(0, 3), Viewpoint(0, 10, 2.0))
    assert [pose.elevation_deg for pose in nowhere] == pytest.approx([10, 10, 10])
