"""The radiance field: a hash grid, and on what it holds one small head for density and one for colour.

Points are in world units (see `cameras`); the field lives in [-bound, bound]^3 and is empty outside. Densities are per
unit of length. The recipes of SDS (softplus with a blob in the middle, sigmoid colours; Poole et al., 2022, and
Lin et al., 2022) and of SJC (a plain voxel grid with four latent channels; Wang et al., 2022) are
`FieldDescription`s. Letters: P points, E width of the encoding, C channels of colour.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .hashgrid import Encoder, GridDescription, encode, make_table

NormalKind = Literal["analytic", "finite"]

BLOCK = 1 << 18  # points that are asked at once without gradients, which bounds the memory
HIGHEST = 12.0  # of what `trunc_exp` raises e to on the way back


@dataclass(frozen=True)
class FieldDescription:
    """What the weights do not say by themselves."""

    grid: GridDescription = field(default_factory=GridDescription)
    bound: float = 0.6  # half side of the box
    hidden: tuple[int, ...] = (32,)  # widths inside each head; without any the grid holds density and colour itself
    density: Literal["softplus", "exp", "trunc_exp"] = "softplus"
    density_shift: float = 0.0
    blob: float = 10.0  # added in the middle, less outwards
    blob_radius: float = 0.5  # where the blob's share is 0; negative beyond
    colour: Literal["sigmoid", "raw"] = "sigmoid"
    channels: int = 3


THREESTUDIO = FieldDescription(
    grid=GridDescription(levels=16, table_log2=19, base=16, growth=1.447269237440378), hidden=(64, 64)
)
SJC = FieldDescription(
    grid=GridDescription(levels=1, features=5, table_log2=20, base=100, growth=1.0),
    hidden=(),
    density_shift=-1.0,
    blob=0.0,
    colour="raw",
    channels=4,
)


def read_description(facts: dict[str, Any]) -> FieldDescription:
    """What `dataclasses.asdict` made of one, also after a way through JSON."""
    inner = {"grid": GridDescription(**facts["grid"]), "hidden": tuple(facts["hidden"])}
    return FieldDescription(**(facts | inner))


class Field(nn.Module):
    """`density`, `colour`, both by `look_up`, and `normal`, at points (P, 3); the parameters are all its state."""

    def __init__(
        self,
        description: FieldDescription | None = None,
        *,
        generator: torch.Generator | None = None,
        encoder: Encoder | None = None,
        precision: torch.dtype = torch.float32,
    ) -> None:
        """`precision` is that of the heads' products; the table, its gradient and what comes out stay float32."""
        super().__init__()
        self.description = description = description or FieldDescription()
        self.encoder, self.precision = encoder, precision
        grid = description.grid
        self.table = make_table(grid, generator)
        self.density_head, self.colour_head = nn.ParameterList(), nn.ParameterList()
        if description.hidden:
            for head, width in ((self.density_head, 1), (self.colour_head, description.channels)):
                widths = [grid.width, *description.hidden, width]
                for inward, outward in pairwise(widths):
                    head.append(uniform(outward, inward, generator))
        else:
            assert grid.levels == 1 and grid.features == 1 + description.channels, description
            with torch.no_grad():
                self.table[:, 0] = 0
                self.table[:, 1:].normal_(generator=generator)
            self.density_gain = nn.Parameter(torch.zeros(()))  # its logarithm

    @property
    def device(self) -> torch.device:
        return self.table.device

    def density(self, points: Tensor) -> Tensor:  # (P, 3) -> (P,)
        return self.activate_density(points, self.density_of(self.encode(points)))

    def colour(self, points: Tensor) -> Tensor:  # (P, 3) -> (P, C)
        return self.activate_colour(self.colour_of(self.encode(points)))

    def look_up(self, points: Tensor) -> tuple[Tensor, Tensor]:  # (P, 3) -> (P,), (P, C)
        """Density and colour."""
        found = self.encode(points)
        return self.activate_density(points, self.density_of(found)), self.activate_colour(self.colour_of(found))

    def normal(self, points: Tensor, kind: NormalKind = "analytic", reach: float = 0.01) -> Tensor:  # (P, 3) -> (P, 3)
        """Against the density's slope, of length 1; 0 where it is flat. Gradients go to the field, not to the points.

        Finite ones are central differences over `reach` to both sides: six more densities, but smoother and, for
        gradients, cheaper.
        """
        if kind == "finite":
            aside = torch.cat([torch.eye(3), -torch.eye(3)]).to(points) * reach
            around = self.density((points.detach()[None] + aside[:, None]).flatten(0, 1)).view(2, 3, -1)
            return -F.normalize((around[0] - around[1]).T, dim=-1, eps=1e-8)
        wanted = torch.is_grad_enabled()
        with torch.enable_grad():
            points = points.detach().requires_grad_()
            (slope,) = torch.autograd.grad(self.density(points).sum(), points, create_graph=wanted)
        return -F.normalize(slope, dim=-1, eps=1e-8)

    def encode(self, points: Tensor) -> Tensor:  # (P, 3) -> (P, E)
        bound = self.description.bound
        return encode((points + bound) * (0.5 / bound), self.table, self.description.grid, self.encoder)

    def density_of(self, found: Tensor) -> Tensor:  # (P, E) -> (P,)
        if not self.description.hidden:
            return found[:, 0] * self.density_gain.exp()
        return self.run(self.density_head, found)[:, 0]

    def colour_of(self, found: Tensor) -> Tensor:  # (P, E) -> (P, C)
        return self.run(self.colour_head, found) if self.description.hidden else found[:, 1:]

    def run(self, head: nn.ParameterList, found: Tensor) -> Tensor:
        x = found.to(self.precision)
        for number, weight in enumerate(head):
            x = F.linear(F.relu(x) if number else x, weight.to(self.precision))
        return x.float()

    def activate_density(self, points: Tensor, raw: Tensor) -> Tensor:  # (P, 3), (P,)
        described = self.description
        if described.blob:
            # sqrt(x^2 + tiny): a norm has no slope in the middle
            far = (points.square().sum(-1) + 1e-12).sqrt()
            raw = raw + described.blob * (1 - far / described.blob_radius)
        density = DENSITIES[described.density](raw + described.density_shift)
        return density.masked_fill((points.abs() > described.bound).any(-1), 0.0)

    def activate_colour(self, raw: Tensor) -> Tensor:
        return COLOURS[self.description.colour](raw)


