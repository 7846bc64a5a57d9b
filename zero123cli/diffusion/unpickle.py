"""Reads the pickle inside a checkpoint and runs none of it.

A small machine of our own walks the opcodes that `pickletools.genops` lists (which builds text and numbers only) and
keeps plain containers. Neither of Python's unpicklers is used: even with `find_class` closed they call, index and set
attributes on whatever a stream put together, and a second reader beside a pre-scan could see another stream than it.
Here a global is a name and nothing is imported; a name that is not listed below is refused before anything else is
read, a listed class becomes an `Inert` mark which swallows all that is done to it.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..errors import WeightsError

MAX_STREAM = 16 << 20  # bytes; 1,938 tensors with optimiser state take about 0.5 MB
MAX_OPCODES = 1_000_000  # those take about 200,000
MAX_BITS = 1024  # of a whole number
MAX_NAME = 256  # letters of a global
MAX_RANK = 16  # dimensions of a tensor

STORAGES = {  # a storage class of torch -> what it holds
    "torch.DoubleStorage": "float64",
    "torch.FloatStorage": "float32",
    "torch.HalfStorage": "float16",
    "torch.BFloat16Storage": "bfloat16",
    "torch.LongStorage": "int64",
    "torch.IntStorage": "int32",
    "torch.ShortStorage": "int16",
    "torch.CharStorage": "int8",
    "torch.ByteStorage": "uint8",
    "torch.BoolStorage": "bool",
    "torch.ComplexFloatStorage": "complex64",
    "torch.ComplexDoubleStorage": "complex128",
}
ORDERED = "collections.OrderedDict"
TENSORS = ("torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2")
PARAMETER = "torch._utils._rebuild_parameter"

# What trainers leave beside the weights. We have no use for any of it: it is skipped.
INERT_PACKAGES = ("pytorch_lightning.", "lightning.", "lightning_fabric.", "omegaconf.")
BUILTINS = (
    "bool bytearray bytes complex dict float frozenset int list long object range set slice str tuple unicode xrange"
)
INERT_NAMES = {
    "_codecs.encode",  # how protocol 2 writes the bytes of a numpy scalar
    "argparse.Namespace",
    "collections.Counter",
    "collections.defaultdict",
    "collections.deque",
    "copy_reg._reconstructor",
    "copyreg._reconstructor",
    "numpy.dtype",
    "numpy.ndarray",
    "pathlib.PosixPath",
    "pathlib.WindowsPath",
    "pathlib._local.PosixPath",
    "pathlib._local.WindowsPath",
    "torch.Size",
    "torch.device",
    "typing.Any",
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
    *(f"numpy.{core}.numeric._frombuffer" for core in ("core", "_core")),
    *(f"{module}.{name}" for module in ("builtins", "__builtin__") for name in BUILTINS.split()),
    *(f"torch.{name}" for name in STORAGES.values()),
}

LITERALS = {  # opcodes that put their argument on the stack
    *("BININT", "BININT1", "BININT2", "INT", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}


@dataclass(frozen=True)
class StorageRef:
    """Where a tensor's numbers lie, as the pickle names it."""

    dtype: str
    key: str
    numel: int


@dataclass(frozen=True, eq=False)
class TensorRef:
    """A tensor as the pickle describes it; nothing of it is checked but the types."""

    storage: object  # what the caller made of its StorageRef
    dtype: str
    offset: int  # elements
    shape: tuple[int, ...]
    stride: tuple[int, ...]  # elements


