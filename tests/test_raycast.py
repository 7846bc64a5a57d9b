"""Pictures against closed forms, the axis convention, light and textures."""

from __future__ import annotations

import math
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import trimesh
from surfaces import EVEN, plain, quad, surface_of, together

from zero123cli.cameras import Viewpoint, ring
from zero123cli.errors import UnavailableError
from zero123cli.scenes.filling import occupancy
from zero123cli.scenes.raycast import (
    SOFT,
    Lamp,
    Lighting,
    Picture,
    Prepared,
    corner_normals,
    draw_lighting,
    prepare,
    render,
    render_views,
    silhouette,
)
from zero123cli.scenes.surface import Material, Surface, to_linear, to_srgb

SIX = {"right": (255, 0, 0), "left": (0, 255, 0), "top": (0, 0, 255), "bottom": (255, 255, 0), "front": (255, 0, 255),
       "back": (0, 255, 255)}  # fmt: skip


@pytest.fixture(scope="module")
def cube() -> Prepared:
    """Each face in another colour, by where it is for the photo's camera."""
    mesh = trimesh.creation.box((1, 1, 1))
    names = {(1, 0, 0): "right", (-1, 0, 0): "left", (0, 1, 0): "top", (0, -1, 0): "bottom", (0, 0, 1): "front",
             (0, 0, -1): "back"}  # fmt: skip
    which = [list(SIX).index(names[tuple(np.rint(normal).astype(int))]) for normal in mesh.face_normals]
    materials = tuple(
        Material((*to_linear(np.array(colour) / 255), 1.0), roughness=1.0)  # type: ignore[arg-type]
        for colour in SIX.values()
    )
    return prepare(
        Surface(mesh.vertices.astype(np.float32), mesh.faces.astype(np.int32), materials, np.array(which, np.int32))
    )


@pytest.fixture(scope="module")
def sphere() -> Prepared:
    return prepare(surface_of(trimesh.creation.icosphere(5, 0.5)))


def same(one: Picture, other: Picture) -> bool:
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in ("rgba", "depth", "normal"))


# Geometry -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("view", [Viewpoint(0, 0, 2), Viewpoint(130, -40, 1.6), Viewpoint(20, 90, 2)], ids=str)
def test_sphere_has_the_depth_normals_and_outline_of_the_closed_form(sphere: Prepared, view: Viewpoint) -> None:
    size, fov = 96, 50.0
    picture = render(sphere, view, size=size, fov_deg=fov, light=EVEN, samples=1)
    offset = (np.arange(size) + 0.5 - size / 2) * 2 * math.tan(math.radians(fov) / 2) / size
    x, y = np.meshgrid(offset, -offset)
    square = x**2 + y**2 + 1  # (o + t w)^2 = r^2 with w = (x, y, 1) and the centre at depth d
    root = view.distance**2 - square * (view.distance**2 - 0.25)
    inside, edge = root > 0, np.abs(root) < 0.02
    depth = (view.distance - np.sqrt(np.maximum(root, 0))) / square
    assert np.array_equal((picture.rgba[..., 3] > 0)[~edge], inside[~edge])
    assert np.isinf(picture.depth[~inside & ~edge]).all()
    sure = inside & ~edge
    assert np.abs(picture.depth - depth)[sure].max() < 2e-3
    assert np.isfinite(picture.depth[sure]).all()
    assert np.abs(np.linalg.norm(picture.normal[sure], axis=-1) - 1).max() < 1e-5
    forward = -np.array(view.position()) / view.distance
    along = (depth - view.distance) / 0.5  # of the normal, on the view axis
    assert np.abs(picture.normal @ forward - along)[sure].max() < 0.02


def test_coverage_is_the_area_of_the_outline(sphere: Prepared) -> None:
    size, fov, distance = 64, 49.1, 1.9
    alpha = render(sphere, Viewpoint(0, 0, distance), size=size, fov_deg=fov, samples=4).rgba[..., 3] / 255
    radius = math.tan(math.asin(0.5 / distance)) / math.tan(math.radians(fov) / 2) * size / 2
    assert alpha.sum() == pytest.approx(math.pi * radius**2, rel=0.005)
    assert ((alpha > 0) & (alpha < 1)).sum() > 2 * radius


