"""A multi-resolution hash grid (Müller et al., 2022) in the layout of tiny-cuda-nn, so that tables can be exchanged.

`encode` is defined in plain torch and has three faster twins: numba on a CPU, Triton on CUDA, tinycudann by name. The
twins are held to the definition by tests. Derivatives of the points' gradient, which analytic normals need, come from
numba on a CPU and from the definition elsewhere. On a CPU the same bits come out twice; on CUDA the table's gradient is
summed by atomic adds, whose order varies, so that it varies in its last bits.
Letters: P points, L levels, F features, T rows of the table.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from . import kernels_cpu

Encoder = Literal["torch", "numba", "triton", "tinycudann"]

PRIMES = (1, 2654435761, 805459861)
ROUNDED = 8  # rows of a level come in multiples of this
AT_ONCE = 1 << 17  # points whose second derivatives are taken together, for the memory
SPREAD = 1e-4  # tables start as U(-SPREAD, SPREAD)


@dataclass(frozen=True)
class GridDescription:
    levels: int = 8
    features: int = 2
    table_log2: int = 17  # of the most rows that a level has
    base: int = 16  # resolution of the coarsest level
    growth: float = 1.5  # of the resolution from a level to the next

    @property
    def width(self) -> int:
        return self.levels * self.features


@dataclass(frozen=True)
class Level:
    scale: float  # of points in [0, 1]; half a cell is added
    resolution: int
    start: int  # its first row in the table
    rows: int
    dense: bool  # every corner has a row of its own


@cache
def lay_out(grid: GridDescription) -> tuple[Level, ...]:
    """Where each level lies in the table. In 32 bits, as tiny-cuda-nn computes it."""
    assert grid.base >= 2 and grid.growth >= 1 and 3 <= grid.table_log2 <= 28, grid
    found, start = [], 0
    power = np.log2(np.float32(grid.growth))
    for level in range(grid.levels):
        scale = np.exp2(np.float32(level) * power) * np.float32(grid.base) - np.float32(1)
        resolution = int(np.ceil(scale)) + 1
        every = -(-(resolution**3) // ROUNDED) * ROUNDED
        rows = min(every, 1 << grid.table_log2)
        found.append(Level(float(scale), resolution, start, rows, resolution**3 <= rows))
        start += rows
    return tuple(found)


def rows_of(grid: GridDescription) -> int:
    last = lay_out(grid)[-1]
    return last.start + last.rows


def make_table(grid: GridDescription, generator: torch.Generator | None = None) -> nn.Parameter:  # (T, F)
    """As tiny-cuda-nn starts it."""
    values = torch.rand(rows_of(grid), grid.features, generator=generator)
    return nn.Parameter((values * 2 - 1) * SPREAD)


def encode(points: Tensor, table: Tensor, grid: GridDescription, encoder: Encoder | None = None) -> Tensor:
    """What the table (T, F) holds at points (P, 3) in [0, 1]: (P, L F), coarse levels first.

    A point beyond the box has what its nearest point in the box has.
    """
    assert points.ndim == 2 and points.shape[1] == 3, points.shape
    assert table.shape == (rows_of(grid), grid.features), table.shape
    return ENCODERS[encoder or usual_encoder(points.device.type)](points, table, grid)


def usual_encoder(device: str) -> Encoder:
    """The one for a kind of device when none is asked for by name."""
    if device == "cpu":
        return "numba"
    return "triton" if device == "cuda" and not why_no_triton() else "torch"


@cache
def is_installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


@cache
def why_no_triton() -> str:
    """Starts a kernel on the card, for which Triton needs a C compiler; empty when that works."""
    if not is_installed("triton"):
        return "it is not installed"
    tiny = GridDescription(levels=1, table_log2=4)
    try:
        triton_kernels().gather(torch.zeros(1, 3, device="cuda"), None, make_table(tiny).to("cuda"), tiny)
    except Exception as error:  # a compiler's failure, of whatever kind
        return f"{type(error).__name__}: {error}"
    return ""


# The definition -------------------------------------------------------------------------------------------------------


def encode_torch(points: Tensor, table: Tensor, grid: GridDescription) -> Tensor:
    points = points.clamp(0, 1)
    found = []
    for level in lay_out(grid):
        places = points * level.scale + 0.5
        cell = places.detach().floor()
        rows = find_rows(cell.long(), level)
        x, y, z = (torch.stack([1 - inner, inner], -1) for inner in (places - cell).unbind(-1))
        weights = (z[:, :, None, None] * y[:, None, :, None] * x[:, None, None, :]).flatten(1)
        found.append((weights[..., None] * table[level.start + rows]).sum(1))
    return torch.cat(found, -1)


def find_rows(cell: Tensor, level: Level) -> Tensor:  # int64 (P, 3) -> (P, 8)
    """The rows of a cell's corners within the level, x changing fastest."""
    x, y, z = (torch.stack([column, column + 1], -1) for column in cell.unbind(-1))
    x, y, z = x[:, None, None, :], y[:, None, :, None], z[:, :, None, None]
    if level.dense:
        rows = x + (y + z * level.resolution) * level.resolution
    else:
        rows = x * PRIMES[0] ^ y * PRIMES[1] ^ z * PRIMES[2]
    return ((rows & 0xFFFFFFFF) % level.rows).flatten(1)


