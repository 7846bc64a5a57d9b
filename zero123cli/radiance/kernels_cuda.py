"""The hash grid for CUDA in Triton. `hashgrid` has the definition.

With TRITON_INTERPRET=1 the same code runs on a CPU, slowly: the tests do that. The table's gradient is summed by atomic
adds. Letters: P points, L levels, F features, T rows of the table.
"""

# Triton reads the kernels' annotations, so that they have none.
# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators
# mypy: allow-incomplete-defs, allow-any-generics

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, Protocol

import torch
import triton  # type: ignore[import-not-found, unused-ignore]
import triton.language as tl  # type: ignore[import-not-found, unused-ignore]
from torch import Tensor

BLOCK = 128  # points of a program
SECOND, THIRD = (
    tl.constexpr(-1640531535),
    tl.constexpr(805459861),
)  # the hash's primes in 32 bits with a sign: the low bits are the same


class Level(Protocol):
    @property
    def scale(self) -> float: ...
    @property
    def resolution(self) -> int: ...
    @property
    def start(self) -> int: ...
    @property
    def rows(self) -> int: ...
    @property
    def dense(self) -> bool: ...


@triton.jit
def within(x):
    """Into the box; what is not a number stays so."""
    return tl.where(x < 0, 0.0, tl.where(x > 1, 1.0, x))


@triton.jit
def whole(x):
    """Rounded down, whatever x is: nothing may be read beside the table."""
    return tl.where(x >= 0, x, 0.0).to(tl.int32)


@triton.jit
def part(u, upper: tl.constexpr):
    """A corner's share along one axis."""
    if upper:
        return u
    else:
        return 1 - u


@triton.jit
def find_row(i, j, k, first, rows, side, dense):
    """The row of a corner in the table."""
    straight = i + (j + k * side) * side
    straight = tl.where(straight >= rows, straight - rows, straight)
    hashed = (i ^ (j * SECOND) ^ (k * THIRD)) & (rows - 1)
    return first + tl.where(dense != 0, straight, hashed).to(tl.int64)


