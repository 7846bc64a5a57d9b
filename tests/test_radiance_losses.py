"""Losses against sums written out by hand, and their gradients against finite differences."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from zero123cli.radiance import losses


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def test_depth_smoothness_is_the_papers() -> None:
    depth = torch.rand(1, 4, 5)
    rows = [abs(depth[0, y, x + 1] - depth[0, y, x]) for y in range(4) for x in range(4)]
    columns = [abs(depth[0, y + 1, x] - depth[0, y, x]) for y in range(3) for x in range(5)]
    expected = (sum(rows) / len(rows) + sum(columns) / len(columns)) / 2
    torch.testing.assert_close(losses.depth_smoothness(depth), torch.as_tensor(expected))


def test_near_view_pulls_both_renderings_together() -> None:
    colour, near = (torch.rand(1, 3, 3, 4, requires_grad=True) for _ in range(2))
    depth, near_depth = (torch.rand(1, 3, 3, requires_grad=True) for _ in range(2))
    losses.near_view(colour, near, depth, near_depth).backward()
    for one, other in ((colour, near), (depth, near_depth)):
        assert one.grad is not None
        assert other.grad is not None
        torch.testing.assert_close(one.grad, -other.grad)
        assert one.grad.abs().min() > 0
    assert losses.near_view(colour, colour, depth, depth).item() == 0


def test_an_empty_picture_has_no_cost_of_emptiness_and_a_sharp_one_less_than_a_foggy_one() -> None:
    assert float(losses.emptiness(torch.zeros(10))) == 0
    sharp, foggy = torch.tensor([1.0, 0, 0, 0]), torch.full((4,), 0.25)
    assert losses.emptiness(sharp) < losses.emptiness(foggy)


def test_opaqueness_prefers_hit_or_miss() -> None:
    costs = [float(losses.opaqueness(torch.full((3,), value))) for value in (0.0, 0.3, 0.5, 0.7, 1.0)]
    assert costs[0] == pytest.approx(costs[4], rel=1e-3)
    assert costs[0] < costs[1] < costs[2] > costs[3] > costs[4]
    assert costs[2] == pytest.approx(0.6931, abs=1e-4)


def test_sparsity_of_nothing_is_a_tenth() -> None:
    assert float(losses.sparsity(torch.zeros(5))) == pytest.approx(0.1)
    assert float(losses.sparsity(torch.ones(5))) == pytest.approx(1.01**0.5)


def test_only_surfaces_that_face_away_cost_orientation() -> None:
    ray = torch.tensor([[0.0, 0.0, -1.0]])
    one, hit = torch.ones(1), torch.ones(1)
    assert float(losses.orientation(one, -ray, ray, hit)) == 0
    assert float(losses.orientation(one, ray, ray, hit)) == 1
    weights = torch.rand(6, requires_grad=True)
    normals = torch.randn(6, 3, requires_grad=True)
    losses.orientation(weights, normals, torch.randn(6, 3), torch.tensor([0.0, 0.5, 0.2])).backward()
    assert weights.grad is None  # as published: it turns surfaces and does not thin them
    assert normals.grad is not None
    assert torch.isfinite(losses.orientation(one, ray, ray, torch.zeros(3)))


def test_smooth_normals_and_flat_grids_cost_nothing() -> None:
    flat = torch.tensor([0.0, 0.0, 1.0]).expand(1, 4, 4, 3)
    assert float(losses.normal_smoothness(flat)) == 0
    assert float(losses.normal_change(flat, flat)) == 0
    assert float(losses.total_variation(torch.full((2, 3, 4, 5), 7.0))) == 0
    slope = torch.arange(5.0).expand(1, 3, 4, 5)
    assert float(losses.total_variation(slope)) == pytest.approx(1 / 3)


CASES: dict[str, tuple[Callable[..., Tensor], tuple[tuple[int, ...], ...]]] = {
    "differ": (losses.differ, ((2, 3), (2, 3))),
    "depth": (losses.depth_smoothness, ((1, 3, 4),)),
    "near": (losses.near_view, ((1, 2, 2, 3), (1, 2, 2, 3), (1, 2, 2), (1, 2, 2))),
    "emptiness": (losses.emptiness, ((6,),)),
    "sparsity": (losses.sparsity, ((6,),)),
    "opaqueness": (losses.opaqueness, ((6,),)),
    "normal smoothness": (losses.normal_smoothness, ((1, 3, 4, 3),)),
    "normal change": (losses.normal_change, ((4, 3), (4, 3))),
    "variation": (losses.total_variation, ((2, 3, 3, 3),)),
}


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    function, shapes = CASES[name]
    given = tuple((torch.rand(shape, dtype=torch.float64) * 0.8 + 0.1).requires_grad_(True) for shape in shapes)
    assert torch.autograd.gradcheck(function, given)
