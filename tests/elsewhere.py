"""A second device, for machines that have none: what lies there lies in the same memory, but mixes with nothing here.

Its tensors say that they are on the device `lazy`, which torch knows and nobody has. What a card refuses is refused:
to compute with tensors of both sides. What it would do is done, by the CPU.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

NAME = "lazy"
aten = torch.ops.aten
MOVES = (aten._to_copy.default, aten.copy_.default)
PICKS = (aten.index.Tensor, aten.index_put_.default, aten.index_put.default, aten._index_put_impl_.default)


class There(Tensor):
    """A tensor on the other side, and where its numbers really are."""

    held: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: Tensor) -> There:
        made = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, held.size(), held.stride(), held.storage_offset(), dtype=held.dtype, device=NAME
        )
        made.held = held
        return made

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"There({self.held})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return carry_out(func, args, kwargs or {})


def carry_out(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    there = any(isinstance(one, There) for one in tensors)
    here = [one for one in tensors if not isinstance(one, There) and one.ndim]
    if there and here and func not in MOVES and func not in PICKS:
        raise RuntimeError(f"{func} is asked to mix devices")
    asked = kwargs.get("device")
    if asked is not None:
        kwargs = kwargs | {"device": torch.device("cpu")}
    plain_args, plain_kwargs = tree_map(lambda leaf: leaf.held if isinstance(leaf, There) else leaf, (args, kwargs))
    found = func(*plain_args, **plain_kwargs)
    goes_there = torch.device(asked).type == NAME if asked is not None else there
    if func is aten.copy_.default:
        return args[0]
    if goes_there:
        found = tree_map(lambda leaf: There(leaf) if isinstance(leaf, Tensor) else leaf, found)
    if there and goes_there:
        return return_and_correct_aliasing(func, args, kwargs, found)
    return found


class Sees(TorchDispatchMode):
    """Also what is made from nothing there."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return carry_out(func, args, kwargs or {})


class Sends(TorchFunctionMode):
    """Also numbers of Python's, which torch would put there by a way of its own."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        asked = kwargs.get("device")
        if func in (torch.tensor, torch.as_tensor) and asked is not None and torch.device(asked).type == NAME:
            return func(*args, **kwargs | {"device": "cpu"}).to(NAME)
        return func(*args, **kwargs)


def autocast(kind: str, *more: Any, **how: Any) -> contextlib.AbstractContextManager[Any]:
    return contextlib.nullcontext() if kind == NAME else torch.amp.autocast_mode.autocast(kind, *more, **how)


@contextlib.contextmanager
def a_second_device(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Its name, while it is there."""
    before = torch.__future__.get_swap_module_params_on_conversion()
    is_on = torch.is_autocast_enabled
    monkeypatch.setattr(torch, "autocast", autocast)
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *kind: kind != (NAME,) and is_on(*kind))
    monkeypatch.setattr(torch, "inference_mode", torch.no_grad)  # in which no class of tensors but torch's may be seen
    module = importlib.import_module("torch.optim.optimizer")
    monkeypatch.setattr(module, "_get_fused_kernels_supported_devices", lambda: ["cpu", NAME])
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        with Sends(), Sees():
            yield NAME
    finally:
        torch.__future__.set_swap_module_params_on_conversion(before)