def test_perspective_size_is_exact() -> None:
    # The quad's half side is seen at 0.25 / 2 of the distance; half the picture is tan(fov / 2) = 0.25.
    fov = 2 * math.degrees(math.atan(0.25))
    covered = render(prepare(quad(0.5)), Viewpoint(0, 0, 2), size=64, fov_deg=fov, samples=1).rgba[..., 3] > 0
    expected = np.zeros((64, 64), bool)
    expected[16:48, 16:48] = True
    assert np.array_equal(covered, expected)
    near = render(prepare(quad(0.5, z=0.5)), Viewpoint(0, 0, 2), size=64, fov_deg=fov, samples=1)
    assert (near.rgba[..., 3] > 0).sum() == 42**2  # 64 * 0.25 / 1.5 / 0.25 = 42.7: 21 centres on each side
    assert near.depth.min() == pytest.approx(1.5, abs=1e-5)


@pytest.mark.parametrize(
    ("azimuth", "elevation", "face"),
    [(0, 0, "front"), (90, 0, "right"), (180, 0, "back"), (270, 0, "left"), (0, 90, "top"), (0, -90, "bottom")],
)
def test_the_camera_sees_the_face_it_stands_before(cube: Prepared, azimuth: int, elevation: int, face: str) -> None:
    rgba = render(cube, Viewpoint(azimuth, elevation, 2), size=32, light=EVEN).rgba
    seen = np.unique(rgba[rgba[..., 3] == 255][:, :3], axis=0)
    assert seen.tolist() == [list(SIX[face])]


@pytest.mark.parametrize(
    ("view", "left", "right", "top", "bottom"),
    [
        (Viewpoint(-40, 0, 2), "left", "front", None, None),
        (Viewpoint(40, 0, 2), "front", "right", None, None),
        (Viewpoint(0, 40, 2), None, None, "top", "front"),
        (Viewpoint(0, -40, 2), None, None, "front", "bottom"),
    ],
    ids=["from the left", "from the right", "from above", "from below"],
)
def test_neighbouring_faces_lie_on_the_right_sides(
    cube: Prepared, view: Viewpoint, left: str | None, right: str | None, top: str | None, bottom: str | None
) -> None:
    rgba = render(cube, view, size=64, light=EVEN, samples=1).rgba
    rows, columns = np.nonzero(rgba[..., 3])
    row, column = int(rows.mean()), int(columns.mean())
    for name, pixel in (
        (left, rgba[row, columns[rows == row].min()]),
        (right, rgba[row, columns[rows == row].max()]),
        (top, rgba[rows[columns == column].min(), column]),
        (bottom, rgba[rows[columns == column].max(), column]),
    ):
        if name:
            assert tuple(pixel[:3]) == SIX[name]


def test_straight_from_above_the_picture_is_the_limit_of_lower_cameras(cube: Prepared) -> None:
    for azimuth in (0, 35):
        for sign in (1, -1):
            pole = render(cube, Viewpoint(azimuth, 90 * sign, 2), size=32, samples=1).rgba[..., 3]
            near = render(cube, Viewpoint(azimuth, 89.99 * sign, 2), size=32, samples=1).rgba[..., 3]
            assert (pole != near).mean() < 0.02


