"""How fast the radiance field is, what its parts take, and how well it learns shapes: `make bench` prints it."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import shapes
import torch
import torch.nn.functional as F
from conftest import SHARED, needs_shared
from torch import Tensor

from zero123cli.cameras import Viewpoint
from zero123cli.radiance.field import Field, FieldDescription
from zero123cli.radiance.fit import fit_volume
from zero123cli.radiance.hashgrid import GridDescription, encode, is_installed, make_table
from zero123cli.radiance.occupancy import Marching, Occupancy, march, march_torch
from zero123cli.radiance.rays import Rays, cast_rays, enter_box
from zero123cli.radiance.render import WEIGHERS, blend, find_visible, render
from zero123cli.scenes import filling, meshes, raycast
from zero123cli.scenes.surface import Surface, normalise

pytestmark = pytest.mark.bench

CUDA = torch.cuda.is_available()
POINTS = 1 << 18
ROUNDS = 7


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    """The bars are for two cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(min(2, os.cpu_count() or 1))
    yield
    torch.set_num_threads(before)


def seconds(work: Callable[[], object]) -> float:
    if CUDA:
        torch.cuda.synchronize()
    started = time.perf_counter()
    work()
    if CUDA:
        torch.cuda.synchronize()
    return time.perf_counter() - started


def compare(works: dict[str, Callable[[], object]], rounds: int = ROUNDS) -> dict[str, list[float]]:
    """Seconds of each, taken in turn, the first round thrown away."""
    rows = [{name: seconds(work) for name, work in works.items()} for _ in range(rounds + 1)][1:]
    return {name: [row[name] for row in rows] for name in works}


@pytest.mark.parametrize("levels", [8, 16])
def test_the_hash_grid_beats_plain_torch(levels: int) -> None:
    grid = GridDescription(levels, 2, 19, 16, 1.447269237440378)
    chance = torch.Generator().manual_seed(0)
    points, grad = torch.rand(POINTS, 3, generator=chance), torch.randn(POINTS, grid.width, generator=chance)

    def both_ways(encoder: str, device: str) -> Callable[[], object]:
        here, table, back = points.to(device), torch.nn.Parameter(make_table(grid).detach().to(device)), grad.to(device)

        def work() -> None:
            table.grad = None
            encode(here, table, grid, encoder).backward(back)  # type: ignore[arg-type]

        return work

    works = {"numba": both_ways("numba", "cpu"), "torch": both_ways("torch", "cpu")}
    if CUDA:
        works |= {f"{name}, CUDA": both_ways(name, "cuda") for name in ("triton", "tinycudann", "torch") if name == "torch" or is_installed(name)}  # fmt: skip  # noqa: E501
    times = compare(works)
    print(f"\nhash grid, {POINTS} points, {levels} levels x 2, forward and backward:")
    for name, column in times.items():
        print(f"  {name:18} {statistics.median(column):.4f} s")
    ratio = statistics.median(a / b for a, b in zip(times["torch"], times["numba"], strict=True))
    print(f"  torch / numba {ratio:.1f}" + ("" if CUDA else "; CUDA not measured"))
    assert ratio >= 10  # 10.2 to 15.4 was seen: torch's own times swing by half
    assert levels > 8 or statistics.median(times["numba"]) < 0.25


def tenth_full(description: FieldDescription, device: str = "cpu") -> tuple[Field, Occupancy]:
    """A ball of a tenth of the box."""
    field, occupancy = Field(description, generator=torch.Generator().manual_seed(0)), Occupancy(description.bound)
    line = (torch.arange(32) + 0.5) / 32 * 1.2 - 0.6
    centres = torch.stack(torch.meshgrid(line, line, line, indexing="ij"), -1)
    occupancy.opacity.copy_((centres.norm(dim=-1) < 0.346).float())
    occupancy.settle()
    return field.to(device), occupancy.to(device)


def plainly(field: Field, rays: Rays, occupancy: Occupancy) -> Tensor:
    """The same picture without any of our kernels."""
    with torch.no_grad():
        shifts = torch.rand(len(rays), generator=torch.Generator().manual_seed(0))
        samples = march_torch(rays, enter_box(rays, occupancy.bound), shifts, occupancy, Marching())
    density, colour = field.look_up(samples.points)
    weights = WEIGHERS["padded"](density, samples)
    return torch.zeros(len(rays), 3).index_add(0, samples.ray(), weights[:, None] * colour)


@pytest.mark.parametrize("size", [64, 128])
def test_a_render_is_quick(size: int) -> None:
    field, occupancy = tenth_full(FieldDescription())
    share = float(occupancy.occupied.float().mean())
    rays = cast_rays([Viewpoint(30, 20)], size)

    def ours() -> None:
        field.zero_grad()
        render(field, rays, occupancy, generator=torch.Generator().manual_seed(0)).colour.square().mean().backward()

    def theirs() -> None:
        field.zero_grad()
        field.encoder = "torch"
        plainly(field, rays, occupancy).square().mean().backward()
        field.encoder = None

    times = compare({"ours": ours, "plain torch": theirs})
    mine = statistics.median(times["ours"])
    ratio = statistics.median(a / b for a, b in zip(times["plain torch"], times["ours"], strict=True))
    print(f"\nrender {size}x{size}, {share:.0%} occupied: {mine:.4f} s both ways, plain torch / ours {ratio:.1f}")
    rows = [parts(field, rays, occupancy) for _ in range(ROUNDS)]
    medians = {name: statistics.median(row[name] for row in rows) for name in rows[0]}
    print("  " + ", ".join(f"{name} {value / sum(medians.values()):.0%}" for name, value in medians.items()))
    assert 0.09 < share < 0.11
    assert size > 64 or mine < 0.15


