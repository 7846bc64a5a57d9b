"""The pickle reader: plain content comes through, no stream makes anything run, no stream costs much."""

from __future__ import annotations

import copyreg
import pickle
import random
import struct
import subprocess
import sys
import time
import tracemalloc
from collections import OrderedDict
from collections.abc import Iterable
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from zero123cli.diffusion.unpickle import MAX_OPCODES, MAX_STREAM, Inert, StorageRef, TensorRef, read_pickle
from zero123cli.errors import WeightsError


def read(data: bytes) -> tuple[Any, tuple[str, ...]]:
    return read_pickle(data, lambda reference: reference)


def refuse(data: bytes, *words: str) -> str:
    """The line that refuses `data`."""
    with pytest.raises(WeightsError) as caught:
        read(data)
    line = str(caught.value)
    assert caught.value.exit_code == 65
    assert caught.value.remedy
    assert line.isprintable()
    assert len(line) < 1000
    for word in words:
        assert word in line
    return line


# An assembler of streams: each piece leaves one value on the stack.


def plain(value: object) -> bytes:
    """Any plain value in opcodes that all forms share."""
    return pickle.dumps(value, 2)[2:-1]


def name_of(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def stacked_name(module: str, name: str) -> bytes:
    return plain(module) + plain(name) + b"\x93"


def call(function: bytes, *arguments: bytes) -> bytes:
    return function + b"(" + b"".join(arguments) + b"tR"


def stream(*pieces: bytes) -> bytes:
    return b"".join(pieces) + b"."


def storage(numel: int = 6, kind: str = "FloatStorage", key: str = "0") -> bytes:
    return b"(" + plain("storage") + name_of("torch", kind) + plain(key) + plain("cpu") + plain(numel) + b"tQ"


def tensor(shape: tuple[int, ...] = (2, 3), stride: tuple[int, ...] = (3, 1), offset: int = 0) -> bytes:
    rebuild = name_of("torch._utils", "_rebuild_tensor_v2")
    hooks = call(name_of("collections", "OrderedDict"))
    return call(rebuild, storage(), plain(offset), plain(shape), plain(stride), plain(False), hooks)


# What comes through -----------------------------------------------------------------------------------------------


PLAIN = {
    "text": "Zürich \x1b",
    "whole": [0, 1, -1, 255, 70000, 2**40, -(2**100)],
    "real": [0.5, -1e300],
    "signs": (True, False, None),
    "nested": {"a": {"b": [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), [], {}]}},
    3: "a whole number as a key",
    None: OrderedDict(one=1, two=2),
}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_content_comes_through(protocol: int) -> None:
    for pickler in (pickle._Pickler, pickle.Pickler):
        page = BytesIO()
        pickler(page, protocol).dump({key: value for key, value in PLAIN.items() if protocol or key is not None})
        ours, notes = read(page.getvalue())
        if protocol < 2:
            ours.pop(None, None)  # an OrderedDict is spelled through copyreg there
        for key, value in ours.items():
            assert value == PLAIN[key]
        assert notes == ()


def test_bytes_come_through() -> None:
    assert read(pickle.dumps([b"ab", bytes(300)], 3))[0] == [b"ab", bytes(300)]
    assert read(pickle.dumps(bytearray(b"ab"), 5))[0] == b"ab"


def test_shared_values_stay_shared() -> None:
    one = [1]
    ours, _ = read(pickle.dumps([one, one], 2))
    assert ours[0] is ours[1]
    loop: list[object] = []
    loop.append(loop)
    ours, _ = read(pickle.dumps(loop, 2))
    assert ours[0] is ours


def test_tensors_are_described() -> None:
    for data in (tensor(), call(name_of("torch._utils", "_rebuild_parameter"), tensor(), plain(True), plain({}))):
        ours, _ = read(stream(data))
        assert isinstance(ours, TensorRef)
        assert (ours.dtype, ours.offset, ours.shape, ours.stride) == ("float32", 0, (2, 3), (3, 1))
        assert ours.storage == StorageRef("float32", "0", 6)
    first = call(name_of("torch._utils", "_rebuild_tensor"), storage(kind="HalfStorage"), *map(plain, (1, (2,), (1,))))
    assert read(stream(first))[0].dtype == "float16"


