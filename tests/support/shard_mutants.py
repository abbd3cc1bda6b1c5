"""Damaged shards, and a program that reads many of them: python shard_mutants.py PLAN.json prints what came of it."""

from __future__ import annotations

import json
import random
import struct
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from oracle import agree
from reeltag.core.errors import DataError
from reeltag.data.formats.example import Video
from reeltag.data.formats.tfrecord import ShardFile, frame_record, masked_crc
from reeltag.data.schema import Schema
from reeltag.data.shards import Manifest, Shards, read_records, scan
from reliability import peak_memory

TELLING = b"\x00\x01\x02\x08\x0a\x0d\x12\x1a\x7f\x80\xff"  # tags, and bytes at which a varint goes on


@dataclass(frozen=True)
class Mutant:
    """A shard's bytes after damage.

    Attributes:
        content: them.
        kept: numbers of the original's records that a reader without a manifest must give, in this order; None where
            it may give any of the original's records before it raises.
        forged: whether a payload was changed and its CRC with it.
    """

    content: bytes
    kept: list[int] | None = None
    forged: bool = False


def spans(content: bytes) -> list[tuple[int, int]]:
    """Begin and end of each record of a sound shard."""
    found, at = [], 0
    while at < len(content):
        end = at + 16 + struct.unpack_from("<Q", content, at)[0]
        found.append((at, end))
        at = end
    return found


def flip(content: bytes, rng: random.Random) -> bytes:
    return change(content, rng, lambda old: bytes([old[0] ^ 1 << rng.randrange(8)]) + old[1:])


def change(content: bytes, rng: random.Random, how: Callable[[bytes], bytes], most: int = 1) -> bytes:
    """The content with one piece made into another."""
    begin = rng.randrange(len(content))
    end = min(len(content), begin + rng.randint(1, most))
    return content[:begin] + how(content[begin:end]) + content[end:]


def record_faults(content: bytes, rng: random.Random) -> Iterator[tuple[str, Mutant]]:
    """Whole records that are missing, doubled or moved; what only a manifest can tell."""
    places = spans(content)
    numbers = list(range(len(places)))
    one, other = rng.choice(numbers), rng.choice(numbers)
    kinds = {
        "cut between records": numbers[: rng.randint(1, len(numbers) - 1)],
        "record dropped": [number for number in numbers if number != one],
        "record doubled": [*numbers[:one], one, *numbers[one:]],
        "records swapped": [{one: other, other: one}.get(number, number) for number in numbers],
        "records in another order": rng.sample(numbers, len(numbers)),
    }
    for kind, kept in kinds.items():
        yield kind, Mutant(b"".join(content[slice(*places[number])] for number in kept), kept)


def file_faults(content: bytes, rng: random.Random) -> Iterator[tuple[str, Mutant]]:
    """Damage that knows nothing of records."""
    begin, end = rng.choice(spans(content))
    a, b, c = sorted(rng.sample(range(len(content) + 1), 3))
    page = rng.randrange(len(content)) // 4096 * 4096
    size = rng.randint(1, 64)
    kinds = {
        "bit flipped": flip(content, rng),
        "bits flipped": flip(flip(flip(content, rng), rng), rng),
        "bytes changed": change(content, rng, lambda old: rng.randbytes(len(old)), 16),
        "telling byte": change(content, rng, lambda old: bytes([rng.choice(TELLING)])),
        "cut": content[: rng.randrange(len(content))],
        "cut in a length": content[: begin + rng.randint(1, 11)],
        "cut in a checksum": content[: end - rng.randint(1, 4)],
        "bytes inserted": change(content, rng, lambda old: rng.randbytes(size) + old),
        "bytes deleted": change(content, rng, lambda old: b"", 64),
        "begin missing": content[a + 1 :],
        "piece doubled": content[:b] + content[a:b] + content[b:],
        "pieces swapped": content[:a] + content[b:c] + content[a:b] + content[c:],
        "piece dropped": content[:a] + content[b:],
        "page of zeros": content[:page] + bytes(len(content[page : page + 4096])) + content[page + 4096 :],
        "run of ones": change(content, rng, lambda old: b"\xff" * len(old), 512),
        "length bit": change_at(content, begin + rng.randrange(8), rng),
        "length's checksum": change_at(content, begin + 8 + rng.randrange(4), rng),
        "payload's checksum": change_at(content, end - 1 - rng.randrange(4), rng),
        "more at the end": content + rng.choice([bytes(rng.randint(1, 40)), rng.randbytes(rng.randint(1, 40)), b"\n"]),
        "another file": rng.choice([b"", b"\x1f\x8b", b"notes\n" * 20, rng.randbytes(300)]),
    }
    yield from ((kind, Mutant(mutated)) for kind, mutated in kinds.items())


def change_at(content: bytes, at: int, rng: random.Random) -> bytes:
    return content[:at] + bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1 :]


def forged_length(content: bytes, rng: random.Random) -> Mutant:
    """A length that is wrong, with the right CRC."""
    begin, end = rng.choice(spans(content))
    right, left = end - begin - 16, len(content) - begin - 16
    near = [0, right - 1, right + 1, right ^ 1 << rng.randrange(12), left, left + 1, left - 1, rng.randrange(left + 1)]
    wrong = [value for value in [*near, 2**31, 2**32 + right, 2**63, 2**64 - 1, 2**64 - 16] if value not in (right, -1)]
    length = struct.pack("<Q", rng.choice(wrong))
    return Mutant(content[:begin] + length + struct.pack("<I", masked_crc(length)) + content[begin + 12 :])


