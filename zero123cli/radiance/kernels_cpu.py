"""The radiance field's inner loops for CPUs, compiled by numba once per machine, on as many threads as torch has.

Every loop is one thread's share of the work and each number is summed in one order, so the same bits come out twice,
with any number of threads: rays and points are shared out in blocks, a table's gradient in levels.
Letters: P points, L levels, F features, T rows of the table, R rays, S samples, C channels, G cells of a side.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
import torch

from ..compiled import compiled

LEAST_BLOCK = 1024  # points or rays that are worth a thread's while
CLEAR = 1e-4  # the light that must be left for a sample to count

kernel = compiled(nogil=True, fastmath={"contract", "reassoc", "nsz", "arcp"})


# Threads --------------------------------------------------------------------------------------------------------------


def share(work: Callable[..., object], jobs: list[tuple[Any, ...]]) -> None:
    """Does all jobs, each thread taking the next when it is free."""
    threads = min(torch.get_num_threads(), len(jobs))
    queue = iter(jobs)

    def take() -> None:
        for job in queue:  # a list's iterator hands each job out once, whoever asks
            work(*job)

    others = [pool(os.getpid(), threads - 1).submit(take) for _ in range(threads - 1)]
    try:
        take()
    finally:
        for other in others:
            other.result()


@cache
def pool(process: int, threads: int) -> ThreadPoolExecutor:
    """One for each process: threads don't survive a fork."""
    return ThreadPoolExecutor(threads, "radiance")