def test_attributes_of_an_ordered_dict_are_dropped() -> None:
    ordered = call(name_of("collections", "OrderedDict")) + plain("weight") + tensor() + b"s"
    ours, notes = read(stream(ordered + plain({"_metadata": {"": 1}, "keys": None, "__class__": 1}) + b"b"))
    assert type(ours) is dict
    assert list(ours) == ["weight"]
    assert notes == ()


SKIPPED = [
    ("pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint"),
    ("lightning.pytorch.utilities.types", "Anything"),
    ("omegaconf.dictconfig", "DictConfig"),
    ("omegaconf.nodes", "AnyNode.__reduce__"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "scalar"),
    ("numpy", "dtype"),
    ("argparse", "Namespace"),
    ("pathlib", "PosixPath"),
    ("collections", "defaultdict"),
    ("builtins", "set"),
    ("__builtin__", "set"),
    ("torch", "float32"),
    ("torch", "device"),
    ("typing", "Any"),
]


@pytest.mark.parametrize(("module", "name"), SKIPPED)
def test_known_classes_become_marks_that_swallow_everything(module: str, name: str) -> None:
    for spelled in (name_of(module, name), stacked_name(module, name)):
        for made in (
            spelled,
            call(spelled, plain("x"), plain([1])),
            spelled + plain(("x",)) + b"\x81",  # NEWOBJ
            spelled + plain(("x",)) + plain({"a": 1}) + b"\x92",  # NEWOBJ_EX
            b"(" + spelled + plain("x") + b"o",  # OBJ
            f"({module}\n{name}\n".encode().replace(b"(", b"(i"),  # INST
        ):
            ours, notes = read(stream(made))
            assert isinstance(ours, Inert)
            assert notes == (f"{module}.{name}",)
            for act in (
                plain({"__class__": 1, "name": "posix.system"}) + b"b",
                plain((None, {"name": "posix.system", "__dict__": {}})) + b"b",
                b"(" + plain(1) + plain(2) + b"e",  # APPENDS
                plain(1) + b"a",
                b"(" + plain("name") + plain(2) + b"u",  # SETITEMS
                plain("__class__") + plain(2) + b"s",
                b"(" + plain(1) + b"\x90",  # ADDITEMS
            ):
                ours, _ = read(stream(made + act))
                assert isinstance(ours, Inert)
                assert ours.name == f"{module}.{name}"


def test_a_call_of_what_a_call_gave_is_inert() -> None:
    made = call(call(name_of("builtins", "set")), plain("x"))
    assert isinstance(read(stream(made))[0], Inert)