# Twins ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kernels:
    """The same sums without autograd; `ways` (P, 3) asks for the derivatives along them in place of the values."""

    gather: Callable[..., Tensor]  # points, ways or None, table, grid -> (P, L F)
    scatter: Callable[..., Tensor]  # points, ways or None, grad (P, L F), grid -> (T, F)
    steer: Callable[..., Tensor]  # points, ways or None, table, grad, grid -> (P, 3)


class Encode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, points: Tensor, table: Tensor, grid: GridDescription, kernels: Kernels) -> Tensor:
        ctx.save_for_backward(points, table)
        ctx.grid, ctx.kernels = grid, kernels
        return kernels.gather(points, None, table, grid)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        points, table = ctx.saved_tensors
        to_points, to_table = ctx.needs_input_grad[:2]
        return (
            Steer.apply(points, table, grads[0], ctx.grid, ctx.kernels) if to_points else None,  # type: ignore[no-untyped-call]
            Scatter.apply(points, table, grads[0], ctx.grid, ctx.kernels) if to_table else None,  # type: ignore[no-untyped-call]
            None,
            None,
        )


class Steer(torch.autograd.Function):
    """The gradient to the points, with derivatives of its own: analytic normals need them."""

    @staticmethod
    def forward(
        ctx: Any, points: Tensor, table: Tensor, grad: Tensor, grid: GridDescription, kernels: Kernels
    ) -> Tensor:
        ctx.save_for_backward(points, table, grad)
        ctx.grid, ctx.kernels = grid, kernels
        return kernels.steer(points, None, table, grad, grid)

    @staticmethod
    @torch.autograd.function.once_differentiable  # type: ignore[untyped-decorator, unused-ignore]
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        points, table, grad = ctx.saved_tensors
        grid, kernels = ctx.grid, ctx.kernels
        ways = grads[0] * ((points >= 0) & (points <= 1))
        to_points, to_table, to_grad = ctx.needs_input_grad[:3]
        return (
            kernels.steer(points, ways, table, grad, grid) if to_points else None,
            kernels.scatter(points, ways, grad, grid) if to_table else None,
            kernels.gather(points, ways, table, grid) if to_grad else None,
            None,
            None,
        )


class Scatter(torch.autograd.Function):
    """The gradient to the table: linear in what comes in."""

    @staticmethod
    def forward(
        ctx: Any, points: Tensor, table: Tensor, grad: Tensor, grid: GridDescription, kernels: Kernels
    ) -> Tensor:
        ctx.save_for_backward(points, grad)
        ctx.grid, ctx.kernels = grid, kernels
        return kernels.scatter(points, None, grad, grid)

    @staticmethod
    @torch.autograd.function.once_differentiable  # type: ignore[untyped-decorator, unused-ignore]
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        points, grad = ctx.saved_tensors
        grid, kernels = ctx.grid, ctx.kernels
        return (
            kernels.steer(points, None, grads[0], grad, grid) if ctx.needs_input_grad[0] else None,
            None,
            kernels.gather(points, None, grads[0], grid) if ctx.needs_input_grad[2] else None,
            None,
            None,
        )


def encode_numba(points: Tensor, table: Tensor, grid: GridDescription) -> Tensor:
    return apply(points, table, grid, NUMBA)


def encode_triton(points: Tensor, table: Tensor, grid: GridDescription) -> Tensor:
    return apply(points, table, grid, triton_kernels())


def apply(points: Tensor, table: Tensor, grid: GridDescription, kernels: Kernels) -> Tensor:
    found: Tensor = Encode.apply(points.float().contiguous(), table.float().contiguous(), grid, kernels)  # type: ignore[no-untyped-call]
    return found


def gather_numba(points: Tensor, ways: Tensor | None, table: Tensor, grid: GridDescription) -> Tensor:
    out = torch.empty(len(points), grid.width)
    fixed = (array(points), array(ways), array(table), *arrays(grid), array(out))
    kernels_cpu.share(kernels_cpu.gather, [(*fixed, *block) for block in kernels_cpu.blocks(len(points))])
    return out


def scatter_numba(points: Tensor, ways: Tensor | None, grad: Tensor, grid: GridDescription) -> Tensor:
    out = torch.from_numpy(np.zeros((rows_of(grid), grid.features), np.float32))  # its pages are large ones
    fixed = (array(points), array(ways), array(grad), *arrays(grid), array(out))
    # The fine levels take longest, so they come first.
    kernels_cpu.share(kernels_cpu.scatter, [(*fixed, level) for level in reversed(range(grid.levels))])
    return out