def forged_payload(content: bytes, rng: random.Random) -> Mutant:
    """Damage in a payload, whose CRC is made right again."""
    begin, end = rng.choice(spans(content))
    payload = content[begin + 12 : end - 4]
    for _ in range(rng.choice([1, 1, 2, 3])):
        kinds: list[Callable[[bytes], bytes]] = [
            lambda old: bytes([old[0] ^ 1 << rng.randrange(8)]) + old[1:],
            lambda old: bytes([rng.choice(TELLING)]) + old[1:],
            lambda old: b"",
            lambda old: old * 2,
            lambda old: b"\xff" * rng.randint(1, 9) + b"\x01" + old,  # a varint of many bytes
            lambda old: bytes([old[0] | 0x80, 0]) + old[1:],  # one of more than it needs
            lambda old: rng.randbytes(len(old)),
        ]
        payload = change(payload, rng, rng.choice(kinds), 5) or b"\x0a"
    return Mutant(content[:begin] + frame_record(payload) + content[end:], forged=True)


def mutants(content: bytes, rng: random.Random) -> Iterator[tuple[str, Mutant]]:
    """Kinds and mutants without end; of every kind equally many, but more whose payload is forged."""
    while True:
        yield from record_faults(content, rng)
        yield from file_faults(content, rng)
        for _ in range(3):
            yield "length forged with its checksum", forged_length(content, rng)
        for _ in range(12):
            yield "payload forged with its checksum", forged_payload(content, rng)


# --- reading them -------------------------------------------------------------------------------


def same(one: Video, other: Video) -> bool:
    if (one.id, one.cut, one.labels is None) != (other.id, other.cut, other.labels is None):
        return False
    if one.labels is not None and other.labels is not None and one.labels.tolist() != other.labels.tolist():
        return False
    pairs = zip(one.features, other.features, strict=True)
    return all(a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes() for a, b in pairs)


def read_without_manifest(path: Path, schema: Schema, mutant: Mutant, originals: Sequence[Video]) -> bool:
    """Return True if the shard was refused; checks all that was read before."""
    found: list[Video] = []
    refused = False
    try:
        for record, video in read_records(ShardFile(path), schema):
            if mutant.forged:
                agree(record.payload, schema)
            else:
                assert any(same(video, original) for original in originals), "what was read stands in no record"
            found.append(video)
    except DataError as error:
        refused = True
        assert error.file == str(path)
        assert error.reason
        whole = "is empty" in error.reason
        assert whole or (error.record == len(found) and error.offset is not None), str(error)
    if mutant.kept is not None:
        assert not refused
        assert len(found) == len(mutant.kept)
        assert all(same(video, originals[number]) for video, number in zip(found, mutant.kept, strict=True))
    return refused


def read_with_manifest(path: Path, manifest: Manifest, originals: Sequence[Video]) -> int:
    """Count the records that were refused; the others must be the original's."""
    info = replace(manifest.shards[0], path=str(path))
    shards, refused = Shards(replace(manifest, shards=(info,))), 0
    for index, original in enumerate(originals):
        try:
            assert same(shards.read(index), original), "another video than was indexed"
        except DataError as error:
            refused += 1
            assert (error.file, error.record, error.offset) == shards.location(index)
    return refused


def read_many(source: Path, schema: Schema, count: int, seed: int) -> dict[str, Any]:
    """Read so many mutants of a shard, with and without its manifest."""
    content, rng = source.read_bytes(), random.Random(seed)
    manifest = scan([source], schema)
    originals = [Shards(manifest).read(index) for index in range(len(manifest))]
    path = source.with_suffix(".mutant")
    before, slowest = peak_memory(), 0.0
    outcomes: Counter[str] = Counter()
    stream = mutants(content, rng)
    for number in range(count):
        kind, mutant = next(stream)
        own = path.with_suffix(f".{number}")  # a shard that is read stays open for a while
        own.write_bytes(mutant.content)
        begin = time.perf_counter()
        try:
            refused = read_without_manifest(own, schema, mutant, originals)
            noticed = read_with_manifest(own, manifest, originals)
            assert (noticed > 0) == (mutant.content != content), "damage that the manifest did not notice"
        except BaseException as error:
            error.add_note(f"mutant {number} of {source.name}, {kind}") if sys.version_info >= (3, 11) else None
            raise
        slowest = max(slowest, time.perf_counter() - begin)
        own.unlink()
        outcomes[kind] += 1
        outcomes["refused"] += refused
        outcomes["unchanged"] += mutant.content == content
    grown = peak_memory() - before
    return {"outcomes": outcomes, "slowest": slowest, "grown": grown, "bytes": len(content), "videos": len(originals)}


def main() -> None:
    plan = json.loads(Path(sys.argv[1]).read_text())
    np.seterr(all="raise")
    found = [read_many(Path(each["path"]), Schema(**each["schema"]), each["count"], each["seed"]) for each in plan]
    print(json.dumps(found))


if __name__ == "__main__":
    main()
