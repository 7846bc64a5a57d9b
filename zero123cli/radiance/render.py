"""Pictures of a field: samples along rays, blended front to back (Max, 1995; Mildenhall et al., 2020).

On a CPU one compiled loop blends and differentiates. On CUDA nerfacc's packed kernels weigh the samples where they can
be built; anywhere else the rays are padded to one length for nerfacc's dense functions, which are plain torch.
A ray without samples is exactly 0 with no gradient.
Letters: R rays, S samples of all rays together, C channels of colour.
"""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..watch import Caution, Watch, silent
from . import kernels_cpu
from .field import Field, NormalKind
from .occupancy import Marching, Occupancy, march
from .rays import Rays, Samples

RAYS_AT_ONCE = 1 << 14  # of a picture without gradients


@dataclass(frozen=True)
class Rendering:
    colour: Tensor  # (R, C), on the background
    opacity: Tensor  # (R,)
    depth: Tensor  # (R,), sum of weight times distance: divide by the opacity for a place
    normal: Tensor | None  # (R, 3), sum of weight times normal
    samples: Samples  # those that counted
    weights: Tensor  # (S,)
    normals: Tensor | None  # (S, 3) at the samples


def render(
    field: Field,
    rays: Rays,
    occupancy: Occupancy,
    *,
    marching: Marching | None = None,
    background: Tensor | None = None,  # (C,) or (R, C); 0 without
    normals: NormalKind | None = None,
    faint: float = 0.0,  # samples of less opacity are left out
    generator: torch.Generator | None = None,
    watch: Watch = silent,
) -> Rendering:
    """What the rays see. The field is first asked without gradients which samples the light reaches at all."""
    samples = march(rays, occupancy, marching, generator)
    if torch.is_grad_enabled() and len(samples):
        with torch.no_grad():
            samples = samples.keep(find_visible(field.density(samples.points), samples, faint))
    density, colour = field.look_up(samples.points)
    shown = colour
    normal = None
    if normals is not None:
        normal = field.normal(samples.points, normals)
        shown = torch.cat([colour, normal], -1)
    sums, opacity, depth, weights = blend(density, shown, samples, watch)
    channels = colour.shape[-1]
    seen = sums[:, :channels]
    if background is not None:
        seen = seen + (1 - opacity[:, None]) * background
    across = None if normal is None else sums[:, channels:]
    return Rendering(seen, opacity, depth, across, samples, weights, normal)