def steer_numba(points: Tensor, ways: Tensor | None, table: Tensor, grad: Tensor, grid: GridDescription) -> Tensor:
    out = torch.empty(len(points), 3)
    fixed = (array(points), array(ways), array(table), array(grad), *arrays(grid), array(out))
    kernels_cpu.share(kernels_cpu.steer, [(*fixed, *block) for block in kernels_cpu.blocks(len(points))])
    return out


NUMBA = Kernels(gather_numba, scatter_numba, steer_numba)


def array(tensor: Tensor | None) -> np.ndarray:
    """What the compiled loops take: always float32 in rows."""
    if tensor is None:
        return np.empty((0, 3), np.float32)
    return tensor.detach().float().contiguous().numpy()


@cache
def arrays(grid: GridDescription) -> tuple[np.ndarray, np.ndarray, tuple[np.float32, ...]]:
    levels = lay_out(grid)
    table = np.array([(level.start, level.rows, level.resolution, level.dense) for level in levels], np.int64)
    return np.array([level.scale for level in levels], np.float32), table, (np.float32(0),) * grid.features


@cache
def triton_kernels() -> Kernels:
    """Triton's for values and gradients, the definition's for derivatives of gradients."""
    from . import kernels_cuda

    def gather(points: Tensor, ways: Tensor | None, table: Tensor, grid: GridDescription) -> Tensor:
        if ways is None:
            return kernels_cuda.gather(points, table, lay_out(grid))
        return differentiate(points, ways, table, None, grid)[2]

    def scatter(points: Tensor, ways: Tensor | None, grad: Tensor, grid: GridDescription) -> Tensor:
        if ways is None:
            return kernels_cuda.scatter(points, grad, lay_out(grid))
        blank = grad.new_zeros(rows_of(grid), grid.features)
        return differentiate(points, ways, blank, grad, grid)[1]

    def steer(points: Tensor, ways: Tensor | None, table: Tensor, grad: Tensor, grid: GridDescription) -> Tensor:
        if ways is None:
            return kernels_cuda.steer(points, table, grad, lay_out(grid))
        return differentiate(points, ways, table, grad, grid)[0]

    return Kernels(gather, scatter, steer)


def differentiate(
    points: Tensor, ways: Tensor, table: Tensor, grad: Tensor | None, grid: GridDescription
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of ways * (gradient to the points) to the points, the table and the incoming gradient."""
    to_points, to_grad = torch.empty_like(points), points.new_empty(len(points), grid.width)
    to_table = torch.zeros_like(table)
    for begin in range(0, len(points), AT_ONCE):
        part = slice(begin, begin + AT_ONCE)
        one = differentiate_few(points[part], ways[part], table, None if grad is None else grad[part], grid)
        to_points[part], to_grad[part] = one[0], one[2]
        to_table += one[1]
    return to_points, to_table, to_grad


def differentiate_few(
    points: Tensor, ways: Tensor, table: Tensor, grad: Tensor | None, grid: GridDescription
) -> tuple[Tensor, Tensor, Tensor]:
    with torch.enable_grad():
        points, table = points.detach().requires_grad_(), table.detach().requires_grad_()
        start = torch.zeros(len(points), grid.width, device=points.device) if grad is None else grad.detach()
        start.requires_grad_()
        (steered,) = torch.autograd.grad(encode_torch(points, table, grid), points, start, create_graph=True)
        found = torch.autograd.grad((steered * ways).sum(), (points, table, start))
    return found[0], found[1], found[2]


def encode_tinycudann(points: Tensor, table: Tensor, grid: GridDescription) -> Tensor:
    """NVIDIA's own kernels, in half precision; gradients to the table and the points, and derivatives of the latter."""
    module = tinycudann_module(grid)
    found: Tensor = torch.func.functional_call(module, {"params": table.flatten()}, (points.clamp(0, 1),))
    return found[:, : grid.width].float()


@cache
def tinycudann_module(grid: GridDescription) -> nn.Module:
    tinycudann = importlib.import_module("tinycudann")
    settings = {
        "otype": "HashGrid",
        "n_levels": grid.levels,
        "n_features_per_level": grid.features,
        "log2_hashmap_size": grid.table_log2,
        "base_resolution": grid.base,
        "per_level_scale": grid.growth,
        "interpolation": "Linear",
    }
    module: nn.Module = tinycudann.Encoding(3, settings)
    return module


ENCODERS: dict[str, Callable[[Tensor, Tensor, GridDescription], Tensor]] = {
    "torch": encode_torch,
    "numba": encode_numba,
    "triton": encode_triton,
    "tinycudann": encode_tinycudann,
}
