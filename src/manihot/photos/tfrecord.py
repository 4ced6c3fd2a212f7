"""TFRecord files of labelled photographs, read without TensorFlow.

Framing: length (uint64 LE), masked crc32c of the length, data, masked crc32c of the data
(tensorflow/core/lib/io/record_writer.h). The data is a `tf.train.Example` in protobuf wire format
(tensorflow/core/example/feature.proto). CRC-32C is that of RFC 3720, appendix B.4.
"""

from __future__ import annotations

import gzip
import stat
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

MASK_DELTA = 0xA282EAD8
BLOCK = 1024  # bytes whose contributions to the checksum are looked up at once
SLAB = 1024  # blocks at a time: the checksum's tables of indices take 12 times their bytes
LONGEST = 1 << 27  # bytes of a record beyond which its length must be wrong
MOST_VALUES = 100_000  # features, or numbers of a feature, beyond which a record is not a photograph's

Buffer = bytes | bytearray | memoryview
Feature = list[bytes] | list[int] | list[float]


class BrokenRecord(Exception):
    """A record that is damaged; `number` counts from 0, `last` says that nothing after it can be read."""

    def __init__(self, number: int, detail: str, last: bool) -> None:
        super().__init__(detail)
        self.number = number
        self.detail = detail
        self.last = last


@dataclass(frozen=True)
class Record:
    """One record's number in its file and its features; `fault` instead of features where it is damaged."""

    number: int
    features: dict[str, Feature]
    fault: BrokenRecord | None = None


@lru_cache(maxsize=1)
def _tables() -> tuple[np.ndarray, np.ndarray]:
    """Checksums of a byte with BLOCK - 1 to 0 zeros after it (BLOCK, 256); of a register's bytes (4, 256)."""
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, (table >> 1) ^ np.uint32(0x82F63B78), table >> 1).astype(np.uint32)
    rows = np.empty((BLOCK, 256), np.uint32)
    rows[0] = table
    for k in range(1, BLOCK):
        rows[k] = table[rows[k - 1] & 0xFF] ^ (rows[k - 1] >> 8)
    return rows[::-1].copy(), np.stack([rows[BLOCK - 1 - k] for k in range(4)])