def parts(field: Field, rays: Rays, occupancy: Occupancy) -> dict[str, float]:
    """Seconds of each part of one render."""
    field.zero_grad()
    marks = {"": time.perf_counter()}
    samples = march(rays, occupancy)
    marks["march"] = time.perf_counter()
    with torch.no_grad():
        samples = samples.keep(find_visible(field.density(samples.points), samples))
    marks["look ahead"] = time.perf_counter()
    found = field.encode(samples.points)
    marks["hash grid"] = time.perf_counter()
    density = field.activate_density(samples.points, field.density_of(found))
    colour = field.activate_colour(field.colour_of(found))
    marks["heads"] = time.perf_counter()
    sums = blend(density, colour, samples)[0]
    marks["blend"] = time.perf_counter()
    sums.square().mean().backward()
    marks["backward"] = time.perf_counter()
    names = list(marks)
    return {name: marks[name] - marks[before] for before, name in pairwise(names)}


FIRST_CALL = """
import resource, sys, time, torch
torch.set_num_threads(2)
from zero123cli.cameras import Viewpoint
from zero123cli.radiance.field import Field
from zero123cli.radiance.occupancy import Occupancy
from zero123cli.radiance.rays import cast_rays
from zero123cli.radiance.render import render
started = time.perf_counter()
field, occupancy = Field(), Occupancy(0.6)
line = (torch.arange(32) + 0.5) / 32 * 1.2 - 0.6
occupancy.opacity.copy_((torch.stack(torch.meshgrid(line, line, line, indexing='ij')).norm(dim=0) < 0.346).float())
occupancy.settle()
for size in (4, 128):
    render(field, cast_rays([Viewpoint()], size), occupancy).colour.mean().backward()
    if size == 4:
        print(time.perf_counter() - started)
kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(kilobytes / (1 << 20 if sys.platform != "darwin" else 1 << 30))
"""


def test_the_first_call_compiles_soon_and_memory_stays_small(tmp_path: Path) -> None:
    env = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    told = []
    for _ in range(2):
        run = subprocess.run([sys.executable, "-c", FIRST_CALL], env=env, check=True, capture_output=True, text=True)
        told.append([float(line) for line in run.stdout.split()])
    print(f"\nfirst call on a machine {told[0][0]:.1f} s, of a process {told[1][0]:.2f} s")
    print(f"peak memory of a process that renders 128x128, 10% occupied: {told[0][1]:.2f} GiB")
    assert told[0][0] < 5
    assert max(told[0][1], told[1][1]) < 1.5


@pytest.mark.skipif(not CUDA, reason="no CUDA: 256x256 on a GPU is not measured")
def test_a_large_render_on_a_gpu() -> None:
    field, occupancy = tenth_full(FieldDescription(), "cuda")
    rays = cast_rays([Viewpoint(30, 20)], 256, device="cuda")

    def work() -> None:
        field.zero_grad()
        render(field, rays, occupancy).colour.square().mean().backward()

    taken = statistics.median(compare({"ours": work}, 20)["ours"])
    print(f"\n{torch.cuda.get_device_name()}: 256x256 forward and backward {taken * 1e3:.1f} ms")
    assert taken < 0.015 or "H200" not in torch.cuda.get_device_name()


def test_it_starts_from_a_volume_within_five_seconds() -> None:
    prepared = raycast.prepare(shapes.two_spheres())
    side = 48
    inside = torch.from_numpy(filling.occupancy(prepared, 40)).float()
    inside = F.pad(inside, [4] * 6)  # the field's box is 1.2 wide
    colour = torch.full((3, side, side, side), 0.2)
    field = Field(generator=torch.Generator().manual_seed(0))
    volume = torch.cat([colour, inside[None]])
    fit_volume(Field(), volume, steps=1)
    taken = seconds(lambda: fit_volume(field, volume, generator=torch.Generator().manual_seed(0)))
    iou = shapes.overlap(field, prepared)
    print(f"\na field from a volume: {taken:.2f} s, IoU {iou:.3f}")
    assert taken < 5 and iou >= 0.85


def eval_mesh(name: str) -> Callable[[], Surface]:
    return lambda: normalise(meshes.read_surface(SHARED / "data" / "eval" / "gso" / f"{name}.glb"))


LEARNED = [pytest.param(name, make, True, id=name) for name, make in shapes.SOLIDS.items()] + [
    pytest.param(name, eval_mesh(name), False, id=name, marks=needs_shared)
    for name in ("Android_Figure_Panda", "Cole_Hardware_School_Bell_Solid_Brass_38")
]


@pytest.mark.parametrize(("name", "make", "solid"), LEARNED)
def test_it_learns_a_shape_within_a_minute(name: str, make: Callable[[], Surface], solid: bool) -> None:
    prepared = raycast.prepare(make())
    given = shapes.show(prepared, 40, 128, seed=0)
    # Dense in the middle to begin with: pictures say nothing of what is inside, and seen-through once, it stays so.
    description = FieldDescription(blob=40.0, blob_radius=0.6)
    field, occupancy = Field(description, generator=torch.Generator().manual_seed(0)), Occupancy(0.6)
    chance = torch.Generator().manual_seed(1)
    taken = seconds(
        lambda: shapes.fit_views(
            field, occupancy, given.rays, given.pixels, steps=1000, rate=0.03, generator=chance, batch=4096
        )
    )
    held_out, iou = shapes.psnr(field, occupancy, shapes.show(prepared, 8, 96, seed=1)), shapes.overlap(field, prepared)
    print(f"\n{name}: {held_out:.1f} dB on views held out, IoU {iou:.3f}, {taken:.0f} s")
    assert held_out >= 28
    assert iou >= 0.9 or not solid
    assert taken < 60