def test_views_together_are_the_views_alone(cube: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    views = ring(5, 20, 1.9)
    pictures = render_views(cube, views, size=24)
    assert len(pictures) == 5
    assert pictures[0].rgba.dtype == np.uint8 and pictures[0].depth.dtype == pictures[0].normal.dtype == np.float32
    assert all(same(picture, render(cube, view, size=24)) for picture, view in zip(pictures, views, strict=True))
    monkeypatch.setattr("zero123cli.scenes.raycast.BATCH", 5000)  # two views fit
    assert all(map(same, pictures, render_views(cube, views, size=24)))


def test_silhouettes_are_where_pictures_are(cube: Prepared) -> None:
    views = ring(4, 30, 1.9)
    masks = silhouette(cube, views, 40, 45.0)
    assert masks.shape == (4, 40, 40) and masks.dtype == bool
    for mask, view in zip(masks, views, strict=True):
        assert np.array_equal(mask, render(cube, view, size=40, fov_deg=45.0, samples=1).rgba[..., 3] > 0)


def test_normals_are_smooth_on_round_things_and_sharp_at_creases() -> None:
    ball = trimesh.creation.icosphere(3)
    corners = ball.vertices[ball.faces]
    normals = corner_normals(corners.astype(np.float32))
    assert (normals * corners).sum(-1).min() > 0.999
    box = trimesh.creation.box()
    assert np.allclose(corner_normals(box.triangles.astype(np.float32)), box.face_normals[:, None], atol=1e-6)
    tin = trimesh.creation.cylinder(0.5, 1, sections=32)
    normals = corner_normals(tin.triangles.astype(np.float32))
    walls = np.abs(tin.face_normals[:, 2]) < 0.5
    assert np.abs(normals[walls][..., 2]).max() < 1e-5
    assert np.abs(normals[~walls][..., 2]).min() > 1 - 1e-5
    radial = tin.triangles[walls][..., :2] / 0.5
    assert (normals[walls][..., :2] * radial).sum(-1).min() > 0.99  # not the flat facets'


def test_a_missing_embreex_is_told_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "embreex.rtcore_scene", None)
    with pytest.raises(UnavailableError, match="pip install embreex") as caught:
        prepare(quad())
    assert caught.value.exit_code == 69


# Colour and light -----------------------------------------------------------------------------------------------------


def test_a_texture_stands_upright_and_is_not_mirrored() -> None:
    texture = np.zeros((2, 2, 4), np.uint8)
    texture[..., 3] = 255
    texture[0, 0, :3], texture[0, 1, :3] = (255, 0, 0), (0, 255, 0)  # the top row
    texture[1, 0, :3], texture[1, 1, :3] = (0, 0, 255), (255, 255, 0)
    texture = texture.repeat(16, 0).repeat(16, 1)
    rgba = render(prepare(quad(texture=texture)), Viewpoint(0, 0, 2), size=64, light=EVEN).rgba
    rows, columns = np.nonzero(rgba[..., 3] == 255)
    third = (rows.max() - rows.min()) // 3
    up, down, left, right = rows.min() + third, rows.max() - third, columns.min() + third, columns.max() - third
    assert rgba[up, left, :3].tolist() == [255, 0, 0] and rgba[up, right, :3].tolist() == [0, 255, 0]
    assert rgba[down, left, :3].tolist() == [0, 0, 255] and rgba[down, right, :3].tolist() == [255, 255, 0]


def test_textures_repeat_and_are_smooth_between_texels() -> None:
    texture = plain((0, 0, 0, 255))
    texture[:, 2:, :3] = 255
    surface = quad(texture=texture)
    assert surface.uv is not None
    moved = Surface(**{**vars(surface), "uv": surface.uv + np.float32([3, -2])})
    one, other = (
        render(prepare(each), Viewpoint(0, 0, 2), size=64, light=EVEN, samples=1) for each in (surface, moved)
    )
    assert np.abs(one.rgba.astype(int) - other.rgba).max() <= 1
    row = one.rgba[32, :, 0][one.rgba[32, :, 3] > 0]
    assert len(np.unique(row)) > 6  # not two tones only


def test_a_fine_texture_seen_from_afar_is_its_mean() -> None:
    texture = np.full((256, 256, 4), 255, np.uint8)
    texture[(np.indices((256, 256)).sum(0) % 2) == 0, :3] = 0
    rgba = render(prepare(quad(texture=texture)), Viewpoint(0, 0, 2), size=32, light=EVEN, samples=1).rgba
    inside = rgba[rgba[..., 3] > 0][:, :3]
    grey = float(to_srgb(np.array(0.5))) * 255  # half of the light, not half of the value
    assert np.abs(inside - grey).max() < 2