def test_nothing_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module of that name, planted where Python would find it, is not run."""
    package = tmp_path / "pytorch_lightning"
    package.mkdir()
    (package / "__init__.py").write_text(f"open({str(tmp_path / 'marker')!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    _, notes = read(stream(call(name_of("pytorch_lightning", "LightningModule"))))
    assert notes == ("pytorch_lightning.LightningModule",)
    assert set(sys.modules) == before
    assert not (tmp_path / "marker").exists()


def test_entries_under_odd_keys_are_skipped_and_told() -> None:
    ours, notes = read(pickle.dumps({(1, 2): "a", 1.5: "b", b"c": "c", True: "d", 2**70: "e", "f": "f"}, 4))
    assert ours == {"f": "f"}
    assert len(notes) == 5


# What is refused --------------------------------------------------------------------------------------------------


WRITE = "open({!r}, 'w').close()"
HOSTILE: dict[
    str, tuple[str, str, tuple[object, ...]]
] = {  # what runs code: module, name, arguments with {} the marker
    "system": ("os", "system", ("touch {}",)),
    "posix": ("posix", "system", ("touch {}",)),
    "popen": ("os", "popen", ("touch {}",)),
    "spawn": ("os", "spawnvp", (0, "touch", ["touch", "{}"])),
    "mkdir": ("os", "mkdir", ("{}",)),
    "Popen": ("subprocess", "Popen", (["touch", "{}"],)),
    "run": ("subprocess", "run", (["touch", "{}"],)),
    "check_output": ("subprocess", "check_output", (["touch", "{}"],)),
    "getoutput": ("subprocess", "getoutput", ("touch {}",)),
    "eval": ("builtins", "eval", (WRITE,)),
    "exec": ("builtins", "exec", (WRITE,)),
    "eval 2": ("__builtin__", "eval", (WRITE,)),
    "open": ("builtins", "open", ("{}", "w")),
    "io": ("io", "open", ("{}", "w")),
    "_io": ("_io", "FileIO", ("{}", "w")),
    "codecs": ("codecs", "open", ("{}", "w")),
    "timeit": ("timeit", "timeit", ("pass", WRITE)),
    "cProfile": ("cProfile", "run", (WRITE, "/dev/null")),
    "pdb": ("bdb", "Bdb.run", (None, WRITE)),
    "code": ("code", "InteractiveInterpreter.runcode", (None, WRITE)),
    "logging": ("logging", "FileHandler", ("{}",)),
    "sqlite": ("sqlite3", "connect", ("{}",)),
    "shelve": ("dbm.dumb", "open", ("{}", "n")),
    "spawnv": ("multiprocessing.util", "spawnv_passfds", (b"/bin/sh", [b"sh", b"-c", b"touch {}"], ())),
    "multicall": ("concurrent.futures.process", "_process_chunk", (None, ())),
    "torch exec": ("torch.jit.unsupported_tensor_ops", "execWrapper", (WRITE, {}, {})),
    "numpy exec": ("numpy.testing._private.utils", "runstring", (WRITE, {})),
    "torch config": ("torch.utils._config_module", "ConfigModule.load_config", (None, b"")),
    "torch hub": ("torch.hub", "load", ("{}", "x")),
    "torch load": ("torch.serialization", "load", ("{}",)),
    "numpy load": ("numpy", "load", ("{}",)),
    "nested": ("pickle", "loads", (b"cos\nsystem\n(Vtouch {}\ntR.",)),
    "nested C": ("_pickle", "loads", (b"cos\nsystem\n(Vtouch {}\ntR.",)),
    "import": ("importlib", "import_module", ("antigravity",)),
    "__import__": ("builtins", "__import__", ("antigravity",)),
    "getattr": ("builtins", "getattr", ("", "join")),
    "apply": ("builtins", "map", (None, [])),
    "partial": ("functools", "partial", (None,)),
    "reduce": ("functools", "reduce", (None, [])),
    "attrgetter": ("operator", "attrgetter", ("system",)),
    "methodcaller": ("operator", "methodcaller", ("system", "touch {}")),
    "function": ("types", "FunctionType", (None, {})),
    "code object": ("types", "CodeType", ()),
    "marshal": ("marshal", "loads", (b"",)),
    "ctypes": ("ctypes", "CDLL", ("libc.so.6",)),
    "globals": ("torch._utils", "_rebuild_tensor_v2.__globals__", ()),
    "near miss": ("pytorch_lightnings.os", "system", ("touch {}",)),
    "near miss 2": ("lightningx", "system", ()),
    "split name": ("o", "s.system", ("touch {}",)),
    "endianness": ("torch.storage", "_LoadEndianness", ()),
    "sparse": ("torch._utils", "_rebuild_sparse_tensor", ()),
    "meta": ("torch._utils", "_rebuild_meta_tensor_no_storage", ()),
    "path": ("pathlib", "Path.write_text", (None, "x")),
}
LIVE = [  # those that do what they are for when Python's own unpickler reads them
    *("system", "posix", "popen", "spawn", "mkdir", "Popen", "run", "check_output", "getoutput", "eval", "exec"),
    *("open", "io", "_io", "timeit", "cProfile", "logging", "sqlite", "shelve", "spawnv"),
    *("torch exec", "numpy exec", "nested", "nested C"),
]


def aim(value: Any, marker: Path) -> Any:
    """The argument with the marker's path put in."""
    match value:
        case str():
            return value.format(str(marker)) if "{" in value else value
        case bytes():
            return value.replace(b"{}", bytes(marker))
        case list() | tuple():
            return type(value)(aim(item, marker) for item in value)
    return value


