"""Files of tensors: what torch and safetensors wrote comes back equal, all else is named, and little is read."""

from __future__ import annotations

import errno
import json
import os
import pickle
import random
import socket
import struct
import subprocess
import sys
import time
import types
import warnings
import zipfile
import zlib
from argparse import Namespace
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import needs_shared
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors

from zero123cli.diffusion.tensorfiles import TensorFile, TensorInfo, open_tensors
from zero123cli.errors import DiskError, WeightsError, Zero123Error

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
WHOLE = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def save(path: Path, content: object, **options: Any) -> Path:
    torch.save(content, path, **options)
    return path


def read_all(path: Path) -> dict[str, torch.Tensor]:
    with open_tensors(path) as file:
        return {name: file.read(name) for name in file}


def assert_equal(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert list(ours) == list(theirs)
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype
        assert ours[name].shape == tensor.shape
        assert ours[name].is_contiguous()
        assert torch.equal(ours[name], tensor), name


def refuse(path: Path, *words: str, code: int = 65) -> str:
    """The line that refuses the file, on opening or on reading all of it."""
    descriptors = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    with pytest.raises(Zero123Error) as caught:
        read_all(path)
    line = str(caught.value)
    assert caught.value.exit_code == code, line
    assert caught.value.remedy
    assert caught.value.where
    assert line.isprintable(), line
    for word in words:
        assert word in line
    assert not descriptors or len(os.listdir("/proc/self/fd")) == descriptors
    return line


def some_tensors() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {"model.weight": torch.randn(4, 5), "model.bias": torch.randn(5).half(), "steps": torch.arange(7)}


# What torch wrote -------------------------------------------------------------------------------------------------


def test_every_dtype_comes_back(tmp_path: Path) -> None:
    tensors = {str(dtype): (torch.randn(3, 4) * 50).to(dtype) for dtype in (*FLOATS, *WHOLE)}
    tensors |= {"scalar": torch.tensor(0.9999), "count": torch.tensor(0), "empty": torch.empty(0, 3)}
    for path in (save(tmp_path / "flat.ckpt", tensors), save(tmp_path / "nested.ckpt", {"state_dict": tensors})):
        assert_equal(read_all(path), tensors)


def test_every_view_comes_back(tmp_path: Path) -> None:
    base = torch.arange(3.0 * 4 * 5 * 6).reshape(3, 4, 5, 6)
    views = {
        "whole": base,
        "transposed": base[0, 0].t(),
        "permuted": base.permute(3, 1, 0, 2),
        "channels last": base.to(memory_format=torch.channels_last),
        "slice": base[1:, 2],
        "column": base[0, 0, :, 2],
        "stepping": base[::2, 1::2, ::3],
        "of length one": base[:1, :, :1].transpose(0, 2),
        "expanded of length one": torch.ones(3, 1).expand(3, 1),
        "parameter": torch.nn.Parameter(base[2]),
        "overlapping": torch.arange(10.0).unfold(0, 4, 2)[:, :2],
    }
    path = save(tmp_path / "views.ckpt", {"state_dict": views})
    assert_equal(read_all(path), torch.load(path, weights_only=True)["state_dict"])


@pytest.mark.parametrize("seed", range(20))
def test_random_views_come_back(seed: int, tmp_path: Path) -> None:
    chance = random.Random(seed)
    views: dict[str, torch.Tensor] = {}
    for number in range(30):
        view = torch.randn([chance.randrange(1, 6) for _ in range(chance.randrange(1, 5))])
        for _ in range(4):
            axis = chance.randrange(view.dim()) if view.dim() else 0
            length = view.shape[axis] if view.dim() else 0
            if view.dim() and chance.random() < 0.5:
                start = chance.randrange(length + 1)
                view = view[(slice(None),) * axis + (slice(start, None, chance.randrange(1, 3)),)]
            elif view.dim() and length and chance.random() < 0.3:
                view = view.select(axis, chance.randrange(length))
            else:
                view = view.permute(chance.sample(range(view.dim()), view.dim()))
        views[str(number)] = view
    assert_equal(read_all(save(tmp_path / "views.ckpt", views)), views)


def test_a_state_dict_of_a_module_comes_back(tmp_path: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Linear(4, 4))
    state = module.state_dict()
    assert_equal(read_all(save(tmp_path / "module.ckpt", {"state_dict": state, "epoch": 3})), dict(state))
    assert_equal(read_all(save(tmp_path / "protocol.ckpt", state, pickle_protocol=5)), dict(state))


def test_read_tensors_own_their_memory(tmp_path: Path) -> None:
    for path in (
        save(tmp_path / "a.ckpt", some_tensors()),
        write(tmp_path / "a.safetensors", save_safetensors(some_tensors())),
    ):
        before = path.read_bytes()
        with open_tensors(path) as file:
            one = file.read("model.weight")
            one.zero_()
            two = file.read("model.weight")
        assert torch.equal(two, some_tensors()["model.weight"])
        assert one.count_nonzero() == 0
        assert path.read_bytes() == before


def test_the_listing_tells_what_is_there(tmp_path: Path) -> None:
    content = {"state_dict": some_tensors(), "epoch": 17, "pytorch-lightning_version": "1.4.2", "rate": 0.5}
    with open_tensors(save(tmp_path / "a.ckpt", content)) as file:
        assert file.kind == "ckpt"
        assert file.infos == {
            "model.weight": TensorInfo("float32", (4, 5)),
            "model.bias": TensorInfo("float16", (5,)),
            "steps": TensorInfo("int64", (7,)),
        }
        assert [info.size for info in file.infos.values()] == [80, 10, 56]
        assert file.metadata == {"epoch": "17", "pytorch-lightning_version": "1.4.2", "rate": "0.5"}
        assert file.notes == ()
        assert "steps" in file and "epoch" not in file and len(file) == 3
        with pytest.raises(KeyError):
            file.read("epoch")


def test_what_is_no_tensor_in_a_state_dict_is_told(tmp_path: Path) -> None:
    state = {**some_tensors(), "extra_state": {"a": 1}, "note": "x"}
    with open_tensors(save(tmp_path / "a.ckpt", {"state_dict": state})) as file:
        assert list(file) == list(some_tensors())
        assert file.notes == ("extra_state (not a tensor)", "note (not a tensor)")


def test_files_without_checksums_are_read(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        path = save(tmp_path / "a.ckpt", some_tensors())
    finally:
        torch.serialization.set_crc32_options(True)
    assert_equal(read_all(path), some_tensors())


# Checkpoints of trainers ------------------------------------------------------------------------------------------


@contextmanager
def installed(*names: str) -> Iterator[list[type]]:
    """Classes by these names, importable while a checkpoint is written."""
    made, modules = [], []
    try:
        for full in names:
            parts = full.split(".")
            for k in range(1, len(parts)):
                name = ".".join(parts[:k])
                if name not in sys.modules:
                    modules.append(name)
                    sys.modules[name] = types.ModuleType(name)
            made.append(type(parts[-1], (), {"__module__": ".".join(parts[:-1])}))
            setattr(sys.modules[".".join(parts[:-1])], parts[-1], made[-1])
        yield made
    finally:
        for name in modules:
            del sys.modules[name]


def lightning_checkpoint(path: Path, state: dict[str, torch.Tensor], **options: Any) -> Path:
    """What Lightning 1.4 leaves, with what others put beside it."""
    names = (
        "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
        "omegaconf.dictconfig.DictConfig",
        "lightning.pytorch.utilities.parsing.AttributeDict",
    )
    with installed(*names) as (callback, config, attributes):
        settings = config()
        settings.__dict__ |= {"_content": {"lr": np.float64(1e-4), "dtype": np.dtype("float32")}, "_parent": None}
        extras = attributes()
        extras.__dict__ |= {"where": Path("/data/views"), "flags": {1, 2}, "args": Namespace(a=1), "dtype": torch.half}
        content = {
            "epoch": 17,
            "global_step": 105000,
            "pytorch-lightning_version": "1.4.2",
            "state_dict": OrderedDict(state),
            "callbacks": {callback: {"best_model_score": torch.tensor(0.1), "best": np.float32(0.5), "top": settings}},
            "optimizer_states": [
                {
                    "state": {k: {"step": k, "exp_avg": torch.full((4,), torch.nan)} for k in range(3)},
                    "param_groups": [{"lr": 1e-4, "betas": (0.9, 0.999), "params": [0, 1, 2]}],
                }
            ],
            "lr_schedulers": [{"last_epoch": 105000, "lr_lambdas": [None], "counts": defaultdict(int, a=1)}],
            "hyper_parameters": extras,
            "numbers": np.arange(3),
        }
        torch.save(content, path, **options)
    return path


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_lightning_checkpoint_is_read_without_lightning(protocol: int, tmp_path: Path) -> None:
    path = lightning_checkpoint(tmp_path / "last.ckpt", some_tensors(), pickle_protocol=protocol)
    assert not {"pytorch_lightning", "lightning", "omegaconf"} & set(sys.modules)
    assert_equal(read_all(path), some_tensors())
    with open_tensors(path) as file:
        assert file.metadata == {"epoch": "17", "global_step": "105000", "pytorch-lightning_version": "1.4.2"}
        for name in (
            "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
            "omegaconf.dictconfig.DictConfig",
            "lightning.pytorch.utilities.parsing.AttributeDict",
            "numpy.dtype",
            "argparse.Namespace",
            "collections.defaultdict",
            "torch.float16",
        ):
            assert name in file.notes
        assert any(name.endswith("multiarray.scalar") for name in file.notes)
    assert not {"pytorch_lightning", "lightning", "omegaconf"} & set(sys.modules)


@needs_shared
def test_a_file_in_the_published_layout_is_read(tmp_path: Path) -> None:
    import golden

    layout = golden.read_layout(golden.GOLDEN / "zero123-tiny-layout.json")
    state = golden.make_state(layout)
    path = tmp_path / "zero123-tiny.ckpt"
    golden.write_checkpoint(path, state)
    with open_tensors(path) as file:
        assert len(file) == 1674
        assert {name: [info.dtype, list(info.shape)] for name, info in file.infos.items()} == layout["tensors"]
        assert sum(info.size for info in file.infos.values()) < path.stat().st_size
    assert_equal(read_all(path), state)


# Hostile pickles in whole files -----------------------------------------------------------------------------------


class Payload:
    """Runs a command when Python's own unpickler meets it."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call


@pytest.mark.parametrize("forced", [False, True])
@pytest.mark.parametrize("place", ["callbacks", "optimizer_states", "state_dict", "epoch", "hyper_parameters"])
def test_code_anywhere_in_a_checkpoint_is_refused(
    place: str, forced: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if forced:
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    marker = tmp_path / "marker"
    payloads = (
        (Payload(os.system, f"touch {marker}"), "posix.system"),
        (Payload(subprocess.check_output, ["touch", str(marker)]), "check_output"),
        (Payload(eval, f"open({str(marker)!r}, 'w')"), "eval"),
        (Payload(getattr, "", "join"), "getattr"),
    )
    for payload, name in payloads:
        content: dict[str, Any] = {"state_dict": some_tensors(), "callbacks": {}, "optimizer_states": []}
        if place == "state_dict":
            content["state_dict"] |= {"weight": payload}
        else:
            content[place] = {"inner": [payload]}
        refuse(save(tmp_path / "evil.ckpt", content), name)
        assert not marker.exists()


# Zip archives -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """One file of a zip that a test builds; what is None is as it should be."""

    name: str
    data: bytes = b""
    hole: int | None = None  # bytes of nothing in place of `data`
    method: int = 0
    flags: int = 0
    local: str | None = None
    crc: int | None = None
    size: int | None = None
    packed: int | None = None
    offset: int | None = None
    times: int = 1  # in the directory


def write_zip(path: Path, parts: Iterable[Part], *, wide: bool = False, tail: bytes = b"") -> Path:
    """A zip byte by byte; with `wide` as zip64. Holes cost no disk."""
    directory, count = b"", 0
    with open(path, "wb") as file:
        for part in parts:
            length = len(part.data) if part.hole is None else part.hole
            crc = zlib.crc32(part.data) if part.crc is None else part.crc
            name, local = part.name.encode(), (part.local or part.name).encode()
            start = file.tell()
            header = (20, part.flags, part.method, 0, 0, crc, 0xFFFFFFFF if wide else length)
            file.write(struct.pack("<4s5H3L2H", b"PK\3\4", *header, header[-1], len(local), 0) + local)
            if part.hole is None:
                file.write(part.data)
            else:
                file.truncate(file.tell() + part.hole)
                file.seek(0, os.SEEK_END)
            unpacked = length if part.size is None else part.size
            sizes = (unpacked, unpacked if part.packed is None else part.packed)
            at = start if part.offset is None else part.offset
            extra = struct.pack("<2H3Q", 1, 24, *sizes, at) if wide else b""
            seen = (0xFFFFFFFF,) * 3 if wide else (sizes[1], sizes[0], at)
            directory += part.times * (
                struct.pack(
                    "<4s6H3L5H2L", b"PK\1\2", 45, *header[:5], crc, *seen[:2], len(name), len(extra), *(0,) * 4, seen[2]
                )
                + name
                + extra
            )
            count += part.times
        start = file.tell()
        file.write(directory)
        if wide:
            end = file.tell()
            record = (44, 45, 45, 0, 0, count, count, len(directory), start)
            file.write(struct.pack("<4sQ2H2L4Q", b"PK\6\6", *record))
            file.write(struct.pack("<4sLQL", b"PK\6\7", 0, end, 1))
        told = (0xFFFFFFFF, 0xFFFFFFFF) if wide else (len(directory), start)
        file.write(
            struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, *((0xFFFF if wide else count),) * 2, *told, len(tail)) + tail
        )
    return path


def parts_of(path: Path) -> dict[str, Part]:
    """The files in a zip of torch, by what stands behind the folder's name."""
    with zipfile.ZipFile(path) as archive:
        return {name.split("/", 1)[1]: Part(name, archive.read(name)) for name in archive.namelist()}


@pytest.fixture
def parts(tmp_path: Path) -> dict[str, Part]:
    return parts_of(save(tmp_path / "model.ckpt", {"state_dict": some_tensors()}))


@pytest.mark.parametrize("wide", [False, True])
def test_a_zip_built_by_hand_is_read(wide: bool, parts: dict[str, Part], tmp_path: Path) -> None:
    assert_equal(read_all(write_zip(tmp_path / "a.ckpt", parts.values(), wide=wide)), some_tensors())


ZIP_TRICKS: dict[str, tuple[Callable[[dict[str, Part]], dict[str, Part]], str]] = {
    "compressed": (lambda p: p | {"data.pkl": replace(p["data.pkl"], method=8)}, "compressed"),
    "compressed tensor": (lambda p: p | {"data/0": replace(p["data/0"], method=8)}, "compressed"),
    "encrypted": (lambda p: p | {"data.pkl": replace(p["data.pkl"], flags=1)}, "encrypted"),
    "patched": (lambda p: p | {"data/0": replace(p["data/0"], flags=32)}, "compressed"),
    "two pickles": (lambda p: p | {"x": Part("model/sub/data.pkl", b"N.")}, "not a checkpoint"),
    "the same name": (lambda p: p | {"x": p["data.pkl"]}, "twice"),
    "listed twice": (lambda p: p | {"data.pkl": replace(p["data.pkl"], times=2)}, "overlap"),
    "two names": (lambda p: p | {"data.pkl": replace(p["data.pkl"], local="model/date.pkl")}, "two names"),
    "two folders": (lambda p: p | {"x": Part("other/version", b"3")}, "not a checkpoint"),
    "no folder": (lambda p: p | {"x": Part("version", b"3")}, "not a checkpoint"),
    "climbing": (lambda p: p | {"x": Part("model/../../etc/passwd", b"3")}, "name"),
    "absolute": (lambda p: p | {"x": Part("/etc/passwd", b"3")}, "name"),
    "backslash": (lambda p: p | {"x": Part("model/..\\x", b"3")}, "name"),
    "control": (lambda p: p | {"x": Part("model/\x1b[2J", b"3")}, "\\x1b"),
    "NUL": (lambda p: p | {"x": Part("model/data.pkl\0.txt", b"3")}, "name"),
    "no pickle": (lambda p: {k: v for k, v in p.items() if k != "data.pkl"}, "not a checkpoint"),
    "no storage": (lambda p: {k: v for k, v in p.items() if k != "data/0"}, "storage 0 is missing"),
    "storage too small": (lambda p: p | {"data/0": Part("model/data/0", bytes(79))}, "another size"),
    "storage too large": (lambda p: p | {"data/0": Part("model/data/0", bytes(81))}, "another size"),
    "checksum of the pickle": (lambda p: p | {"data.pkl": replace(p["data.pkl"], crc=1)}, "checksum of data.pkl"),
    "checksum of a tensor": (lambda p: p | {"data/0": replace(p["data/0"], crc=1)}, "checksum of model/data/0"),
    "two sizes": (lambda p: p | {"data/0": replace(p["data/0"], packed=79)}, "two sizes"),
    "size past the end": (lambda p: p | {"data/0": replace(p["data/0"], size=1 << 31)}, "no end"),
    "offset past the end": (lambda p: p | {"data/0": replace(p["data/0"], offset=1 << 31)}, "overlap"),
    "overlapping": (lambda p: p | {"data/1": replace(p["data/1"], offset=0)}, "doctored"),
    "size over the next": (lambda p: p | {"data.pkl": replace(p["data.pkl"], size=5000)}, ""),
    "big-endian": (lambda p: p | {"byteorder": Part("model/byteorder", b"big")}, "little-endian"),
    "byte order of the moon": (lambda p: p | {"byteorder": Part("model/byteorder", b"middle")}, "little-endian"),
    "TorchScript": (lambda p: p | {"x": Part("model/code/__torch__.py", b"")}, "TorchScript"),
    "constants": (lambda p: p | {"x": Part("model/constants.pkl", b"")}, "TorchScript"),
    "huge pickle": (lambda p: p | {"data.pkl": Part("model/data.pkl", hole=17 << 20, crc=0)}, "at most"),
    "a bomb's claim": (lambda p: p | {"data/0": replace(p["data/0"], size=(1 << 32) - 2)}, ""),
    "empty": (lambda p: {}, ""),
}


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("trick", ZIP_TRICKS)
def test_doctored_zips_are_refused(trick: str, wide: bool, parts: dict[str, Part], tmp_path: Path) -> None:
    change, word = ZIP_TRICKS[trick]
    refuse(write_zip(tmp_path / "a.ckpt", change(parts).values(), wide=wide), word)


def test_zips_with_more_than_the_archive_are_refused(parts: dict[str, Part], tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.ckpt", parts.values())
    whole = path.read_bytes()
    refuse(write(tmp_path / "b.ckpt", b"#!/bin/sh\n" + whole), "no known kind")
    refuse(write(tmp_path / "b.ckpt", b"PK\3\4" + whole), "")
    refuse(write(tmp_path / "b.ckpt", whole + whole), "")
    refuse(write(tmp_path / "b.ckpt", whole + b"\n"), "without its end")
    refuse(write_zip(tmp_path / "b.ckpt", parts.values(), tail=b"a comment"), "")


def test_a_zip_of_something_else_is_named(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("weights/model.safetensors", save_safetensors(some_tensors()))
    refuse(tmp_path / "a.zip", "compressed zip", "unpack")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch is about to give the format up
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "a.pt")
    refuse(tmp_path / "a.pt", "TorchScript", "torch.jit.load")


# Tensors that claim what they are not -----------------------------------------------------------------------------


def claiming(path: Path, shape: tuple[int, ...], stride: tuple[int, ...], offset: int = 0, numel: int = 6) -> Path:
    """A checkpoint whose one tensor says this of itself; its storage holds `numel` float32."""

    def plain(value: object) -> bytes:
        return pickle.dumps(value, 2)[2:-1]

    storage = b"(" + plain("storage") + b"ctorch\nFloatStorage\n" + plain("0") + plain("cpu") + plain(numel) + b"tQ"
    rest = plain(offset) + plain(shape) + plain(stride) + plain(False) + b"ccollections\nOrderedDict\n)R"
    stream = b"\x80\x02}" + plain("a") + b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + rest + b"tRs."
    return write_zip(path, [Part("a/data.pkl", stream), Part("a/data/0", bytes(4 * numel))])


def test_shapes_within_the_storage_are_read(tmp_path: Path) -> None:
    for shape, stride, offset in (((2, 3), (3, 1), 0), ((3, 2), (1, 3), 0), ((1, 6), (0, 1), 0), ((1,), (1 << 70,), 5)):
        with open_tensors(claiming(tmp_path / "a.ckpt", shape, stride, offset)) as file:
            assert file.read("a").shape == shape
    for empty in ((0, 3), (3, 0, 2)):
        with open_tensors(claiming(tmp_path / "a.ckpt", empty, (1,) * len(empty), 6)) as file:
            assert file.read("a").shape == empty


@pytest.mark.parametrize(
    ("shape", "stride", "offset"),
    [
        ((7,), (1,), 0),
        ((6,), (1,), 1),
        ((6,), (1,), -1),
        ((2, 3), (3, 1), 1 << 62),
        ((1 << 40,), (0,), 0),
        ((2, 3), (0, 1), 0),
        ((2,), (-1,), 1),
        ((2, 2), (3, 3), 0),
        ((5, 5), (1, 1), 0),  # within the storage, but more values than it has
        ((-1,), (1,), 0),
        ((-2, -3), (3, 1), 0),
        ((2, 3), (3,), 0),
        ((6,), (1, 1), 0),
        ((1 << 32, 1 << 32), (1, 1), 0),
        ((0, 1 << 40, 1 << 40), (1, 1, 1), 0),
        ((2,), (1 << 64,), 0),
    ],
)
def test_shapes_beyond_the_storage_are_refused(
    shape: tuple[int, ...], stride: tuple[int, ...], offset: int, tmp_path: Path
) -> None:
    refuse(claiming(tmp_path / "a.ckpt", shape, stride, offset), "tensor a ")


def test_a_tensor_scattered_over_gigabytes_is_refused(tmp_path: Path) -> None:
    far = 1 << 28
    path = claiming(tmp_path / "small.ckpt", (2,), (far - 1,), 0)
    stream = parts_of(path)["data.pkl"].data.replace(
        pickle.dumps(6, 2)[2:-1] + b"tQ", pickle.dumps(far, 2)[2:-1] + b"tQ"
    )
    parts = [Part("a/data.pkl", stream), Part("a/data/0", hole=4 * far, crc=0)]
    refuse(write_zip(tmp_path / "a.ckpt", parts), "scattered")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"model": {"a": torch.ones(1)}, "\x1b[2Jx": 1}, ("model", "\\x1b[2Jx")),
        ({"state_dict": {"model": {"a": torch.ones(1)}}, "epoch": 1}, ("state_dict, epoch",)),
        ({"state_dict": torch.ones(1)}, ("state_dict",)),
        ({"state_dict": {}}, ("no tensors",)),
        ({}, ("nothing",)),
        ([torch.ones(1)], ("list",)),
        (torch.ones(1), ("named tensors",)),
        (None, ("NoneType",)),
        ({"state_dict": {1: torch.ones(1)}}, ("name",)),
        ({"state_dict": {"a\x1b": torch.ones(1)}}, ("name", "\\x1b")),
        ({"a" * 1025: torch.ones(1)}, ("name",)),
        ({"": torch.ones(1)}, ("name",)),
        ({"a": torch.tensor([1.0, torch.nan])}, ("tensor a ", "NaN")),
        ({"a": torch.tensor([[torch.inf]]).half()}, ("tensor a ", "Inf")),
        ({"a": torch.tensor([-torch.inf]).bfloat16()}, ("tensor a ",)),
        ({"a": torch.tensor([1.0, torch.nan]).double()}, ("tensor a ",)),
        ({"a": torch.tensor([True])}, ("tensor a ", "bool")),
        ({"a": torch.ones(1, dtype=torch.complex64)}, ("tensor a ", "complex64")),
        ({"a": torch.ones(2).expand(2, 2)}, ("tensor a ",)),
        ({"a": torch.eye(2).to_sparse()}, ("_rebuild_sparse_tensor",)),
        ({"a": torch.ones(1, device="meta")}, ("_rebuild_meta_tensor",)),
        ({"a": torch.ones(1).untyped_storage()}, ("torch.storage",)),
    ],
)
def test_what_holds_no_named_real_tensors_is_refused(content: object, words: tuple[str, ...], tmp_path: Path) -> None:
    refuse(save(tmp_path / "a.ckpt", content), *words)


