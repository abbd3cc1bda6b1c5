"""TFRecord files: what is written is read, and no damage passes."""

from __future__ import annotations

import os
import pickle
import struct
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import data_file, golden, records_of
from reeltag.core.errors import DataError, UsageError
from reeltag.data.formats.tfrecord import ShardFile, masked_crc, write_shard

PAYLOADS = [b"first", b"", b"the third"]
BEGINS = [0, 21, 37]
SIZE = 62
Read = Callable[[Path], list[bytes]]


def payloads_in_one_walk(path: Path) -> list[bytes]:
    return [record.payload for record in ShardFile(path).records()]


either_way = pytest.mark.parametrize("read", [records_of, payloads_in_one_walk])


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    path = tmp_path / "small.tfrecord"
    write_shard(path, PAYLOADS)
    return path


def test_tensorflows_own_file_is_read_and_written_byte_for_byte(tmp_path: Path) -> None:
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    theirs.write_bytes(golden("tfrecord_frame")["tfrecord_bytes"].tobytes())
    records = records_of(theirs)
    assert len(records) == 5
    assert write_shard(ours, records) == 5
    assert ours.read_bytes() == theirs.read_bytes()


def test_a_real_shard_is_read_and_written_byte_for_byte(tmp_path: Path) -> None:
    theirs, ours = data_file("yt8m_frame/extracted_141_frames.tfrecord"), tmp_path / "ours"
    write_shard(ours, records_of(theirs))
    assert ours.read_bytes() == theirs.read_bytes()


def test_crc_is_the_published_one() -> None:
    # RFC 3720, B.4: the CRC-32C of 32 zero bytes; then the mask by hand.
    crc = 0x8A9136AA
    assert masked_crc(bytes(32)) == ((crc >> 15 | crc << 17) + 0xA282EAD8) % 2**32


@given(st.lists(st.binary(max_size=200), min_size=1, max_size=20))
def test_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, records: list[bytes]) -> None:
    path = tmp_path_factory.getbasetemp() / "round_trip.tfrecord"
    assert write_shard(path, iter(records)) == len(records)
    assert records_of(path) == payloads_in_one_walk(path) == records


def test_offsets_are_where_the_records_begin(shard: Path) -> None:
    assert ShardFile(shard).offsets().tolist() == BEGINS
    assert [record.offset for record in ShardFile(shard).records()] == BEGINS
    assert shard.stat().st_size == SIZE


@either_way
@pytest.mark.parametrize("size", range(SIZE))
def test_a_cut_shard_is_refused_or_a_shorter_valid_one(shard: Path, size: int, read: Read) -> None:
    shard.write_bytes(shard.read_bytes()[:size])
    if size in BEGINS[1:]:
        # Nothing in the format tells this from a complete file; the manifest's size does.
        assert read(shard) == PAYLOADS[: BEGINS.index(size)]
        return
    with pytest.raises(DataError) as caught:
        read(shard)
    assert caught.value.file == str(shard)
    if size:
        assert caught.value.offset == max(begin for begin in BEGINS if begin < size)


@either_way
@pytest.mark.parametrize("position", range(SIZE))
def test_every_flipped_bit_is_refused_with_its_place(shard: Path, position: int, read: Read) -> None:
    whole = shard.read_bytes()
    number = max(index for index, begin in enumerate(BEGINS) if begin <= position)
    for bit in range(8):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << bit
        shard.write_bytes(damaged)
        with pytest.raises(DataError) as caught:
            read(shard)
        error = caught.value
        assert (error.file, error.record, error.offset) == (str(shard), number, BEGINS[number])
        assert f"{shard}, record {number}, byte {BEGINS[number]}: " in str(error)


def test_an_absurd_length_is_refused_before_anything_is_read(shard: Path) -> None:
    length = struct.pack("<Q", 2**63)
    shard.write_bytes(length + struct.pack("<I", masked_crc(length)) + bytes(100))
    with pytest.raises(DataError, match="truncated"):
        ShardFile(shard).offsets()


def test_an_empty_file_is_no_shard(tmp_path: Path) -> None:
    path = tmp_path / "empty"
    path.touch()
    with pytest.raises(DataError, match=r"empty: is empty, so it is not a shard"):
        ShardFile(path).offsets()


def test_a_text_file_is_no_shard(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("These are notes, not records.\n" * 10)
    with pytest.raises(DataError, match=r"is text, not a TFRecord file; `reeltag data import .*notes\.txt"):
        ShardFile(path).offsets()


@pytest.mark.parametrize("name", ["missing", "."])
def test_what_cannot_be_opened_is_a_data_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="cannot be read") as caught:
        ShardFile(tmp_path / name).offsets()
    assert caught.value.file == str(tmp_path / name)


def test_a_pickled_shard_reads_again(shard: Path) -> None:
    file = ShardFile(shard)
    assert file.record(0, 0).payload == PAYLOADS[0]
    again = pickle.loads(pickle.dumps(file))
    assert again.record(BEGINS[2], 2).payload == PAYLOADS[2]


def test_a_shard_that_is_cut_while_it_is_open_is_a_data_error(shard: Path) -> None:
    file = ShardFile(shard)
    assert file.record(0, 0).payload == PAYLOADS[0]
    os.truncate(shard, BEGINS[2] + 15)
    assert file.record(BEGINS[1], 1).payload == PAYLOADS[1]
    with pytest.raises(DataError, match=r"record 2, byte 37: truncated: 6 bytes are missing"):
        file.record(BEGINS[2], 2)


def test_the_memory_of_a_walk_is_one_record(tmp_path: Path) -> None:
    write_shard(tmp_path / "shard", (bytes([number]) * 100_000 for number in range(50)))
    tracemalloc.start()
    sizes = {len(record.payload) for record in ShardFile(tmp_path / "shard").records()}
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sizes == {100_000}
    assert peak < 2.5 * 100_000  # the record, and the one that is being read


def test_a_shard_that_nobody_reads_any_more_is_closed(shard: Path) -> None:
    first = os.open(shard, os.O_RDONLY)
    os.close(first)  # the number that the system gives next
    for _ in range(3):
        assert ShardFile(shard).record(0, 0).payload == PAYLOADS[0]
    again = os.open(shard, os.O_RDONLY)
    os.close(again)
    assert again == first


@pytest.mark.parametrize("before", [None, b"an earlier shard"])
def test_a_failed_write_leaves_what_was_there(tmp_path: Path, before: bytes | None) -> None:
    path = tmp_path / "shard.tfrecord"
    if before is not None:
        path.write_bytes(before)

    def failing() -> Iterator[bytes]:
        yield b"one"
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        write_shard(path, failing())
    assert [file.read_bytes() for file in tmp_path.iterdir()] == ([] if before is None else [before])


def test_a_write_that_the_system_refuses_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="cannot be written"):
        write_shard(tmp_path / "file" / "shard.tfrecord", PAYLOADS)
