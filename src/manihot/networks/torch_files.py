"""Tensors out of torch files without torch, and without unpickling.

Both containers of `torch.save`: the old one (pickles, then the raw storages) and the zip. The pickle's operations are
interpreted here, and only those that a state dict is made of: a hostile file can neither call anything nor ask for
more memory than it has bytes.
"""

from __future__ import annotations

import io
import pickletools
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from manihot.errors import WeightsError
from manihot.records.readers import check_file, reading

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # first two pickles of the old container
MOST_BYTES = 1 << 29  # the largest network that can be built without torch has 25 MB
MOST_STEPS = 1_000_000  # operations of a pickle; an EfficientNet-Lite2 has 12,000
MOST_DIMENSIONS = 8
DICT, TENSOR = "collections OrderedDict", "torch._utils _rebuild_tensor_v2"
KINDS = {
    "torch FloatStorage": "<f4",
    "torch HalfStorage": "<f2",
    "torch DoubleStorage": "<f8",
    "torch LongStorage": "<i8",
    "torch IntStorage": "<i4",
    "torch ShortStorage": "<i2",
    "torch CharStorage": "i1",
    "torch ByteStorage": "u1",
}
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}


class Storage(NamedTuple):
    """Numbers that lie elsewhere in the file, under a key."""

    kind: str
    key: str
    length: int

    @property
    def size(self) -> int:
        """Bytes."""
        return self.length * np.dtype(self.kind).itemsize


class Tensor(NamedTuple):
    """Where a tensor lies in a storage, in numbers, not bytes."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


def read_torch_file(path: Path, remedy: str) -> dict[str, np.ndarray]:
    """The named arrays of a state dict saved by torch; WeightsError with `remedy` for any other file."""
    with reading(path, "weights saved by torch", remedy, WeightsError):
        check_file(path, MOST_BYTES)
        file = io.BytesIO(path.read_bytes())
        if zipfile.is_zipfile(file):
            return _read_zip(file)
        file.seek(0)
        return _read_old(file)


def _read_old(file: BinaryIO) -> dict[str, np.ndarray]:
    if interpret(file) != MAGIC or interpret(file) != PROTOCOL:
        raise ValueError("it begins with another number")
    system = interpret(file)
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise ValueError("its numbers are not little-endian")
    tensors = _check_state(interpret(file))
    keys = interpret(file)
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise ValueError("the list of its storages is missing")
    wanted = {one.storage.key: one.storage for one in tensors.values()}
    storages: dict[str, np.ndarray] = {}
    for key in keys:
        if key not in wanted:
            raise ValueError("it holds a storage that no tensor uses")
        count = int.from_bytes(file.read(8), "little")
        if count != wanted[key].length:
            raise ValueError(f"a storage of {count} numbers, expected {wanted[key].length}")
        storages[key] = _numbers(wanted[key], file.read(wanted[key].size))
    return _cut(tensors, storages)


def _read_zip(file: BinaryIO) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(file) as archive:
        names = [name for name in archive.namelist() if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(names) != 1:
            raise ValueError("a zip without the one data.pkl of torch")
        folder = names[0].removesuffix("data.pkl")
        if any(one.compress_type != zipfile.ZIP_STORED for one in archive.infolist()):
            raise ValueError("a compressed zip, which torch never writes")
        if f"{folder}byteorder" in archive.namelist() and archive.read(f"{folder}byteorder") != b"little":
            raise ValueError("its numbers are not little-endian")
        tensors = _check_state(interpret(io.BytesIO(archive.read(names[0]))))
        wanted = {one.storage.key: one.storage for one in tensors.values()}
        storages = {key: _numbers(one, archive.read(f"{folder}data/{key}")) for key, one in wanted.items()}
        return _cut(tensors, storages)


def _check_state(state: object) -> dict[str, Tensor]:
    """A state dict whose tensors agree about their storages."""
    if not isinstance(state, dict) or not state or not all(isinstance(one, Tensor) for one in state.values()):
        raise ValueError("it holds something other than named tensors")
    seen: dict[str, Storage] = {}
    for one in state.values():
        if seen.setdefault(one.storage.key, one.storage) != one.storage:
            raise ValueError("two tensors disagree about their storage")
    return state


def _numbers(storage: Storage, data: bytes) -> np.ndarray:
    if len(data) != storage.size:
        raise ValueError(f"a storage of {len(data)} bytes, expected {storage.size}")
    return np.frombuffer(data, storage.kind)


def _cut(tensors: Mapping[str, Tensor], storages: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Copies of the parts of storages that the tensors are, finite and together no larger than a file may be."""
    arrays: dict[str, np.ndarray] = {}
    total = 0
    for name, one in tensors.items():
        if one.storage.key not in storages:
            raise ValueError(f"the storage of {name[:80]} is missing")
        numbers = storages[one.storage.key]
        last = one.offset + sum((side - 1) * step for side, step in zip(one.shape, one.stride, strict=True))
        if min(one.shape, default=1) < 1 or min(one.offset, *one.stride, 0) < 0 or last >= len(numbers):
            raise ValueError(f"{name[:80]} reaches beyond its storage")
        steps = [step * numbers.itemsize for step in one.stride]
        view = np.lib.stride_tricks.as_strided(numbers[one.offset :], one.shape, steps)
        total += view.size * view.itemsize
        if total > MOST_BYTES:
            raise ValueError(f"its tensors take more than {MOST_BYTES} bytes")
        arrays[name] = view.copy()
        if view.dtype.kind == "f" and not np.isfinite(arrays[name]).all():
            raise ValueError(f"{name[:80]} contains values that are not finite")
    return arrays