def hostile(module: str, name: str, arguments: Iterable[object], marker: Path) -> dict[str, bytes]:
    """The call in every form that a stream has for it."""
    pieces = [pickle.dumps(aim(argument, marker), 4)[2:-1] for argument in arguments]
    pieces = [piece[9:] if piece[:1] == b"\x95" else piece for piece in pieces]  # without the frame
    pieces = [piece.replace(b"\x94", b"") for piece in pieces]  # nor memo, which would clash
    bundle, spelled = b"(" + b"".join(pieces) + b"t", name_of(module, name)
    return {
        "REDUCE": stream(spelled + bundle + b"R"),
        "STACK_GLOBAL": stream(b"\x80\x04" + stacked_name(module, name) + bundle + b"R"),
        "INST": stream(b"(" + b"".join(pieces) + f"i{module}\n{name}\n".encode()),
        "OBJ": stream(b"(" + spelled + b"".join(pieces) + b"o"),
        "NEWOBJ": stream(spelled + bundle + b"\x81"),
        "NEWOBJ_EX": stream(b"\x80\x04" + spelled + bundle + b"}\x92"),
        "memo": stream(spelled + b"q\x000h\x00" + bundle + b"R"),
        "key": stream(b"}" + spelled + bundle + b"R" + plain(1) + b"s"),
        "in a callback": stream(b"}" + plain("callbacks") + b"}" + plain("c") + spelled + bundle + b"Rss"),
        "as a storage class": stream(b"(" + plain("storage") + spelled + plain("0") + plain("cpu") + plain(1) + b"tQ"),
        "as a state": stream(call(name_of("builtins", "set")) + spelled + bundle + b"Rb"),
        "dropped": stream(b"N" + spelled + bundle + b"R0"),
    }


