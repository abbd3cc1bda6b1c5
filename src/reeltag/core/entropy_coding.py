"""Lossless entropy coding of arrays whose elements have 1 or 2 bytes.

An array is coded in chunks of `CHUNK` elements, each as two streams at most. A stream is one zstd frame that states its
content's size, without a dictionary; a stream of no bytes has no frame. There are two coders:

- `zstd`: one stream for each byte of the elements, the lowest first.
- `digits`, for int8: a stream of four 2-bit digits a byte, the first in the low bits (0, +1 and -1 are themselves, 3 is
  any other value), then a stream of those others. Huffman codes, zstd's, spend at least one bit a symbol; four elements
  together may take less than one bit each.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate, chain, islice, pairwise
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import zstandard

from reeltag.core.environment import available_cpus

Array = npt.NDArray[Any]
Bytes = npt.NDArray[np.uint8]
Coder = Literal["zstd", "digits"]
CODERS: tuple[Coder, ...] = get_args(Coder)

CHUNK = 1 << 20  # elements; a chunk and what its coding needs fit the caches
CODABLE = ("|u1", "|i1", "<f2")
# An array that is not coded is mapped: it takes no time to load, and processes share its memory. That is worth 2 %; and
# what the header says of a coded array takes some hundred bytes.
LEAST_SAVED = 0.02
LEAST_SAVED_BYTES = 1_000
_LEVEL = 16  # of zstd: above it, up to twice as long saves 1 % at most
_OTHER = 3  # the digit of an element that is not 0, +1 or -1
_DIGITS = np.full(256, _OTHER, np.uint8)  # by the element's byte
_DIGITS[[0, 1, 255]] = 0, 1, 2
_ELEMENTS = np.array([0, 1, 255, 128], np.uint8)  # by digit; 128 marks the place of another value
_MARK = _ELEMENTS[_OTHER]
_QUADS = _ELEMENTS[np.arange(256)[:, None] >> np.array([0, 2, 4, 6]) & 3].view(np.uint32)[:, 0]  # by byte of digits


def chunk_count(elements: int) -> int:
    """Return the number of chunks of an array."""
    return -(-elements // CHUNK)


def streams(coder: Coder, dtype: np.dtype[Any]) -> int:
    """Return the number of streams of a chunk; 0 if the coder does not code this type."""
    if coder == "digits":
        return 2 if dtype == np.int8 else 0
    return dtype.itemsize if dtype.str in CODABLE else 0


def encode(arrays: Mapping[str, Array]) -> Iterator[tuple[str, Coder, list[list[bytes]]]]:
    """Code those arrays in parallel that become smaller by `LEAST_SAVED`.

    Args:
        arrays: contiguous, by name.

    Yields:
        Name, coder, and the streams of each chunk. They depend on the array alone, and on the version of zstd.
    """
    trials: list[tuple[str, Coder]] = [
        (name, coder) for name, array in arrays.items() if array.size for coder in CODERS if streams(coder, array.dtype)
    ]
    with ThreadPoolExecutor(available_cpus()) as pool:
        shares = pool.map(lambda trial: _share_of_middle(trial[1], arrays[trial[0]]), trials)
        best: dict[str, tuple[float, Coder]] = {}
        for (name, coder), share in zip(trials, shares, strict=True):
            if share < best.get(name, (1 - LEAST_SAVED, coder))[0]:
                best[name] = share, coder
        chosen = {name: coder for name, (_, coder) in best.items()}
        coded = pool.map(
            lambda job: _encode_chunk(*job),
            [(coder, chunk) for name, coder in chosen.items() for chunk in _chunks(arrays[name])],
        )
        for name, coder in chosen.items():
            chunks = list(islice(coded, chunk_count(arrays[name].size)))
            saved = arrays[name].nbytes - sum(map(len, chain.from_iterable(chunks)))
            if saved >= max(LEAST_SAVED * arrays[name].nbytes, LEAST_SAVED_BYTES):
                yield name, coder, chunks


def decode(stored: Bytes, coder: Coder, lengths: Sequence[Sequence[int]], out: Array) -> None:
    """Decode an array in parallel. Beside `out` it takes the memory of one chunk and its coding for each CPU.

    Args:
        stored: the streams, one after another.
        coder: their coder.
        lengths: bytes of the streams of each chunk of `out`.
        out: contiguous; it is overwritten.

    Raises:
        ValueError: the streams are not those of an array of this type and size.
    """
    ends = list(accumulate(chain.from_iterable(lengths), initial=0))
    parts = iter([stored[begin:end] for begin, end in pairwise(ends)])
    jobs = [(list(islice(parts, len(each))), chunk) for each, chunk in zip(lengths, _chunks(out), strict=True)]
    decode_chunk = _decode_digits if coder == "digits" else _decode_bytes
    try:
        if len(jobs) == 1:
            decode_chunk(*jobs[0])
            return
        with ThreadPoolExecutor(min(available_cpus(), len(jobs) or 1)) as pool:
            for _ in pool.map(lambda job: decode_chunk(*job), jobs):
                pass
    except zstandard.ZstdError as error:
        raise ValueError(str(error)) from error


def _chunks(array: Array) -> list[Array]:
    flat = array.reshape(-1)
    return [flat[begin : begin + CHUNK] for begin in range(0, flat.size, CHUNK)]


def _share_of_middle(coder: Coder, array: Array) -> float:
    """Return the bytes that the chunk in the middle of an array takes, divided by its own."""
    chunks = _chunks(array)
    chunk = chunks[(len(chunks) - 1) // 2]  # the last one may be short
    return sum(map(len, _encode_chunk(coder, chunk))) / chunk.nbytes


def _encode_chunk(coder: Coder, chunk: Array) -> list[bytes]:
    elements = chunk.view(np.uint8)
    if coder == "zstd":
        return [_deflate(plane) for plane in elements.reshape(-1, chunk.itemsize).T]
    digits = np.zeros(-(-elements.size // 4) * 4, np.uint8)
    digits[: elements.size] = _DIGITS[elements]
    quads = digits.reshape(-1, 4) << np.array([0, 2, 4, 6], np.uint8)
    return [_deflate(np.bitwise_or.reduce(quads, 1)), _deflate(elements[digits[: elements.size] == _OTHER])]


def _decode_bytes(parts: Sequence[Bytes], out: Array) -> None:
    planes = out.view(np.uint8).reshape(-1, out.itemsize).T
    for stream, plane in zip(parts, planes, strict=True):
        plane[:] = _inflate(stream, out.size)


def _decode_digits(parts: Sequence[Bytes], out: Array) -> None:
    elements = out.view(np.uint8)
    quads = _inflate(parts[0], -(-out.size // 4))
    decoded = _QUADS[quads].view(np.uint8)
    if decoded[out.size :].any():
        raise ValueError("there are more digits than elements")
    elements[:] = decoded[: out.size]
    others = elements == _MARK
    elements[others] = _inflate(parts[1], int(np.count_nonzero(others)))


def _deflate(content: Bytes) -> bytes:
    if not content.size:
        return b""
    return zstandard.ZstdCompressor(level=_LEVEL).compress(np.ascontiguousarray(content).data)


def _inflate(stream: Bytes, size: int) -> Bytes:
    """Return the content of a stream, which takes no more memory than its size before the stream is found wrong."""
    if not size and not stream.size:
        return stream
    if stream[:4].tobytes() != zstandard.FRAME_HEADER:  # as a skippable frame has not
        raise ValueError("a stream is no zstd frame")
    frame = zstandard.get_frame_parameters(stream.data)
    if (frame.content_size, frame.dict_id) != (size, 0) or frame.window_size > CHUNK:
        raise ValueError("a stream has another size, a larger window, or a dictionary")
    decompressor = zstandard.ZstdDecompressor(max_window_size=CHUNK)
    return np.frombuffer(decompressor.decompress(stream.data, allow_extra_data=False), np.uint8)