def interpret(file: BinaryIO) -> Any:
    """The value of one pickle of plain values, `Tensor`s and `Storage`s; ValueError or LookupError for any other."""
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}

    def since_mark() -> list[Any]:
        at = marks.pop()
        found = stack[at:]
        del stack[at:]
        return found

    value: Any
    for step, (operation, value, _) in enumerate(pickletools.genops(file)):
        if step > MOST_STEPS:
            raise ValueError(f"a pickle of more than {MOST_STEPS} operations")
        match operation.name:
            case "PROTO":
                pass
            case "STOP":
                return stack.pop()
            case "MARK":
                marks.append(len(stack))
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append(CONSTANTS[operation.name])
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINUNICODE":
                stack.append(value)
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_TUPLE":
                stack.append(())
            case "TUPLE":
                stack.append(tuple(since_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(operation.name[-1])
                stack[-count:] = [tuple(stack[-count:])]
            case "APPEND":
                _extend(stack[-2], [stack.pop()])
            case "APPENDS":
                items = since_mark()
                _extend(stack[-1], items)
            case "SETITEM":
                pair = stack[-2:]
                del stack[-2:]
                _fill(stack[-1], pair)
            case "SETITEMS":
                items = since_mark()
                _fill(stack[-1], items)
            case "BINPUT" | "LONG_BINPUT":
                memo[value] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[value])
            case "GLOBAL":
                stack.append(_known(value))
            case "REDUCE":
                arguments = stack.pop()
                stack.append(_make(stack.pop(), arguments))
            case "BUILD":  # the ordered dict's attribute `_metadata`
                stack.pop()
            case "BINPERSID":
                stack.append(_storage(stack.pop()))
            case name:
                raise ValueError(f"the pickle operation {name} has no place in a file of weights")
    raise ValueError("a pickle without an end")  # pragma: no cover  # genops raises first


class _Name(str):
    """A global that a state dict may name; it can't be mistaken for one of the file's own words."""


def _known(name: str) -> _Name:
    if name not in (DICT, TENSOR, *KINDS):
        raise ValueError(f"{name[:80]!r} has no place in a file of weights")
    return _Name(name)


def _extend(target: Any, items: list[Any]) -> None:
    if not isinstance(target, list):
        raise ValueError("it appends to something other than a list")
    target.extend(items)


def _fill(target: Any, items: list[Any]) -> None:
    if not isinstance(target, dict) or len(items) % 2 or not all(type(key) is str for key in items[::2]):
        raise ValueError("a dictionary whose keys are not words")
    target.update(zip(items[::2], items[1::2], strict=True))


def _make(what: Any, arguments: Any) -> Any:
    """An ordered dict, or the place of a tensor."""
    if isinstance(what, _Name) and what == DICT and arguments == ():
        return {}
    if not isinstance(what, _Name) or what != TENSOR or not isinstance(arguments, tuple) or len(arguments) < 4:
        raise ValueError("it calls something that makes no tensor")
    storage, offset, shape, stride = arguments[:4]
    if not isinstance(storage, Storage) or type(offset) is not int or not _are_sizes(shape) or not _are_sizes(stride):
        raise ValueError("a tensor without a storage, offset, shape and strides")
    if len(shape) != len(stride):
        raise ValueError(f"a tensor of {len(shape)} dimensions with {len(stride)} strides")
    return Tensor(storage, offset, shape, stride)


def _are_sizes(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) <= MOST_DIMENSIONS and all(type(one) is int for one in value)


def _storage(named: Any) -> Storage:
    """What a persistent id stands for: ('storage', kind, key, location, count) and, in the old container, no view."""
    if not isinstance(named, tuple) or len(named) not in (5, 6) or (len(named) == 6 and named[5] is not None):
        raise ValueError("a persistent id that is no storage")
    _, kind, key, _, count = named[:5]
    if not isinstance(kind, _Name) or kind not in KINDS or type(key) is not str or type(count) is not int:
        raise ValueError("a storage of an unknown kind")
    if not 0 <= count <= MOST_BYTES:
        raise ValueError("a storage larger than a file may be")
    return Storage(KINDS[kind], key, count)