@triton.jit
def gather_kernel(
    points, table, scales, starts, shapes, out, count, levels,
    features: tl.constexpr, wide: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    level = tl.program_id(1)
    p = tl.program_id(0) * block + tl.arange(0, block)
    f = tl.arange(0, wide)
    here = p < count
    scale, first = tl.load(scales + level), tl.load(starts + level)
    shape = shapes + level * 3
    rows, side, dense = tl.load(shape), tl.load(shape + 1), tl.load(shape + 2)
    x = within(tl.load(points + p * 3, here, 0.0)) * scale + 0.5
    y = within(tl.load(points + p * 3 + 1, here, 0.0)) * scale + 0.5
    z = within(tl.load(points + p * 3 + 2, here, 0.0)) * scale + 0.5
    i, j, k = whole(x), whole(y), whole(z)
    u, v, w = x - i.to(tl.float32), y - j.to(tl.float32), z - k.to(tl.float32)
    known = here[:, None] & (f < features)[None, :]
    total = tl.zeros((block, wide), tl.float32)
    for corner in tl.static_range(8):
        row = find_row(i + (corner & 1), j + (corner >> 1 & 1), k + (corner >> 2), first, rows, side, dense)
        weight = part(u, corner & 1) * part(v, corner >> 1 & 1) * part(w, corner >> 2)
        total += weight[:, None] * tl.load(table + row[:, None] * features + f[None, :], known, 0.0)
    place = (p * levels + level).to(tl.int64)
    tl.store(out + place[:, None] * features + f[None, :], total, known)


@triton.jit
def scatter_kernel(
    points, grad, scales, starts, shapes, out, count, levels,
    features: tl.constexpr, wide: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    level = tl.program_id(1)
    p = tl.program_id(0) * block + tl.arange(0, block)
    f = tl.arange(0, wide)
    here = p < count
    scale, first = tl.load(scales + level), tl.load(starts + level)
    shape = shapes + level * 3
    rows, side, dense = tl.load(shape), tl.load(shape + 1), tl.load(shape + 2)
    x = within(tl.load(points + p * 3, here, 0.0)) * scale + 0.5
    y = within(tl.load(points + p * 3 + 1, here, 0.0)) * scale + 0.5
    z = within(tl.load(points + p * 3 + 2, here, 0.0)) * scale + 0.5
    i, j, k = whole(x), whole(y), whole(z)
    u, v, w = x - i.to(tl.float32), y - j.to(tl.float32), z - k.to(tl.float32)
    known = here[:, None] & (f < features)[None, :]
    place = (p * levels + level).to(tl.int64)
    given = tl.load(grad + place[:, None] * features + f[None, :], known, 0.0)
    for corner in tl.static_range(8):
        row = find_row(i + (corner & 1), j + (corner >> 1 & 1), k + (corner >> 2), first, rows, side, dense)
        weight = part(u, corner & 1) * part(v, corner >> 1 & 1) * part(w, corner >> 2)
        tl.atomic_add(out + row[:, None] * features + f[None, :], weight[:, None] * given, known)


@triton.jit
def steer_kernel(
    points, table, grad, scales, starts, shapes, out, count, levels,
    features: tl.constexpr, wide: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    p = tl.program_id(0) * block + tl.arange(0, block)
    f = tl.arange(0, wide)
    here = p < count
    known = here[:, None] & (f < features)[None, :]
    px = tl.load(points + p * 3, here, 0.0)
    py = tl.load(points + p * 3 + 1, here, 0.0)
    pz = tl.load(points + p * 3 + 2, here, 0.0)
    to_x, to_y, to_z = tl.zeros((block,), tl.float32), tl.zeros((block,), tl.float32), tl.zeros((block,), tl.float32)
    for level in range(levels):
        scale, first = tl.load(scales + level), tl.load(starts + level)
        shape = shapes + level * 3
        rows, side, dense = tl.load(shape), tl.load(shape + 1), tl.load(shape + 2)
        x, y, z = within(px) * scale + 0.5, within(py) * scale + 0.5, within(pz) * scale + 0.5
        i, j, k = whole(x), whole(y), whole(z)
        u, v, w = x - i.to(tl.float32), y - j.to(tl.float32), z - k.to(tl.float32)
        place = (p * levels + level).to(tl.int64)
        given = tl.load(grad + place[:, None] * features + f[None, :], known, 0.0)
        for corner in tl.static_range(8):
            row = find_row(i + (corner & 1), j + (corner >> 1 & 1), k + (corner >> 2), first, rows, side, dense)
            held = tl.load(table + row[:, None] * features + f[None, :], known, 0.0)
            worth = tl.sum(held * given, 1) * scale
            along_x, along_y, along_z = part(u, corner & 1), part(v, corner >> 1 & 1), part(w, corner >> 2)
            to_x += worth * (2 * (corner & 1) - 1) * along_y * along_z
            to_y += worth * (2 * (corner >> 1 & 1) - 1) * along_x * along_z
            to_z += worth * (2 * (corner >> 2) - 1) * along_x * along_y
    tl.store(out + p * 3, tl.where((px >= 0) & (px <= 1), to_x, 0.0), here)
    tl.store(out + p * 3 + 1, tl.where((py >= 0) & (py <= 1), to_y, 0.0), here)
    tl.store(out + p * 3 + 2, tl.where((pz >= 0) & (pz <= 1), to_z, 0.0), here)


def gather(points: Tensor, table: Tensor, levels: Sequence[Level]) -> Tensor:  # (P, 3), (T, F) -> (P, L F)
    features = table.shape[1]
    out = torch.empty(len(points), len(levels) * features, device=points.device)
    launch(gather_kernel, (points, table), out, tuple(levels), features, per_level=True)
    return out


def scatter(points: Tensor, grad: Tensor, levels: Sequence[Level]) -> Tensor:  # (P, 3), (P, L F) -> (T, F)
    features = grad.shape[1] // len(levels)
    out = torch.zeros(levels[-1].start + levels[-1].rows, features, device=points.device)
    launch(scatter_kernel, (points, grad.float().contiguous()), out, tuple(levels), features, per_level=True)
    return out


def steer(points: Tensor, table: Tensor, grad: Tensor, levels: Sequence[Level]) -> Tensor:  # -> (P, 3)
    out = torch.empty_like(points)
    given = (points, table, grad.float().contiguous())
    launch(steer_kernel, given, out, tuple(levels), table.shape[1], per_level=False)
    return out


def launch(
    kernel: Any, given: tuple[Tensor, ...], out: Tensor, levels: tuple[Level, ...], features: int, *, per_level: bool
) -> None:
    points = given[0]
    if not len(points):
        return
    grid = (triton.cdiv(len(points), BLOCK), len(levels) if per_level else 1)
    wide = triton.next_power_of_2(features)
    tables = constants(levels, str(points.device))
    shape = {"features": features, "wide": wide, "block": BLOCK}
    with torch.cuda.device_of(points):  # Triton launches on the current card
        kernel[grid](*given, *tables, out, len(points), len(levels), **shape, enable_fp_fusion=True)


@cache
def constants(levels: tuple[Level, ...], device: str) -> tuple[Tensor, Tensor, Tensor]:
    shapes = [(level.rows, level.resolution, int(level.dense)) for level in levels]
    return (
        torch.tensor([level.scale for level in levels], dtype=torch.float32, device=device),
        torch.tensor([level.start for level in levels], dtype=torch.int64, device=device),
        torch.tensor(shapes, dtype=torch.int32, device=device),
    )