def uniform(outward: int, inward: int, generator: torch.Generator | None) -> nn.Parameter:
    """As torch starts a linear layer."""
    return nn.Parameter((torch.rand(outward, inward, generator=generator) * 2 - 1) * inward**-0.5)


class TruncatedExp(torch.autograd.Function):
    """exp whose gradient stays finite (Müller et al., 2022)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.exp()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0] * ctx.saved_tensors[0].clamp(max=HIGHEST).exp()


def trunc_exp(x: Tensor) -> Tensor:
    found: Tensor = TruncatedExp.apply(x)  # type: ignore[no-untyped-call]
    return found


DENSITIES: dict[str, Callable[[Tensor], Tensor]] = {"softplus": F.softplus, "exp": torch.exp, "trunc_exp": trunc_exp}
COLOURS: dict[str, Callable[[Tensor], Tensor]] = {"sigmoid": torch.sigmoid, "raw": lambda raw: raw}


# Without gradients ----------------------------------------------------------------------------------------------------


@torch.no_grad()
def density_at(field: Field, points: np.ndarray, block: int = BLOCK) -> np.ndarray:  # (..., 3) -> float32 (...)
    """However many points, in blocks."""
    parts = [field.density(part).cpu() for part in split(field, points, block)]
    return torch.cat(parts).numpy().reshape(points.shape[:-1])


@torch.no_grad()
def colour_at(field: Field, points: np.ndarray, block: int = BLOCK) -> np.ndarray:  # (..., 3) -> float32 (..., C)
    parts = [field.colour(part).cpu() for part in split(field, points, block)]
    return torch.cat(parts).numpy().reshape(*points.shape[:-1], -1)


def split(field: Field, points: np.ndarray, block: int) -> Iterator[Tensor]:
    flat = np.ascontiguousarray(points, np.float32).reshape(-1, 3)
    for begin in range(0, max(len(flat), 1), block):
        yield torch.from_numpy(flat[begin : begin + block]).to(field.device)


def describe(field: Field) -> dict[str, Any]:
    """What `read_description` reads: with the state dict all that a field is."""
    return asdict(replace(field.description))
