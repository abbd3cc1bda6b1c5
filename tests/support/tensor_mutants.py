"""Mutants of tensor files: random damage, edited headers, and changes with recomputed checksums."""

import io
import json
import struct
import time
from copy import deepcopy
from functools import cache

import numpy as np
import zstandard
from fuzz.forge import WIDTHS, Tensor, framed, plain, put_together, take_apart

from reeltag.core.entropy_coding import CHUNK
from reeltag.core.errors import ArtifactError
from reeltag.core.tensorfile import TensorFile, write
from reeltag.inference.predictor import load
from reliability import peak_memory

NUMBERS = [0, -1, 1, 7, 2**31, 10**9, 10**12, 2**63, 2**64, 10**30, 0.5, 1e308, -0.0]
VALUES = [*NUMBERS, None, True, "", "a/b", "\x00", "é" * 9, [], {}, [[]], {"": 0}, float("nan"), float("inf")]
DEEP = 100_000  # levels of nesting


def blind(content, rng):
    """Return a copy of a file with random damage that ignores the format."""
    size = len(content)
    kind, at, length = rng.integers(8), int(rng.integers(size)), int(rng.integers(1, 65))
    mutant = bytearray(content)
    if kind <= 2:  # most often in the header, which has the most structure
        end = [size, header_end(content), 8][kind]
        for position in rng.integers(0, end, int(rng.integers(1, 5))).tolist():
            mutant[position] ^= 1 << int(rng.integers(8))
    elif kind == 3:
        del mutant[at:]
    elif kind == 4:
        mutant[at:at] = rng.bytes(length)
    elif kind == 5:
        del mutant[at : at + length]
    elif kind == 6:  # zeros, as a file system leaves after a crash
        mutant[at : at + length] = bytes(len(mutant[at : at + length]))
    else:
        other = int(rng.integers(size))
        one, two = mutant[at : at + length], mutant[other : other + length]
        mutant[at : at + len(two)], mutant[other : other + len(one)] = two, one
    return bytes(mutant)


def by_hand(content, rng):
    """Return a copy of a file whose header or order of tensors was edited, with the old checksums."""
    end = header_end(content)
    header, data = content[8:end].decode(), content[end:]
    kind = int(rng.integers(9))
    if kind == 0:
        forged = [0, 1, 2**63, 2**64 - 1, len(content), len(content) - 8, end - 7, end - 9, 1_000_001, 100_000_000]
        return struct.pack("<Q", forged[int(rng.integers(len(forged)))]) + content[8:]
    if kind == 1:
        return content + rng.bytes(int(rng.integers(1, 100)))
    if kind == 2:
        return exchange(content, rng)
    if kind == 3:  # white space where JSON allows it
        at = int(rng.integers(len(header)))
        while header[at] not in "{}[],:" or inside(header, at):
            at = int(rng.integers(len(header)))
        return framed((header[:at] + [" ", "\n", "\t"][int(rng.integers(3))] + header[at:]).encode()) + data
    table = json.loads(header)
    if kind == 4:  # keys in another order
        names = list(table)
        header = json.dumps({name: table[name] for name in rng.permutation(names).tolist()}, separators=(",", ":"))
    elif kind == 5:  # a duplicate key
        name = list(table)[int(rng.integers(len(table)))]
        header = f"{{{plain(name)}:{plain(VALUES[int(rng.integers(len(VALUES)))])},{header[1:]}"
    elif kind == 6:  # an additional key of the metadata
        table["__metadata__"][["format", "", "pt"][int(rng.integers(3))]] = "pt"
        header = json.dumps(table, separators=(",", ":"))
    elif kind == 7:
        change(table, rng)
        header = json.dumps(table, separators=(",", ":"), ensure_ascii=False)
    else:
        text = table["__metadata__"]["reeltag"]
        deep = "[" * DEEP + "]" * DEEP
        table["__metadata__"]["reeltag"] = [
            text.replace('"content":{', f'"content":{{"x":{deep},'),
            text.replace('"content":{', '"content":{"x":1e999,'),
            text.replace('"content":{', f'"content":{{"x":{"9" * 5000},'),
            text.replace('"content"', '"crc32c":{},"content"'),
            text + " ",
            deep,
        ][int(rng.integers(6))]
        header = json.dumps(table, separators=(",", ":"), ensure_ascii=False)
    return framed(header.encode()) + data


