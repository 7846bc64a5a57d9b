"""The renderer against a loop over samples and against nerfacc; and that a field learns a shape."""

from __future__ import annotations

import gc
import math
import weakref
from collections.abc import Iterator
from dataclasses import replace

import pytest
import shapes
import torch
from torch import Tensor

from zero123cli.cameras import Viewpoint
from zero123cli.radiance.field import Field, FieldDescription
from zero123cli.radiance.hashgrid import GridDescription
from zero123cli.radiance.occupancy import Marching, Occupancy
from zero123cli.radiance.rays import Rays, Samples, cast_rays
from zero123cli.radiance.render import WEIGHERS, blend, can_pack, find_visible, render, render_blocks
from zero123cli.scenes import raycast
from zero123cli.watch import Caution

SMALL = FieldDescription(GridDescription(levels=4, table_log2=12, base=8, growth=1.5), hidden=(16,))
WHITE = torch.ones(3)


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def make(description: FieldDescription = SMALL) -> tuple[Field, Occupancy]:
    field = Field(description, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        field.table *= 3e3
    return field, Occupancy(description.bound, 16)


def chain(seed: int = 0) -> tuple[Samples, Tensor, Tensor]:
    """Five rays with 4, 0, 7, 1 and 0 samples."""
    chance = torch.Generator().manual_seed(seed)
    ends = torch.tensor([0, 4, 4, 11, 12, 12])
    lengths = torch.rand(12, generator=chance) * 0.2 + 0.05
    distances = torch.arange(12) * 0.3 + 1
    samples = Samples(torch.rand(12, 3, generator=chance), distances, lengths, ends)
    return samples, torch.rand(12, generator=chance) * 6, torch.rand(12, 3, generator=chance)


def slow(density: Tensor, values: Tensor, samples: Samples) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mildenhall et al., equation 3, ray by ray."""
    sums, opacity, depth, weights = [], [], [], []
    for begin, end in zip(samples.ends, samples.ends[1:], strict=False):
        clear = torch.ones((), dtype=density.dtype)
        ours = []
        for s in range(int(begin), int(end)):
            alpha = 1 - torch.exp(-density[s] * samples.lengths[s])
            ours.append(clear * alpha)
            clear = clear * (1 - alpha)
        weight = torch.stack(ours) if ours else density.new_zeros(0)
        part = slice(int(begin), int(end))
        sums.append((weight[:, None] * values[part]).sum(0))
        opacity.append(weight.sum())
        depth.append((weight * samples.distances[part]).sum())
        weights.append(weight)
    return torch.stack(sums), torch.stack(opacity), torch.stack(depth), torch.cat(weights)


def test_blending_is_the_slow_reference_and_so_are_its_gradients() -> None:
    samples, density, values = chain()
    found = []
    for blender in (blend, slow):
        given = density.clone().requires_grad_(), values.clone().requires_grad_()
        parts = blender(*given, samples)
        chance = torch.Generator().manual_seed(9)
        sum((part * torch.randn(part.shape, generator=chance)).sum() for part in parts).backward()  # type: ignore[union-attr]  # no number
        found.append([*(part.detach() for part in parts), given[0].grad, given[1].grad])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_weights_are_nerfacc_s_dense_ones() -> None:
    samples, density, values = chain(1)
    expected = WEIGHERS["padded"](density, samples)
    _, opacity, _, weights = blend(density, values, samples)
    torch.testing.assert_close(weights, expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(opacity, torch.zeros(5).index_add(0, samples.ray(), weights))
    assert ((opacity >= 0) & (opacity <= 1)).all()


def test_nothing_behind_an_opaque_sample_counts() -> None:
    samples, density, values = chain()
    density[5] = 500.0
    kept = find_visible(density, samples)
    assert kept.tolist() == 6 * [True] + 5 * [False] + [True]
    before = blend(density, values, samples)
    after = blend(density[kept], values[kept], samples.keep(kept))
    for ours, theirs in zip(after[:3], before[:3], strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=1e-4)
    faint = torch.where(torch.arange(12) % 2 == 0, torch.zeros(12), density)
    assert not find_visible(faint, samples, 1e-3)[::2].any()
    given = density.clone().requires_grad_()
    blend(given, values, samples)[0].sum().backward()
    assert given.grad is not None and not given.grad[6:11].any() and given.grad[:5].all()


def test_a_uniform_ball_has_the_opacity_of_its_chords() -> None:
    class Ball(Field):
        def look_up(self, points: Tensor) -> tuple[Tensor, Tensor]:
            return self.density(points), torch.full((len(points), 3), 0.25)

        def density(self, points: Tensor) -> Tensor:
            return (points.norm(dim=-1) < 0.4) * 3.0

    ball = Ball(SMALL)
    offsets = torch.tensor([0.0, 0.1, 0.3, 0.39, 0.5])
    rays = Rays(torch.stack([offsets, torch.zeros(5), torch.full((5,), 2.0)], -1), torch.tensor([[0, 0, -1.0]] * 5))
    seen = render(ball, rays, Occupancy(0.6), marching=Marching(0.001, 2000, stratified=False), background=WHITE)
    chords = 2 * (0.16 - offsets.square()).clamp_min(0).sqrt()
    expected = 1 - torch.exp(-3 * chords)
    torch.testing.assert_close(seen.opacity, expected, atol=2e-3, rtol=0)
    torch.testing.assert_close(seen.colour[:, 0], 0.25 * expected + 1 - expected, atol=2e-3, rtol=0)
    torch.testing.assert_close(seen.depth[-1], torch.tensor(0.0))


def test_a_dense_ball_has_its_depth_and_normals() -> None:
    field = Field(replace(SMALL, blob=400.0, blob_radius=0.4), generator=torch.Generator().manual_seed(0))
    rays = Rays(torch.tensor([[0, 0, 2.0], [0.2, 0, 2]]), torch.tensor([[0, 0, -1.0]] * 2))
    for kind in ("analytic", "finite"):
        options = {"marching": Marching(0.002, 2000), "normals": kind}
        seen = render(field, rays, Occupancy(0.6), **options)  # type: ignore[arg-type]
        heights = torch.tensor([0.4, math.sqrt(0.16 - 0.04)])
        torch.testing.assert_close(seen.depth.detach(), 2 - heights, atol=0.05, rtol=0)
        assert seen.normal is not None
        outwards = torch.tensor([[0, 0, 1.0], [0.5, 0, math.sqrt(0.75)]])
        assert float((seen.normal.detach() * outwards).sum(-1).min()) > 0.97


def test_the_gradients_of_a_picture_are_differences() -> None:
    """Along each parameter's own gradient, where the derivative is the gradient's length."""
    field, occupancy = make()
    rays = cast_rays([Viewpoint(20, 10)], 6)

    def loss() -> Tensor:
        seen = render(field, rays, occupancy, marching=Marching(stratified=False), background=WHITE)
        return (seen.colour - 0.3).double().square().sum() + (seen.depth * 0.1 + seen.opacity.square()).double().sum()

    loss().backward()
    for part in field.parameters():
        assert part.grad is not None
        length = float(part.grad.norm())
        kept, way = part.detach().clone(), part.grad / length
        step = 0.01 * float(kept.norm()) if part is not field.table else 0.05
        ends = []
        with torch.no_grad():
            for sign in (1, -1):
                part.copy_(kept + sign * step * way)
                ends.append(float(loss()))
            part.copy_(kept)
        assert (ends[0] - ends[1]) / (2 * step) == pytest.approx(length, rel=0.05)


@pytest.mark.parametrize("normals", [None, "analytic", "finite"])
def test_rays_that_miss_and_empty_fields_give_finite_zeros(normals: str | None) -> None:
    field, occupancy = make()
    away = Rays(torch.tensor([[0, 0, 2.0]] * 3), torch.tensor([[0, 0, 1.0]] * 3))
    nothing = Occupancy(0.6, 4)
    nothing.occupied.zero_()
    for rays, grid in ((away, occupancy), (cast_rays([Viewpoint()], 3), nothing), (away[:0], occupancy)):
        field.zero_grad()
        seen = render(field, rays, grid, normals=normals)  # type: ignore[arg-type]
        parts = [seen.colour, seen.opacity, seen.depth, *([] if seen.normal is None else [seen.normal])]
        assert all(len(part) == len(rays) and not part.any() for part in parts)
        sum(part.sum() for part in parts).backward()  # type: ignore[union-attr]  # no number
        assert all(part.grad is None or not part.grad.any() for part in field.parameters())
    with_background = render(field, away, occupancy, background=WHITE)
    torch.testing.assert_close(with_background.colour, torch.ones(3, 3))


def test_same_bits_twice_and_with_any_number_of_threads() -> None:
    found = []
    for count in (1, 1, 2):
        torch.set_num_threads(count)
        field, occupancy = make()
        chance = torch.Generator().manual_seed(0)
        seen = render(field, cast_rays([Viewpoint(20, 10)], 24), occupancy, generator=chance)
        found.append((seen.colour, seen.depth, seen.weights))
        seen.colour.square().sum().backward()
        if count == 1:
            found[-1] += (field.table.grad, field.density_head[0].grad)  # type: ignore[operator]  # torch's sums depend on threads
    for other in found[1:]:
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(other, found[0], strict=False))


def test_blocks_are_the_whole() -> None:
    field, occupancy = make()
    rays = cast_rays([Viewpoint(20, 10), Viewpoint(90)], 100)
    marching = Marching(stratified=False)
    behind = torch.linspace(0, 1, len(rays))[:, None].expand(-1, 3)
    blocks = render_blocks(field, rays, occupancy, background=behind, marching=marching)
    with torch.no_grad():
        whole = render(field, rays, occupancy, background=behind, marching=marching)
    for ours, theirs in zip(blocks, (whole.colour, whole.opacity, whole.depth), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_a_graph_is_freed_without_the_collector() -> None:
    field, occupancy = make()
    gc.disable()
    try:
        seen = render(field, cast_rays([Viewpoint()], 8), occupancy)
        watched = weakref.ref(seen.samples)
        del seen
        assert watched() is None
    finally:
        gc.enable()


def test_it_says_when_nerfacc_s_kernels_cannot_be_built(monkeypatch: pytest.MonkeyPatch) -> None:
    from zero123cli.radiance import render as module

    monkeypatch.setenv("PATH", "")
    module.why_not_packed.cache_clear()
    said: list[object] = []
    assert not can_pack(said.append)
    module.why_not_packed.cache_clear()
    assert [type(word) for word in said] == [Caution]


@pytest.mark.slow
def test_it_learns_two_spheres() -> None:
    prepared = raycast.prepare(shapes.two_spheres())
    given = shapes.show(prepared, 24, 48, seed=0)
    description = FieldDescription(GridDescription(levels=5, table_log2=14, base=12, growth=1.5))
    field = Field(description, generator=torch.Generator().manual_seed(0))
    occupancy = Occupancy(description.bound)
    marching = Marching(step=0.025)
    chance = torch.Generator().manual_seed(1)
    shapes.fit_views(
        field,
        occupancy,
        given.rays,
        given.pixels,
        steps=100,
        batch=1024,
        rate=0.03,
        marching=marching,
        generator=chance,
    )
    assert shapes.psnr(field, occupancy, shapes.show(prepared, 6, 48, seed=1)) >= 28
    assert shapes.overlap(field, prepared) >= 0.9