class Inert:
    """Stands for a class, a function or what they would have made. It has a name and does nothing."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name


def read_pickle(data: bytes, storage: Callable[[StorageRef], object]) -> tuple[object, tuple[str, ...]]:
    """What the stream holds, and the names of what was skipped in it. `storage` is asked once for each mention."""
    if len(data) > MAX_STREAM:
        raise WeightsError(f"its pickle takes {len(data)} bytes, at most {MAX_STREAM} are read", remedy=ANOTHER)
    machine = _Machine(storage)
    try:
        value = machine.run(data)
    except WeightsError:
        raise
    except Exception as error:  # a damaged stream fails in as many ways as there are opcodes
        raise damaged(str(error) or type(error).__name__) from error
    return value, tuple(machine.skipped)


ANOTHER = "give a checkpoint of a Zero123 model"


def damaged(reason: str) -> WeightsError:
    return WeightsError(f"its pickle is damaged ({shown(reason)})", remedy="download it again")


def shown(text: str, limit: int = 200) -> str:
    """The text as one printable line: a stranger's names must not steer the terminal."""
    safe = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[: limit + 1])
    return safe if len(safe) <= limit else safe[: limit - 1] + "…"


@dataclass(frozen=True)
class _Held:
    """A storage on the stack, told apart from all that a stream can spell."""

    dtype: str
    storage: object