def sealed(content, rng):
    """Return a changed copy of a file in which every checksum was recomputed."""
    tensors, header = take_apart(content)
    name = list(tensors)[int(rng.integers(len(tensors)))]
    tensor = tensors[name]
    kind = int(rng.integers(8))
    if kind <= 2:
        change(header, rng)
    elif kind == 3:
        data = bytearray(tensor.data)
        data[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
        tensors[name] = Tensor(tensor.dtype, tensor.shape, bytes(data))
    elif kind == 4:  # a type of the same width, or a shape of the same size
        kinds = [kind for kind, width in WIDTHS.items() if width == WIDTHS[tensor.dtype]]
        shapes = [[len(tensor.data) // WIDTHS[tensor.dtype]], [*tensor.shape, 1], tensor.shape[::-1], tensor.shape]
        tensors[name] = Tensor(
            kinds[int(rng.integers(len(kinds)))], shapes[int(rng.integers(len(shapes)))], tensor.data
        )
    elif kind == 5:  # a shape that the data do not have
        sizes = [int(2 ** rng.integers(0, 62)) for _ in range(int(rng.integers(0, 12)))]
        tensors[name] = Tensor(tensor.dtype, sizes, tensor.data)
    elif kind == 6:
        del tensors[name]
        tensors[["m/x", "x", "", "m/", "m/a#b", name + "#codebook"][int(rng.integers(6))]] = tensor
    else:
        text = plain(header)
        deep = "[" * DEEP + "]" * DEEP
        headers = [
            f'{{"x":{deep},{text[1:]}',
            f'{{"x":{"[" * 150}{"]" * 150},{text[1:]}',
            f'{{"format":1,{text[1:]}',
            deep,
        ]
        return put_together(tensors, headers[int(rng.integers(4))])
    return put_together(tensors, plain(header))


def recoded(content, rng):
    """Return a copy in which a coded array, or what the header says of it, was changed; every checksum holds.

    Only the checksum of the decoded array is left as it was, so that no other array can be read.
    """
    tensors, header = take_apart(content)
    names = sorted(header["coded"])
    name = names[int(rng.integers(len(names)))]
    coded = header["coded"][name]
    streams = split_streams(tensors[name].data, coded["lengths"])
    chunk, number = int(rng.integers(len(streams))), int(rng.integers(len(streams[0])))
    kind, stream = int(rng.integers(10)), bytearray(streams[chunk][number])
    if kind <= 3:
        stream = forged_stream(bytes(stream), rng)
    elif kind == 4:  # another array's stream
        other = header["coded"][names[int(rng.integers(len(names)))]]
        stream = streams[chunk][number - 1] if len(other["lengths"]) == 1 else bytes(len(stream))
    streams[chunk][number] = bytes(stream)
    coded["lengths"] = [[len(each) for each in chunk] for chunk in streams]
    if kind == 5:
        change(coded, rng)
    elif kind == 6:
        change(header["coded"], rng)
    elif kind == 7:
        key, values = [
            ("coder", ["zstd", "digits", "raw"]),
            ("dtype", ["U8", "I8", "F16", "BOOL", "F32", "I64"]),
            ("shape", [[], [0], [1], [2**40], [*coded["shape"], 2], coded["shape"][::-1], [2**47, 0, 2**47]]),
            (
                "lengths",
                [[], [[]], coded["lengths"] * 2, coded["lengths"][1:], [[0, *each] for each in coded["lengths"]]],
            ),
        ][int(rng.integers(4))]
        coded[key] = values[int(rng.integers(len(values)))]
    elif kind == 8:  # as many elements as the stored bytes may stand for
        coded["shape"] = [int(1000 * len(tensors[name].data) * rng.choice([0.5, 0.999, 1, 1.001, 10]))]
        coded["lengths"] *= -(-coded["shape"][0] // CHUNK)
    data = b"".join(b"".join(chunk) for chunk in streams)
    pad = -len(data) if kind == 9 and rng.random() < 0.5 else len(tensors[name].data) - len(data)
    data += rng.bytes(max(0, pad + int(rng.integers(0, 9)))) if kind == 9 else bytes(max(0, pad))
    tensors[name] = Tensor("U8", [len(data)], data)
    return put_together(tensors, plain(header))


def split_streams(data, lengths):
    """Return the streams of each chunk of a coded array."""
    file = io.BytesIO(data)
    return [[file.read(length) for length in chunk] for chunk in lengths]


def forged_stream(stream, rng):
    """Return something else than a stream: damaged, or what zstd takes and the format does not allow."""
    kind, length = int(rng.integers(8)), int(rng.integers(1, 33))
    if kind <= 2 and stream:
        mutant = bytearray(stream)
        for position in rng.integers(0, len(stream) if kind else min(16, len(stream)), length % 4 + 1).tolist():
            mutant[position] ^= 1 << int(rng.integers(8))
        return bytes(mutant)
    skippable = struct.pack("<II", 0x184D2A50 + length % 16, length) + bytes(length)
    size = int(2 ** rng.integers(0, 28))
    return [
        stream[:-length],
        stream + rng.bytes(length),
        skippable + stream,
        stream + skippable,
        stream + stream,
        zstandard.ZstdCompressor(write_content_size=False).compress(bytes(size)),
        zstandard.ZstdCompressor().compress(bytes(size)),
        struct.pack("<IBBQ", 0xFD2FB528, 0xC0, 0xFF, CHUNK) + stream[6:],  # the largest window
    ][int(rng.integers(8))]


def change(value, rng):
    """Change one value, key or element within JSON, in place."""
    inner = [item for item in (value.values() if isinstance(value, dict) else value) if isinstance(item, dict | list)]
    inner = [item for item in inner if item]
    if inner and rng.random() < 0.7:
        change(inner[int(rng.integers(len(inner)))], rng)
        return
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    key, other = keys[int(rng.integers(len(keys)))], VALUES[int(rng.integers(len(VALUES)))]
    kind = int(rng.integers(5))
    if kind <= 1:
        value[key] = deepcopy(other)
    elif kind == 2:
        del value[key]
    elif kind == 3 and isinstance(value, dict):
        value["x" if rng.random() < 0.5 else str(key) + "s"] = deepcopy(other)
    else:
        number = value[key]
        value[key] = number + 1 if isinstance(number, int | float) else [number]


def exchange(content, rng):
    """Return a copy in which two tensors of equal size are swapped; without such a pair, the data are reversed."""
    (size,) = struct.unpack("<Q", content[:8])
    table = json.loads(content[8 : 8 + size])
    spans = [entry["data_offsets"] for name, entry in table.items() if name != "__metadata__"]
    pairs = [(a, b) for a in spans for b in spans if a < b and a[1] - a[0] == b[1] - b[0]]
    if not pairs:
        return content[: 8 + size] + content[8 + size :][::-1]
    (a, b), mutant = pairs[int(rng.integers(len(pairs)))], bytearray(content)
    one, two = (slice(8 + size + begin, 8 + size + end) for begin, end in (a, b))
    mutant[one], mutant[two] = mutant[two], mutant[one]
    return bytes(mutant)


def header_end(content):
    """Return the offset of the first tensor."""
    return 8 + struct.unpack("<Q", content[:8])[0]


def inside(header, at):
    """Return True if an index of JSON text is inside a string."""
    return len(header[:at].replace("\\\\", "").replace('\\"', "").split('"')) % 2 == 0


def try_all(opener, files, kinds, count, seed):
    """Open mutants of files.

    Args:
        opener: opens a path; raises ArtifactError if the file is damaged.
        files: paths of valid files.
        kinds: functions that make a mutant of a file's bytes.
        count: number of mutants.
        seed: seed of the mutants.

    Returns:
        Number of refused mutants, indices of opened ones, seconds of the slowest, and growth of the process in bytes.
    """
    contents = [path.read_bytes() for path in files]
    mutant_path = files[0].with_name("mutant")
    for path in files:
        opener(path)
    before, slowest = peak_memory(), 0.0
    refused, opened = 0, []
    for number in range(count):
        rng = np.random.default_rng([seed, number])
        content = contents[number % len(files)]
        mutant = kinds[number // len(files) % len(kinds)](content, rng)
        if mutant == content:
            continue
        mutant_path.write_bytes(mutant)
        begin = time.perf_counter()
        try:
            opener(mutant_path)
            opened.append(number)
        except ArtifactError as error:
            assert str(mutant_path) in str(error), error
            assert "\n" not in str(error), error
            refused += 1
        except Exception as error:
            raise AssertionError(f"mutant {number} of {files[number % len(files)].name} ends in {error!r}") from error
        slowest = max(slowest, time.perf_counter() - begin)
    return refused, opened, slowest, peak_memory() - before


def try_each(jobs):
    """Run `try_all` for several lists of arguments."""
    return [try_all(*job) for job in jobs]


def predicts(path):
    """Load a model and tag one video."""
    model = load(path)
    schema = model.schema
    frames = np.ones((2, schema.width), schema.dtype)
    assert model.predict(frames).shape == (schema.classes,)


@cache
def coded_arrays():
    """Return arrays that each coder codes, one of two chunks, one whose bytes are padded, and two that none codes."""
    rng = np.random.default_rng(0)
    sparse = np.zeros(CHUNK + 4099, np.int8)
    sparse[rng.integers(0, len(sparse), 3000)] = rng.integers(-3, 4, 3000)
    return {
        "sparse": sparse,
        "zeros": np.zeros((100, 1000), np.int8),
        "digits": np.rint(rng.laplace(0, 0.4, (91, 77))).astype(np.int8),
        "bytes": np.rint(rng.normal(0, 9, (77, 91))).astype(np.int8),
        "unsigned": np.rint(rng.normal(128, 30, (11, 11, 91))).astype(np.uint8),
        "half": rng.normal(size=(50, 130)).astype(np.float16),
        "random": rng.integers(0, 256, 999, dtype=np.uint8),
        "float": rng.normal(size=7).astype(np.float32),
    }


def write_coded(path):
    """Write a file of coded arrays."""
    write(path, coded_arrays(), {"x": 1}, compress=True)
    return path


def reads_exactly(path):
    """Read a file of coded arrays, which must be those that were written."""
    file, expected = TensorFile(path), coded_arrays()
    for name in file.names:
        array = file.read(name)
        if name in expected and file.is_coded(name):
            assert array.tobytes() == expected[name].tobytes(), name
