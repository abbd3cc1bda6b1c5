"""Tensor files taken apart and put together by hand, with checksums that hold: what an attacker can do.

Written from docs/file-format.md, apart from the code that it is used against.
"""

from __future__ import annotations

import io
import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

import google_crc32c
import zstandard

WIDTHS = {"U64": 8, "I64": 8, "F64": 8, "F32": 4, "U32": 4, "I32": 4, "F16": 2, "I8": 1, "U8": 1, "BOOL": 1}


@dataclass
class Tensor:
    """A tensor as the file has it."""

    dtype: str
    shape: list[int]
    data: bytes


def take_apart(file: bytes) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the content of a sound file."""
    (size,) = struct.unpack("<Q", file[:8])
    table, data = json.loads(file[8 : 8 + size]), file[8 + size :]
    content = json.loads(table.pop("__metadata__")["reeltag"])["content"]
    tensors = {
        name: Tensor(entry["dtype"], entry["shape"], data[slice(*entry["data_offsets"])])
        for name, entry in table.items()
    }
    return tensors, content


def put_together(tensors: Mapping[str, Tensor], content: str) -> bytes:
    """A file in which every checksum holds, whatever else it says; the content is JSON text."""
    names = sorted(tensors, key=lambda name: (list(WIDTHS).index(tensors[name].dtype), name))
    table, begin = [], 0
    for name in names:
        tensor = tensors[name]
        end = begin + WIDTHS[tensor.dtype] * math.prod(tensor.shape)
        entry = f'{{"dtype":"{tensor.dtype}","shape":{plain(tensor.shape)},"data_offsets":[{begin},{end}]}}'
        table.append(f"{plain(name)}:{entry}")
        begin = end
    checksums = plain({name: google_crc32c.value(tensors[name].data) for name in names})

    def header(checksum: int) -> bytes:
        sealed = f'{{"checksum":{checksum},"content":{content},"crc32c":{checksums}}}'
        whole = ",".join([f'{{"__metadata__":{{"reeltag":{plain(sealed)}}}', *table]) + "}"
        return whole.encode() + b" " * (-len(whole.encode()) % 8)

    return framed(header(google_crc32c.value(header(0)))) + b"".join(tensors[name].data for name in names)


def decoded(entry: Mapping[str, Any], stored: bytes) -> bytes:
    """The bytes of a coded array, from its entry in the content's table `coded` and what is stored of it."""
    file, content = io.BytesIO(stored), b""
    for lengths in entry["lengths"]:
        streams = [zstandard.decompress(file.read(length)) if length else b"" for length in lengths]
        if entry["coder"] == "zstd":
            content += bytes(chain.from_iterable(zip(*streams, strict=True)))
        else:
            others = iter(streams[1])
            digits = (byte >> shift & 3 for byte in streams[0] for shift in (0, 2, 4, 6))
            content += bytes(next(others) if digit == 3 else (0, 1, 255)[digit] for digit in digits)
    return content[: WIDTHS[entry["dtype"]] * math.prod(entry["shape"])]


def framed(header: bytes) -> bytes:
    """A header after its length."""
    return struct.pack("<Q", len(header)) + header


def plain(value: Any) -> str:
    """JSON in its one form."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