class _Machine:
    def __init__(self, storage: Callable[[StorageRef], object]) -> None:
        self.find_storage = storage
        self.skipped: dict[str, None] = {}  # as an ordered set
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []  # stacks set aside by MARK
        self.memo: dict[int, Any] = {}

    def run(self, data: bytes) -> Any:
        for count, (opcode, argument, position) in enumerate(pickletools.genops(data)):
            if count == MAX_OPCODES:
                raise WeightsError(f"its pickle has more than {MAX_OPCODES} opcodes", remedy=ANOTHER)
            if opcode.name == "STOP":
                assert position is not None
                if position + 1 != len(data):
                    raise damaged("bytes after its end")
                if len(self.stack) != 1 or self.marks:
                    raise damaged("values left over")
                return self.stack[0]
            self.step(opcode.name, argument)
        raise AssertionError("genops ends with STOP or raises")

    def step(self, name: str, argument: Any) -> None:
        stack = self.stack
        if name in LITERALS:
            if isinstance(argument, int) and argument.bit_length() > MAX_BITS:
                raise damaged("an absurd number")
            stack.append(argument)
            return
        if name in CONSTANTS:
            stack.append(CONSTANTS[name])
            return
        match name:
            case "PROTO" | "FRAME":
                pass
            case "MARK":
                self.marks.append(stack)
                self.stack = []
            case "POP" if stack:
                stack.pop()
            case "POP" | "POP_MARK":
                self.pop_mark()
            case "DUP":
                stack.append(stack[-1])
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                if not 0 <= argument < MAX_OPCODES:
                    raise damaged("an absurd memo index")
                self.memo[argument] = stack[-1]
            case "MEMOIZE":
                self.memo[len(self.memo)] = stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(self.memo[argument])
            case "TUPLE":
                items = self.pop_mark()
                self.stack.append(tuple(items))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                length = int(name[-1])
                if len(stack) < length:
                    raise damaged("a value is missing")
                stack[-length:] = [tuple(stack[-length:])]
            case "EMPTY_LIST":
                stack.append([])
            case "LIST":
                items = self.pop_mark()
                self.stack.append(items)
            case "APPEND":
                self.extend([stack.pop()])
            case "APPENDS":
                items = self.pop_mark()
                self.extend(items)
            case "EMPTY_DICT":
                stack.append({})
            case "DICT":
                items = self.pop_mark()
                self.stack.append({})
                self.update(items)
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                self.update([key, value])
            case "SETITEMS":
                items = self.pop_mark()
                self.update(items)
            case "EMPTY_SET":
                stack.append(Inert("builtins.set"))
            case "ADDITEMS":
                self.pop_mark()
                self.expect_inert()
            case "FROZENSET":
                self.pop_mark()
                self.stack.append(Inert("builtins.frozenset"))
            case "GLOBAL":
                stack.append(self.find_global(*argument.split(" ", 1)))
            case "STACK_GLOBAL":
                below, above = stack.pop(), stack.pop()
                stack.append(self.find_global(above, below))
            case "REDUCE" | "NEWOBJ":
                arguments, function = stack.pop(), stack.pop()
                stack.append(self.make(function, arguments))
            case "NEWOBJ_EX":
                _, arguments, function = stack.pop(), stack.pop(), stack.pop()
                stack.append(self.make(function, arguments))
            case "OBJ":
                function, *arguments = self.pop_mark()
                self.stack.append(self.make(function, tuple(arguments)))
            case "INST":
                arguments = self.pop_mark()
                self.stack.append(self.make(self.find_global(*argument.split(" ", 1)), tuple(arguments)))
            case "BUILD":  # attributes, as an OrderedDict of torch has them: dropped, whatever they are put on
                stack.pop()
                if not stack:
                    raise damaged("a value is missing")
            case "BINPERSID":
                stack.append(self.hold(stack.pop()))
            case _:
                raise WeightsError(f"its pickle uses the opcode {name}, which no checkpoint needs", remedy=ANOTHER)

    def pop_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.marks.pop()
        return items

    def extend(self, items: list[Any]) -> None:
        if isinstance(self.stack[-1], list):
            self.stack[-1].extend(items)
        else:
            self.expect_inert()

    def update(self, items: list[Any]) -> None:
        """Keys and values in turn into the dict on top. Entries whose keys are neither plain nor marks are skipped."""
        target = self.stack[-1]
        if not isinstance(target, dict):
            self.expect_inert()
            return
        for key, value in zip(items[::2], items[1::2], strict=True):
            # Deep tuples would overrun the C stack when hashed, chosen numbers would collide.
            if not isinstance(key, (str, Inert, type(None))) and not (type(key) is int and abs(key) < 1 << 31):
                self.skipped[f"an entry with a {type(key).__name__} as its key"] = None
                continue
            if key in target:
                raise damaged(f"two entries named {key!r}")
            target[key] = value

    def expect_inert(self) -> None:
        if not isinstance(self.stack[-1], Inert):
            raise damaged("items put into what is no container")

    def find_global(self, module: Any, name: Any) -> Inert:
        if not isinstance(module, str) or not isinstance(name, str) or len(module) + len(name) > MAX_NAME:
            raise damaged("a global of no known form")
        full = f"{module}.{name}"
        if full in STORAGES or full in (ORDERED, *TENSORS, PARAMETER):
            return Inert(full)
        if full in INERT_NAMES or full.startswith(INERT_PACKAGES):
            self.skipped[shown(full)] = None
            return Inert(full)
        raise WeightsError(
            f"refused, it asks for {shown(full)}, which is no part of a model's weights and may run code",
            remedy="get the file from its publisher; a .safetensors file cannot hold code",
        )

    def make(self, function: Any, arguments: Any) -> Any:
        """What calling `function` would give, without calling anything."""
        if not isinstance(function, Inert) or not isinstance(arguments, tuple):
            raise damaged("a call of what is no function")
        if function.name == ORDERED and not arguments:
            return {}
        if function.name == PARAMETER:
            if not arguments or not isinstance(arguments[0], TensorRef):
                raise damaged("a parameter without a tensor")
            return arguments[0]
        if function.name in TENSORS:
            held, offset, shape, stride = arguments[:4]
            if not (isinstance(held, _Held) and type(offset) is int and _are_whole(shape) and _are_whole(stride)):
                raise damaged("a tensor of no known form")
            return TensorRef(held.storage, held.dtype, offset, shape, stride)
        return Inert(function.name)

    def hold(self, reference: Any) -> _Held:
        """The storage that a persistent id stands for: ("storage", class, key, device, elements)."""
        match reference:
            case ("storage", Inert(name=name), str(key), str(), int(numel)) if name in STORAGES and numel >= 0:
                return _Held(STORAGES[name], self.find_storage(StorageRef(STORAGES[name], key, int(numel))))
        raise damaged("a storage of no known form")


def _are_whole(values: Any) -> bool:
    return isinstance(values, tuple) and len(values) <= MAX_RANK and all(type(value) is int for value in values)
