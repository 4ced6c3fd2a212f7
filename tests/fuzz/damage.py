"""Ways of damaging a saved file, each drawn from a generator of random numbers: bytes, structure, values."""

from __future__ import annotations

import io
import json
import random
import zipfile
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

DEEP = 100_000


class Raw:
    """JSON text that `json` would not write."""

    def __init__(self, text: str) -> None:
        self.text = text


ODD: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    1,
    7,
    2**31,
    2**63,
    -(2**70),
    0.5,
    1e308,
    -1e-320,
    float("nan"),
    float("inf"),
    "",
    "x",
    "rust",
    "../../etc/passwd",
    "/etc/passwd",
    "x" * 5000,
    "\x00\ud800",
    "1.5",
    [],
    {},
    [[]],
    [None],
    ["a", "a"],
    [1, 2, 3],
    {"a": 1},
    {"": None},
    Raw("[" * DEEP + "]" * DEEP),
    Raw('{"a":' * DEEP + "1" + "}" * DEEP),
    Raw("9" * 5000),
    Raw("1e999"),
    Raw("-1e999"),
    Raw('"\\ud800"'),
    Raw("[1,"),
)


def damage_bytes(content: bytes, rng: random.Random) -> bytes:
    """Flip, cut, repeat, insert or overwrite some bytes."""
    data, size = bytearray(content), len(content)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        way, at = rng.randrange(8), rng.randrange(max(1, len(data)))
        length = min(rng.choice((1, 2, 4, 8, 64, 1000)), len(data) - at)
        if way == 0:
            return bytes(data[:at])
        if way == 1 and data:
            for _ in range(rng.choice((1, 1, 8))):
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        elif way == 2:
            del data[at : at + length]
        elif way == 3:
            data[at:at] = data[at : at + length]
        elif way == 4:
            data[at:at] = rng.randbytes(length)
        elif way == 5:
            data[at : at + length] = rng.choice((b"\x00", b"\xff", b"\x7f")) * length
        elif way == 6:
            data[at : at + length] = rng.randbytes(length)
        else:  # near the ends stand heads and directories
            place = rng.choice((rng.randrange(64), size - 1 - rng.randrange(64)))
            if 0 <= place < len(data):
                data[place] = rng.choice((0, 1, 127, 128, 255, data[place] ^ 1))
    return bytes(data)