@pytest.mark.parametrize("case", HOSTILE)
def test_whatever_runs_code_is_refused_by_name_and_does_not_run(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    monkeypatch.chdir(tmp_path)
    module, name, arguments = HOSTILE[case]
    for data in hostile(module, name, arguments, tmp_path / "marker").values():
        refuse(data, f"{module}.{name}")
        assert not list(tmp_path.iterdir())
    assert "antigravity" not in sys.modules


def test_these_streams_do_run_code_elsewhere(tmp_path: Path) -> None:
    """Otherwise the test above would prove nothing."""
    for number, case in enumerate(LIVE):
        module, name, arguments = HOSTILE[case]
        data = hostile(module, name, arguments, tmp_path / f"marker{number}")
        (tmp_path / f"{number}.pkl").write_bytes(data["STACK_GLOBAL"])
    code = (
        "import contextlib, pickle, pathlib, sys, time\n"
        "for path in pathlib.Path(sys.argv[1]).glob('*.pkl'):\n"
        "    with contextlib.suppress(Exception):\n"
        "        pickle.loads(path.read_bytes())\n"
        "time.sleep(0.3)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, timeout=60, cwd=tmp_path)
    ran = {path.stem for path in tmp_path.glob("marker*")}
    assert {case for number, case in enumerate(LIVE) if f"marker{number}" not in ran} == set()


def test_calls_hidden_in_chains_are_refused(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    shell = plain(f"touch {marker}")
    system = call(name_of("builtins", "getattr"), call(name_of("builtins", "__import__"), plain("os")), plain("system"))
    chains = [
        call(system, shell),
        call(call(name_of("functools", "partial"), name_of("os", "system")), shell),
        call(call(name_of("operator", "attrgetter"), plain("system")), name_of("os", "path")),
        call(name_of("pytorch_lightning", "__getattr__"), name_of("os", "system"), shell),
        call(name_of("builtins", "set"), call(name_of("builtins", "map"), name_of("os", "system"), shell)),
        call(name_of("collections", "defaultdict"), name_of("os", "system")),
        call(name_of("collections", "OrderedDict"), call(name_of("os", "system"), shell)),
    ]
    for chain in chains:
        refuse(stream(chain))
    assert not marker.exists()


def test_harmless_names_with_dots_reach_nothing(tmp_path: Path) -> None:
    """`STACK_GLOBAL` walks attributes; here a name under a package that is skipped stays a name."""
    marker = tmp_path / "marker"
    made = call(stacked_name("omegaconf.omegaconf", "os.system"), plain(f"touch {marker}"))
    ours, notes = read(stream(made))
    assert isinstance(ours, Inert)
    assert notes == ("omegaconf.omegaconf.os.system",)
    assert not marker.exists()


def test_extension_codes_are_refused() -> None:
    copyreg.add_extension("os", "getcwd", 7)
    try:
        assert pickle.loads(b"\x80\x02\x82\x07)R.") != ""
        for code in (b"\x82\x07", b"\x83\x07\x00", b"\x84\x07\x00\x00\x00"):
            refuse(b"\x80\x02" + code + b")R.", "EXT")
    finally:
        copyreg.remove_extension("os", "getcwd", 7)


def test_states_and_items_change_nothing_but_containers() -> None:
    """Whatever a stream does to our functions, classes and tensors, the next stream reads as before."""
    rebuild, ordered = name_of("torch._utils", "_rebuild_tensor_v2"), name_of("collections", "OrderedDict")
    tricks = {"__code__": 1, "__defaults__": (1,), "__setstate__": 1, "name": "builtins.set", "shape": (9,)}
    for target in (rebuild, ordered, name_of("torch", "FloatStorage"), tensor(), plain("text"), plain((1,))):
        for state in (plain(tricks), plain((None, tricks)), plain((tricks, tricks))):
            read(stream(target + state + b"b"))
        for act in (b"(" + plain("name") + plain(1) + b"u", b"(" + plain(1) + b"e", b"(" + plain(1) + b"\x90"):
            if target in (tensor(), plain("text"), plain((1,))):
                refuse(stream(target + act), "no container")
            else:
                read(stream(target + act))
        test_tensors_are_described()
    test_attributes_of_an_ordered_dict_are_dropped()


@pytest.mark.parametrize(
    "data",
    [
        b"(" + plain("storage") + name_of("torch", "FloatStorage") + plain("0") + plain("cpu") + b"tQ",
        plain("storage") + b"Q",
        plain(("storage", "torch.FloatStorage", "0", "cpu", 6)) + b"Q",
        storage(-1),
        storage(kind="float32"),
        b"(" + plain("module") + name_of("torch", "FloatStorage") + plain("0") + plain("cpu") + plain(6) + b"tQ",
        b"(" + plain("storage") + name_of("torch", "FloatStorage") + plain(0) + plain("cpu") + plain(6) + b"tQ",
        b"Pstorage\n",
        call(name_of("torch._utils", "_rebuild_tensor_v2")),
        call(name_of("torch._utils", "_rebuild_tensor_v2"), plain("0"), plain(0), plain((1,)), plain((1,))),
        call(name_of("torch._utils", "_rebuild_tensor_v2"), storage(), plain(0.0), plain((1,)), plain((1,))),
        call(name_of("torch._utils", "_rebuild_tensor_v2"), storage(), plain(0), plain([1]), plain((1,))),
        tensor(shape=(1,) * 17),
        tensor(shape=(True, True)),
        call(name_of("torch._utils", "_rebuild_parameter"), storage()),
        call(name_of("torch._utils", "_rebuild_parameter")),
        call(plain("torch._utils._rebuild_tensor_v2"), plain(1)),
        name_of("builtins", "set") + plain([1]) + b"R",
        plain(1) + plain("set") + b"\x93",
        stacked_name("omegaconf." + "x" * 300, "A"),
        plain({1: 2}) + plain(1) + plain(3) + b"s",  # an entry twice
        b"}(" + plain("a") + plain(1) + plain("b") + b"u",  # a key without a value
        b"NN",
        b"(N",
        b"",
        b"\x85",
        b"a",
        b"h\x00",
        b"N0b",
        b"\x97",  # NEXT_BUFFER
        b"\x80\x04\x95" + struct.pack("<Q", 1 << 62),
        b"\x8e" + struct.pack("<Q", 1 << 62),  # BINBYTES8
        b"\x8d" + struct.pack("<Q", (1 << 64) - 1),
        b"\x8b" + struct.pack("<i", (1 << 31) - 1) + b"\x01",  # LONG4
        b"\x8b" + struct.pack("<i", -1),
        b"\x8b" + struct.pack("<i", 1 << 20) + b"\x7f" * (1 << 20),
        b"L" + b"9" * 4000 + b"L\n",
        b"L" + b"9" * 1_000_000 + b"L\n",
        b"Nr" + struct.pack("<I", (1 << 31) - 1),  # LONG_BINPUT
        b"Np2147483647\n",
        b"Np-1\n",
        b"Vlone surrogate\xff\n0V\\ud800\n\xff",
    ],
)
def test_malformed_streams_are_refused(data: bytes) -> None:
    refuse(data + b".")


def test_bytes_after_the_end_are_refused() -> None:
    refuse(b"N..", "after its end")


def test_names_are_shown_without_control_characters() -> None:
    line = refuse(stream(stacked_name("\x1b[2J\u202eevil", "a\nb")))
    assert "\\x1b[2J\\u202eevil.a\\nb" in line
    assert refuse(stream(stacked_name("e" * 100, "v" * 150)))


# What a stream may cost -------------------------------------------------------------------------------------------


DEEP = 300_000
BOMBS = {
    "opcodes": b"N0" * (MAX_OPCODES // 2) + b"N.",
    "bytes": b"N" * (MAX_STREAM + 1),
    "deep tuples": b")" + b"\x85" * DEEP + b".",
    "deep lists": b"]" * DEEP + b"a" * (DEEP - 1) + b".",
    "deep dicts": b"}" + b"K\x01}" * DEEP + b"s" * DEEP + b".",
    "deep marks": b"(" * DEEP + b"N" + b"l" * DEEP + b".",
    "a deep key": b"})" + b"\x85" * DEEP + b"Ns.",
    "a deep storage": b")" + b"\x85" * DEEP + b"Q.",
    "laughs": b"]q\x00(" + b"h\x00" * DEEP + b"e.",
    "a shape": b"("
    + b"K\x01" * DEEP
    + b"tq\x010"
    + b"".join(
        name_of("torch._utils", "_rebuild_tensor_v2") + b"(" + storage() + b"K\x00h\x01h\x01tR0" for _ in range(500)
    )
    + b"N.",
    "long names": plain("omegaconf." + "x" * 1_000_000) + b"q\x010" + b"h\x01h\x01\x930" * 100 + b"N.",
    "long text": b"X" + struct.pack("<I", 8 << 20) + b"x" * (8 << 20) + b"q\x01" + b"h\x01\x86.",
    "keys that collide": b"}("
    + b"".join(b"\x8a\x0c" + ((2**61 - 1) * k).to_bytes(12, "little") + b"N" for k in range(1, 30_000))
    + b"u.",
}


@pytest.mark.parametrize("case", BOMBS)
def test_bombs_cost_little(case: str) -> None:
    """Seconds and some hundred megabytes at most, and the interpreter survives letting go of what was built."""
    data = BOMBS[case]
    started = time.process_time()
    try:
        read(data)
    except WeightsError as error:
        assert str(error).isprintable()
    assert time.process_time() - started < 5


@pytest.mark.parametrize("case", ["bytes", "long names", "long text", "a shape"])
def test_bombs_take_little_memory(case: str) -> None:
    tracemalloc.start()
    try:
        read(BOMBS[case])
    except WeightsError:
        pass
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 100e6


# Damage -----------------------------------------------------------------------------------------------------------


def sample(marker: Path) -> bytes:
    """A stream shaped like a checkpoint of Lightning, with something for a mutation to set free."""
    return stream(
        b"\x80\x02}("
        + plain("epoch")
        + plain(17)
        + plain("callbacks")
        + b"}"
        + name_of("pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint")
        + plain({"best": [None, 1.5, "os", "system", f"touch {marker}"]})
        + b"s"
        + plain("state_dict")
        + call(name_of("collections", "OrderedDict"))
        + b"("
        + plain("weight")
        + tensor()
        + plain("bias")
        + tensor((3,), (1,), 2)
        + b"u"
        + plain({"_metadata": {}})
        + b"b"
        + plain("hyper_parameters")
        + call(name_of("omegaconf.dictconfig", "DictConfig"))
        + plain({"_content": {"a": 1}})
        + b"bu"
    )


def test_a_checkpoint_shaped_stream_is_read(tmp_path: Path) -> None:
    ours, notes = read(sample(tmp_path / "marker"))
    assert ours["epoch"] == 17
    assert [type(value) for value in ours["state_dict"].values()] == [TensorRef, TensorRef]
    assert notes == (
        "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
        "omegaconf.dictconfig.DictConfig",
    )


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    data = sample(tmp_path / "marker")
    for length in range(len(data)):
        refuse(data[:length])


def test_damage_is_refused_or_read_and_runs_nothing(tmp_path: Path) -> None:
    data, chance = sample(tmp_path / "marker"), random.Random(0)
    refused = 0
    for _ in range(3000):
        mutant = bytearray(data)
        for _ in range(chance.choice((1, 1, 2, 8))):
            at = chance.randrange(len(mutant))
            match chance.randrange(4):
                case 0:
                    mutant[at] ^= 1 << chance.randrange(8)
                case 1:
                    mutant[at] = chance.choice(b"cio.R\x81\x92\x93\x90bsueaQq\x94h0(t")
                case 2:
                    del mutant[at : at + chance.randrange(1, 9)]
                case 3:
                    mutant[at:at] = mutant[at - chance.randrange(9) : at]
        try:
            read(bytes(mutant))
        except WeightsError as error:
            refused += 1
            assert str(error).isprintable()
    assert 500 < refused < 3000
    assert not (tmp_path / "marker").exists()
