"""Texels hold the colours of their places: the field's, and the photo's where it sees them."""

from __future__ import annotations

import numpy as np
import pytest
import trimesh
from scipy.ndimage import binary_erosion, gaussian_filter

from zero123cli.cameras import Viewpoint
from zero123cli.meshing.cleanup import Solid
from zero123cli.meshing.mesh import Mesh, sample_texture, unit, vertex_normals, weld
from zero123cli.meshing.shot import Shot, look_at, rasterise
from zero123cli.meshing.texture import MODES, ask, average, glance, open_eye, paint, see, split, unmix, unwrap

SIZE = 128


def ball(rounds: int = 3, radius: float = 0.4) -> Solid:
    mesh = trimesh.creation.icosphere(rounds, radius)
    return Solid(np.asarray(mesh.vertices), np.asarray(mesh.faces))


def rainbow(points: np.ndarray) -> np.ndarray:
    """A colour for each place."""
    return (points + 0.5).astype(np.float32)


def grey(points: np.ndarray) -> np.ndarray:
    return np.full((len(points), 3), 0.5, np.float32)


def random_places(mesh: Mesh, count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Places on the surface, their texture coordinates and normals."""
    rng = np.random.default_rng(seed)
    face = rng.integers(len(mesh.faces), size=count)
    weights = rng.dirichlet((1, 1, 1), count)
    corners = mesh.faces[face]
    mixed = [np.einsum("pk,pkc->pc", weights, values[corners]) for values in (mesh.vertices, mesh.uv, mesh.normals)]
    return mixed[0], mixed[1], mixed[2]


@pytest.fixture(scope="module")
def painted() -> Mesh:
    return paint(ball(), rainbow, size=SIZE)


def test_texture_has_the_fields_colours_everywhere(painted: Mesh) -> None:
    """Also on the borders of charts, where a look-up mixes in texels that no face covers."""
    places, uv, _ = random_places(painted, 5000)
    error = np.abs(sample_texture(painted.texture, uv) / 255 - rainbow(places))
    assert error.max() < 0.03 and error.mean() < 0.004


def test_smaller_copies_of_the_texture_do_not_bleed(painted: Mesh) -> None:
    """What is between charts has been filled, so that the next level of a mipmap is right too."""
    half = painted.texture.reshape(SIZE // 2, 2, SIZE // 2, 2, 3).mean((1, 3))
    places, uv, _ = random_places(painted, 5000)
    error = np.abs(sample_texture(half, uv) / 255 - rainbow(places))
    assert error.max() < 0.07 and error.mean() < 0.008
    flat = paint(ball(), grey, size=SIZE).texture
    assert (flat == 128).all()


def test_charts_do_not_overlap_and_keep_all_faces(painted: Mesh) -> None:
    solid = ball()
    chart = unwrap(solid, SIZE)
    assert np.array_equal(chart.source[chart.faces], solid.faces)
    assert chart.uv.min() >= 0 and chart.uv.max() <= 1
    flat = chart.uv[chart.faces].astype(np.float64) * 512
    one, other = flat[:, 1] - flat[:, 0], flat[:, 2] - flat[:, 0]
    area = np.abs(one[:, 0] * other[:, 1] - one[:, 1] * other[:, 0]).sum() / 2
    covered = (rasterise(flat, 512, 512).face >= 0).sum()
    assert covered == pytest.approx(area, rel=0.01)  # less where faces lay on one another
    assert covered > 0.4 * 512**2


def test_large_surfaces_are_unwrapped_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zero123cli.meshing.texture.PART", 400)
    solid = ball()
    parts = split(solid.vertices[solid.faces].mean(1), np.arange(len(solid.faces)))
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(len(solid.faces))) and len(parts) == 4
    mesh = paint(solid, rainbow, size=SIZE)
    places, uv, _ = random_places(mesh, 3000)
    assert np.abs(sample_texture(mesh.texture, uv) / 255 - rainbow(places)).max() < 0.03


def test_same_in_same_out() -> None:
    one, other = (paint(ball(), rainbow, [checker_shot()], size=SIZE) for _ in range(2))
    for name in Mesh.__dataclass_fields__:
        assert getattr(one, name).tobytes() == getattr(other, name).tobytes(), name


def test_modes_hold_what_they_say() -> None:
    solid = ball(2)
    none, vertex = paint(solid, rainbow, mode="none"), paint(solid, rainbow, mode="vertex")
    assert not len(none.uv) and not none.texture.size and not len(none.colours)
    assert np.abs(vertex.colours / 255 - rainbow(vertex.vertices)).max() < 0.003
    assert not len(vertex.uv) and set(MODES) == {"none", "vertex", "uv"}


def test_normals_are_those_of_the_sphere_and_one_in_a_place(painted: Mesh) -> None:
    assert np.linalg.norm(painted.normals, axis=1) == pytest.approx(1, abs=1e-6)
    assert (painted.normals * painted.vertices / 0.4).sum(1).min() > 0.999
    first, which = weld(painted.vertices)
    assert len(first) < len(painted.vertices) and np.array_equal(painted.normals, painted.normals[first][which])


def test_normals_of_a_box_lean_evenly() -> None:
    """Weighted by angle, so that it does not matter which way the sides are cut in two."""
    mesh = trimesh.creation.box((1, 1, 1))
    normals = vertex_normals(np.asarray(mesh.vertices), np.asarray(mesh.faces))
    assert np.allclose(normals, unit(np.asarray(mesh.vertices)))


def test_a_needle_has_a_normal_of_length_one() -> None:
    normals = vertex_normals(np.array([[0, 0, 0], [1, 0, 0], [2, 0, 0.0]]), np.array([[0, 1, 2]]))
    assert np.linalg.norm(normals, axis=1) == pytest.approx(1)


def test_welding_takes_minus_zero_for_zero() -> None:
    first, which = weld(np.array([[0.0, 1, 2], [-0.0, 1, 2], [3, 4, 5]], np.float32))
    assert first.tolist() == [0, 2] and which.tolist() == [0, 0, 1]


# Photos ---------------------------------------------------------------------------------------------------------------


def checker_shot(side: int = 256, azimuth_deg: float = 0, half: float = 0.3) -> Shot:
    """A photo whose colour tells the pixel: red grows to the right and green downwards. Opaque everywhere."""
    across = np.linspace(0, 255, side).astype(np.uint8)
    rgba = np.full((side, side, 4), 255, np.uint8)
    rgba[..., 0], rgba[..., 1], rgba[..., 2] = across[None], across[:, None], 0
    return Shot(rgba, Viewpoint(azimuth_deg), half, (0.02, -0.03))


def told_place(shot: Shot, points: np.ndarray) -> np.ndarray:
    """Where the pinhole camera puts a point, written out again: right and down in [0, 1]."""
    assert shot.viewpoint == Viewpoint()  # on +Z
    depth = shot.viewpoint.distance - points[:, 2]
    x = (points[:, 0] / depth - shot.middle[0]) / shot.half
    y = (points[:, 1] / depth - shot.middle[1]) / shot.half
    return np.stack([(x + 1) / 2, (1 - y) / 2], -1)


def test_photo_lies_where_it_was_taken() -> None:
    shot = checker_shot()
    mesh = paint(ball(), grey, [shot], size=256)
    places, uv, normals = random_places(mesh, 4000)
    seen = sample_texture(mesh.texture, uv) / 255
    towards = unit(np.array(shot.viewpoint.position()) - places)
    facing = (towards * unit(normals)).sum(1)
    front, back = facing > 0.7, facing < -0.75
    assert front.sum() > 300 and back.sum() > 300
    assert np.abs(seen[front, :2] - told_place(shot, places[front])).max() < 0.02
    assert seen[front, 2].max() < 0.02
    assert np.abs(seen[back] - 0.5).max() < 0.03


def test_photo_fades_without_a_seam() -> None:
    """Along any line from the front to the back the colour never leaps, though photo and field differ by a half."""
    shot = checker_shot()
    shot.rgba[..., :3] = 255
    solid = ball(4)
    angle = np.radians(np.linspace(0, 180, 721))
    line = 0.4 * np.stack([np.sin(angle), np.zeros_like(angle), np.cos(angle)], -1)
    values = see(line, unit(line), grey(line), [open_eye(shot, solid, 0.005)])[:, 0]
    assert values[0] == pytest.approx(1) and values[-1] == pytest.approx(0.5, abs=2e-3)
    assert np.abs(np.diff(values)).max() < 0.03 and np.diff(values).max() < 3e-3


def test_photo_is_not_smeared_on_what_it_does_not_see() -> None:
    """A small ball in front of a large one: the large one's hidden part keeps the field's colour."""
    large, small = trimesh.creation.icosphere(4, 0.35), trimesh.creation.icosphere(3, 0.1)
    vertices = np.concatenate([large.vertices, small.vertices + np.array([0, 0, 0.75])])
    solid = Solid(vertices, np.concatenate([large.faces, small.faces + len(large.vertices)]))
    shot = checker_shot()
    shot.rgba[..., :3] = 255
    eye = open_eye(shot, solid, 0.005)
    # The small ball's shadow on the large one reaches to about 0.1 / (1.85 - 0.75) of the view.
    x = np.array([0.0, 0.05, 0.1, 0.12, 0.19, 0.22])
    places = np.stack([x, np.zeros(6), np.sqrt(0.35**2 - x**2)], -1)
    weights = glance(eye, places, unit(places)).weight[:, 0]
    assert weights[:4].max() < 1e-6 and weights[4:].min() > 0.9
    assert glance(eye, np.array([[0, 0, 0.85]]), np.array([[0, 0, 1.0]])).weight[0, 0] == pytest.approx(1)


def test_what_the_mask_leaves_out_is_not_taken() -> None:
    shot = checker_shot()
    shot.rgba[..., :3] = 255
    shot.rgba[:, 128:, 3] = 0  # the right half is not the object's
    eye = open_eye(shot, ball(), 0.005)
    places = 0.4 * unit(np.array([[-0.15, 0, 1], [0.15, 0, 1], [0.064, 0, 1]]))  # the last one near its edge
    seen = glance(eye, places, unit(places))
    assert seen.weight[:, 0] == pytest.approx([1, 0, 1]) and seen.plain.tolist() == [True, False, False]


def test_mixed_pixels_have_the_colour_of_the_objects_own() -> None:
    """Red before green: at the outline a camera mixes both."""
    rgba = np.zeros((16, 16, 4), np.uint8)
    rgba[:, :8], rgba[:, 8] = (255, 0, 0, 255), (128, 128, 0, 128)
    rgba[:, 9:, 1] = 255
    colours, known = unmix(rgba)
    assert np.allclose(colours[:, :8], (1, 0, 0)) and np.abs(colours[:, 8:10] - (1, 0, 0)).max() < 0.06
    assert known[:, :10].all() and not known[:, 15].any()


def test_soft_pixels_among_their_like_keep_their_colour() -> None:
    rgba = np.full((16, 16, 4), (40, 80, 120, 150), np.uint8)
    colours, known = unmix(rgba)
    assert np.allclose(colours * 255, (40, 80, 120), atol=0.1) and known.all()


def test_detail_survives_where_alpha_is_nearly_full() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (16, 16, 3))
    rgba = np.concatenate([noise, np.full((16, 16, 1), 240)], -1).astype(np.uint8)
    assert np.abs(unmix(rgba)[0] * 255 - noise).mean() < 4


def test_what_lies_beside_a_nearer_part_does_not_take_its_colours() -> None:
    """A black plate before a white one, and a photo that is blurred at its edge."""
    near, far = trimesh.creation.box((0.3, 0.3, 0.05)), trimesh.creation.box((0.8, 0.8, 0.05))
    near.apply_translation((0, 0, 0.3))
    places = np.concatenate([near.vertices, far.vertices])
    solid = Solid(places, np.concatenate([near.faces, far.faces + len(near.vertices)]))
    shot = checker_shot(512, half=0.4)
    black = look_at(shot, np.asarray(near.vertices), np.asarray(near.faces), 512).face >= 0
    shot.rgba[..., :3] = gaussian_filter(np.where(black, 0.0, 255.0), 0.5)[..., None]
    eye = open_eye(shot, solid, 0.001)
    x = np.linspace(0.15, 0.39, 300)
    seen = glance(eye, np.stack([x, 0 * x, 0 * x + 0.025], -1), np.tile([0, 0, 1.0], (300, 1)))
    taken = seen.weight[:, 0] > 0.5
    assert taken.sum() > 150 and seen.colours[taken].min() > 0.9
    front = glance(eye, np.array([[0.14, 0, 0.325]]), np.array([[0, 0, 1.0]]))
    assert front.weight[0, 0] == 1 and front.colours[0, 0] < 0.1  # the nearer one keeps its own up to its edge


def test_a_fine_photo_leaves_no_fringe_on_a_coarse_surface() -> None:
    """White on white, cut out of black: nothing dark at the rim, however many pixels a sample stands for."""
    solid = ball(3)
    shot = checker_shot(1024)
    mask = look_at(shot, solid.vertices, solid.faces, 1024).face >= 0
    shot.rgba[mask, :3], shot.rgba[~mask] = 255, 0
    mesh = paint(solid, lambda points: np.ones((len(points), 3), np.float32), [shot], mode="vertex")
    assert mesh.colours.min() > 250


def test_beyond_its_frame_a_photo_shows_nothing() -> None:
    shot = checker_shot(half=0.15)
    places = 0.4 * unit(np.array([[0, 0, 1], [1, 0, 1.0]]))
    assert glance(open_eye(shot, ball(), 0.005), places, unit(places)).weight[:, 0] == pytest.approx([1, 0])


def test_what_is_at_the_rim_alone_goes_on_for_a_little_only() -> None:
    """A black ring where a white ball ends: behind it there is some black, then white again, then the field's grey."""
    shot, solid = checker_shot(), ball(4)
    shot.rgba[..., :3] = 255
    mask = look_at(shot, solid.vertices, solid.faces, shot.side).face >= 0
    shot.rgba[~mask, 3] = 0
    shot.rgba[mask & ~binary_erosion(mask, iterations=3), :3] = 0
    angle = np.radians(np.arange(0, 181))
    line = 0.4 * np.stack([np.sin(angle), np.zeros_like(angle), np.cos(angle)], -1)
    values = see(line, unit(line), grey(line), [open_eye(shot, solid, 0.005)])[:, 0]
    assert np.allclose(values[:60], 1) and values[66:70].max() < 0.1  # seen at an angle of up to 77 degrees
    assert values[76:86].min() > 0.7 and values[180] == pytest.approx(0.5, abs=0.01)


def test_colours_go_on_beyond_what_the_photo_shows_and_fade_into_the_fields() -> None:
    """Red on the left and blue on the right of a ball: so it stays just behind the rim, and far behind it is grey."""
    shot = checker_shot()
    shot.rgba[:, :128, :3], shot.rgba[:, 128:, :3] = (255, 0, 0), (0, 0, 255)
    solid = ball(4)
    angle = np.radians(np.linspace(-179, 179, 359))
    line = 0.4 * np.stack([np.sin(angle), np.zeros_like(angle), np.cos(angle)], -1)
    values = see(line, unit(line), grey(line), [open_eye(shot, solid, 0.005)])
    hidden = np.abs(angle) > np.radians(90)
    near, far = hidden & (np.abs(angle) < np.radians(95)), hidden & (np.abs(angle) > np.radians(150))
    for side, main in ((angle < 0, 0), (angle > 0, 2)):
        assert (values[near & side, main] > 0.65).all() and (values[near & side, 2 - main] < 0.35).all()
    assert np.abs(values[far] - 0.5).max() < 0.02


def test_of_two_photos_each_gives_its_side() -> None:
    front, back = checker_shot(), checker_shot(azimuth_deg=180)
    front.rgba[..., :3], back.rgba[..., :3] = (255, 0, 0), (0, 0, 255)
    solid = ball()
    eyes = [open_eye(shot, solid, 0.005) for shot in (front, back)]
    places = np.array([[0, 0, 0.4], [0, 0, -0.4], [0.4, 0, 0]])
    values = see(places, unit(places), grey(places), eyes)
    assert np.allclose(values, [[1, 0, 0], [0, 0, 1], [0.5, 0.5, 0.5]], atol=5e-3)


def test_where_two_photos_show_the_same_the_better_one_counts_most() -> None:
    """From the front and from the right: each has its own side, and between them they share."""
    front, right = checker_shot(), checker_shot(azimuth_deg=90)
    front.rgba[..., :3], right.rgba[..., :3] = (255, 0, 0), (0, 0, 255)
    eyes = [open_eye(shot, ball(), 0.005) for shot in (front, right)]
    angle = np.radians([20, 45, 70])
    places = 0.4 * np.stack([np.sin(angle), np.zeros(3), np.cos(angle)], -1)
    values = see(places, unit(places), grey(places), eyes)
    assert values[:, 0] == pytest.approx([1, 0.5, 0], abs=0.02) and values[:, 2] == pytest.approx([0, 0.5, 1], abs=0.02)


def test_a_photo_finer_than_the_texture_is_averaged() -> None:
    """Stripes of one pixel become their mean instead of noise."""
    shot = checker_shot(512)
    shot.rgba[..., :3] = (np.arange(512) % 2 * 255)[None, :, None]
    mesh = paint(ball(), grey, [shot], size=64)
    places, uv, normals = random_places(mesh, 2000)
    front = (unit(np.array(shot.viewpoint.position()) - places) * unit(normals)).sum(1) > 0.7
    assert np.abs(sample_texture(mesh.texture, uv[front]) / 255 - 0.5).max() < 0.12


@pytest.mark.parametrize("factor", [1, 2, 3, 7, 10])
def test_averaging_keeps_the_mean_of_each_tile(factor: int) -> None:
    values = np.random.default_rng(0).random((10, 10, 2)).astype(np.float32)
    smaller = average(values, factor)
    for row in range(len(smaller)):
        for column in range(len(smaller)):
            tile = values[row * factor : (row + 1) * factor, column * factor : (column + 1) * factor]
            assert smaller[row, column] == pytest.approx(tile.mean((0, 1)), abs=1e-5)


def test_field_is_asked_in_blocks() -> None:
    asked = []

    def colour(points: np.ndarray) -> np.ndarray:
        asked.append((len(points), points.dtype))
        return grey(points)

    ask(colour, np.zeros((300_000, 3)))
    assert len(asked) == 3 and max(count for count, _ in asked) <= 1 << 17
    assert {kind for _, kind in asked} == {np.dtype(np.float32)}