def crc32c(data: Buffer) -> int:
    """CRC-32C (Castagnoli) of `data`.

    The checksum is linear over GF(2), so each byte's contribution depends on its value and its distance from
    the end alone: whole blocks are looked up and xored by numpy, ten times as fast as a loop over bytes.
    """
    rows, move = _tables()
    if len(data) < 4:
        state = 0xFFFFFFFF
        for byte in data:
            state = int(rows[-1, (state ^ byte) & 0xFF]) ^ (state >> 8)
        return state ^ 0xFFFFFFFF
    # Starting at all ones is the same as starting at zero with the first four bytes inverted, and then zeros
    # in front change nothing, so the data can be filled up to whole blocks.
    padded = np.zeros(-(-len(data) // BLOCK) * BLOCK, np.uint8)
    start = len(padded) - len(data)
    padded[start:] = np.frombuffer(data, np.uint8)
    padded[start : start + 4] ^= 0xFF
    blocks = padded.reshape(-1, BLOCK)
    places = np.arange(0, 256 * BLOCK, 256)
    state = 0
    b0, b1, b2, b3 = (column.tolist() for column in move)
    for first in range(0, len(blocks), SLAB):
        index = blocks[first : first + SLAB] + places
        for part in np.bitwise_xor.reduce(np.take(rows, index), axis=1).tolist():
            state = part ^ b0[state & 0xFF] ^ b1[state >> 8 & 0xFF] ^ b2[state >> 16 & 0xFF] ^ b3[state >> 24]
    return state ^ 0xFFFFFFFF


def masked_crc32c(data: Buffer) -> int:
    """The checksum as TFRecord stores it: rotated right by 15 bits, plus a constant."""
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + MASK_DELTA) & 0xFFFFFFFF


def read_records(path: Path) -> Iterator[Record]:
    """Yield each record of a TFRecord file, plain or gzipped; a damaged one carries its fault.

    After a record whose length can't be trusted, and after an error of the disk, nothing more is read.
    """
    number = 0
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait for its other end
            raise BrokenRecord(0, "it is not a regular file", True)
        with open(path, "rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            file = cast(BinaryIO, gzip.GzipFile(fileobj=raw)) if packed else raw
            while (record := _read_record(file, number)) is not None:
                yield record
                if record.fault is not None and record.fault.last:
                    return
                number += 1
    except BrokenRecord as fault:
        yield Record(number, {}, fault)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        yield Record(number, {}, BrokenRecord(number, f"its compression is damaged: {error}", True))
    except OSError as error:
        yield Record(number, {}, BrokenRecord(number, f"the disk gives an error: {error.strerror or error}", True))
    except MemoryError:
        yield Record(number, {}, BrokenRecord(number, "there is not enough memory to read it", True))


def _read_record(file: BinaryIO, number: int) -> Record | None:
    try:
        data = _read_frame(file, number)
        return None if data is None else Record(number, parse_example(data))
    except BrokenRecord as fault:
        return Record(number, {}, fault)
    except (ValueError, IndexError, struct.error) as error:
        return Record(number, {}, BrokenRecord(number, f"it is not a tf.train.Example: {error}", False))


def _read_frame(file: BinaryIO, number: int) -> bytearray | None:
    head = file.read(12)
    if not head:
        return None
    if len(head) < 12:
        raise BrokenRecord(number, "the file ends within a record", True)
    length, check = struct.unpack("<QI", head)
    if check != masked_crc32c(head[:8]) or length > LONGEST:
        raise BrokenRecord(number, "its length is damaged (crc32c differs)", True)
    data, tail = _read(file, length), file.read(4)
    if len(data) < length or len(tail) < 4:
        raise BrokenRecord(number, "the file ends within a record", True)
    if struct.unpack("<I", tail)[0] != masked_crc32c(data):
        raise BrokenRecord(number, "its content is damaged (crc32c differs)", False)
    return data


def _read(file: BinaryIO, length: int) -> bytearray:
    """So many bytes, or those that there are: a false length takes no memory."""
    data = bytearray()
    while len(data) < length and (part := file.read(min(length - len(data), 1 << 20))):
        data += part
    return data


def parse_example(data: Buffer) -> dict[str, Feature]:
    """The features of a serialised `tf.train.Example`; raises ValueError or IndexError where it is none."""
    features: dict[str, Feature] = {}
    for _, part in _fields(memoryview(data), {1}):
        for _, entry in _fields(part, {1}):
            pair = dict(_fields(entry, {1, 2}))
            features[bytes(pair.get(1, b"")).decode("utf-8")] = _parse_feature(pair.get(2, b""))
    return features


def _parse_feature(data: Buffer) -> Feature:
    for kind, content in _fields(data, {1, 2, 3}):
        values = [value for _, value in _fields(content, {1})]
        if sum(map(len, values)) > 8 * MOST_VALUES and kind != 1:
            raise ValueError(f"more than {MOST_VALUES} numbers in a feature")
        if kind == 1:
            return [bytes(value) for value in values]
        if kind == 2:
            return [v for value in values for v in struct.unpack(f"<{len(value) // 4}f", value)]
        return [number for value in values for number in _to_integers(value)]
    return []


def _to_integers(packed: Buffer) -> list[int]:
    """Packed varints as signed 64-bit integers."""
    numbers, at = [], 0
    while at < len(packed):
        value, at = _varint(packed, at)
        numbers.append(value - (1 << 64) if value >> 63 else value)
    return numbers


def _fields(data: Buffer, wanted: set[int]) -> Iterator[tuple[int, Buffer]]:
    """(field number, content) of each wanted field, not copied; varints and fixed numbers come as their bytes."""
    at = found = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, wire = key >> 3, key & 7
        if wire == 2:
            length, at = _varint(data, at)
            end = at + length
        elif wire == 0:
            end = _varint(data, at)[1]
        elif wire in (1, 5):
            end = at + (8 if wire == 1 else 4)
        else:
            raise ValueError(f"unknown wire type {wire}")
        if end > len(data):
            raise ValueError("a field is longer than its message")
        found += 1
        if found > MOST_VALUES:
            raise ValueError(f"more than {MOST_VALUES} values")
        if number in wanted:
            yield number, data[at:end]
        at = end


def _varint(data: Buffer, at: int) -> tuple[int, int]:
    value = shift = 0
    while shift < 70:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, at
        shift += 7
    raise ValueError("a number is longer than 64 bits")