def test_bad_numbers_are_met_on_reading_alone(tmp_path: Path) -> None:
    tensors = {"good": torch.ones(3), "bad": torch.tensor([torch.nan])}
    for path in (
        save(tmp_path / "a.ckpt", tensors),
        write(tmp_path / "a.safetensors", save_safetensors(tensors)),
    ):
        with open_tensors(path) as file:
            assert torch.equal(file.read("good"), torch.ones(3))
            with pytest.raises(WeightsError, match="tensor bad holds"):
                file.read("bad")


# safetensors ------------------------------------------------------------------------------------------------------


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def safetensors(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(raw) if length is None else length).to_bytes(8, "little") + raw + data


def entry(begin: int, end: int, shape: list[Any] | None = None, dtype: Any = "F32", **more: Any) -> dict[str, Any]:
    return {
        "dtype": dtype,
        "shape": [(end - begin) // 4] if shape is None else shape,
        "data_offsets": [begin, end],
        **more,
    }


def test_what_safetensors_wrote_comes_back(tmp_path: Path) -> None:
    tensors = {str(dtype): (torch.randn(3, 4) * 50).to(dtype) for dtype in (*FLOATS, *WHOLE)}
    tensors |= {"scalar": torch.tensor(0.9999), "empty": torch.empty(0, 3), "uint16": torch.arange(3).to(torch.uint16)}
    path = write(tmp_path / "a", save_safetensors(tensors, {"format": "pt", "steps": "7"}))
    ours = read_all(path)
    assert_equal(ours, {name: tensors[name] for name in ours})
    assert set(ours) == set(tensors)
    with open_tensors(path) as file:
        assert file.kind == "safetensors"
        assert file.metadata == {"format": "pt", "steps": "7"}
        assert file.notes == ()


GOOD_SAFETENSORS = {
    "trailing space": safetensors(json.dumps({"a": entry(0, 4)}).encode() + b"   ", bytes(4)),
    "out of order": safetensors({"a": entry(4, 8), "b": entry(0, 4)}, bytes(8)),
    "empty between": safetensors({"a": entry(0, 4), "b": entry(4, 4, [0]), "c": entry(4, 8)}, bytes(8)),
    "scalar": safetensors({"a": entry(0, 4, [])}, bytes(4)),
    "no metadata": safetensors({"__metadata__": {}, "a": entry(0, 4)}, bytes(4)),
}


@pytest.mark.parametrize("case", GOOD_SAFETENSORS)
def test_odd_but_right_safetensors_are_read(case: str, tmp_path: Path) -> None:
    data = GOOD_SAFETENSORS[case]
    ours = read_all(write(tmp_path / "a", data))
    theirs = load_safetensors(data)
    assert_equal(ours, {name: theirs[name] for name in ours})


A = '{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
BAD_SAFETENSORS: dict[str, tuple[bytes, str]] = {
    "length past the end": (safetensors({"a": entry(0, 4)}, bytes(4), length=5000), "cut short"),
    "length over 100 MB": (safetensors({"a": entry(0, 4)}, bytes(4), length=100_000_001), "no known kind"),
    "length over 64 bits": (b"\xff" * 8 + b"{}", "no known kind"),
    "header too small": (b"\x02\0\0\0{}", ""),
    "no entries": (safetensors({}), "0 tensors"),
    "not UTF-8": (safetensors(b'{"\xff":1}'), "damaged"),
    "UTF-16": (safetensors(b"{" + '"a":1}'.encode("utf-16")), "damaged"),
    "not JSON": (safetensors(b"{" * 50), "damaged"),
    "deep JSON": (safetensors(b'{"a":' + b"[" * 100_000), "damaged"),
    "text after JSON": (safetensors(b"{} {}"), "damaged"),
    "twice": (safetensors(f'{{"a":{A},"a":{A}}}'.encode(), bytes(4)), "twice"),
    "twice inside": (safetensors(b'{"a":' + A.replace("{", '{"dtype":"I32",').encode() + b"}", bytes(4)), "twice"),
    "twice in metadata": (safetensors(f'{{"__metadata__":{{"x":"1","x":"2"}},"a":{A}}}'.encode(), bytes(4)), "twice"),
    "metadata twice": (safetensors(f'{{"__metadata__":{{}},"__metadata__":{{}},"a":{A}}}'.encode(), bytes(4)), "twice"),
    "metadata a list": (safetensors({"__metadata__": [], "a": entry(0, 4)}, bytes(4)), "metadata"),
    "metadata a number": (safetensors({"__metadata__": {"a": 1}, "a": entry(0, 4)}, bytes(4)), "metadata"),
    "overlap": (safetensors({"a": entry(0, 8), "b": entry(4, 12)}, bytes(12)), "overlap"),
    "the same range": (safetensors({"a": entry(0, 4), "b": entry(0, 4)}, bytes(4)), "overlap"),
    "hole": (safetensors({"a": entry(0, 4), "b": entry(8, 12)}, bytes(12)), "hole"),
    "first not 0": (safetensors({"a": entry(4, 8)}, bytes(8)), "hole"),
    "bytes missing": (safetensors({"a": entry(0, 8)}, bytes(4)), "cut short"),
    "bytes left": (safetensors({"a": entry(0, 4)}, bytes(8)), "damaged"),
    "a zip behind": (safetensors({"a": entry(0, 4)}, bytes(4) + b"PK\5\6" + bytes(18)), "damaged"),
    "backwards": (safetensors({"a": entry(4, 0, [1])}, bytes(4)), "entry of a"),
    "negative": (safetensors({"a": entry(-4, 0)}, bytes(4)), "entry of a"),
    "shape too large": (safetensors({"a": entry(0, 4, [2])}, bytes(4)), "entry of a"),
    "shape negative": (safetensors({"a": entry(0, 4, [-1, -1])}, bytes(4)), "entry of a"),
    "shape of reals": (safetensors({"a": entry(0, 4, [1.0])}, bytes(4)), "entry of a"),
    "shape of signs": (safetensors({"a": entry(0, 4, [True])}, bytes(4)), "entry of a"),
    "shape a text": (safetensors({"a": entry(0, 4) | {"shape": "1"}}, bytes(4)), "entry of a"),
    "64 bits": (safetensors({"a": entry(0, 4, [1 << 32, 1 << 32])}, bytes(4)), "entry of a"),
    "64 bits in bytes": (safetensors({"a": entry(0, 0, [1 << 62])}), "entry of a"),
    "64 bits and 0": (safetensors({"a": entry(0, 0, [0, 1 << 62, 4])}), "entry of a"),
    "numbers beyond all": (safetensors(b'{"a":{"dtype":"F32","shape":[' + b"9" * 5000 + b"]}}"), "damaged"),
    "rank": (safetensors({"a": entry(0, 4, [1] * 17)}, bytes(4)), "entry of a"),
    "rank 100,000": (safetensors({"a": entry(0, 4, [1] * 100_000)}, bytes(4)), "entry of a"),
    "unknown type": (safetensors({"a": entry(0, 4, dtype="F128\x1b")}, bytes(4)), "F128\\x1b"),
    "type a number": (safetensors({"a": entry(0, 4, dtype=1)}, bytes(4)), "entry of a"),
    "three offsets": (safetensors({"a": entry(0, 4) | {"data_offsets": [0, 4, 4]}}, bytes(4)), "entry of a"),
    "no offsets": (safetensors({"a": {"dtype": "F32", "shape": [1]}}, bytes(4)), "entry of a"),
    "unknown field": (safetensors({"a": entry(0, 4, more=1)}, bytes(4)), "entry of a"),
    "an entry null": (safetensors({"a": None}), "entry of a"),
    "name of 1 MB": (safetensors({"a" * 1_000_000: entry(0, 4)}, bytes(4)), "name"),
    "no name": (safetensors({"": entry(0, 4)}, bytes(4)), "name"),
    "terminal escapes": (safetensors({"a\x1b]0;x\x07": entry(0, 4)}, bytes(4)), "\\x1b"),
    "surrogate": (safetensors(f'{{"\\ud800":{A}}}'.encode(), bytes(4)), "name"),
    "NaN": (safetensors({"a": entry(0, 4)}, np.float32("nan").tobytes()), "tensor a "),
    "Inf": (safetensors({"a": entry(0, 4)}, np.float32("-inf").tobytes()), "tensor a "),
    "bool": (safetensors({"a": entry(0, 1, [1], "BOOL")}, b"\7"), "bool"),
    "float8": (safetensors({"a": entry(0, 1, [1], "F8_E4M3")}, b"\7"), "float8"),
    "four bits": (safetensors({"a": entry(0, 1, [2], "F4")}, b"\7"), "F4"),
    "a great many": (safetensors({str(k): entry(0, 0, [0]) for k in range(100_001)}), "100001 tensors"),
    "a list of millions": (safetensors(b'{"a":[' + b"0," * 4_000_000 + b"0]}"), "too much"),
    "empty lists": (safetensors(b'{"a":[' + b"[]," * 4_000_000 + b"0]}"), "too much"),
}


@pytest.mark.parametrize("case", BAD_SAFETENSORS)
def test_wrong_safetensors_are_refused(case: str, tmp_path: Path) -> None:
    data, word = BAD_SAFETENSORS[case]
    refuse(write(tmp_path / "a.safetensors", data), word)


# Other files ------------------------------------------------------------------------------------------------------


OTHERS = {
    "empty": (b"", "empty"),
    "page": (b"<!DOCTYPE html><html>Sign in</html>", "HTML page"),
    "bare page": (b"\n\n  <html lang='en'>", "HTML page"),
    "XML": (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "XML"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "git lfs pull"),
    "7z": (b"7z\xbc\xaf\x27\x1c\0\4", "7z"),
    "gzip": (b"\x1f\x8b\x08\0", "compressed"),
    "xz": (b"\xfd7zXZ\0", "compressed"),
    "zstd": (b"\x28\xb5\x2f\xfd", "compressed"),
    "GGUF": (b"GGUF\3\0\0\0", "GGUF"),
    "HDF5": (b"\x89HDF\r\n\x1a\n", "HDF5"),
    "bare pickle": (b"\x80\x04N.", "torch.load"),
    "zeros": (bytes(1000), "zeros"),
    "JSON": (b'{"_class_name": "Zero123Pipeline"}', "text"),
    "noise": (bytes(range(128, 256)), "no known kind"),
    "one byte": (b"P", "text"),
    "zip cut at once": (b"PK\3\4", "without its end"),
    "empty zip": (b"PK\5\6" + bytes(18), "not a checkpoint"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_other_files_are_named(case: str, tmp_path: Path) -> None:
    data, word = OTHERS[case]
    for name in ("a.ckpt", "a.safetensors"):
        refuse(write(tmp_path / name, data), word)


def test_older_formats_of_torch_are_named_with_the_way_to_convert(tmp_path: Path) -> None:
    old = save(tmp_path / "old.ckpt", some_tensors(), _use_new_zipfile_serialization=False)
    line = refuse(old, "bare pickle")
    command = line.split('python -c "')[1].rstrip('"')
    subprocess.run([sys.executable, "-c", command], cwd=tmp_path, check=True, timeout=60)
    assert_equal(read_all(tmp_path / "new.ckpt"), some_tensors())
    refuse(write(tmp_path / "a.tar", b"pickle".ljust(257, b"\0") + b"ustar" + bytes(600)), "tar archive", "torch.load")


def test_what_is_no_file_is_named_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "s"))
    listener.close()
    for name, word in {
        ".": "a folder",
        "pipe": "a named pipe",
        "/dev/zero": "device",
        "/dev/null": "device",
        "nothing": "no such file",
        "dangling": "no such file",
        "circle": "too many levels",
        "s": "no such device",
        "a\0b": "not a path",
        "x" * 300: "too long",
        "pipe/x": "not a directory",
    }.items():
        refuse(tmp_path / name, word, code=66)


def test_links_to_files_are_followed(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(save(tmp_path / "a.ckpt", some_tensors()))
    assert_equal(read_all(tmp_path / "link"), some_tensors())


def test_an_unreadable_file_is_named(tmp_path: Path, ordinary: tuple[str, ...]) -> None:
    save(tmp_path / "a.ckpt", some_tensors()).chmod(0)
    code = "import pathlib, zero123cli.diffusion.tensorfiles as t; t.open_tensors(pathlib.Path('a.ckpt'))"
    run = subprocess.run([*ordinary[:-2], "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert "MissingInputError: a.ckpt: permission denied; check the path" in run.stderr


def test_a_hostile_path_is_shown_escaped(tmp_path: Path) -> None:
    refuse(write(tmp_path / "\x1b[2J.ckpt", b""), "\\x1b[2J")
    refuse(write(tmp_path / "\udcff.ckpt", b""), "\\udcff")


# Damage -----------------------------------------------------------------------------------------------------------


def small_files(tmp_path: Path) -> dict[str, tuple[bytes, dict[str, torch.Tensor]]]:
    """One of each kind, small, and what it holds."""
    tensors = {"w": torch.arange(6.0).reshape(2, 3), "b": torch.arange(3).half()}
    views = {**tensors, "t": tensors["w"].t()}
    return {
        "ckpt": (save(tmp_path / "a.ckpt", {"state_dict": views, "epoch": 1}).read_bytes(), views),
        "safetensors": (save_safetensors(tensors), tensors),
    }


def hold(path: Path, data: bytes, tensors: dict[str, torch.Tensor]) -> bool:
    """Whether damaged data is refused; what is read must be equal, whatever it came to be named."""
    path.unlink(missing_ok=True)  # writing over it would wait for the disk
    path.write_bytes(data)
    try:
        ours = read_all(path)
    except WeightsError as error:
        assert str(error).isprintable()
        return True
    for name, tensor in ours.items():
        candidates = [tensors[name]] if name in tensors else tensors.values()
        assert any(tensor.dtype == known.dtype and torch.equal(tensor, known) for known in candidates), name
    return False


@pytest.mark.parametrize("kind", ["ckpt", "safetensors"])
def test_every_truncation_is_refused(kind: str, tmp_path: Path) -> None:
    data, tensors = small_files(tmp_path)[kind]
    for length in range(len(data)):
        assert hold(tmp_path / "damaged", data[:length], tensors), length


def test_flipped_bits_of_a_ckpt_are_refused_or_change_nothing(tmp_path: Path) -> None:
    """Every bit of its headers and directory, and one in seven of the rest: pickle, tensors, padding."""
    data, tensors = small_files(tmp_path)["ckpt"]
    directory = data.index(b"PK\1\2")
    heads = {at + k for at in range(directory) if data[at : at + 4] == b"PK\3\4" for k in range(30)}
    refused = 0
    places = [at for at in range(len(data)) if at >= directory or at in heads or at % 7 == 0]
    for at in places:
        bits = range(8) if at >= directory or at in heads else (at % 8,)
        for bit in bits:
            refused += hold(tmp_path / "damaged", flip(data, at, bit), tensors)
    assert refused > len(places)


def test_flipped_bits_of_a_safetensors_header_are_refused_or_lose_nothing(tmp_path: Path) -> None:
    """The format has no checksum: an entry may come to say another type or shape of the same bytes, no more."""
    data, _ = small_files(tmp_path)["safetensors"]
    refused = 0
    header = data.index(b"}}") + 2
    for at in range(header):
        for bit in range(8):
            refused += agrees_with_the_library(tmp_path / "damaged", flip(data, at, bit))
    assert refused > 4 * header


def flip(data: bytes, at: int, bit: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :]


def agrees_with_the_library(path: Path, data: bytes) -> bool:
    """Whether it is refused; what we read, the library of the format must read alike."""
    path.unlink(missing_ok=True)  # writing over it would wait for the disk
    path.write_bytes(data)
    try:
        ours = read_all(path)
    except WeightsError as error:
        assert str(error).isprintable()
        return True
    theirs = load_safetensors(data)
    assert_equal(ours, {name: theirs[name] for name in ours})
    assert set(ours) == set(theirs)
    return False


def mutants(data: bytes, count: int, donor: bytes) -> Iterator[bytes]:
    """Damaged copies: bits, bytes, cuts, repeats, lengths at their edges, pieces of another file."""
    chance = random.Random(1)
    for _ in range(count):
        mutant = bytearray(data)
        for _ in range(chance.choice((1, 1, 1, 2, 5))):
            at, length = chance.randrange(len(mutant)), chance.randrange(1, 40)
            match chance.randrange(7):
                case 0:
                    mutant[at] ^= 1 << chance.randrange(8)
                case 1:
                    mutant[at] = chance.choice((0, 1, 0x7F, 0x80, 0xFF))
                case 2:
                    del mutant[at : at + length]
                case 3:
                    mutant[at:at] = mutant[at : at + length]
                case 4:
                    mutant[at : at + 4] = chance.choice((0, 0x7FFFFFFF, 0xFFFFFFFF, 0x80000000)).to_bytes(4, "little")
                case 5:
                    other = chance.randrange(len(donor))
                    mutant[at : at + length] = donor[other : other + length]
                case 6:
                    mutant[at : at + length] = bytes(length)
        yield bytes(mutant)


def test_mutants_of_a_ckpt_are_refused_or_equal(tmp_path: Path) -> None:
    files = small_files(tmp_path)
    data, tensors = files["ckpt"]
    refused = sum(
        hold(tmp_path / "damaged", mutant, tensors) for mutant in mutants(data, 1000, files["safetensors"][0] + data)
    )
    assert 500 < refused < 1000


def test_mutants_of_a_safetensors_file_are_refused_or_read_as_its_library_reads_them(tmp_path: Path) -> None:
    data = small_files(tmp_path)["safetensors"][0]
    refused = sum(agrees_with_the_library(tmp_path / "damaged", mutant) for mutant in mutants(data, 1000, data))
    assert 300 < refused < 1000


def test_a_flipped_bit_in_a_tensor_is_met_when_it_is_read(tmp_path: Path) -> None:
    content = {"a": torch.full((50,), 7.0), "b": torch.full((50,), 9.0), "c": torch.full((50,), 9.0)[3:]}
    data = save(tmp_path / "a.ckpt", content).read_bytes()
    at = data.index(content["a"].numpy().tobytes()) + 100
    for name, where in (("a", at), ("c", data.rindex(content["b"].numpy().tobytes()) + 1)):
        with open_tensors(write(tmp_path / "b.ckpt", flip(data, where, 0))) as file:
            assert torch.equal(file.read("b"), content["b"])
            with pytest.raises(WeightsError, match="checksum"):
                file.read(name)


def test_a_file_cut_short_while_open_is_refused(tmp_path: Path) -> None:
    for path in (
        save(tmp_path / "a.ckpt", some_tensors()),
        write(tmp_path / "a.safetensors", save_safetensors(some_tensors())),
    ):
        with open_tensors(path) as file:
            os.truncate(path, 100)
            with pytest.raises(WeightsError, match="cut short"):
                file.read("steps")


def test_another_file_put_in_its_place_is_not_read(tmp_path: Path) -> None:
    path = save(tmp_path / "a.ckpt", {"a": torch.ones(3)})
    with open_tensors(path) as file:
        os.replace(save(tmp_path / "b.ckpt", {"a": torch.zeros(3)}), path)
        assert torch.equal(file.read("a"), torch.ones(3))


# What it costs ----------------------------------------------------------------------------------------------------


def huge_checkpoint(path: Path) -> Path:
    """Some 20 GB that weigh nothing on disk: a few small weights, then Adam's moments as a hole."""
    small = path.with_suffix(".small")
    vast = 1 << 30  # values; 4 GB
    state = {"weight": torch.arange(1e6), "bias": torch.ones(3)}
    names = {f"exp_avg{k}": torch.ones(1) for k in range(5)}
    torch.save({"state_dict": state, "optimizer_states": [names]}, small)
    parts = parts_of(small)
    one, many = b"K\x01tq", b"\x8a\x05" + vast.to_bytes(5, "little") + b"tq"  # the numel that ends a storage's id
    stream = parts["data.pkl"].data.replace(one, many)
    assert stream.count(many) == 5
    ordered = [replace(parts["data.pkl"], data=stream)]
    ordered += [Part(parts[f"data/{k}"].name, hole=4 * vast, crc=123) for k in range(2, 7)]
    ordered += [part for name, part in parts.items() if name not in ("data.pkl", *(f"data/{k}" for k in range(2, 7)))]
    small.unlink()
    return write_zip(path, ordered, wide=True)


MEASURE = """
import pathlib, resource, sys, torch
from zero123cli.diffusion.tensorfiles import open_tensors
def told(name, place):
    lines = pathlib.Path("/proc/self/" + place).read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name + ":")).split()[1])
torch.arange(9.0).aminmax()
size, used, peak = told("VmSize", "status"), told("rchar", "io"), told("VmHWM", "status")
resource.setrlimit(resource.RLIMIT_AS, ((size << 10) + 300_000_000,) * 2)
with open_tensors(pathlib.Path(sys.argv[1])) as file:
    assert file.read("weight").sum() == sum(range(10**6)) and len(file) == 2, file.infos
    assert file.read("bias").tolist() == [1.0, 1.0, 1.0]
print((told("VmHWM", "status") - peak) >> 10, told("rchar", "io") - used)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks /proc")
def test_a_huge_checkpoint_costs_what_is_asked_of_it(tmp_path: Path) -> None:
    """No more address space than 300 MB over the idle interpreter, and of 20 GB only the weights are read."""
    path = huge_checkpoint(tmp_path / "xl.ckpt")
    assert path.stat().st_size > 20 << 30
    assert path.stat().st_blocks * 512 < 20 << 20
    run = subprocess.run([sys.executable, "-c", MEASURE, str(path)], capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    megabytes, read = map(int, run.stdout.split())
    assert megabytes < 100
    assert read < 4_000_000 + 1_000_000


def test_a_listing_of_thousands_is_quick(tmp_path: Path) -> None:
    path = save(tmp_path / "a.ckpt", {"state_dict": {f"layer.{k}.weight": torch.ones(1) for k in range(5000)}})
    started = time.process_time()
    with open_tensors(path) as file:
        assert len(file) == 5000
    assert time.process_time() - started < 3


def test_a_disk_that_fails_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    path = save(tmp_path / "a.ckpt", some_tensors())
    with open_tensors(path) as file:
        monkeypatch.setattr(os, "preadv", fail)
        with pytest.raises(DiskError, match="reading failed"):
            file.read("steps")
        refuse(path, "reading failed", code=74)


def test_a_closed_file_holds_nothing(tmp_path: Path) -> None:
    file: TensorFile = open_tensors(save(tmp_path / "a.ckpt", some_tensors()))
    file.close()
    file.close()
    with pytest.raises(Zero123Error):
        file.read("steps")