def in_pieces(draw: Callable[..., Rendering], rays: Rays, pieces: int, generator: torch.Generator) -> Rendering:
    """What `draw(rays, generator=...)` sees, with the memory of a piece of it: each is drawn again for its gradient."""
    seeds = torch.randint(1 << 62, (pieces,), generator=generator).tolist()
    few = -(-len(rays) // pieces)
    begins = range(0, len(rays), few)
    parts = [draw_piece(draw, rays[k : k + few], seed) for k, seed in zip(begins, seeds, strict=False)]
    starts = np.cumsum([0, *(len(part.samples) for part in parts)]).tolist()
    ends = [part.samples.ends[1:] + start for part, start in zip(parts, starts, strict=False)]

    def join(of: Callable[[Any], Tensor | None]) -> Any:
        found = [of(part) for part in parts]
        return None if found[0] is None else torch.cat(found)  # type: ignore[arg-type]  # all of them or none

    samples = Samples(
        join(lambda part: part.samples.points),
        join(lambda part: part.samples.distances),
        join(lambda part: part.samples.lengths),
        torch.cat([parts[0].samples.ends[:1], *ends]),
    )
    return Rendering(
        join(lambda part: part.colour),
        join(lambda part: part.opacity),
        join(lambda part: part.depth),
        join(lambda part: part.normal),
        samples,
        join(lambda part: part.weights),
        join(lambda part: part.normals),
    )


def draw_piece(draw: Callable[..., Rendering], rays: Rays, seed: int) -> Rendering:
    samples: list[Samples] = []  # the same both times

    def go() -> tuple[Tensor, ...]:
        found = draw(rays, generator=torch.Generator().manual_seed(seed))
        samples[:] = [found.samples]
        both = () if found.normal is None or found.normals is None else (found.normal, found.normals)
        return (found.colour, found.opacity, found.depth, found.weights, *both)

    trigger = torch.zeros((), device=rays.origins.device, requires_grad=True)
    colour, opacity, depth, weights, *both = Again.apply(trigger, go)  # type: ignore[no-untyped-call]
    normal, normals = both or (None, None)
    return Rendering(colour, opacity, depth, normal, samples[0], weights, normals)


class Again(torch.autograd.Function):
    """Values without the graph behind them: it is made again for the gradients, which go right to the weights."""

    @staticmethod
    def forward(ctx: Any, trigger: Tensor, go: Callable[[], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        ctx.go = go
        with torch.enable_grad():
            return tuple(part.detach() for part in go())

    @staticmethod
    @torch.autograd.function.once_differentiable  # type: ignore[untyped-decorator, unused-ignore]
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, None]:
        with torch.enable_grad():
            found = ctx.go()
        led = [(part, grad) for part, grad in zip(found, grads, strict=True) if part.requires_grad]
        if led:
            torch.autograd.backward([part for part, _ in led], [grad for _, grad in led])
        return None, None


@torch.no_grad()
def render_blocks(field: Field, rays: Rays, occupancy: Occupancy, **options: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Colour (R, C), opacity (R,) and depth (R,) of any number of rays, without gradients."""
    background = options.pop("background", None)
    parts = []
    for begin in range(0, len(rays), RAYS_AT_ONCE):
        part = slice(begin, begin + RAYS_AT_ONCE)
        behind = background[part] if background is not None and background.ndim == 2 else background
        seen = render(field, rays[part], occupancy, background=behind, **options)
        parts.append((seen.colour, seen.opacity, seen.depth))
    colour, opacity, depth = zip(*parts, strict=True)
    return torch.cat(colour), torch.cat(opacity), torch.cat(depth)


def find_visible(density: Tensor, samples: Samples, faint: float = 0.0) -> Tensor:  # (S,) -> bool (S,)
    """Early termination: samples that some light reaches, and whose own opacity is not less than `faint`."""
    if density.device.type == "cpu":
        kept = torch.empty(len(density), dtype=torch.bool)
        fixed = (*arrays(density, samples.lengths), samples.ends.numpy(), faint, kept.numpy())
        kernels_cpu.share(kernels_cpu.see, [(*fixed, *job) for job in kernels_cpu.blocks(len(samples.ends) - 1)])
        return kept
    opacity = 1 - torch.exp(-density * samples.lengths)
    depth, ends, ray = density * samples.lengths, samples.ends, samples.ray()
    if density.device.type == "mps":  # which knows no doubles
        depth, ends, ray = depth.cpu(), ends.cpu(), ray.cpu()
    before = F.pad(depth.double().cumsum(0), (1, 0))
    passed = torch.exp(before[ends[:-1]][ray] - before[:-1])
    return (passed >= kernels_cpu.CLEAR).to(density.device) & (opacity >= faint)


def blend(
    density: Tensor, values: Tensor, samples: Samples, watch: Watch = silent
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # (S,), (S, C) -> (R, C), (R,), (R,), (S,)
    """Sums of values, opacities and depths of rays, and the weights of samples."""
    if density.device.type == "cpu":
        weights, sums = Blend.apply(density, values, samples)  # type: ignore[no-untyped-call]
        return sums[:, :-2], sums[:, -2], sums[:, -1], weights
    packed = density.device.type == "cuda" and can_pack(watch)
    weights = WEIGHERS["packed" if packed else "padded"](density, samples)
    columns = torch.cat([values, torch.ones_like(density)[:, None], samples.distances[:, None]], -1)
    sums = columns.new_zeros(len(samples.ends) - 1, columns.shape[1])
    sums = sums.index_add(0, samples.ray(), weights[:, None] * columns)
    return sums[:, :-2], sums[:, -2], sums[:, -1], weights


class Blend(torch.autograd.Function):
    """The compiled loop of a CPU."""

    @staticmethod
    def forward(ctx: Any, density: Tensor, values: Tensor, samples: Samples) -> tuple[Tensor, Tensor]:
        rays = len(samples.ends) - 1
        # An array owns the weights: were it the tensor, it would hold its own graph and never be freed.
        weights, sums = np.empty(len(density), np.float32), torch.empty(rays, values.shape[1] + 2)
        ctx.given = (*arrays(density, values, samples.lengths, samples.distances), samples.ends.numpy(), weights)
        fixed = (*ctx.given, sums.numpy())
        kernels_cpu.share(kernels_cpu.blend, [(*fixed, *job) for job in kernels_cpu.blocks(rays)])
        return torch.from_numpy(weights), sums

    @staticmethod
    @torch.autograd.function.once_differentiable  # type: ignore[untyped-decorator, unused-ignore]
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        density, values = ctx.given[:2]
        to_density, to_values = torch.empty(density.shape), torch.empty(values.shape)
        fixed = (*ctx.given, *arrays(*grads), to_density.numpy(), to_values.numpy())
        jobs = kernels_cpu.blocks(len(ctx.given[4]) - 1)
        kernels_cpu.share(kernels_cpu.blend_back, [(*fixed, *job) for job in jobs])
        return to_density, to_values, None


def arrays(*tensors: Tensor) -> list[Any]:
    return [tensor.detach().float().contiguous().numpy() for tensor in tensors]


# Weights elsewhere ----------------------------------------------------------------------------------------------------


def weigh_padded(density: Tensor, samples: Samples) -> Tensor:  # (S,) -> (S,)
    """By nerfacc's dense functions: every ray as long as the longest, what is missing of length 0."""
    from nerfacc import render_weight_from_density  # type: ignore[import-untyped, unused-ignore]

    counts = samples.ends.diff()
    longest = int(counts.max()) if len(counts) else 0
    taken = torch.arange(longest, device=density.device) < counts[:, None]
    shape = taken.shape

    def pad(values: Tensor) -> Tensor:
        return values.new_zeros(shape).masked_scatter(taken, values)

    middle, half = pad(samples.distances), pad(samples.lengths) / 2
    weights, _, _ = render_weight_from_density(middle - half, middle + half, pad(density))
    return weights[taken]


def weigh_packed(density: Tensor, samples: Samples) -> Tensor:
    """By nerfacc's CUDA kernels."""
    from nerfacc import render_weight_from_density  # type: ignore[import-untyped, unused-ignore]

    info = torch.stack([samples.ends[:-1], samples.ends.diff()], -1)
    half = samples.lengths / 2
    begin, end = samples.distances - half, samples.distances + half
    weights, _, _ = render_weight_from_density(begin, end, density, packed_info=info)
    return weights


def can_pack(watch: Watch) -> bool:
    """Whether nerfacc's CUDA kernels are there or can be built; says so when they can't."""
    reason = why_not_packed()
    if reason:
        watch(
            Caution(
                "nerfacc-dense",
                f"nerfacc's CUDA kernels cannot be used ({reason}): rays are padded to one length instead",
                about_run=True,
            )
        )
    return not reason


@cache
def why_not_packed() -> str:
    """Builds them on the first call, which takes minutes; empty when they work."""
    if importlib.util.find_spec("nerfacc.csrc") is None and shutil.which("nvcc") is None:
        return "there is no nvcc to build them"
    try:
        return "" if importlib.import_module("nerfacc.cuda._backend")._C is not None else "they were not built"
    except Exception as error:  # a compiler's failure, of whatever kind
        return f"building them failed: {error}"


WEIGHERS: dict[str, Callable[[Tensor, Samples], Tensor]] = {"padded": weigh_padded, "packed": weigh_packed}