def write_json(value: Any) -> str:
    """JSON of a value that may hold `Raw`."""
    if isinstance(value, Raw):
        return value.text
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)}: {write_json(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(write_json, value)) + "]"
    return json.dumps(value)


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) below a value."""
    found, waiting = [], [value]
    while waiting:
        one = waiting.pop()
        keys = list(one) if isinstance(one, dict) else range(len(one)) if isinstance(one, list) else ()
        for key in keys:
            found.append((one, key))
            waiting.append(one[key])
    return found


def damage_json(text: bytes | str, rng: random.Random) -> bytes:
    """Put odd values in place of some, leave keys out, call them otherwise."""
    value = json.loads(text)
    for _ in range(rng.choice((1, 1, 2, 5))):
        places = _places(value)
        if not places or rng.random() < 0.02:
            value = deepcopy(rng.choice(ODD))
            break
        container, key = rng.choice(places)
        way = rng.random()
        if way < 0.6:
            container[key] = deepcopy(rng.choice(ODD))
        elif way < 0.8:
            del container[key]
        elif way < 0.9 and isinstance(container, list):
            container.append(container[key])
        elif isinstance(container, dict):
            container[rng.choice(("", "a", "classes", f"{key} "))] = container.pop(key)
        else:
            other = rng.choice(places)
            container[key] = deepcopy(other[0][other[1]])
    return write_json(value).encode("utf-8", "surrogatepass")


def damage_lines(content: bytes, rng: random.Random) -> bytes:
    """Text of several lines: cells, separators, quotes and whole lines."""
    lines = content.split(b"\n")
    at = rng.randrange(len(lines))
    cells = lines[at].split(b",")
    place = rng.randrange(len(cells))
    cells[place] = rng.choice(
        (
            b"",
            b"nan",
            b"1e400",
            b"-1",
            b"9" * 400,
            b'"',
            b'"a',
            b"a\x00b",
            b"\xff\xfe",
            b"x" * 140_000,
            b"=1+1",
            b"0.5,0.5",
        )
    )
    way = rng.randrange(5)
    if way == 0:
        del lines[at]
    elif way == 1:
        lines.insert(at, lines[at])
    elif way == 2:
        lines[at] = lines[at].replace(b",", rng.choice((b";", b"\t", b"")))
    else:
        lines[at] = b",".join(cells)
    return b"\n".join(lines)


def damage_parquet(content: bytes, rng: random.Random) -> bytes:
    """A whole parquet file with a column or the metadata changed."""
    table = pq.read_table(io.BytesIO(content))
    about = dict(table.schema.metadata or {})
    way, at = rng.randrange(9), rng.randrange(max(1, table.num_columns))
    if not table.num_columns:
        return damage_bytes(content, rng)
    name = table.column_names[at]
    odd = rng.choice(
        (
            pa.array([None] * len(table)),
            pa.array(["x"] * len(table)),
            pa.array([2**62] * len(table)),
            pa.array([-7] * len(table)),
            pa.array([float("nan")] * len(table)),
            pa.array([[1.0]] * len(table)),
            pa.array([b"\xff"] * len(table)),
            pa.array([True] * len(table)),
            pa.array([{"a": 1}] * len(table)),
            pa.array(["same"] * len(table)).dictionary_encode(),
            pa.array([1e300] * len(table)),
            pa.array(range(len(table)), pa.uint64()),
            pa.array([0] * len(table), pa.timestamp("s")),
        )
    )
    if way == 0:
        table = table.drop_columns([name])
    elif way <= 3:
        table = table.set_column(at, name, odd)
    elif way == 4:
        other = rng.choice(("x", "", "label"))
        table = table.rename_columns([other if one == name else one for one in table.column_names])
    elif way == 5:
        table = pa.concat_tables([table, table])
    elif way == 6:
        table = table.slice(0, rng.choice((0, 1)))
    elif way == 7 and about:
        key = rng.choice(list(about))
        about[key] = rng.choice((b"", b"{}", b"[]", b"\xff", b"[" * DEEP, damage_json(about[key], rng)))
    else:
        about.pop(rng.choice(list(about)), None) if about else None
    out = io.BytesIO()
    pq.write_table(table.replace_schema_metadata(about), out)
    return out.getvalue()


def _odd_array(array: np.ndarray, rng: random.Random) -> np.ndarray:
    ways: list[np.ndarray] = [
        np.array({"a": 1}, dtype=object),
        np.array("x"),
        array.astype("U8") if array.dtype.kind in "fiu" else array,
        array.reshape(-1),
        array[..., None],
        array.ravel()[:1],
        np.empty(0),
        np.zeros(array.shape, np.complex64),
        np.zeros((2, 0)),
        np.array(b"x"),
        np.full(array.shape, -1),
        np.full(array.shape, 1e300),
        np.full(array.shape, np.nan),
        np.full(array.shape, np.inf),
        np.zeros(array.shape, np.float16),
        np.array(2**40),
    ]
    return rng.choice(ways)


def damage_npz(content: bytes, rng: random.Random) -> bytes:
    """A whole .npz with an array changed, left out, pickled, or said to be larger than it is."""
    with np.load(io.BytesIO(content)) as file:
        arrays = {name: file[name] for name in file.files}
    name = rng.choice(list(arrays))
    way = rng.randrange(4)
    if way == 0:
        del arrays[name]
    elif way == 1 and "about" in arrays:
        arrays["about"] = np.array(damage_json(str(arrays["about"]), rng).decode("utf-8", "replace"))
    elif way == 2:
        return _lie_about_size(arrays, name)
    else:
        arrays[name] = _odd_array(arrays[name], rng)
    out = io.BytesIO()
    np.savez_compressed(out, **arrays)  # type: ignore[arg-type]
    return out.getvalue()


def _lie_about_size(arrays: dict[str, np.ndarray], name: str) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for one, array in arrays.items():
            raw = io.BytesIO()
            if one == name:
                header = {"descr": "<f8", "fortran_order": False, "shape": (1 << 45,)}
                np.lib.format.write_array_header_1_0(raw, header)
            else:
                np.save(raw, array)
            archive.writestr(f"{one}.npy", raw.getvalue())
    return out.getvalue()


def damage_npy(content: bytes, rng: random.Random) -> bytes:
    """An array of another shape or dtype, pickled, or said to be larger than it is."""
    if rng.random() < 0.3:
        return _lie_about_size({"a": np.load(io.BytesIO(content))}, "a")
    out = io.BytesIO()
    np.save(out, _odd_array(np.load(io.BytesIO(content)), rng))
    return out.getvalue()


def damage(path: Path, content: bytes, rng: random.Random) -> bytes:
    """Damage of any kind that suits the file."""
    structural = {
        ".json": damage_json,
        ".parquet": damage_parquet,
        ".npz": damage_npz,
        ".npy": damage_npy,
        ".csv": damage_lines,
        ".jsonl": damage_lines,
    }.get(path.suffix)
    return damage_bytes(content, rng) if structural is None or rng.random() < 0.45 else structural(content, rng)
