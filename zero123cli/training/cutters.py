"""The task of the cutter: what a photo is of, learnt from composites; and the way from its weights to ONNX.

The loss follows what salient-object networks use: cross-entropy that counts more near edges (Wei, Wang and Huang,
F3Net, 2020), soft overlap, and the mask's own gradient.
Letters: M objects, N pictures of each, B composites, S side.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load as load_tensors
from torch import Tensor, nn

from .. import durable, machine
from ..artifacts import HEAD, read_head
from .composites import Backdrops, compose
from .onnxfiles import forget, halve, load_exporter
from .packs import open_pack
from .saliency import SaliencyDescription, SaliencyNet
from .train import Batch
from .viewsets import hold_out, list_objects, refuse_empty, refuse_mixed, told_if_damaged

OWN_BACKDROPS, HELD_BACKDROPS = 2000, 100  # that many are made, as they are asked for
SMALLER = {0.4: 0.5, 0.6: 0.35, 1.0: 0.15}  # shares of batches; small pictures teach nearly as much for less time
OPSET = 18


class CutterTask:
    """All pictures of all objects lie in memory; composites are made anew for each step."""

    def __init__(self, data: Path, description: SaliencyDescription, backdrops: int = OWN_BACKDROPS) -> None:
        self.description = description
        self.sprites, names = read_sprites(data)  # uint8 (M, N, S, S, 4)
        self.own, self.held = hold_out(names)
        self.backdrops = Backdrops(HELD_BACKDROPS, backdrops)
        self.held_backdrops = Backdrops(0, min(HELD_BACKDROPS, backdrops))
        self.hands = ThreadPoolExecutor(machine.cores())

    def facts(self) -> dict[str, Any]:
        """What the weights do not say by themselves."""
        return {"kind": "cutter", "description": asdict(self.description)}

    def card(self, licence: str) -> dict[str, str]:
        """What the exported file says of itself."""
        side = self.description.size
        return {
            "description": f"pocket-cutter: finds what a photo is of. picture (1, 3, {side}, {side}), RGB in [0, 1] -> "
            f"mask (1, 1, {side}, {side}) in [0, 1]; a picture of any shape is squeezed into the square",
            "licence": licence or "not said",
            "recipe": "zero123 train train-cutter: composites of rendered objects before made-up backdrops",
            "data": f"{len(self.sprites)} objects, {len(self.held)} held back; no photo, no other network's answers",
            "network": json.dumps(asdict(self.description)),
        }

    def build(self) -> nn.Module:
        return SaliencyNet(self.description)

    def raw(self, name: str) -> bool:
        return False

    def groups(self, model: nn.Module, rate: float) -> list[dict[str, Any]]:
        return [{"params": list(model.parameters()), "lr": rate, "base": rate}]

    def steady(self, model: nn.Module) -> list[nn.Module]:
        return []  # composites are of several sizes

    def draw(self, chance: np.random.Generator, count: int, *, held_back: bool) -> Batch:
        """Composites with their masks; each has a chance of its own, so that threads change nothing."""
        side = self.description.size
        if not held_back:
            side = round(side * chance.choice(list(SMALLER), p=list(SMALLER.values())) / 16) * 16
        pool, backdrops = (self.held, self.held_backdrops) if held_back else (self.own, self.backdrops)
        seeds = chance.integers(0, 2**63, count).tolist()

        def make(seed: int) -> tuple[np.ndarray, np.ndarray]:
            own = np.random.default_rng(seed)
            few = self.sprites[pool[own.integers(0, len(pool), 8)]]  # a picture shows fewer than eight
            return compose(own, few, backdrops, side)

        pictures, masks = zip(*self.hands.map(make, seeds), strict=True)
        picture = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255
        return {
            "picture": picture.contiguous(memory_format=torch.channels_last),
            "mask": torch.from_numpy(np.stack(masks))[:, None].float() / 255,
        }

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        assert isinstance(model, SaliencyNet)
        fine, *coarse = model.levels(batch["picture"])
        mask, logits = batch["mask"], fine.float()
        share = torch.sigmoid(logits)
        side = mask.shape[-1]
        reach = side // 20
        surroundings = F.avg_pool2d(mask, 2 * reach + 1, 1, reach, count_include_pad=False)
        weight = 1 + 4 * (surroundings - mask).abs()
        cross = F.binary_cross_entropy_with_logits(logits, mask, reduction="none")
        guides = [
            F.binary_cross_entropy_with_logits(c.float(), F.adaptive_avg_pool2d(mask, c.shape[-1])) for c in coarse
        ]
        return {
            "cross": (weight * cross).sum() / weight.sum(),
            "overlap": soft_overlap(share, mask),
            "edge": 2
            * sum(((a - b).abs().mean() for a, b in zip(slopes(share), slopes(mask), strict=True)), torch.zeros(())),
            "coarse": 0.2 * torch.stack(guides).sum(),
        }

    def judge(self, model: nn.Module, batch: Batch) -> dict[str, float]:
        """Overlap with the truth where there is an object, and how often one is seen where there is none."""
        guess = find(model, batch["picture"]) > 0.5
        truth = batch["mask"] > 0.5
        there = truth.flatten(1).any(1)
        both = (guess & truth).flatten(1).sum(1)
        either = (guess | truth).flatten(1).sum(1)
        iou = (both / either.clamp_min(1))[there]
        none = guess[~there].flatten(1).any(1).float()
        return {
            "iou": float(iou.mean()),
            "median": float(iou.median()),
            "poor": float((iou < 0.5).float().mean()),
            "ghosts": float(none.mean()) if len(none) else 0.0,
        }

    def show(self, model: nn.Module, batch: Batch) -> np.ndarray:
        """Rows of composites, what was found in them, and the truth."""
        few = {name: tensor[:24] for name, tensor in batch.items()}
        found = find(model, few["picture"]).expand(-1, 3, -1, -1)
        rows = []
        for start in range(0, len(few["picture"]), 12):
            for part in (few["picture"], found, few["mask"].expand(-1, 3, -1, -1)):
                row = torch.cat(list(part[start : start + 12].float()), 2)
                rows.append(F.pad(row, (0, 12 * part.shape[-1] - row.shape[-1])))
        pixels: np.ndarray = (torch.cat(rows, 1).clamp(0, 1) * 255).byte().permute(1, 2, 0).cpu().numpy()
        return pixels


def read_sprites(data: Path) -> tuple[np.ndarray, list[str]]:
    """Pictures and names, of a packed file or a dataset's folder."""
    if data.is_file():
        pack = open_pack(data)
        refuse_empty(data, pack.names)
        return np.stack([pack.pictures(k) for k in range(len(pack.names))]), list(pack.names)
    pictures, names = [], []
    for path in list_objects(data):
        with told_if_damaged(path), safe_open(path, "numpy") as file:  # depth and normals stay on the disk
            pictures.append(file.get_tensor("rgba"))
            names.append(json.loads(file.metadata()[HEAD])["name"])
    refuse_empty(data, names)
    refuse_mixed(data, [picture.shape for picture in pictures])
    return np.stack(pictures), names


