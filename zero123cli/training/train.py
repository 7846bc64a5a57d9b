"""One loop for every task: draw a batch, take the loss, step, average, keep.

All chance is drawn from the seed and the number of the step, so that a run that is continued from a checkpoint goes the
way it would have gone. A batch may be worked off in shares, each with chance of its own: by one process after another,
or by several launched together, which then make the same steps. Checkpoints are safetensors, written whole or not at
all; two are kept.
Letters: B pictures, S side.
"""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

import filelock
import numpy as np
import torch
import torch.distributed as dist
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from .. import durable, machine
from ..artifacts import read_head, with_head
from ..errors import (
    BusyError,
    DivergedError,
    MissingInputError,
    SettingsError,
    UnavailableError,
    WeightsError,
    is_out_of_memory,
    reason_of,
)
from ..machine import Backend, Peers
from ..settings import TrainSettings
from ..watch import Caution, Progress, Watch, silent
from .onnxfiles import read_weights

SKIPS = 20  # steps in a row without a finite loss after which a run has diverged
KEPT = 2  # checkpoints

Batch = dict[str, Tensor]


class Task(Protocol):
    """What is trained: the networks, their data and their loss."""

    own: np.ndarray  # numbers of the objects that are learnt from
    held: np.ndarray  # and of those that are held back

    def facts(self) -> dict[str, Any]:
        """What the weights do not say by themselves."""
        ...

    def build(self) -> nn.Module: ...

    def raw(self, name: str) -> bool:
        """Whether a weight that learns is kept as it is, and not as its average."""
        ...

    def groups(self, model: nn.Module, rate: float) -> list[dict[str, Any]]:
        """Parameters with their learning rates."""
        ...

    def draw(self, chance: np.random.Generator, count: int, *, held_back: bool) -> Batch:
        """A batch, on the CPU."""
        ...

    def steady(self, model: nn.Module) -> Sequence[nn.Module]:
        """Networks that are shown the same shapes in every step."""
        ...

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Named terms; their sum is minimised."""
        ...

    def judge(self, model: nn.Module, batch: Batch) -> dict[str, float]:
        """Figures on objects that are held back."""
        ...

    def show(self, model: nn.Module, batch: Batch) -> np.ndarray:
        """A picture of what the model does, uint8 (H, W, 3)."""
        ...


@dataclass(frozen=True)
class Learner:
    """What a run changes."""

    model: nn.Module
    averaged: dict[str, Tensor]  # what of the model's state learns, averaged over the steps
    optimiser: torch.optim.Optimizer
    scaler: torch.amp.GradScaler  # of gradients in float16; does nothing otherwise


@dataclass(frozen=True)
class Step:
    """What the loop tells after each step."""

    number: int
    terms: dict[str, float]
    seconds: float


def train(
    task: Task,
    settings: TrainSettings,
    folder: Path,
    backend: Backend,
    seed: int,
    watch: Watch,
    stopped: Callable[[], bool] = lambda: False,
    peers: Peers = Peers(),  # noqa: B008  # frozen
) -> Path:
    """Trains until the steps or the minutes are over, going on from what `folder` holds; the last checkpoint.

    Of several processes the first alone speaks and writes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with nullcontext() if peers.rank else held(folder), gathered(peers, backend):
        return train_together(
            task, settings, folder, backend, seed, watch if peers.rank == 0 else silent, stopped, peers
        )


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keeps a second run out of the folder, where there are locks."""
    holder = filelock.FileLock(folder / ".lock")
    try:
        holder.acquire(timeout=0)
    except filelock.Timeout:
        remedy = "wait for it or end it, or train into another folder"
        raise BusyError("another run is training here", where=str(folder), remedy=remedy) from None
    except (OSError, RuntimeError):
        pass
    else:
        for draft in folder.glob(f"{durable.DRAFT}*"):  # of a run that was killed as it wrote
            draft.unlink(missing_ok=True)
    try:
        yield
    finally:
        holder.release()


def train_together(
    task: Task,
    settings: TrainSettings,
    folder: Path,
    backend: Backend,
    seed: int,
    watch: Watch,
    stopped: Callable[[], bool],
    peers: Peers,
) -> Path:
    device = torch.device(backend.device)
    torch.manual_seed(seed)
    model = task.build().to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in its stubs
    if settings.init:
        learnt = learning(model) if settings.base else model.state_dict()
        fixed = {name: tensor.clone() for name, tensor in model.state_dict().items() if name not in learnt}
        begin(model, Path(settings.init))
        model.load_state_dict(fixed, strict=False)  # what the task builds on stays
    averaged = {name: tensor.clone() for name, tensor in learning(model).items() if not task.raw(name)}
    betas = (0.9, settings.inertia)
    optimiser = torch.optim.AdamW(task.groups(model, settings.rate), betas=betas, weight_decay=settings.decay)
    scaler = torch.amp.GradScaler(device.type, enabled=backend.dtype == "float16")
    learner = Learner(model, averaged, optimiser, scaler)
    begun = resume(folder, settings, seed, learner, watch)
    if not peers.rank:
        go_back(folder, begun)
    if settings.compile:
        compile_all(task.steady(model), device)
    ends = time.monotonic() + settings.minutes * 60 if settings.minutes else float("inf")
    saved = told = time.monotonic()
    history: list[dict[str, Any]] = []
    for step in run(task, settings, learner, backend, seed, begun, peers):
        number = step.number
        if step.terms:
            history.append({"step": number, "seconds": step.seconds, **step.terms})
            watch(Progress("train", number, settings.steps, told_terms(step.terms)))
        halted = stopped()  # by somebody who wants to go
        over = number >= settings.steps or ask_first(peers, device, time.monotonic() > ends or halted)
        if peers.rank:
            if over:
                break
            continue
        now = time.monotonic()
        due = over or now - saved > settings.save_minutes * 60
        shown = now - told > settings.look_minutes * 60 or (over and not halted)
        if due or shown:
            write_log(folder, history)
        if shown:
            look(task, folder, learner, seed, settings, number)
            told = time.monotonic()
        if due:
            save(folder, settings, seed, learner, number)
            saved = time.monotonic()
        if over:
            break
    if peers.count > 1:
        dist.barrier()
    found = newest(folder)
    if found is None:
        raise DivergedError("no step was made", where=str(folder), remedy="check train.steps")
    return found


def run(
    task: Task,
    settings: TrainSettings,
    learner: Learner,
    backend: Backend,
    seed: int,
    begun: int,
    peers: Peers,
) -> Iterator[Step]:
    """The steps after `begun`."""
    shares = max(settings.shares, peers.count)
    if shares % peers.count or settings.batch % shares:
        raise SettingsError(
            f"a batch of {settings.batch} in {settings.shares} shares cannot be dealt out to {peers.count} processes",
            where="train.batch",
            remedy="let each process have as many whole shares, and each share as many pictures",
        )
    model, optimiser, scaler = learner.model, learner.optimiser, learner.scaler
    device = torch.device(backend.device)
    half = backend.dtype != "float32"
    skipped = 0
    for number in range(begun + 1, settings.steps + 1):
        started = time.monotonic()
        for group in optimiser.param_groups:
            group["lr"] = group["base"] * rate_at(number, settings)
        model.train()
        buffers = [buffer.clone() for buffer in model.buffers()]
        optimiser.zero_grad(set_to_none=True)
        sums: dict[str, Tensor] = {}
        for share in range(peers.rank, shares, peers.count):
            torch.manual_seed(int(np.random.SeedSequence([seed, number, share]).generate_state(1, np.uint64)[0]))
            chance = np.random.default_rng([seed, number, share])
            batch = task.draw(chance, settings.batch // shares, held_back=False)
            batch = {name: tensor.to(device) for name, tensor in batch.items()}
            with torch.autocast(device.type, getattr(torch, backend.dtype), enabled=half):
                terms = {name: term.float() / shares for name, term in task.loss(model, batch).items()}
            scaler.scale(torch.stack(list(terms.values())).sum()).backward()  # type: ignore[no-untyped-call]  # typed in part
            sums = {name: term.detach() + sums.get(name, 0) for name, term in terms.items()}
        add_up(peers, [weight.grad for weight in model.parameters() if weight.grad is not None])
        add_up(peers, list(sums.values()))
        scaler.unscale_(optimiser)
        norm = nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
        if not bool(torch.isfinite(norm)):
            skipped += 1
            scaler.update()
            for buffer, before in zip(model.buffers(), buffers, strict=True):  # running means are numbers again
                buffer.copy_(before)
            if skipped >= SKIPS:
                raise DivergedError(
                    f"no finite gradient in {SKIPS} steps in a row",
                    where=f"step {number}",
                    remedy="lower train.rate; the last checkpoint is kept",
                )
            yield Step(number, {}, time.monotonic() - started)
            continue
        skipped = 0
        scaler.step(optimiser)
        scaler.update()
        average(model, learner.averaged, number, settings.average)
        yield Step(number, {name: float(term) for name, term in sums.items()}, time.monotonic() - started)


def compile_all(networks: Sequence[nn.Module], device: torch.device) -> None:
    """Each is turned into code of its own when it is first used."""
    if device.type == "cpu" and not machine.has_compiler():
        raise UnavailableError(
            "there is no C++ compiler", where="train.compile", remedy="install g++, or leave train.compile at false"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch's compiler of its own parts
        import torch.utils.mkldnn  # noqa: F401
    for network in networks:
        network.compile(dynamic=False)


def rate_at(number: int, settings: TrainSettings) -> float:
    """Warm-up, then constant, then down to a tenth."""
    warm = min(1.0, number / max(1, settings.warmup))
    left = (settings.steps - number) / max(1, settings.steps)
    return warm * (1.0 if left >= settings.fall else 0.1 + 0.9 * left / settings.fall)


@torch.no_grad()
def average(model: nn.Module, averaged: dict[str, Tensor], number: int, decay: float) -> None:
    """Moves the averaged weights on; in the beginning faster, so that the random start is forgotten."""
    keep = min(decay, (1 + number) / (10 + number))
    now = model.state_dict()
    for name, mean in averaged.items():
        if mean.dtype.is_floating_point:
            mean.lerp_(now[name], 1 - keep)
        else:
            mean.copy_(now[name])


def learning(model: nn.Module) -> dict[str, Tensor]:
    """The state of a model but for the weights that stay as they are."""
    fixed = {name for name, weight in model.named_parameters() if not weight.requires_grad}
    return {name: tensor.detach() for name, tensor in model.state_dict().items() if name not in fixed}


def told_terms(terms: dict[str, float]) -> str:
    return " ".join(f"{name} {value:.4f}" for name, value in terms.items())


# Together -------------------------------------------------------------------------------------------------------------


@contextmanager
def gathered(peers: Peers, backend: Backend) -> Iterator[None]:
    """Processes that were launched together find one another, and part."""
    if peers.count == 1:
        yield
        return
    kind = "gloo"
    if backend.device.startswith("cuda"):
        kind = "nccl"
        torch.cuda.set_device(backend.device)
    # The others wait while the first judges and saves.
    dist.init_process_group(kind, rank=peers.rank, world_size=peers.count, timeout=timedelta(hours=1))
    try:
        yield
    finally:
        dist.destroy_process_group()


def add_up(peers: Peers, tensors: Sequence[Tensor]) -> None:
    """Puts the sum over all processes into each tensor."""
    if peers.count > 1:
        for work in [dist.all_reduce(tensor, async_op=True) for tensor in tensors]:
            work.wait()


def ask_first(peers: Peers, device: torch.device, answer: bool) -> bool:
    """What the first process answers."""
    if peers.count == 1:
        return answer
    said = torch.tensor(int(answer), device=device)
    dist.broadcast(said, 0)
    return bool(said)


# Looking --------------------------------------------------------------------------------------------------------------


def write_log(folder: Path, history: list[dict[str, Any]]) -> None:
    """Appends what was noted of the steps since the last time."""
    with open(folder / "log.jsonl", "a") as log:
        log.write("".join(json.dumps(row) + "\n" for row in history))
    history.clear()


def look(
    task: Task,
    folder: Path,
    learner: Learner,
    seed: int,
    settings: TrainSettings,
    number: int,
) -> None:
    """Writes figures on held-back objects and a picture, all of the averaged weights, and the curve of the log."""
    from ..report import encode_png

    model = learner.model
    batch = task.draw(np.random.default_rng([seed, 0]), settings.judged, held_back=True)
    device = next(model.parameters()).device
    batch = {name: tensor.to(device) for name, tensor in batch.items()}
    own = {name: tensor.clone() for name, tensor in learning(model).items()}
    model.load_state_dict(learner.averaged, strict=False)
    model.eval()
    try:
        with torch.inference_mode(), torch.compiler.set_stance("force_eager"):
            figures = task.judge(model, batch)
            picture = task.show(model, batch)
    finally:
        model.load_state_dict(own, strict=False)
    with open(folder / "figures.jsonl", "a") as log:
        log.write(json.dumps({"step": number, **figures}) + "\n")
    durable.write_file(folder / "samples.png", encode_png(picture), overwrite=True)
    durable.write_file(folder / "curve.png", encode_png(draw_curve(folder / "log.jsonl")), overwrite=True)


def go_back(folder: Path, number: int) -> None:
    """What was written of later steps is taken away, for they are made again, and lines that were cut off with it."""
    for log in (folder / "log.jsonl", folder / "figures.jsonl"):
        lines = log.read_text().splitlines() if log.is_file() else []
        kept = [line for line in lines if is_of(line, number)]
        if kept != lines:
            durable.write_file(log, "".join(f"{line}\n" for line in kept).encode(), overwrite=True)


def is_of(line: str, number: int) -> bool:
    """Whether a log's line is whole and of this step or an earlier one."""
    try:
        return bool(json.loads(line)["step"] <= number)
    except (ValueError, KeyError, TypeError):
        return False


