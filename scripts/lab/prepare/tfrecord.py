"""TFRecord files and the `tf.train.Example` messages in them, without TensorFlow.

A file is a sequence of records ``length (uint64), CRC of the length (uint32), payload, CRC of the payload (uint32)``,
little endian; the CRC is a masked CRC-32C. A payload is a protocol-buffer message: a map from a feature's name to
bytes, int64s or floats.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from scripts.core.errors import InputError

__all__ = ["masked_crc", "parse_example", "read_records"]

HEADER, FOOTER = 12, 4
CRC_POLYNOMIAL = 0x82F63B78
CRC_MASK = 0xA282EAD8
# Wire types of protocol buffers.
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5

Feature = list[bytes] | list[int] | list[float]


def read_records(path: Path) -> Iterator[memoryview]:
    """The payloads of a file's records.

    The checksum of each length is verified, which detects other kinds of files. That of the payload is not: a CRC in
    Python takes longer than everything else.
    """
    data = memoryview(path.read_bytes())
    start = 0
    while start < len(data):
        head = data[start : start + HEADER]
        if len(head) < HEADER:
            raise _cut_short(path, f"{len(head)} bytes after the last record")
        length, crc = struct.unpack("<QI", head)
        if crc != masked_crc(bytes(head[:8])):
            found = "a wrong checksum at the start of a record"
            remedy = "download the file again; compressed TFRecords must be unpacked first"
            raise InputError(file=path, found=found, expected="a TFRecord file", remedy=remedy)
        payload = data[start + HEADER : start + HEADER + length]
        start += HEADER + length + FOOTER
        if start > len(data):
            raise _cut_short(path, f"{len(data)} bytes, {start - len(data)} fewer than its record requires")
        yield payload


def parse_example(payload: memoryview) -> dict[str, Feature]:
    """The features of a ``tf.train.Example`` by name: bytes, int64s (with their sign) or floats."""
    features: dict[str, Feature] = {}
    for _, message in _fields(payload, number=1):  # Example.features
        for _, entry in _fields(message, number=1):  # Features.feature, a map
            pair = dict(_fields(entry))
            name, feature = pair.get(1), pair.get(2)
            if not isinstance(name, memoryview) or not isinstance(feature, memoryview):
                raise ValueError("a feature without name or value")
            features[bytes(name).decode()] = _values(feature)
    return features


def masked_crc(data: bytes) -> int:
    """The masked CRC-32C of a few bytes, as in TFRecord files."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (CRC_POLYNOMIAL if crc & 1 else 0)
    crc ^= 0xFFFFFFFF
    return (((crc >> 15) | (crc << 17)) + CRC_MASK) & 0xFFFFFFFF


def _values(feature: memoryview) -> Feature:
    """The list of a feature: bytes (field 1), floats (2) or int64s (3)."""
    for kind, message in _fields(feature):
        if not isinstance(message, memoryview):
            break
        if kind == 1:
            return [bytes(value) for _, value in _fields(message) if isinstance(value, memoryview)]
        if kind == 2:
            floats = [bytes(value) for _, value in _fields(message) if isinstance(value, memoryview)]
            return [float(value) for part in floats for value in np.frombuffer(part, "<f4")]
        if kind == 3:
            return [value for _, part in _fields(message) for value in _int64s(part)]
    return []


def _int64s(part: memoryview | int) -> Iterator[int]:
    """Packed or single varints; negative numbers are written as their two's complement in 64 bits."""
    place = 0
    unsigned = [part] if isinstance(part, int) else []
    while not isinstance(part, int) and place < len(part):
        value, place = _varint(part, place)
        unsigned.append(value)
    yield from (value - (1 << 64) if value >> 63 else value for value in unsigned)


def _fields(message: memoryview | int, number: int | None = None) -> Iterator[tuple[int, memoryview | int]]:
    """Number and content of each field of a message: an int for a varint, else the bytes."""
    if isinstance(message, int):
        raise ValueError("a number in place of a message")
    place = 0
    while place < len(message):
        tag, place = _varint(message, place)
        kind = tag & 7
        value: memoryview | int
        if kind == VARINT:
            value, place = _varint(message, place)
        else:
            size, place = _varint(message, place) if kind == BYTES else ({FIXED64: 8, FIXED32: 4}.get(kind, -1), place)
            value = message[place : place + size]
            if size < 0 or len(value) != size:
                raise ValueError(f"a field of wire type {kind} that does not end")
            place += size
        if number in (None, tag >> 3):
            yield tag >> 3, value


def _varint(message: memoryview, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if place >= len(message) or shift > 63:
            raise ValueError("a number that does not end")
        byte = message[place]
        value |= (byte & 0x7F) << shift
        place, shift = place + 1, shift + 7
        if byte < 0x80:
            return value, place


def _cut_short(path: Path, found: str) -> InputError:
    return InputError(
        file=path, found=f"{found}: it is truncated", expected="complete records", remedy="download the file again"
    )
