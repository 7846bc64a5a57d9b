"""Metrics against closed forms, slow references and a library; how much they err by drawing points and by cells.

Letters: F triangles, P points, S pixels of a side.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from conftest import SHARED, needs_shared
from PIL import Image

pytest.importorskip("scipy")

from zero123cli.errors import MissingInputError, WeightsError
from zero123cli.evaluation import metrics
from zero123cli.evaluation.metrics import Shot


def sphere(radius: float, centre: tuple[float, float, float] = (0, 0, 0), steps: int = 48) -> np.ndarray:
    """Corners (F, 3, 3) of a ball of this radius: its corners lie on it."""
    turn, lift = np.meshgrid(np.linspace(0, 2 * np.pi, 2 * steps + 1), np.linspace(-np.pi / 2, np.pi / 2, steps + 1))
    grid = np.stack([np.cos(lift) * np.sin(turn), np.sin(lift), np.cos(lift) * np.cos(turn)], -1) * radius + centre
    a, b, c, d = grid[:-1, :-1], grid[:-1, 1:], grid[1:, 1:], grid[1:, :-1]
    faces = np.concatenate([np.stack(three, -2).reshape(-1, 3, 3) for three in ((a, b, c), (a, c, d))])
    area = np.linalg.norm(np.cross(faces[:, 1] - faces[:, 0], faces[:, 2] - faces[:, 0]), axis=1)
    return faces[area > 1e-12]


def box(low: tuple[float, float, float], high: tuple[float, float, float]) -> np.ndarray:
    """Corners (12, 3, 3), every face with vertices of its own and the normals outward."""
    quads = []
    for axis in range(3):
        one, two = (axis + 1) % 3, (axis + 2) % 3
        for side, ends in ((0, low), (1, high)):
            square = np.tile(np.array(ends, float), (4, 1))
            square[:, one] = [low[one], high[one], high[one], low[one]]
            square[:, two] = [low[two], low[two], high[two], high[two]]
            quads.append(square if side else square[::-1])
    return np.concatenate([[quad[[0, 1, 2]], quad[[0, 2, 3]]] for quad in quads])


def grid(cells: int = metrics.CELLS) -> np.ndarray:  # (G, G, G, 3)
    return (np.stack(np.indices((cells,) * 3), -1) + 0.5) / cells - 0.5


# Solids and surfaces --------------------------------------------------------------------------------------------------


def test_a_ball_fills_the_cells_within_its_radius() -> None:
    exact = np.linalg.norm(grid(), axis=-1) < 0.4
    assert metrics.overlap(metrics.fill(sphere(0.4)), exact) > 0.99


@pytest.mark.parametrize("apart", [0.1, 0.25, 0.7])
def test_two_spheres_have_the_overlap_of_their_lens(apart: float) -> None:
    radius = 0.3
    ours = metrics.fill(sphere(radius, (-apart / 2 + 0.003, 0.004, 0.005)))
    theirs = metrics.fill(sphere(radius, (apart / 2 + 0.003, 0.004, 0.005)))
    lens = math.pi * (4 * radius + apart) * (2 * radius - apart) ** 2 / 12 if apart < 2 * radius else 0.0
    exact = lens / (2 * 4 / 3 * math.pi * radius**3 - lens)
    assert metrics.overlap(ours, theirs) == pytest.approx(exact, abs=0.006)


def test_two_spheres_one_in_the_other_are_twice_their_gap_apart() -> None:
    chance = np.random.default_rng(0)
    a, b = (metrics.scatter(sphere(radius), 30_000, chance) for radius in (0.5, 0.4))
    assert metrics.chamfer(a, b) == pytest.approx(0.2, abs=1e-3)


def test_chamfer_is_the_slow_sum() -> None:
    chance = np.random.default_rng(1)
    a, b = chance.normal(size=(40, 3)), chance.normal(size=(55, 3))
    table = [[math.dist(p, q) for q in b] for p in a]
    there, back = [min(row) for row in table], [min(row[k] for row in table) for k in range(len(b))]
    assert metrics.chamfer(a, b) == pytest.approx(sum(there) / len(a) + sum(back) / len(b))
    for limit in (0.3, 0.8):
        share = [sum(d < limit for d in ds) / len(ds) for ds in (there, back)]
        assert metrics.fscore(a, b, limit) == pytest.approx(2 * share[0] * share[1] / sum(share))
    assert metrics.fscore(a, b + 100, 0.5) == 0


def test_points_are_uniform_by_area_and_on_the_surface() -> None:
    wide, small = box((-0.5, -0.5, 0), (0.5, 0.5, 0))[-2:], np.array([[[2.0, 0, 0], [2.5, 0, 0], [2, 0.5, 0]]])
    points = metrics.scatter(np.concatenate([wide, small]), 90_000, np.random.default_rng(0))
    assert (points[:, 2] == 0).all()
    on_small = points[:, 0] > 1.5
    assert on_small.mean() == pytest.approx(1 / 9, abs=0.004)
    halves = np.histogram2d(*points[~on_small, :2].T, bins=4)[0] / (~on_small).sum()
    assert np.abs(halves - 1 / 16).max() < 0.003
    x, y = (points[on_small, :2] - (2, 0)).T
    assert (x + y <= 0.5 + 1e-9).all()
    assert x.mean() == pytest.approx(0.5 / 3, abs=0.005)


def test_open_surfaces_are_filled() -> None:
    closed = sphere(0.4)
    without_lid = closed[closed[..., 1].min(1) < 0.33]  # a hole of radius 0.23
    assert metrics.overlap(metrics.fill(without_lid), metrics.fill(closed)) > 0.93


def test_parts_that_overlap_are_their_union_however_the_faces_are_turned() -> None:
    one, two = box((-0.4, -0.2, -0.2), (0.1, 0.2, 0.2)), box((-0.1, -0.1, -0.3), (0.4, 0.3, 0.1))
    low = [np.array(corner) for corner in ((-0.4, -0.2, -0.2), (-0.1, -0.1, -0.3))]
    high = [np.array(corner) for corner in ((0.1, 0.2, 0.2), (0.4, 0.3, 0.1))]
    exact = np.any([((grid() > a) & (grid() < b)).all(-1) for a, b in zip(low, high, strict=True)], 0)
    both = np.concatenate([one, two])
    assert (metrics.fill(both) == exact).all()
    assert (metrics.fill(both[:, ::-1]) == exact).all()
    shuffled = np.random.default_rng(0).permutation(both)
    assert (metrics.fill(np.concatenate([shuffled, both])) == exact).all()  # every face twice


def test_two_empty_solids_agree() -> None:
    nothing = np.zeros((4, 4, 4), bool)
    assert metrics.overlap(nothing, nothing) == 1
    assert metrics.overlap(nothing, ~nothing) == 0


def test_alignment_undoes_scale_turn_and_shift() -> None:
    chance = np.random.default_rng(0)
    truth = metrics.scatter(
        np.concatenate([box((-1, -0.2, -0.4), (1, 0.2, 0.4)), box((0.3, 0, 0), (0.6, 0.9, 0.2))]), 800, chance
    )
    angle = math.radians(12)
    turned = truth @ np.array(
        [[math.cos(angle), 0, -math.sin(angle)], [0, 1, 0], [math.sin(angle), 0, math.cos(angle)]]
    )
    moved = metrics.align(turned * 0.8 + (0.3, -0.2, 0.1), truth)
    assert metrics.chamfer(moved, truth) < 0.01
    assert metrics.fscore(moved, truth, 0.05) > 0.99


def test_the_nearest_turn_is_no_mirror() -> None:
    points = np.random.default_rng(0).normal(size=(50, 3))
    fitted = metrics.fit(points, points * (-1, 1, 1))
    basis = np.linalg.lstsq(points - points.mean(0), fitted - fitted.mean(0), rcond=None)[0]
    assert np.linalg.det(basis) == pytest.approx(1)


@pytest.mark.bench
def test_sampling_errors_are_as_small_as_stated() -> None:
    """CD of 2,000 points spreads by under 0.001 and never falls below about 0.02 to 0.04."""
    ball = sphere(0.5)
    drawn = [metrics.scatter(ball, metrics.POINTS, np.random.default_rng(seed)) for seed in range(12)]
    found = [metrics.chamfer(a, b) for a, b in zip(drawn[::2], drawn[1::2], strict=True)]
    floor = math.sqrt(math.pi / metrics.POINTS)  # both ways: half over the root of the points in a unit of area
    assert np.mean(found) == pytest.approx(floor, rel=0.03)
    assert np.std(found) < 0.001
    shifts = np.random.default_rng(0).uniform(-0.5, 0.5, (4, 3)) / metrics.CELLS
    overlaps = [
        metrics.overlap(metrics.fill(sphere(0.3, tuple(s))), metrics.fill(sphere(0.3, (s[0] + 0.1, s[1], s[2]))))
        for s in shifts
    ]
    assert np.std(overlaps) < 0.003


# Pictures -------------------------------------------------------------------------------------------------------------


def shot(seed: int, side: int = 24) -> Shot:
    chance = np.random.default_rng(seed)
    blurry = Image.fromarray(chance.integers(0, 256, (6, 6, 3), np.uint8)).resize(
        (side, side), Image.Resampling.BICUBIC
    )
    mask = np.zeros((side, side), bool)
    mask[3 : side - 8 + seed, 5 : side - 4] = True
    return Shot(np.where(mask[..., None], np.asarray(blurry, np.float32) / 255, np.float32(1)), mask)


def test_psnr_is_the_log_of_the_mean_square() -> None:
    a = shot(0)
    lighter = Shot(a.rgb + np.float32(0.1), a.mask)
    assert metrics.psnr(a, lighter) == pytest.approx(20, abs=1e-4)
    assert metrics.psnr(a, a) == pytest.approx(58.92, abs=0.01)  # what 8 bits can hold


def test_psnr_in_the_masks_leaves_out_the_white_around() -> None:
    a, b = shot(0), shot(2)
    both = a.mask | b.mask
    slow = [(a.rgb[i, j, c] - b.rgb[i, j, c]) ** 2 for i, j in np.argwhere(both) for c in range(3)]
    assert metrics.psnr_object(a, b) == pytest.approx(-10 * math.log10(np.mean(slow)), abs=1e-3)
    assert metrics.psnr_object(a, b) < metrics.psnr(a, b)
    nothing = Shot(np.ones_like(a.rgb), np.zeros_like(a.mask))
    assert metrics.psnr_object(nothing, nothing) == pytest.approx(58.92, abs=0.01)


def test_ssim_is_the_mean_over_windows_written_out() -> None:
    a, b = shot(0), shot(1)
    reach = 5
    line = np.exp(-0.5 * (np.arange(-reach, reach + 1) / 1.5) ** 2)
    weight = np.outer(line, line) / line.sum() ** 2
    c1, c2 = 0.01**2, 0.03**2
    values = []
    for channel in range(3):
        x, y = a.rgb[..., channel].astype(float), b.rgb[..., channel].astype(float)
        for i in range(reach, len(x) - reach):
            for j in range(reach, len(x) - reach):
                p, q = (v[i - reach : i + reach + 1, j - reach : j + reach + 1] for v in (x, y))
                mp, mq = (weight * p).sum(), (weight * q).sum()
                vp, vq = (weight * p * p).sum() - mp**2, (weight * q * q).sum() - mq**2
                both = (weight * p * q).sum() - mp * mq
                values.append((2 * mp * mq + c1) * (2 * both + c2) / ((mp**2 + mq**2 + c1) * (vp + vq + c2)))
    assert metrics.ssim(a, b) == pytest.approx(np.mean(values), abs=1e-5)
    assert metrics.ssim(a, a) == pytest.approx(1)


def test_mask_overlap() -> None:
    a, b = shot(0), shot(2)
    assert metrics.mask_overlap(a, b) == pytest.approx(a.mask.sum() / b.mask.sum())


def draw_lpips(widths: tuple[int, ...] = (4, 5, 6, 5, 4)) -> dict[str, np.ndarray]:
    """Weights of the right form and few channels."""
    chance, arrays, inward = np.random.default_rng(0), {}, 3
    for k, (width, side) in enumerate(zip(widths, (11, 5, 3, 3, 3), strict=True)):
        arrays[f"conv{k}.weight"] = chance.normal(0, 0.2, (width, inward, side, side)).astype(np.float32)
        arrays[f"conv{k}.bias"] = chance.normal(0, 0.1, width).astype(np.float32)
        arrays[f"lin{k}"] = chance.random((1, width, 1, 1)).astype(np.float32)
        inward = width
    return arrays


def slow_lpips(arrays: dict[str, np.ndarray], a: Shot, b: Shot) -> float:
    layers = []
    for one in (a, b):
        x = (one.rgb.transpose(2, 0, 1).astype(float) * 2 - 1 - np.array(metrics.SHIFT)[:, None, None]) / np.array(
            metrics.SCALE
        )[:, None, None]
        found = []
        for k in range(5):
            if k in (1, 2):
                side = (x.shape[1] - 3) // 2 + 1
                x = np.array(
                    [
                        [[c[2 * i : 2 * i + 3, 2 * j : 2 * j + 3].max() for j in range(side)] for i in range(side)]
                        for c in x
                    ]
                )
            stride, margin = ((4, 2), (1, 2), (1, 1), (1, 1), (1, 1))[k]
            weight, bias = arrays[f"conv{k}.weight"].astype(float), arrays[f"conv{k}.bias"]
            size = weight.shape[-1]
            padded = np.pad(x, ((0, 0), (margin, margin), (margin, margin)))
            side = (padded.shape[1] - size) // stride + 1
            windows = [
                [padded[:, i * stride : i * stride + size, j * stride : j * stride + size] for j in range(side)]
                for i in range(side)
            ]
            x = np.maximum(np.einsum("ijchw,ochw->oij", np.array(windows), weight) + bias[:, None, None], 0)
            found.append(x / (np.sqrt((x**2).sum(0)) + 1e-10))
        layers.append(found)
    return sum(
        float((((p - q) ** 2) * arrays[f"lin{k}"][0]).sum(0).mean())
        for k, (p, q) in enumerate(zip(*layers, strict=True))
    )


def test_lpips_is_its_definition_written_out(tmp_path: Path) -> None:
    arrays = draw_lpips()
    path = tmp_path / "weights.npz"
    np.savez(path, **arrays)
    a, b = shot(0, 48), shot(1, 48)
    assert metrics.lpips(metrics.read_lpips(path), a, b) == pytest.approx(slow_lpips(arrays, a, b), rel=1e-4)
    assert metrics.lpips(metrics.read_lpips(path), a, a) == 0


def test_weights_that_are_none_are_refused(tmp_path: Path) -> None:
    folder = tmp_path
    with pytest.raises(MissingInputError):
        metrics.read_lpips(folder / "nowhere.npz")
    (folder / "bad.npz").write_bytes(b"PK\3\4" + bytes(40))
    with pytest.raises(WeightsError, match="plain arrays"):
        metrics.read_lpips(folder / "bad.npz")
    np.savez(folder / "other.npz", conv0=np.zeros(3))
    with pytest.raises(WeightsError, match=r"no conv0\.bias"):
        metrics.read_lpips(folder / "other.npz")


@needs_shared
def test_the_calibrated_weights_grow_with_the_damage() -> None:
    arrays = metrics.read_lpips(SHARED / "data" / "weights" / "lpips_alex.npz")
    a = shot(0, 64)
    chance = np.random.default_rng(0)
    noise = chance.normal(0, 1, a.rgb.shape).astype(np.float32)
    found = [metrics.lpips(arrays, a, Shot(np.clip(a.rgb + k * noise, 0, 1), a.mask)) for k in (0, 0.02, 0.1, 0.4)]
    assert found[0] == 0
    assert found == sorted(found)
    assert 0.2 < found[-1] < 2


# Means ----------------------------------------------------------------------------------------------------------------


def test_intervals_agree_with_the_normal_law_where_it_holds() -> None:
    values = np.random.default_rng(0).normal(3, 2, 400)
    found = metrics.estimate(values)
    half = 1.96 * values.std() / math.sqrt(len(values))
    assert found.mean == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - half, abs=0.02)
    assert found.high == pytest.approx(values.mean() + half, abs=0.02)
    assert metrics.estimate(values) == found  # no chance left
    one = metrics.estimate([0.25])
    assert (one.mean, one.low, one.high) == (0.25, 0.25, 0.25)


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    chance = np.random.default_rng(0)
    held = [found.low <= 0.3 <= found.high for found in (metrics.estimate(chance.beta(3, 7, 20)) for _ in range(150))]
    assert 0.87 < np.mean(held) < 0.99


def test_pairs_tell_more_than_two_intervals() -> None:
    chance = np.random.default_rng(0)
    hard = chance.random(20)
    one, other = hard + 0.02 + 0.01 * chance.normal(size=20), hard
    paired, apart = metrics.estimate(one - other), metrics.estimate(one)
    assert paired.low > 0
    assert paired.high - paired.low < (apart.high - apart.low) / 10
