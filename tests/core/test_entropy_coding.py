"""Entropy coding: every array comes back, whatever coder, type, shape and number of threads; forged streams do not."""

import re
import struct
import tracemalloc

import numpy as np
import pytest
import zstandard
from fuzz.forge import Tensor, decoded, plain, put_together, take_apart
from hypothesis import given, settings
from hypothesis import strategies as st

from reeltag.core import entropy_coding, tensorfile
from reeltag.core.errors import ArtifactError
from reeltag.core.tensorfile import TensorFile
from tensor_mutants import coded_arrays, write_coded


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return write_coded(tmp_path_factory.mktemp("coded") / "coded")


def test_coded_arrays_are_what_was_written_and_take_the_bytes_that_the_header_says(file):
    opened, coded = TensorFile(file), take_apart(file.read_bytes())[1]["coded"]
    for name, array in coded_arrays().items():
        back = opened.read(name)
        assert (back.dtype, back.shape) == (array.dtype, array.shape) == (opened.dtype(name), opened.shape(name))
        assert back.tobytes() == array.tobytes()
        assert opened.is_coded(name) == (name in coded) == (name not in ("random", "float"))
        if name in coded:
            assert opened.stored_bytes(name) <= array.nbytes - 1000
            assert opened.stored_bytes(name) == max(np.sum(coded[name]["lengths"]), -(-array.nbytes // 1000))
        else:
            assert opened.stored_bytes(name) == array.nbytes
    assert {name: each["coder"] for name, each in coded.items()} == {
        "sparse": "digits", "digits": "digits", "zeros": "digits", "bytes": "zstd", "unsigned": "zstd", "half": "zstd"
    }  # fmt: skip
    assert opened.stored_bytes("zeros") == 100 > np.sum(coded["zeros"]["lengths"])


def test_a_reader_by_the_documented_format_reads_the_same(file):
    tensors, content = take_apart(file.read_bytes())
    for name, entry in content["coded"].items():
        assert decoded(entry, tensors[name].data) == coded_arrays()[name].tobytes()


@pytest.mark.parametrize("cpus", [1, 3])
def test_the_bytes_depend_neither_on_the_threads_nor_on_other_arrays(file, tmp_path, monkeypatch, cpus):
    monkeypatch.setattr(entropy_coding, "available_cpus", lambda: cpus)
    assert write_coded(tmp_path / "again").read_bytes() == file.read_bytes()
    tensorfile.write(tmp_path / "one", {"other": coded_arrays()["bytes"]}, {}, compress=True)
    tensors, _ = take_apart(file.read_bytes())
    assert take_apart((tmp_path / "one").read_bytes())[0]["other"] == tensors["bytes"]


def test_without_compression_nothing_is_coded(tmp_path):
    tensorfile.write(tmp_path / "plain", coded_arrays(), {"x": 1})
    tensors, content = take_apart((tmp_path / "plain").read_bytes())
    assert content == {"x": 1}
    assert {name: tensor.data for name, tensor in tensors.items()} == {
        name: array.tobytes() for name, array in coded_arrays().items()
    }


CODABLE = st.tuples(
    st.sampled_from(["int8", "uint8", "float16"]),
    st.integers(1, 5000),
    st.floats(0, 60),
    st.integers(0, 2**32 - 1),
)


@settings(max_examples=20)
@given(CODABLE)
def test_any_array_survives_every_coder(case):
    dtype, size, spread, seed = case
    values = np.rint(np.random.default_rng(seed).laplace(0, spread, size))
    array = (values if dtype == "float16" else values.astype(np.int64)).astype(dtype)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(entropy_coding, "CHUNK", 1024)
        for coder in entropy_coding.CODERS:
            if not entropy_coding.streams(coder, array.dtype):
                continue
            chunks = [entropy_coding._encode_chunk(coder, chunk) for chunk in entropy_coding._chunks(array)]
            stored = np.frombuffer(b"".join(map(b"".join, chunks)), np.uint8)
            out = np.full_like(array, 77)
            entropy_coding.decode(stored, coder, [list(map(len, chunk)) for chunk in chunks], out)
            assert out.tobytes() == array.tobytes()


ZEROS = bytes(7007)
SKIPPABLE = struct.pack("<II", 0x184D2A50, 4) + bytes(4)


def frame(content=ZEROS, **options):
    return zstandard.ZstdCompressor(**options).compress(content)


STREAMS = {
    "bytes after it": frame() + b"\0",
    "bytes missing": frame()[:-1],
    "nothing": b"",
    "another frame": frame(ZEROS[:7]) + frame(ZEROS[7:]),
    "an empty frame after it": frame() + frame(b""),
    "a skippable frame before it": SKIPPABLE + frame(),
    "a skippable frame after it": frame() + SKIPPABLE,
    "a skippable frame alone": struct.pack("<II", 0x184D2A50, 7007) + ZEROS,
    "an unknown size": frame(write_content_size=False),
    "another size": frame(ZEROS[1:]),
    "100 million bytes": frame(bytes(100_000_000)),
    "100 million bytes that claim to be 7007": frame(bytes(100_000_000)).replace(
        struct.pack("<I", 100_000_000), struct.pack("<I", 7007)
    ),
    "a dictionary": frame().replace(b"\x60", b"\x61\x09", 1),  # its identifier is 9
    "a window of 2 GiB": frame().replace(b"\x60", b"\x40\xa8", 1),
    "no frame": b"\xff" * 50,
}


@pytest.mark.parametrize("kind", STREAMS)
def test_a_stream_that_is_not_one_frame_of_the_right_size_is_refused_without_taking_memory(file, tmp_path, kind):
    tensors, content = take_apart(file.read_bytes())
    stream, entry = STREAMS[kind], content["coded"]["bytes"]
    entry["lengths"], tensors["bytes"] = [[len(stream)]], Tensor("U8", [max(8, len(stream))], stream.ljust(8, b"\0"))
    (tmp_path / "forged").write_bytes(put_together(tensors, plain(content)))
    opened = TensorFile(tmp_path / "forged")
    tracemalloc.start()
    try:
        opened.read("bytes")
        pytest.fail("the stream was read")
    except ArtifactError as error:
        _, most = tracemalloc.get_traced_memory()
        assert re.search(r"tensor bytes cannot be decoded \(.+\); the file is damaged, copy it again$", str(error))
    finally:
        tracemalloc.stop()
    assert most < 50_000


CLAIMS = {
    "more than a thousand bytes for one": {"shape": [7007 * 10_000]},
    "another length": {"lengths": [[4000]]},
    "no length": {"lengths": []},
    "a length too many": {"lengths": [[1, 4680]]},
    "a chunk too many": {"lengths": [[4681], [0]]},
    "a type without coder": {"dtype": "F32"},
    "a coder without the type": {"coder": "digits", "dtype": "U8", "lengths": [[4681, 0]]},
    "no elements": {"shape": [0, 2**47], "lengths": []},
}


@pytest.mark.parametrize("claim", CLAIMS)
def test_a_contradictory_header_is_refused_when_the_file_is_opened(file, tmp_path, claim):
    tensors, content = take_apart(file.read_bytes())
    content["coded"]["bytes"] |= CLAIMS[claim]
    (tmp_path / "forged").write_bytes(put_together(tensors, plain(content)))
    with pytest.raises(ArtifactError, match="the header's lengths of tensor bytes contradict each other"):
        TensorFile(tmp_path / "forged")


@pytest.mark.parametrize("table", [None, [], {"bytes": {}}, {"bytes": {"coder": "lzma"}}])
def test_a_table_of_a_later_version_is_refused(file, tmp_path, table):
    tensors, content = take_apart(file.read_bytes())
    (tmp_path / "later").write_bytes(put_together(tensors, plain(content | {"coded": table})))
    with pytest.raises(ArtifactError, match="stores arrays in a way that this version of reeltag does not know"):
        TensorFile(tmp_path / "later")


def test_bytes_after_the_streams_are_zeros(file, tmp_path):
    tensors, content = take_apart(file.read_bytes())
    tensors["zeros"].data = tensors["zeros"].data[:-1] + b"\1"
    (tmp_path / "forged").write_bytes(put_together(tensors, plain(content)))
    with pytest.raises(ArtifactError, match="checksum of tensor zeros, decoded, does not match"):
        TensorFile(tmp_path / "forged").read("zeros")
