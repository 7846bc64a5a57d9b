"""An unfinished lift: what its steps change, kept on disk so that a run that was cut off goes on to the same bits, and
a picture for whoever waits."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from .. import durable
from ..artifacts import read_head, with_head
from ..errors import is_out_of_memory, reason_of
from ..radiance.field import Field
from ..radiance.occupancy import Occupancy
from ..report import encode_png
from ..watch import Caution, Watch

CHECKPOINT = "lift.safetensors"
PREVIEW = "preview.png"
COUNTS = ("step", "parts", "pieces", "halved")  # of a state
SHARE = 0.02  # of a run's time that may go into pictures of it


@dataclass
class State:
    """What a step changes."""

    field: Field
    occupancy: Occupancy
    optimiser: torch.optim.Optimizer
    step: int = 0
    skipped: int = 0  # steps in a row
    parts: int = 1  # in which a step's views are rendered, one after another
    pieces: int = 1  # in which a picture's rays are, each gone through again for its gradient
    halved: int = 0  # times that the sides of pictures were, for want of memory


def save(state: State, folder: Path) -> None:
    """Everything that a run needs to go on from here."""
    tensors = {f"field.{name}": tensor for name, tensor in state.field.state_dict().items()}
    tensors |= {f"occupancy.{name}": tensor for name, tensor in state.occupancy.state_dict().items()}
    held = state.optimiser.state_dict()
    for index, values in held["state"].items():
        tensors |= {f"optimiser.{index}.{name}": torch.as_tensor(value) for name, value in values.items()}
    head = with_head({name: getattr(state, name) for name in COUNTS})
    whole = save_tensors({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, head)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # `cache clear` may have taken it meanwhile
    durable.write_file(folder / CHECKPOINT, whole, overwrite=True)


def try_to_save(state: State, folder: Path, watch: Watch) -> None:
    """On the way: a full disk harms the net under the run, not the run."""
    try:
        save(state, folder)
    except OSError as error:
        text = f"{folder} cannot be written ({reason_of(error)}): a run that is cut off now goes on from before"
        watch(Caution("checkpoint-not-written", text, "free some space there", about_run=True))


def resume(state: State, folder: Path, watch: Watch, *, coarser: bool) -> None:
    """Goes on from what an earlier run left, if it is whole, and not coarser than this one may be."""
    try:
        raw = (folder / CHECKPOINT).read_bytes()
    except FileNotFoundError:
        return
    except OSError as error:
        watch(Caution("checkpoint-damaged", f"the unfinished run cannot be read ({reason_of(error)}): it starts anew"))
        return
    before = copy.deepcopy((state.field.state_dict(), state.occupancy.state_dict(), state.optimiser.state_dict()))
    try:
        head, tensors = read_head(raw), load_tensors(raw)
        if head["halved"] and not coarser:
            watch(
                Caution("checkpoint-coarse", "the unfinished run was made coarser for want of memory: it starts anew")
            )
            return
        kinds: dict[str, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            kind, _, rest = name.partition(".")
            kinds.setdefault(kind, {})[rest] = tensor
        state.field.load_state_dict(kinds["field"])
        state.occupancy.load_state_dict(kinds["occupancy"])
        values: dict[int, dict[str, Tensor]] = {}
        for name, tensor in kinds.get("optimiser", {}).items():
            index, _, rest = name.partition(".")
            values.setdefault(int(index), {})[rest] = tensor
        groups = state.optimiser.state_dict()["param_groups"]
        state.optimiser.load_state_dict({"state": values, "param_groups": groups})
        for name in COUNTS:
            setattr(state, name, int(head[name]))
    except Exception as error:  # a damaged file raises what it likes
        if is_out_of_memory(error):
            raise
        state.field.load_state_dict(before[0])
        state.occupancy.load_state_dict(before[1])
        state.optimiser.load_state_dict(before[2])
        watch(Caution("checkpoint-damaged", f"the unfinished run is damaged ({type(error).__name__}): it starts anew"))
        return
    watch(Caution("resumed", f"the lift goes on from step {state.step}"))


class Preview:
    """A picture of how far a run is, made anew as often as is cheap."""

    def __init__(self, folder: Path | None) -> None:
        self.place = None if folder is None else folder / PREVIEW
        self.shown = ""  # where it is, once it is there
        self.due = 0.0

    def renew(self, portray: Callable[[], np.ndarray]) -> None:
        """Unless it is too soon for what one costs. A full disk or full memory harms the picture, not the run."""
        began = time.monotonic()
        if self.place is None or began < self.due:
            return
        try:
            durable.write_file(self.place, encode_png(portray()), overwrite=True)
            self.shown = str(self.place)
        except (OSError, MemoryError, RuntimeError) as error:
            if not isinstance(error, OSError) and not is_out_of_memory(error):
                raise
        now = time.monotonic()
        self.due = now + (now - began) / SHARE