def draw_curve(log: Path, width: int = 800, height: int = 400) -> np.ndarray:  # uint8 (height, width, 3)
    """Each term over the steps, smoothed, on its own logarithmic scale; its name and last value beside it."""
    from PIL import Image, ImageDraw

    rows = [json.loads(line) for line in log.read_text().splitlines()]
    image = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(image)
    names = [name for name in rows[-1] if name not in ("step", "seconds")] if rows else []
    colours = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#8c564b")
    for place, name in enumerate(names):
        values = np.log10(np.maximum([row.get(name, np.nan) for row in rows], 1e-8))
        window = max(1, len(values) // 100)
        smooth = np.convolve(values, np.ones(window) / window, "valid")
        low, high = float(np.nanmin(smooth)), float(np.nanmax(smooth))
        x = np.linspace(10, width - 150, len(smooth))
        y = height - 20 - (smooth - low) / max(high - low, 1e-6) * (height - 40)
        colour = colours[place % len(colours)]
        if len(smooth) > 1:
            pen.line(list(zip(x.tolist(), y.tolist(), strict=True)), fill=colour, width=2)
        pen.text((width - 140, 15 + 18 * place), f"{name} {10 ** smooth[-1]:.4f}", fill=colour)
    pen.text((10, height - 15), f"step {rows[-1]['step'] if rows else 0}", fill="black")
    return np.asarray(image)


# Checkpoints ----------------------------------------------------------------------------------------------------------


def save(folder: Path, settings: TrainSettings, seed: int, learner: Learner, number: int) -> Path:
    """A checkpoint from which the run goes on exactly."""
    tensors = {f"model.{name}": tensor for name, tensor in learner.model.state_dict().items()}
    tensors |= {f"averaged.{name}": tensor for name, tensor in learner.averaged.items()}
    for index, state in learner.optimiser.state_dict()["state"].items():
        tensors |= {f"adam.{index}.{name}": torch.as_tensor(value) for name, value in state.items()}
    head = with_head({"step": number, "identity": identity(settings, seed), "scaler": learner.scaler.state_dict()})
    path = folder / f"checkpoint-{number:08d}.safetensors"
    whole = save_tensors({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, head)
    durable.write_file(path, whole, overwrite=True)
    older = [other for other in checkpoints(folder) if other <= path]
    for other in {*checkpoints(folder)} - {*older[-KEPT:]}:  # newer ones were damaged: the run went on from before them
        other.unlink(missing_ok=True)
    return path


def identity(settings: TrainSettings, seed: int) -> dict[str, Any]:
    """What must be the same for a run to be continued."""
    return {"task": settings.task, "rate": settings.rate, "batch": settings.batch, "seed": seed}


def checkpoints(folder: Path) -> list[Path]:
    return sorted(folder.glob("checkpoint-*.safetensors"))


def newest(folder: Path) -> Path | None:
    return next(iter(reversed(checkpoints(folder))), None)


def export(checkpoint: Path, target: Path, facts: dict[str, Any]) -> Path:
    """The averaged weights alone, in half precision, with what they are in the header."""
    tensors = load_tensors(checkpoint.read_bytes())
    kept: dict[str, Tensor] = {}
    for part in ("model.", "averaged."):  # weights that stay as they are have no average
        kept |= {name.removeprefix(part): tensor for name, tensor in tensors.items() if name.startswith(part)}
    kept = {name: tensor.half() if tensor.dtype.is_floating_point else tensor for name, tensor in kept.items()}
    durable.write_file(target, save_tensors(kept, with_head(facts)), overwrite=True)
    return target


def refuse_another_base(model: nn.Module, own: dict[str, Tensor], path: Path) -> None:
    """What a run builds on stays as it is: it has to be what the checkpoint holds."""
    now, learnt = model.state_dict(), learning(model).keys()
    same = own.keys() == now.keys() and all(
        own[name].shape == tensor.shape and (name in learnt or torch.equal(own[name], tensor.cpu()))
        for name, tensor in now.items()
    )
    if not same:
        raise SettingsError(
            "it builds on other weights than those named",
            where=str(path),
            remedy="train into another folder, or name the weights it was begun with",
        )


def begin(model: nn.Module, path: Path) -> None:
    """Puts exported weights into a model; where they are a part of what the file holds, that part."""
    try:
        wanted = model.state_dict().keys()
        tensors = read_weights(path, model) if path.suffix == ".onnx" else load_tensors(path.read_bytes())
        parts = ["", *sorted({name.split(".")[0] + "." for name in tensors})]
        part = next((part for part in parts if all(part + name in tensors for name in wanted)), "")
        model.load_state_dict({name.removeprefix(part): t for name, t in tensors.items() if name.startswith(part)})
    except OSError as error:
        raise MissingInputError(reason_of(error), where=str(path), remedy="check train.init") from error
    except UnavailableError:
        raise
    except Exception as error:  # a damaged file raises what it likes
        raise WeightsError(
            "these are not weights of this task", where=str(path), remedy="name what `zero123 train` wrote for it"
        ) from error


def resume(folder: Path, settings: TrainSettings, seed: int, learner: Learner, watch: Watch) -> int:
    """Loads the newest whole checkpoint; the number of its step, 0 without one."""
    for path in reversed(checkpoints(folder)):
        try:
            raw = path.read_bytes()
        except OSError as error:  # what cannot be read now may be whole: nothing is begun anew over it
            remedy = "make it readable, or train into another folder"
            raise MissingInputError(reason_of(error), where=str(path), remedy=remedy) from error
        try:
            head, tensors = read_head(raw), load_tensors(raw)
            number = head["step"]
        except Exception as error:  # a damaged file raises what it likes
            if is_out_of_memory(error):
                raise
            watch(Caution("checkpoint-damaged", f"{path.name} is damaged ({type(error).__name__}) and left out"))
            continue
        if head["identity"] != identity(settings, seed):
            raise SettingsError(
                f"it was made with {head['identity']}, not with {identity(settings, seed)}",
                where=str(path),
                remedy="train into another folder, or with the settings it was begun with",
            )
        device = next(learner.model.parameters()).device
        own = {name.removeprefix("model."): t for name, t in tensors.items() if name.startswith("model.")}
        refuse_another_base(learner.model, own, path)
        learner.model.load_state_dict(own)
        for name, tensor in learner.averaged.items():
            tensor.copy_(tensors[f"averaged.{name}"])
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            if name.startswith("adam."):
                _, index, kind = name.split(".")
                state.setdefault(int(index), {})[kind] = tensor if kind == "step" else tensor.to(device)
        groups = learner.optimiser.state_dict()["param_groups"]
        learner.optimiser.load_state_dict({"state": state, "param_groups": groups})
        if learner.scaler.is_enabled() and head.get("scaler"):
            learner.scaler.load_state_dict(head["scaler"])
        watch(Caution("resumed", f"goes on from step {number} of {path.name}"))
        return number
    return 0