def blocks(count: int) -> Iterator[tuple[int, int]]:
    """Where the parts of `count` things begin and end."""
    size = max(LEAST_BLOCK, -(-count // (4 * torch.get_num_threads())))
    return ((begin, min(begin + size, count)) for begin in range(0, count, size))


# Hash grid ------------------------------------------------------------------------------------------------------------
# `levels` is int64 (L, 4): first row in the table, rows, resolution, whether dense. `one` is a tuple of F zeros: its
# type tells the compiler how often to unroll.


@kernel
def find(x: Any, y: Any, z: Any, scale: Any, first: Any, rows: Any, side: Any, dense: Any) -> Any:
    """The rows of a cell's eight corners, x changing fastest, and where in the cell the point lies."""
    half = np.float32(0.5)
    px, py, pz = in_box(x) * scale + half, in_box(y) * scale + half, in_box(z) * scale + half
    i, j, k = whole(px), whole(py), whole(pz)
    inner = px - np.float32(i), py - np.float32(j), pz - np.float32(k)
    if dense:
        n = i + (j + k * side) * side
        up, back = n + side, n + side * side
        diagonal = up + side * side
        places = (
            fold(n, rows, first),
            fold(n + 1, rows, first),
            fold(up, rows, first),
            fold(up + 1, rows, first),
            fold(back, rows, first),
            fold(back + 1, rows, first),
            fold(diagonal, rows, first),
            fold(diagonal + 1, rows, first),
        )
    else:  # the table has 2^n rows, so that the low bits are all that counts
        mask = rows - 1
        ii, j, k = i + 1, j * 2654435761, k * 805459861
        jj, kk = j + 2654435761, k + 805459861
        a, b, c, d = j ^ k, jj ^ k, j ^ kk, jj ^ kk
        places = (
            np.uint64(((i ^ a) & mask) + first),
            np.uint64(((ii ^ a) & mask) + first),
            np.uint64(((i ^ b) & mask) + first),
            np.uint64(((ii ^ b) & mask) + first),
            np.uint64(((i ^ c) & mask) + first),
            np.uint64(((ii ^ c) & mask) + first),
            np.uint64(((i ^ d) & mask) + first),
            np.uint64(((ii ^ d) & mask) + first),
        )
    return places, inner


@kernel
def in_box(x: Any) -> Any:
    """Not a number stays so."""
    return np.float32(0) if x < 0 else (np.float32(1) if x > 1 else x)


@kernel
def whole(x: Any) -> Any:
    """Rounded down, whatever x is: nothing may be read beside the table."""
    return np.int64(np.int32(x)) if x >= 0 else np.int64(0)


@kernel
def fold(place: Any, rows: Any, first: Any) -> Any:
    """The half cell's shift can reach beyond the last row, by less than all rows. Unsigned: numba checks the sign."""
    return np.uint64((place - rows if place >= rows else place) + first)


@kernel
def product(a: Any, b: Any, c: Any, d: Any, e: Any, f: Any) -> Any:
    """A factor on each side of x (a, b), y (c, d) and z (e, f), for the eight corners."""
    ce, de, cf, df = c * e, d * e, c * f, d * f
    return a * ce, b * ce, a * de, b * de, a * cf, b * cf, a * df, b * df


@kernel
def add(a: Any, b: Any) -> Any:
    return a[0] + b[0], a[1] + b[1], a[2] + b[2], a[3] + b[3], a[4] + b[4], a[5] + b[5], a[6] + b[6], a[7] + b[7]


@kernel
def slope(u: Any, v: Any, w: Any, x: Any, y: Any, z: Any) -> Any:
    """How the weights change along the way (x, y, z)."""
    one = np.float32(1)
    along_x = product(-x, x, one - v, v, one - w, w)
    along_y = product(one - u, u, -y, y, one - w, w)
    along_z = product(one - u, u, one - v, v, -z, z)
    return add(add(along_x, along_y), along_z)


LOT = 64  # points whose rows are found together, eight or sixteen in one instruction, before the table is read


@kernel
def find_lot(points: Any, ways: Any, scale: Any, level: Any, begin: int, count: int, places: Any, factors: Any) -> None:
    """places (11, LOT): rows in the table of the eight corners, then the cell; factors (8, LOT): the corners' own."""
    half, one, none = np.float32(0.5), np.float32(1), np.int32(0)
    inner = np.empty((3, LOT), np.float32)
    for t in range(count):
        inner[0, t], inner[1, t], inner[2, t] = points[begin + t, 0], points[begin + t, 1], points[begin + t, 2]
    for axis in range(3):
        for t in range(count):
            x = inner[axis, t]
            x = np.float32(0) if x < 0 else (one if x > 1 else x)
            x = x * scale + half
            i = np.int32(x) if x >= 0 else none
            places[8 + axis, t] = i
            inner[axis, t] = x - np.float32(i)
    if len(ways):
        for t in range(count):
            p = begin + t
            q = slope(inner[0, t], inner[1, t], inner[2, t], ways[p, 0] * scale, ways[p, 1] * scale, ways[p, 2] * scale)
            for corner in range(8):
                factors[corner, t] = q[corner]
    else:
        for t in range(count):
            u, v, w = inner[0, t], inner[1, t], inner[2, t]
            cu, cv, cw = one - u, one - v, one - w
            a, b, c, d = cv * cw, v * cw, cv * w, v * w
            factors[0, t], factors[1, t] = cu * a, u * a
            factors[2, t], factors[3, t] = cu * b, u * b
            factors[4, t], factors[5, t] = cu * c, u * c
            factors[6, t], factors[7, t] = cu * d, u * d
    first, rows, side = np.int32(level[0]), np.int32(level[1]), np.int32(level[2])
    if level[3]:
        layer = np.int32(side * side)
        for t in range(count):
            n = np.int32(places[8, t] + places[9, t] * side + places[10, t] * layer)
            for corner in range(8):
                place = np.int32(n + (corner & 1) + (corner >> 1 & 1) * side + (corner >> 2) * layer)
                places[corner, t] = (place - rows if place >= rows else place) + first
    else:  # the table has 2^n rows, so that the low bits are all that counts
        mask, second, third = np.int32(rows - 1), np.int32(-1640531535), np.int32(805459861)
        for t in range(count):
            i, j, k = places[8, t], np.int32(places[9, t] * second), np.int32(places[10, t] * third)
            ii, jj, kk = np.int32(i + 1), np.int32(j + second), np.int32(k + third)
            places[0, t] = ((i ^ j ^ k) & mask) + first
            places[1, t] = ((ii ^ j ^ k) & mask) + first
            places[2, t] = ((i ^ jj ^ k) & mask) + first
            places[3, t] = ((ii ^ jj ^ k) & mask) + first
            places[4, t] = ((i ^ j ^ kk) & mask) + first
            places[5, t] = ((ii ^ j ^ kk) & mask) + first
            places[6, t] = ((i ^ jj ^ kk) & mask) + first
            places[7, t] = ((ii ^ jj ^ kk) & mask) + first


@kernel
def gather(
    points: Any, ways: Any, table: Any, scales: Any, levels: Any, one: Any, out: Any, begin: int, end: int
) -> None:
    """out (P, L F): the table's values at the points or, with ways, how they change along them."""
    wide = len(one)
    places, factors = np.empty((11, LOT), np.int32), np.empty((8, LOT), np.float32)
    for level in range(len(scales)):
        for start in range(begin, end, LOT):
            count = min(LOT, end - start)
            find_lot(points, ways, scales[level], levels[level], start, count, places, factors)
            for number in range(count):
                t, p, column = np.uint64(number), np.uint64(start + number), np.uint64(level * wide)
                if wide == 2:  # as nearly always: a row's two numbers are read together
                    left = right = np.float32(0)
                    for corner in range(8):
                        row, factor = np.uint32(places[corner, t]), factors[corner, t]
                        left += factor * table[row, 0]
                        right += factor * table[row, 1]
                    out[p, column], out[p, column + np.uint64(1)] = left, right
                else:
                    for f in range(wide):
                        total = np.float32(0)
                        for corner in range(8):
                            total += factors[corner, t] * table[np.uint32(places[corner, t]), f]
                        out[p, column + np.uint64(f)] = total


@kernel
def scatter(points: Any, ways: Any, grad: Any, scales: Any, levels: Any, one: Any, table: Any, level: int) -> None:
    """The opposite of `gather`: adds grad (P, L F) to one level of the table."""
    wide = len(one)
    places, factors = np.empty((11, LOT), np.int32), np.empty((8, LOT), np.float32)
    for start in range(0, len(points), LOT):
        count = min(LOT, len(points) - start)
        find_lot(points, ways, scales[level], levels[level], start, count, places, factors)
        for number in range(count):
            t, p, column = np.uint64(number), np.uint64(start + number), np.uint64(level * wide)
            if wide == 2:
                left, right = grad[p, column], grad[p, column + np.uint64(1)]
                for corner in range(8):
                    row, factor = np.uint32(places[corner, t]), factors[corner, t]
                    table[row, 0] += factor * left
                    table[row, 1] += factor * right
            else:
                for f in range(wide):
                    g = grad[p, column + np.uint64(f)]
                    for corner in range(8):
                        table[np.uint32(places[corner, t]), f] += factors[corner, t] * g


@kernel
def dot(a: Any, b: Any) -> Any:
    return (a[0] * b[0] + a[1] * b[1] + a[2] * b[2] + a[3] * b[3]) + (
        a[4] * b[4] + a[5] * b[5] + a[6] * b[6] + a[7] * b[7]
    )


@kernel
def inside(x: Any) -> Any:
    """Beyond the box nothing changes any more."""
    return np.float32(1) if 0 <= x <= 1 else np.float32(0)


@kernel
def steer(
    points: Any,
    ways: Any,
    table: Any,
    grad: Any,
    scales: Any,
    levels: Any,
    one: Any,
    out: Any,
    begin: int,
    end: int,
) -> None:
    """out (P, 3): how grad (P, L F) times what `gather` gives changes with the points."""
    wide, unit = len(one), np.float32(1)
    out[begin:end] = 0
    for level in range(len(scales)):
        first, rows, side, dense = levels[level, 0], levels[level, 1], levels[level, 2], levels[level, 3]
        scale = scales[level]
        for number in range(begin, end):
            p = np.uint64(number)
            x, y, z = points[p, 0], points[p, 1], points[p, 2]
            c, (u, v, w) = find(x, y, z, scale, first, rows, side, dense)
            zero = np.float32(0)
            h0 = h1 = h2 = h3 = h4 = h5 = h6 = h7 = zero
            for f in range(wide):
                g = grad[p, np.uint64(level * wide + f)]
                h0 += g * table[c[0], f]
                h1 += g * table[c[1], f]
                h2 += g * table[c[2], f]
                h3 += g * table[c[3], f]
                h4 += g * table[c[4], f]
                h5 += g * table[c[5], f]
                h6 += g * table[c[6], f]
                h7 += g * table[c[7], f]
            h = (h0, h1, h2, h3, h4, h5, h6, h7)
            cu, cv, cw = unit - u, unit - v, unit - w
            if len(ways):
                a, b, d = ways[p, 0] * scale, ways[p, 1] * scale, ways[p, 2] * scale
                xy = dot(h, product(-unit, unit, -unit, unit, cw, w))
                xz = dot(h, product(-unit, unit, cv, v, -unit, unit))
                yz = dot(h, product(cu, u, -unit, unit, -unit, unit))
                sx, sy, sz = b * xy + d * xz, a * xy + d * yz, a * xz + b * yz
            else:
                sx = dot(h, product(-unit, unit, cv, v, cw, w))
                sy = dot(h, product(cu, u, -unit, unit, cw, w))
                sz = dot(h, product(cu, u, cv, v, -unit, unit))
            out[p, 0] += sx * scale * inside(x)
            out[p, 1] += sy * scale * inside(y)
            out[p, 2] += sz * scale * inside(z)


# Rays -----------------------------------------------------------------------------------------------------------------


@kernel
def count_steps(
    origins: Any, ways: Any, spans: Any, shifts: Any, occupied: Any, bound: Any, step: Any, limit: int, counts: Any,
    strides: Any, begin: int, end: int,
) -> None:  # fmt: skip
    """For each ray, how many samples it takes in occupied cells and how many steps lie between two of them."""
    nowhere, nothing = np.empty(0, np.float32), np.empty((0, 3), np.float32)
    for r in range(begin, end):
        stride = 1
        count = walk(origins, ways, spans, shifts, occupied, bound, step, r, stride, nowhere, nothing)
        if count > limit:
            stride = -(-count // limit)
            count = walk(origins, ways, spans, shifts, occupied, bound, step, r, stride, nowhere, nothing)
        counts[r], strides[r] = min(count, limit), stride


@kernel
def put_samples(
    origins: Any, ways: Any, spans: Any, shifts: Any, occupied: Any, bound: Any, step: Any, ends: Any,
    strides: Any, distances: Any, points: Any, begin: int, end: int,
) -> None:  # fmt: skip
    """The samples that `count_steps` counted."""
    for r in range(begin, end):
        first, last = ends[r], ends[r + 1]
        if last > first:
            walk(
                origins, ways, spans, shifts, occupied, bound, step, r, strides[r],
                distances[first:last], points[first:last],
            )  # fmt: skip


@kernel
def walk(
    origins: Any, ways: Any, spans: Any, shifts: Any, occupied: Any, bound: Any, step: Any, r: int, stride: int,
    distances: Any, points: Any,
) -> int:  # fmt: skip
    """Counts a ray's samples and, where there is room, writes them down."""
    near, far = spans[r, 0], spans[r, 1]
    cells = occupied.shape[0]
    per = np.float32(cells) / (bound + bound)
    long = step * np.float32(stride)
    found = 0
    k = 0
    while True:
        t = near + (np.float32(k) + shifts[r]) * long
        if not t < far:
            return found
        k += 1
        x = origins[r, 0] + t * ways[r, 0]
        y = origins[r, 1] + t * ways[r, 1]
        z = origins[r, 2] + t * ways[r, 2]
        i = min(max(np.int64((x + bound) * per), 0), cells - 1)
        j = min(max(np.int64((y + bound) * per), 0), cells - 1)
        h = min(max(np.int64((z + bound) * per), 0), cells - 1)
        if occupied[i, j, h]:
            if found < len(distances):
                distances[found] = t
                points[found, 0], points[found, 1], points[found, 2] = x, y, z
            found += 1


@kernel
def blend(
    density: Any, values: Any, lengths: Any, distances: Any, ends: Any, weights: Any, sums: Any, begin: int, end: int
) -> None:
    """Weights (S,) and for each ray the sums (R, C + 2) of values, opacity and distance (Max, 1995)."""
    channels = values.shape[1]
    for r in range(begin, end):
        clear = np.float32(1)
        for c in range(channels + 2):
            sums[r, c] = 0
        for s in range(ends[r], ends[r + 1]):
            if clear < CLEAR:
                weights[s] = 0
                continue
            passed = clear * np.exp(-density[s] * lengths[s])
            weight = clear - passed
            weights[s] = weight
            for c in range(channels):
                sums[r, c] += weight * values[s, c]
            sums[r, channels] += weight
            sums[r, channels + 1] += weight * distances[s]
            clear = passed


@kernel
def blend_back(
    density: Any, values: Any, lengths: Any, distances: Any, ends: Any, weights: Any, grad_weights: Any,
    grad_sums: Any, grad_density: Any, grad_values: Any, begin: int, end: int,
) -> None:  # fmt: skip
    """The gradients of `blend`, each ray from its end."""
    channels = values.shape[1]
    for r in range(begin, end):
        clear = np.float32(1)
        last = ends[r]
        while last < ends[r + 1] and not clear < CLEAR:
            clear *= np.exp(-density[last] * lengths[last])
            last += 1
        for s in range(last, ends[r + 1]):
            grad_density[s] = 0
            for c in range(channels):
                grad_values[s, c] = 0
        behind = np.float32(0)
        for s in range(last - 1, ends[r] - 1, -1):
            weight = weights[s]
            worth = grad_weights[s] + grad_sums[r, channels] + grad_sums[r, channels + 1] * distances[s]
            for c in range(channels):
                worth += grad_sums[r, c] * values[s, c]
                grad_values[s, c] = grad_sums[r, c] * weight
            grad_density[s] = lengths[s] * (clear * worth - behind)
            behind += weight * worth
            clear += weight


@kernel
def see(density: Any, lengths: Any, ends: Any, faint: Any, kept: Any, begin: int, end: int) -> None:
    """Which samples the light reaches and whose opacity is more than `faint`."""
    for r in range(begin, end):
        clear = np.float32(1)
        for s in range(ends[r], ends[r + 1]):
            passed = np.exp(-density[s] * lengths[s])
            kept[s] = not clear < CLEAR and 1 - passed >= faint
            clear *= passed
