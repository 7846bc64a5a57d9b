"""Rays, the occupancy grid and the samples on rays, against slow loops."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from zero123cli.cameras import Viewpoint
from zero123cli.radiance.occupancy import Marching, Occupancy, march, march_torch
from zero123cli.radiance.rays import Rays, cast_rays, enter_box
from zero123cli.scenes import raycast

BOUND = 0.6


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def ball(cells: int = 16, radius: float = 0.35) -> Occupancy:
    grid = Occupancy(BOUND, cells)
    line = (torch.arange(cells) + 0.5) * (2 * BOUND / cells) - BOUND
    centres = torch.stack(torch.meshgrid(line, line, line, indexing="ij"), -1)
    grid.opacity.copy_((centres.norm(dim=-1) < radius).float())
    grid.settle()
    return grid


def test_rays_are_those_of_the_training_pictures() -> None:
    views = [Viewpoint(20, 15, 1.7), Viewpoint(200, -35, 2.1)]
    rays = cast_rays(views, 6, 40.0)
    origins, ways = raycast.cast_from(views, 6, 40.0)
    np.testing.assert_allclose(rays.origins.numpy(), origins, atol=1e-6)
    np.testing.assert_allclose(rays.ways.numpy(), raycast.unit(ways), atol=1e-6)
    half = math.tan(math.radians(20))
    framed = cast_rays(views, 6, squares=[(0.0, 0.0, half)] * 2)
    torch.testing.assert_close(framed.ways, rays.ways)
    assert cast_rays([Viewpoint(30, 90)], 4).ways.isfinite().all()


def test_a_square_frames_its_part_of_the_picture() -> None:
    half = math.tan(math.radians(20))
    whole = cast_rays([Viewpoint(20, 15)], 8, 40.0).ways.view(8, 8, 3)
    upper_right = cast_rays([Viewpoint(20, 15)], 4, squares=[(half / 2, half / 2, half / 2)]).ways.view(4, 4, 3)
    torch.testing.assert_close(upper_right, whole[:4, 4:])


def test_rays_enter_and_leave_the_box() -> None:
    origins = torch.tensor([[0, 0, 2.0], [0, 0, 2.0], [0, 0, 0], [0.6, 0, 2], [0.7, 0, 2], [0, 0, 2]])
    ways = torch.tensor([[0, 0, -1.0], [0, 0, 1], [1, 0, 0], [0, 0, -1], [0, 0, -1], [0, 1, 0]])
    found = enter_box(Rays(origins, ways), BOUND)
    expected = torch.tensor([[1.4, 2.6], [0, 0], [0, 0.6], [1.4, 2.6], [0, 0], [0, 0]])
    torch.testing.assert_close(found, expected)


def test_samples_are_those_of_the_definition_and_of_a_loop() -> None:
    grid, marching = ball(), Marching(step=0.03, limit=100)
    rays = cast_rays([Viewpoint(20, 15), Viewpoint(110, 80)], 12)
    chance = torch.Generator().manual_seed(3)
    fast = march(rays, grid, marching, chance)
    spans = enter_box(rays, BOUND)
    shifts = torch.rand(len(rays), generator=torch.Generator().manual_seed(3))
    plain = march_torch(rays, spans, shifts, grid, marching)
    assert torch.equal(fast.ends, plain.ends)
    torch.testing.assert_close(fast.points, plain.points, atol=2e-6, rtol=0)
    torch.testing.assert_close(fast.distances, plain.distances)
    torch.testing.assert_close(fast.lengths, plain.lengths)
    assert len(fast) > 500
    counts = []
    for ray in range(len(rays)):
        near, far = spans[ray].tolist()
        middles = [near + (k + float(shifts[ray])) * 0.03 for k in range(80)]
        places = torch.tensor([t for t in middles if t < far])[:, None] * rays.ways[ray] + rays.origins[ray]
        counts.append(int(grid.is_occupied(places).sum()) if len(places) else 0)
    assert (fast.ends.diff() - torch.tensor(counts)).abs().sum() <= 2  # rounding at a cell's side
    assert grid.is_occupied(fast.points).float().mean() > 0.99
    torch.testing.assert_close(fast.points, rays.origins[fast.ray()] + fast.distances[:, None] * rays.ways[fast.ray()])


@pytest.mark.parametrize("limit", [1, 7, 20])
def test_a_limit_makes_longer_steps_and_cuts_no_ray_short(limit: int) -> None:
    grid = Occupancy(BOUND, 8)
    rays = cast_rays([Viewpoint(0, 0)], 3, 20.0)
    fine = march(rays, grid, Marching(0.01, 1000, stratified=False))
    rough = march(rays, grid, Marching(0.01, limit, stratified=False))
    plain = march_torch(rays, enter_box(rays, BOUND), torch.full((9,), 0.5), grid, Marching(0.01, limit))
    assert torch.equal(rough.ends, plain.ends)
    assert int(rough.ends.diff().max()) <= limit
    total = [torch.zeros(9).index_add(0, part.ray(), part.lengths) for part in (fine, rough)]
    assert ((total[0] - total[1]).abs() <= 0.01 * (1.2 / 0.01 / limit + 1)).all()


def test_rays_that_miss_have_no_samples() -> None:
    away = Rays(torch.tensor([[0, 0, 2.0]]), torch.tensor([[0, 0, 1.0]]))
    assert len(march(away, ball())) == 0
    assert march(away, ball()).ends.tolist() == [0, 0]
    nothing = ball(radius=0.0)
    assert not nothing.occupied.any()
    assert len(march(cast_rays([Viewpoint()], 4), nothing)) == 0
    assert len(march(away[:0], ball())) == 0


def test_cells_keep_their_bounds() -> None:
    grid = Occupancy(1.0, 2)
    grid.occupied.zero_()
    grid.occupied[1, 0, 1] = True
    inside = torch.tensor([[0.0, -1.0, 0.0], [1.0, -1.0, 1.0], [0.5, -0.001, 0.5]])
    outside = torch.tensor([[-0.001, -1.0, 0.0], [0.5, 0.0, 0.5], [1.001, -0.5, 0.5], [0.5, -1.001, 0.5]])
    assert grid.is_occupied(inside).all()
    assert not grid.is_occupied(outside).any()


def test_opacity_decays_and_rises_at_once() -> None:
    def density(points: Tensor) -> Tensor:
        return (points[:, 0] > 0).float() * 100

    grid = Occupancy(BOUND, 8)
    chance = torch.Generator().manual_seed(0)
    grid.update(density, 0.01, chance)
    assert torch.equal(grid.occupied[4:], torch.ones(4, 8, 8, dtype=torch.bool)) and not grid.occupied[:4].any()
    torch.testing.assert_close(grid.opacity[4:], torch.ones(4, 8, 8))
    grid.update(lambda points: torch.zeros(len(points)), 0.01, chance)
    torch.testing.assert_close(grid.opacity[4:], torch.full((4, 8, 8), 0.95))
    for _ in range(150):
        grid.update(lambda points: torch.zeros(len(points)), 0.01, chance, everywhere=False)
    assert float(grid.opacity.max()) == pytest.approx(0.95**151, rel=1e-4)
    grid.opacity.zero_()
    grid.settle()
    assert not grid.occupied.any()


def test_a_saved_grid_goes_on_to_the_bit() -> None:
    def density(points: Tensor) -> Tensor:
        return (points.norm(dim=-1) < 0.3).float() * 50

    one, chance = Occupancy(BOUND, 8), torch.Generator().manual_seed(5)
    one.update(density, 0.01, chance, everywhere=False)
    kept, state = {name: part.clone() for name, part in one.state_dict().items()}, chance.get_state()
    one.update(density, 0.01, chance, everywhere=False)
    other, again = Occupancy(BOUND, 8), torch.Generator()
    other.load_state_dict(kept)
    again.set_state(state)
    other.update(density, 0.01, again, everywhere=False)
    assert torch.equal(one.opacity, other.opacity) and torch.equal(one.occupied, other.occupied)


def test_samples_are_the_same_with_any_number_of_threads() -> None:
    rays = cast_rays([Viewpoint(20, 15)], 48)
    found = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        found.append(march(rays, ball(), Marching(), torch.Generator().manual_seed(0)))
    for other in found[1:]:
        assert torch.equal(other.points, found[0].points) and torch.equal(other.ends, found[0].ends)


@pytest.mark.parametrize("step", [0.01, 2 * 3**0.5 / 200, 2 * 3**0.5 / 512])
def test_a_field_that_is_the_same_everywhere_is_occupied_everywhere(step: float) -> None:
    """However the mean of equal numbers is rounded."""
    for shift in np.linspace(-3, 3, 40):
        grid = Occupancy(1.0, cells=20)
        grid.update(lambda places, shift=shift: torch.full((len(places),), float(np.log1p(np.exp(shift)))), step)
        assert grid.occupied.all()
    empty = Occupancy(1.0, cells=20)
    empty.update(lambda places: torch.zeros(len(places)), step)
    assert not empty.occupied.any()
