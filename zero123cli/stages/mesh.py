"""Stage 4, field -> mesh: the surface where the photo says it is, mended, thinned out, fitted to its outline, painted.

Letters: P points, C channels of colour.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ..artifacts import Field
from ..meshing.cleanup import clean
from ..meshing.isosurface import COARSE, choose_level, extract, fill_inside, look_over
from ..meshing.mesh import Made
from ..meshing.shot import outline, shot_of
from ..meshing.silhouette import fit_outline
from ..meshing.texture import paint
from ..meshing.thin import round_thin
from ..radiance.field import colour_at, density_at
from ..settings import LiftSettings, MeshSettings
from ..watch import Caution, Progress, Watch
from .lift import Reference, as_colours, to_field

PARTS = 5


def make_mesh(
    field: Field, references: Sequence[Reference], settings: MeshSettings, lift: LiftSettings, watch: Watch
) -> Made:
    """The field's surface in the photos' colours."""
    known = to_field(field)
    shots = [
        shot_of(one.cutout.rgba, one.azimuth_deg, one.views.photo_elevation_deg, lift.distance, lift.fov_deg)
        for one in references
    ]

    within = outline(shots[0])
    rim = 2 * known.description.bound / settings.resolution  # a cell, over which the field ends at the photo's outline

    def density(points: np.ndarray) -> np.ndarray:
        """What the photo's outline leaves of the field's."""
        share = np.clip(within(points) / rim + 0.25, 0, 1)
        return (density_at(known, points) * share).astype(np.float32)

    def colour(points: np.ndarray) -> np.ndarray:
        return as_colours(colour_at(known, points))

    watch(Progress("mesh", 0, PARTS, "looking for the surface"))
    volume = look_over(density, reach=known.description.bound, cells=min(COARSE, settings.resolution))
    chosen = None if settings.level else choose_level(volume, shots)
    level = chosen.value if chosen else settings.level
    watch(Progress("mesh", 1, PARTS, f"level {level:.3g}"))
    rounded = round_thin(density, volume, shots[0], level, rim / 2)
    vertices, faces = extract(*fill_inside(*rounded, level), level, settings.resolution)
    watch(Progress("mesh", 2, PARTS, f"{len(faces)} faces"))
    solid = clean(
        vertices,
        faces,
        budget=settings.faces,
        keep_components=settings.keep_components,
        smoothing=settings.smoothing,
        watertight=settings.watertight,
    )
    if 0 < settings.faces < len(solid.faces):
        text = f"{len(solid.faces)} faces are the fewest that were reached; {settings.faces} were asked for"
        watch(Caution("faces", text, "ask for more"))
    watch(Progress("mesh", 3, PARTS, f"fitting the outline of {len(solid.faces)} faces"))
    fitted = replace(solid, vertices=fit_outline(solid.vertices, solid.faces, shots[0]))
    watch(Progress("mesh", 4, PARTS, f"painting {len(solid.faces)} faces"))
    painted = paint(fitted, colour, shots, mode=settings.texture, size=settings.texture_size, known=solid.vertices)
    watch(Progress("mesh", PARTS, PARTS))
    return Made(
        **vars(painted),
        level=level,
        margin=chosen.margin if chosen else 1.0,
        dropped=solid.dropped,
        closed=solid.closed,
    )
