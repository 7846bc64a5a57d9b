"""The field: what it starts as, its activations and normals, and that it can start from a volume."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from zero123cli.radiance.field import (
    SJC,
    THREESTUDIO,
    Field,
    FieldDescription,
    colour_at,
    density_at,
    describe,
    read_description,
    trunc_exp,
)
from zero123cli.radiance.fit import fit_volume
from zero123cli.radiance.hashgrid import GridDescription, rows_of

SMALL = FieldDescription(GridDescription(levels=4, table_log2=12, base=8, growth=1.5), hidden=(16,))


def make(description: FieldDescription = SMALL, scale: float = 1.0, seed: int = 0) -> Field:
    field = Field(description, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        field.table *= scale
    return field


def spots(count: int = 200, bound: float = 0.55) -> torch.Tensor:
    return (torch.rand(count, 3, generator=torch.Generator().manual_seed(4)) * 2 - 1) * bound


def test_it_starts_as_a_blob() -> None:
    points = spots()
    expected = torch.nn.functional.softplus(10 * (1 - points.norm(dim=-1) / 0.5))
    torch.testing.assert_close(make().density(points).detach(), expected, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(make().colour(points).detach(), torch.full((200, 3), 0.5), atol=1e-3, rtol=0)


def test_the_published_recipes_have_their_sizes() -> None:
    assert rows_of(THREESTUDIO.grid) * 2 == 12_599_920
    voxels = Field(replace(SJC, grid=replace(SJC.grid, base=10)), generator=torch.Generator().manual_seed(0))
    points = spots()
    expected = torch.nn.functional.softplus(torch.full((200,), -1.0))
    torch.testing.assert_close(voxels.density(points).detach(), expected)
    colour = voxels.colour(points)
    assert colour.shape == (200, 4) and float(colour.detach().std()) > 0.3  # raw latents, mixed of N(0, 1)
    with torch.no_grad():
        voxels.table[:, 0] = 2.0
        voxels.density_gain.fill_(0.5)
    wanted = torch.nn.functional.softplus(torch.tensor(2 * np.exp(0.5) - 1, dtype=torch.float32))
    torch.testing.assert_close(voxels.density(points).detach(), wanted.expand(200))


@pytest.mark.parametrize("kind", ["softplus", "exp", "trunc_exp"])
def test_densities_are_positive_and_have_gradients(kind: str) -> None:
    field = make(replace(SMALL, density=kind, blob=0.0), 1e4)  # type: ignore[arg-type]
    density = field.density(spots())
    assert (density > 0).all()
    density.log().sum().backward()
    assert field.table.grad is not None and field.table.grad.isfinite().all() and field.table.grad.any()


def test_truncated_exp_keeps_its_gradient_finite() -> None:
    x = torch.tensor([-2.0, 3.0, 80.0], requires_grad=True)
    y = trunc_exp(x)
    y.sum().backward()
    torch.testing.assert_close(y.detach(), x.detach().exp())
    torch.testing.assert_close(x.grad, torch.tensor([-2.0, 3.0, 12.0]).exp())


def test_nothing_is_outside_the_box() -> None:
    field = make()
    points = torch.tensor([[0.61, 0, 0], [0, -0.7, 0], [0, 0, 5.0]], requires_grad=True)
    density = field.density(points)
    assert not density.any()
    density.sum().backward()
    assert points.grad is not None and not points.grad.any()


@pytest.mark.parametrize("encoder", ["torch", "numba"])
def test_normals_of_the_blob_point_outwards(encoder: str) -> None:
    field = Field(SMALL, generator=torch.Generator().manual_seed(0), encoder=encoder)  # type: ignore[arg-type]
    points = spots()
    outwards = torch.nn.functional.normalize(points, dim=-1)
    far = points.norm(dim=-1) > 0.1
    for kind, least in (("analytic", 0.995), ("finite", 0.995)):
        normal = field.normal(points, kind).detach()  # type: ignore[arg-type]
        assert float((normal * outwards).sum(-1)[far].min()) > least
        torch.testing.assert_close(normal.norm(dim=-1), torch.ones(200), atol=1e-4, rtol=0)


def test_a_loss_on_normals_reaches_the_field_as_in_the_definition() -> None:
    found = []
    for encoder in ("torch", "numba"):
        field = make(scale=2e3)
        field.encoder = encoder  # type: ignore[assignment]
        (field.normal(spots()) * torch.tensor([0.3, -0.5, 0.8])).sum().backward()
        found.append([part.grad for part in (field.table, *field.density_head)])
    for ours, theirs in zip(*found, strict=True):
        assert theirs is not None and theirs.any()
        torch.testing.assert_close(ours, theirs, atol=1e-3 * float(theirs.abs().max()), rtol=1e-2)


def test_flat_fields_have_no_normal_and_no_gradient() -> None:
    field = make(replace(SMALL, blob=0.0), 0.0)
    for kind in ("analytic", "finite"):
        normal = field.normal(spots(), kind)  # type: ignore[arg-type]
        assert not normal.any()
        normal.sum().backward()
        assert field.table.grad is not None and field.table.grad.isfinite().all()


def test_a_field_is_its_description_and_its_weights() -> None:
    field = make(scale=1e3, seed=1)
    told = json.loads(json.dumps(describe(field)))
    other = Field(read_description(told))
    other.load_state_dict(field.state_dict())
    points = spots()
    assert other.description == field.description
    for ours, theirs in zip(field.look_up(points), other.look_up(points), strict=True):
        assert torch.equal(ours, theirs)


def test_blocks_are_the_whole() -> None:
    field = make(scale=1e3)
    points = spots(210).numpy().reshape(3, 70, 3)
    density, colour = field.look_up(torch.from_numpy(points).view(-1, 3))
    np.testing.assert_allclose(density_at(field, points, 64), density.detach().view(3, 70), rtol=1e-5)
    np.testing.assert_allclose(colour_at(field, points, 64), colour.detach().view(3, 70, 3), rtol=1e-5)
    assert density_at(field, np.zeros((0, 3))).shape == (0,)


def test_heads_in_half_precision_stay_near() -> None:
    exact, rough = make(scale=1e3), make(scale=1e3)
    rough.precision = torch.bfloat16
    for ours, theirs in zip(rough.look_up(spots()), exact.look_up(spots()), strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours, theirs, atol=0.05, rtol=0.03)
    rough.density(spots()).sum().backward()
    assert rough.table.grad is not None and rough.table.grad.dtype == torch.float32 and rough.table.grad.any()


def test_it_starts_from_a_volume() -> None:
    side = 24
    line = (torch.arange(side) + 0.5) / side * 1.2 - 0.6
    x, y, z = torch.meshgrid(line, line, line, indexing="ij")
    inside = (torch.stack([x, y, z]).norm(dim=0) < 0.4).float()
    volume = torch.stack([0.5 + x, 0.5 - y, torch.full_like(x, 0.3), inside])
    tables = []
    for steps in (3, 3, 100):
        field = make(replace(SMALL, grid=replace(SMALL.grid, base=12)))
        fit_volume(field, volume, steps=steps, points=4096, generator=torch.Generator().manual_seed(2))
        tables.append(field.table.detach())
    assert torch.equal(tables[0], tables[1])
    points = spots(2000)
    far = points.norm(dim=-1)
    density, colour = field.look_up(points)
    assert float(density[far < 0.35].detach().quantile(0.02)) > 10
    assert float(density[far > 0.5].detach().quantile(0.9)) < 2
    expected = torch.stack([0.5 + points[:, 0], 0.5 - points[:, 1], torch.full((2000,), 0.3)], -1)
    assert float((colour - expected)[far < 0.35].detach().abs().mean()) < 0.05
