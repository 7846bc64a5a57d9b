"""The hash grid against a loop over points, levels and corners, and its twins against the definition."""

from __future__ import annotations

import importlib.util
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from itertools import product

import pytest
import torch
from torch import Tensor

from zero123cli.radiance import hashgrid
from zero123cli.radiance.hashgrid import ENCODERS, GridDescription, encode, lay_out, make_table, rows_of

SMALL = GridDescription(levels=4, features=2, table_log2=11, base=5, growth=1.8)  # two levels dense, two hashed
WIDE = GridDescription(levels=1, features=5, table_log2=12, base=9, growth=1.0)
PUBLISHED = GridDescription(levels=16, features=2, table_log2=19, base=16, growth=1.447269237440378)

CUDA = torch.cuda.is_available()
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
TWINS = ["numba", pytest.param("triton", marks=needs_triton)]


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def setting(grid: GridDescription, count: int = 60) -> tuple[Tensor, Tensor, Tensor]:
    """Points, some beyond the box and some at its corners, a table of size 1, and a gradient."""
    chance = torch.Generator().manual_seed(1)
    points = torch.rand(count, 3, generator=chance) * 1.1 - 0.05
    points[:8] = torch.tensor(list(product((0.0, 1.0), repeat=3)))
    table = torch.rand(rows_of(grid), grid.features, generator=chance) - 0.5
    return points, table, torch.randn(count, grid.width, generator=chance)


def slow(point: list[float], table: list[list[float]], grid: GridDescription) -> list[float]:
    """One point, as the paper and the fact sheet say it, in double precision."""
    found = []
    for level in lay_out(grid):
        places = [min(max(x, 0.0), 1.0) * level.scale + 0.5 for x in point]
        total = [0.0] * grid.features
        for corner in product((0, 1), repeat=3):
            x, y, z = (math.floor(place) + bit for place, bit in zip(places, corner, strict=True))
            weight = math.prod(place % 1 if bit else 1 - place % 1 for place, bit in zip(places, corner, strict=True))
            row = x + y * level.resolution + z * level.resolution**2
            if level.resolution**3 > level.rows:
                row = x ^ (y * 2654435761 & 0xFFFFFFFF) ^ (z * 805459861 & 0xFFFFFFFF)
            values = table[level.start + row % level.rows]
            total = [old + weight * value for old, value in zip(total, values, strict=True)]
        found += total
    return found


def test_levels_are_those_of_tiny_cuda_nn() -> None:
    levels = lay_out(PUBLISHED)
    assert [level.resolution for level in levels] == [
        16, 24, 34, 49, 71, 102, 148, 213, 308, 446, 646, 934, 1352, 1956, 2831, 4096,
    ]  # fmt: skip
    assert [level.rows for level in levels] == [4096, 13824, 39304, 117656, 357912] + 11 * [524288]
    assert [level.dense for level in levels] == 5 * [True] + 11 * [False]
    assert rows_of(PUBLISHED) == 6_299_960
    table = make_table(SMALL, torch.Generator().manual_seed(0))
    assert 0.9e-4 < float(table.detach().abs().max()) <= 1e-4


@pytest.mark.parametrize("grid", [SMALL, WIDE])
@pytest.mark.parametrize("encoder", ["torch", *TWINS])
def test_values_are_the_slow_reference(grid: GridDescription, encoder: str) -> None:
    points, table, _ = setting(grid)
    device = "cuda" if encoder == "triton" and CUDA else "cpu"
    found = encode(points.to(device), table.to(device), grid, encoder).cpu()  # type: ignore[arg-type]
    held = table.tolist()
    expected = torch.tensor([slow(point, held, grid) for point in points.tolist()])
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)


def derive(encoder: str, grid: GridDescription) -> list[Tensor]:
    """First derivatives, and those of a loss on the points' gradient."""
    device = "cuda" if encoder == "triton" and CUDA else "cpu"
    points, table, grad = (part.to(device).requires_grad_() for part in setting(grid, 40))
    found = encode(points, table, grid, encoder)  # type: ignore[arg-type]
    first = torch.autograd.grad(found, (points, table), grad, create_graph=True)
    ways = torch.linspace(-1, 1, points.numel(), device=device).view_as(points)
    second = torch.autograd.grad((first[0] * ways).sum(), (points, table, grad))
    return [part.detach().cpu() for part in (found, *first, *second)]