@pytest.mark.parametrize("far", [1e30, 3e38])
def test_a_texture_stretched_beyond_all_numbers_is_rendered(far: float) -> None:
    surface = quad(texture=np.random.default_rng(0).integers(0, 256, (16, 16, 4), np.uint8))
    with np.errstate(all="ignore"):
        prepared = prepare(replace(surface, uv=surface.uv * np.float32(far)))
        assert render(prepared, Viewpoint(0, 0, 2), size=16).rgba.shape == (16, 16, 4)


def test_corner_colours_are_interpolated_in_linear_light() -> None:
    ends = np.array([[1, 0, 0, 1], [0, 1, 0, 1], [0, 1, 0, 1], [1, 0, 0, 1]], np.float32)
    surface = quad(colours=ends[quad().faces])
    picture = render(prepare(surface), Viewpoint(0, 0, 2), size=64, light=EVEN, samples=1)
    columns = np.flatnonzero(picture.rgba[32, :, 3])
    x = (columns + 0.5 - 32) * 2 * math.tan(math.radians(49.134) / 2) / 64 * 2 + 0.5
    expected = to_srgb(np.stack([1 - x, x], -1)) * 255
    assert np.abs(picture.rgba[32, columns, :2] - expected).max() < 1


@pytest.mark.parametrize("albedo", [0.02, 0.2, 0.7])
def test_known_light_gives_the_srgb_value(albedo: float) -> None:
    prepared = prepare(surface_of(trimesh.creation.box((1, 1, 0.1)), (albedo, albedo, albedo, 1)))
    lamp = Lamp((0, math.sin(math.pi / 3), math.cos(math.pi / 3)), (0.8, 0.8, 0.8))
    for light, power in (
        (EVEN, 1.0),
        (Lighting((0.6,) * 3, (0.2,) * 3), 0.4),  # a wall has half of each
        (Lighting((0,) * 3, (0,) * 3, (lamp,)), 0.4),  # 0.8 cos 60
        (Lighting((0,) * 3, (0,) * 3, (lamp, lamp)), 0.8),
    ):
        value = render(prepared, Viewpoint(0, 0, 2), size=16, light=light).rgba[8, 8, :3]
        assert np.abs(value - to_srgb(np.array(albedo * power)) * 255).max() <= 0.51


def test_faces_are_lit_on_both_sides() -> None:
    light = Lighting((0.1,) * 3, (0.1,) * 3, (Lamp((0, 0, 1), (0.5,) * 3), Lamp((0, 0, -1), (0.5,) * 3)))
    front, back = (render(prepare(quad()), Viewpoint(azimuth, 0, 2), size=16, light=light) for azimuth in (0, 180))
    assert np.array_equal(front.rgba, back.rgba)
    assert front.normal[8, 8] @ (0, 0, 1) > 0.99 and back.normal[8, 8] @ (0, 0, -1) > 0.99


def test_a_glossy_ball_has_a_highlight_that_a_matte_one_lacks() -> None:
    ball = surface_of(trimesh.creation.icosphere(4, 0.5), (0.2, 0.2, 0.2, 1))
    light = Lighting((0.3,) * 3, (0.3,) * 3, (Lamp((0, 0, 1), (0.7,) * 3),))
    peaks = []
    for roughness in (1.0, 0.3):
        shiny = Surface(**{**vars(ball), "materials": (Material((0.2, 0.2, 0.2, 1), roughness=roughness),)})
        peaks.append(render(prepare(shiny), Viewpoint(0, 0, 2), size=32, light=light).rgba[16, 16, 0])
    assert peaks[1] > peaks[0] + 10


