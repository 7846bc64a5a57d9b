"""Another texture changes colours alone."""

from __future__ import annotations

import numpy as np
import trimesh
from surfaces import EVEN, plain, quad, surface_of, together

from zero123cli.cameras import Viewpoint
from zero123cli.scenes.looks import retexture
from zero123cli.scenes.raycast import prepare, render
from zero123cli.scenes.surface import normalise


def test_retexturing_keeps_the_shape_and_is_repeatable() -> None:
    surface = normalise(surface_of(trimesh.creation.capsule(), (0.5, 0.3, 0.2, 1)))
    looks = set()
    for seed in range(12):
        other, again = (retexture(surface, np.random.default_rng(seed)) for _ in range(2))
        assert other.vertices is surface.vertices and other.faces is surface.faces
        pictures = [render(prepare(each), Viewpoint(0, 10, 1.5), size=32, light=EVEN) for each in (other, again)]
        assert np.array_equal(pictures[0].rgba, pictures[1].rgba)
        looks.add(pictures[0].rgba.tobytes())
        assert pictures[0].rgba[16, 16, 3] == 255
    assert len(looks) == 12


def test_retexturing_leaves_holes_where_they_are() -> None:
    holed = plain((40, 160, 60, 255)).repeat(8, 0).repeat(8, 1)
    holed[:, :16, 3] = 0
    surface = together(quad(1.0, 0.0, holed), quad(0.3, 0.4, plain((90, 90, 90, 255))))
    view = Viewpoint(30, 0, 2)
    before = render(prepare(surface), view, size=48).rgba[..., 3]
    for seed in range(12):
        after = retexture(surface, np.random.default_rng(seed))
        assert np.array_equal(render(prepare(after), view, size=48).rgba[..., 3], before)
