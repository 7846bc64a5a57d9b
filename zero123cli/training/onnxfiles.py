"""ONNX files of our networks: weights in half precision under their own names, and nothing of how they were made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import UnavailableError

FEW = 64  # numbers; smaller weights are kept as they are
HALF = ".half"  # behind the name of a weight that is cast before it is used
NETWORK = "network."  # before the names of what is exported with something around it
LEARNT_WITH = "coarse."  # before the names of what a network answers with in training alone


def load_exporter() -> Any:
    """The module `onnx`, with what torch's exporter needs beside it."""
    try:
        import onnx
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UnavailableError(
            f"{error.name} is not installed", remedy='run: pip install "zero123cli[train]"'
        ) from error
    return onnx


def halve(graph: Any) -> None:
    """Keeps the large weights in half precision: a cast stands between each and the rest of the graph."""
    from onnx import helper, numpy_helper

    casts = []
    for weight in graph.initializer:
        values = numpy_helper.to_array(weight)
        if values.dtype == np.float32 and values.size >= FEW:
            weight.CopyFrom(numpy_helper.from_array(values.astype(np.float16), weight.name + HALF))
            name = weight.name.removesuffix(HALF)
            casts.append(helper.make_node("Cast", [weight.name], [name], to=1))  # 1 is float32
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)


def forget(model: Any) -> None:
    """Takes out what the exporter noted of the program: file names, lines and types of what lies between."""
    graph = model.graph
    graph.doc_string = ""
    for owner in (graph, *graph.node, *graph.input, *graph.output):
        del owner.metadata_props[:]
    del graph.value_info[:]


def read_weights(path: Path, model: nn.Module) -> dict[str, Tensor]:
    """The model's own weights as the file has them; what only learning has use for is not in it, and stays as built."""
    onnx = load_exporter()
    exported = onnx.load_model_from_string(path.read_bytes())
    weights = {weight.name.removesuffix(HALF): weight for weight in exported.graph.initializer}
    found: dict[str, Tensor] = {}
    for name, built in model.state_dict().items():
        if NETWORK + name in weights:
            found[name] = torch.from_numpy(np.array(onnx.numpy_helper.to_array(weights[NETWORK + name]))).float()
        elif name.endswith("num_batches_tracked") or name.startswith(LEARNT_WITH):
            found[name] = built
    return found