@pytest.mark.parametrize("grid", [SMALL, WIDE])
@pytest.mark.parametrize("encoder", TWINS)
def test_twins_have_the_definition_s_derivatives_twice(encoder: str, grid: GridDescription) -> None:
    for ours, theirs in zip(derive(encoder, grid), derive("torch", grid), strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-5 * float(theirs.abs().max()), rtol=1e-3)


def test_second_derivatives_are_taken_some_points_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    points, table, grad = setting(SMALL, 40)
    ways = torch.linspace(-1, 1, points.numel()).view_as(points)
    whole = hashgrid.differentiate(points, ways, table, grad, SMALL)
    monkeypatch.setattr(hashgrid, "AT_ONCE", 7)
    for ours, theirs in zip(hashgrid.differentiate(points, ways, table, grad, SMALL), whole, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_triton_that_cannot_start_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """As without a C compiler: it is found when the first kernel is to run."""

    def refuse() -> hashgrid.Kernels:
        raise RuntimeError("Failed to find C compiler")

    monkeypatch.setattr(hashgrid, "is_installed", lambda name: True)
    monkeypatch.setattr(hashgrid, "triton_kernels", refuse)
    hashgrid.why_no_triton.cache_clear()
    assert hashgrid.usual_encoder("cuda") == "torch"
    assert "Failed to find C compiler" in hashgrid.why_no_triton()
    hashgrid.why_no_triton.cache_clear()


def test_the_definition_s_gradients_are_differences() -> None:
    tiny = GridDescription(levels=2, features=2, table_log2=5, base=3, growth=1.7)
    points, table, _ = setting(tiny)
    points = points[8:11].clamp(0.1, 0.9).double().requires_grad_()
    table = table.double().requires_grad_()
    torch.autograd.gradcheck(lambda p, t: ENCODERS["torch"](p, t, tiny), (points, table), eps=1e-7, atol=1e-5)


def test_same_bits_twice_and_with_any_number_of_threads() -> None:
    results = []
    for count in (1, 1, 2, 3):
        torch.set_num_threads(count)
        points = torch.rand(9000, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
        table = setting(SMALL)[1].requires_grad_()
        encode(points, table, SMALL, "numba").square().sum().backward()
        assert points.grad is not None and table.grad is not None
        results.append((points.grad, table.grad))
    for points_, table_ in results[1:]:
        assert torch.equal(points_, results[0][0]) and torch.equal(table_, results[0][1])


@pytest.mark.parametrize("encoder", ["torch", *TWINS])
def test_no_points_are_no_trouble(encoder: str) -> None:
    device = "cuda" if encoder == "triton" and CUDA else "cpu"
    table = setting(SMALL)[1].to(device).requires_grad_()
    found = encode(torch.empty(0, 3, device=device), table, SMALL, encoder)  # type: ignore[arg-type]
    assert found.shape == (0, SMALL.width)
    found.sum().backward()
    assert table.grad is not None and not table.grad.any()


def test_what_is_not_a_number_stays_so() -> None:
    table = setting(SMALL)[1]
    found = encode(torch.tensor([[torch.nan, 0.5, 0.5], [0.5, 0.5, 0.5]]), table, SMALL, "numba")
    assert found[0].isnan().all() and found[1].isfinite().all()


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from zero123cli.radiance import kernels_cuda as kernels
for kernel in (kernels.gather_kernel, kernels.scatter_kernel, kernels.steer_kernel):
    kinds = {"scales": "*fp32", "starts": "*i64", "shapes": "*i32", "count": "i32", "levels": "i32"}
    kinds |= dict.fromkeys(("features", "wide", "block"), "constexpr")
    source = triton.compiler.ASTSource(
        kernel, {name: kinds.get(name, "*fp32") for name in kernel.arg_names},
        constexprs={"features": 2, "wide": 2, "block": kernels.BLOCK},
    )
    made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"enable_fp_fusion": True})
    assert len(made.asm["cubin"]) > 1000
"""


@needs_triton
def test_cuda_kernels_compile_without_a_gpu() -> None:
    told = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    subprocess.run([sys.executable, "-c", COMPILE], check=True, timeout=120, env=told)


@pytest.mark.skipif(not CUDA or importlib.util.find_spec("tinycudann") is None, reason="tinycudann is not installed")
def test_tinycudann_reads_our_tables() -> None:
    points, table, _ = (part.cuda() for part in setting(PUBLISHED, 256))
    points = points.clamp(0, 1)
    expected = encode(points, table, PUBLISHED, "torch")
    torch.testing.assert_close(encode(points, table, PUBLISHED, "tinycudann"), expected, atol=2e-3, rtol=1e-2)