def slopes(mask: Tensor) -> tuple[Tensor, Tensor]:
    return mask.diff(dim=-1), mask.diff(dim=-2)


def soft_overlap(share: Tensor, mask: Tensor) -> Tensor:
    """1 - the overlap of two soft masks, each picture's on its own; an empty picture counts by what is seen in it."""
    both = (share * mask).sum((1, 2, 3))
    either = (share + mask - share * mask).sum((1, 2, 3))
    spare = mask[0].numel() / 1000
    return (1 - (both + spare) / (either + spare)).mean()


def find(model: nn.Module, picture: Tensor) -> Tensor:  # (B, 3, S, S) -> (B, 1, S, S) in [0, 1]
    """The mean of what is seen and of what is seen in a mirror."""
    logits = model(picture) + model(picture.flip(-1)).flip(-1)
    return torch.sigmoid(logits.float() / 2)


# ONNX -----------------------------------------------------------------------------------------------------------------


class Cutting(nn.Module):
    """What is exported: a mask from what the network sees in a picture and in its mirror."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, picture: Tensor) -> Tensor:
        return find(self.network, picture)


def load_network(weights: Path) -> SaliencyNet:
    """The network of an exported run."""
    raw = weights.read_bytes()
    said = read_head(raw)["description"]
    network = SaliencyNet(SaliencyDescription(**said | {key: tuple(said[key]) for key in ("channels", "blocks")}))
    network.load_state_dict(load_tensors(raw))  # halves become floats in the network's own tensors
    return network.eval()


def export_onnx(weights: Path, target: Path, facts: Mapping[str, str]) -> Path:
    """The cutter as one file that needs no torch: `picture` (1, 3, S, S) in [0, 1] to `mask` (1, 1, S, S).

    Weights are kept in half precision and cast when the file is loaded; `facts` go into its metadata.
    """
    onnx = load_exporter()
    network = load_network(weights)
    picture = torch.zeros(1, 3, network.description.size, network.description.size)
    chatter = logging.getLogger("torch.onnx._internal.exporter._registration")
    before = chatter.level
    chatter.setLevel(logging.ERROR)  # it misses torchvision, which nothing here needs
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch's exporter of its own parts
            warnings.simplefilter("ignore", DeprecationWarning)
            program = torch.onnx.export(
                Cutting(network).eval(),
                (picture,),
                dynamo=True,
                verbose=False,
                input_names=["picture"],
                output_names=["mask"],
                opset_version=OPSET,
            )
    finally:
        chatter.setLevel(before)
    assert program is not None
    model = program.model_proto
    halve(model.graph)
    forget(model)
    onnx.helper.set_model_props(model, dict(facts))
    onnx.checker.check_model(model, full_check=True)
    durable.write_file(target, model.SerializeToString(), overwrite=True)
    return target