def test_a_shadow_falls_straight_behind_its_object() -> None:
    pair = together(quad(1.0, -0.2), quad(0.3, 0.2))
    light = Lighting((0.2,) * 3, (0.2,) * 3, (Lamp((0, 0, 1), (0.8,) * 3, shadow=True),))
    behind = render(prepare(pair), Viewpoint(60, 0, 2), size=64, light=light, samples=1).rgba
    tones = np.unique(behind[behind[..., 3] == 255][:, 0])
    assert to_srgb(np.array(0.2)) * 255 == pytest.approx(tones.min(), abs=1)  # the shadow has ambient light only
    assert tones.max() == 255


def test_cut_out_textures_are_passed_through() -> None:
    holed = plain((255, 255, 255, 255)).repeat(8, 0).repeat(8, 1)
    holed[:, :16, 3] = 0  # its left half is not there
    back = quad(1.0, -0.2, plain((255, 0, 0, 255)))
    for layers in (1, 3):
        leaves = [quad(0.5, 0.1 * (number + 1), holed) for number in range(layers)]
        prepared = prepare(together(back, *leaves))
        picture = render(prepared, Viewpoint(0, 0, 2), size=64, light=EVEN, samples=1)
        assert picture.rgba[32, 29, :3].tolist() == [255, 0, 0] and picture.depth[32, 29] == pytest.approx(
            2.2, abs=1e-4
        )
        assert picture.rgba[32, 35, :3].tolist() == [255, 255, 255]
        assert picture.depth[32, 35] == pytest.approx(2 - 0.1 * layers, abs=1e-4)
    alone = prepare(quad(1.0, 0.0, holed))
    picture = render(alone, Viewpoint(0, 0, 2), size=64, light=EVEN)
    assert picture.rgba[32, 20, 3] == 0 and picture.rgba[32, 40, 3] == 255
    assert np.array_equal(
        silhouette(alone, [Viewpoint(0, 0, 2)], 64)[0],
        render(alone, Viewpoint(0, 0, 2), size=64, samples=1).rgba[..., 3] > 0,
    )


def test_drawn_lights_are_repeatable_varied_and_well_exposed(sphere: Prepared) -> None:
    assert draw_lighting(np.random.default_rng(3)) == draw_lighting(np.random.default_rng(3))
    lights = [SOFT, *(draw_lighting(np.random.default_rng(seed)) for seed in range(40))]
    assert len(set(lights)) == 41
    assert len({len(light.lamps) for light in lights[1:]}) == 4
    for light in lights:
        assert all(math.hypot(*lamp.direction) == pytest.approx(1, abs=1e-4) for lamp in light.lamps)
        rgba = render(sphere, Viewpoint(0, 20, 2), size=24, light=light, samples=1).rgba
        values = rgba[rgba[..., 3] > 0][:, :3]
        assert 100 < values.mean() < 245
        assert (values == 255).any(-1).mean() < 0.5 and values.min() > 15


# Speed ----------------------------------------------------------------------------------------------------------------


def test_an_average_object_takes_a_fraction_of_a_second() -> None:
    ball_ = trimesh.creation.icosphere(5, 0.5)  # 20,480 faces
    texture = np.random.default_rng(0).integers(0, 256, (512, 512, 4), np.uint8)
    texture[..., 3] = 255
    surface = surface_of(ball_)
    uv = (np.asarray(ball_.vertices)[ball_.faces][..., :2] + 0.5).astype(np.float32)
    surface = Surface(**{**vars(surface), "uv": uv, "materials": (Material((1, 1, 1, 1), texture),)})
    views = ring(12, 20)
    prepare(surface)  # imports
    begin = time.process_time()
    prepared = prepare(surface)
    pictures = render_views(prepared, views, size=64, light=draw_lighting(np.random.default_rng(0)))
    rendered = time.process_time()
    occupancy(prepared, 64)
    done = time.process_time()
    assert len(pictures) == 12
    assert rendered - begin < 0.6 and done - rendered < 1.0  # 0.15 and 0.2 measured; others may be busy
