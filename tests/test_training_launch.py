"""Training by several processes at once: they make the steps that one process would make."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from zero123cli.errors import SettingsError
from zero123cli.machine import Backend, Peers, peers
from zero123cli.settings import TrainSettings
from zero123cli.training import train
from zero123cli.watch import silent

CPU = Backend("cpu", "float32", "CPU")
SETTINGS = TrainSettings(
    steps=5, batch=8, shares=2, judged=2, warmup=2, rate=1e-2, average=0.5, look_minutes=1e5, save_minutes=1e5
)


class Line:
    """Fits a small network to noisy numbers; what is noisy differs from share to share."""

    def build(self) -> nn.Module:
        return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1))

    def raw(self, name: str) -> bool:
        return False

    def groups(self, model: nn.Module, rate: float) -> list[dict[str, Any]]:
        return [{"params": list(model.parameters()), "lr": rate, "base": rate}]

    def draw(self, chance: np.random.Generator, count: int, *, held_back: bool) -> train.Batch:
        return {"x": torch.from_numpy(chance.normal(size=(count, 3))).float()}

    def loss(self, model: nn.Module, batch: train.Batch) -> dict[str, Tensor]:
        wanted = batch["x"].sum(1, keepdim=True) + 0.1 * torch.randn(len(batch["x"]), 1)
        return {"wrong": (model(batch["x"]) - wanted).square().mean()}

    def judge(self, model: nn.Module, batch: train.Batch) -> dict[str, float]:
        return {"wrong": float(self.loss(model, batch)["wrong"])}

    def show(self, model: nn.Module, batch: train.Batch) -> np.ndarray:
        return np.zeros((4, 4, 3), np.uint8)


def free_port() -> int:
    with socket.socket() as door:
        door.bind(("127.0.0.1", 0))
        return int(door.getsockname()[1])


def train_line(folder: Path, settings: TrainSettings = SETTINGS) -> Path:
    return train.train(Line(), settings, folder, CPU, 3, silent, peers=peers())


def launch(folder: Path, count: int, *arguments: str) -> list[str]:
    """As many processes, told of one another as `accelerate launch` tells them; what each wrote to stdout."""
    port = str(free_port())
    running = []
    for rank in range(count):
        told = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count), "OMP_NUM_THREADS": "1"}
        environ = os.environ | told | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        command = [sys.executable, __file__, str(folder), *arguments]
        running.append(
            subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        )
    found = [process.communicate(timeout=240) for process in running]
    assert [process.returncode for process in running] == [0] * count, found
    return [out for out, _ in found]


def weights_of(checkpoint: Path) -> Mapping[str, Tensor]:
    return load_file(checkpoint)


@pytest.mark.bench
def test_two_processes_make_the_steps_of_one(tmp_path: Path) -> None:
    alone = train_line(tmp_path / "alone")
    first, second = launch(tmp_path / "together", 2)
    assert first == second == f"{tmp_path / 'together' / alone.name}\n"
    ours, theirs = weights_of(tmp_path / "together" / alone.name), weights_of(alone)
    assert ours.keys() == theirs.keys()
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], atol=1e-6, rtol=1e-5)
    logs = [
        [json.loads(line)["wrong"] for line in (tmp_path / where / "log.jsonl").read_text().splitlines()]
        for where in ("together", "alone")
    ]
    assert logs[0] == pytest.approx(logs[1], rel=1e-5)
    assert len(logs[0]) == 5
    # They go on from what the first of them kept.
    longer = train_line(tmp_path / "alone", replace(SETTINGS, steps=7))
    launch(tmp_path / "together", 2, "7")
    for name, tensor in weights_of(longer).items():
        torch.testing.assert_close(weights_of(tmp_path / "together" / longer.name)[name], tensor, atol=1e-6, rtol=1e-5)


def test_shares_are_drawn_apart_and_a_batch_of_one_is_as_it_was(tmp_path: Path) -> None:
    seen: list[list[Tensor]] = []

    class Watching(Line):
        def loss(self, model: nn.Module, batch: train.Batch) -> dict[str, Tensor]:
            if model.training:
                seen[-1].append(batch["x"])
            return super().loss(model, batch)

    for number, shares in enumerate((1, 2, 4)):
        seen.append([])
        settings = replace(SETTINGS, steps=1, shares=shares)
        train.train(Watching(), settings, tmp_path / str(number), CPU, 3, silent)
    assert [[len(part) for part in step] for step in seen] == [[8], [4, 4], [2, 2, 2, 2]]
    assert torch.equal(seen[0][0], Line().draw(np.random.default_rng([3, 1]), 8, held_back=False)["x"])
    assert not torch.equal(seen[1][0], seen[1][1])
    assert torch.equal(seen[1][0][:2], seen[2][0])


def test_the_gradient_of_shares_is_the_gradient_of_the_whole(tmp_path: Path) -> None:
    """With a task that draws the same pictures for every share."""

    class Same(Line):
        def draw(self, chance: np.random.Generator, count: int, *, held_back: bool) -> train.Batch:
            return {"x": torch.linspace(-1, 1, 6).view(2, 3).repeat(count // 2, 1)}

        def loss(self, model: nn.Module, batch: train.Batch) -> dict[str, Tensor]:
            return {"wrong": (model(batch["x"]) - batch["x"].sum(1, keepdim=True)).square().mean()}

    one, four = (
        train.train(Same(), replace(SETTINGS, shares=shares), tmp_path / str(shares), CPU, 3, silent)
        for shares in (1, 4)
    )
    for name, tensor in weights_of(one).items():
        torch.testing.assert_close(weights_of(four)[name], tensor, atol=1e-6, rtol=1e-5)


def test_batches_that_cannot_be_dealt_out_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="batch of 8 in 3 shares"):
        train_line(tmp_path, replace(SETTINGS, shares=3))


def test_a_process_is_alone_unless_it_was_launched_with_others() -> None:
    assert peers({}) == Peers(0, 1, 0)
    assert peers({"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}) == Peers()
    assert peers({"WORLD_SIZE": "4"}) == Peers()
    assert peers({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}) == Peers(3, 4, 1)


if __name__ == "__main__":
    more = {"steps": int(sys.argv[2])} if len(sys.argv) > 2 else {}
    print(train_line(Path(sys.argv[1]), replace(SETTINGS, **more)))
