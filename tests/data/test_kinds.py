"""The kind of a file by its content, of files that the formats' own libraries wrote."""

import gzip
import pickle
import tarfile
import zipfile
import zlib

import numpy as np
import pytest
import torch
import zstandard

from reeltag.core.errors import UsageError
from reeltag.data.formats import kinds
from reeltag.data.formats.protos import Example, SequenceExample
from reeltag.data.formats.tfrecord import write_shard


def _write(path, kind):
    message = SequenceExample()
    message.feature_lists.feature_list["rgb"].feature.add().float_list.value.append(1)
    contents = {
        "gzip": gzip.compress(b"x"),
        "zlib": zlib.compress(b"x" * 99, 9),
        "zstd": zstandard.compress(b"x"),
        "pickle": pickle.dumps({"rgb": [1]}),
        "Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
        "web page": b"\n<!DOCTYPE html><title>404</title>",
        "SequenceExample": message.SerializeToString(),
        "JSON": b'\xef\xbb\xbf{"id": 1}',
        "text": "id,é\n".encode(),
    }
    if kind in contents:
        path.write_bytes(contents[kind])
    elif kind == "HDF5":
        h5py = pytest.importorskip("h5py")
        with h5py.File(path, "w") as file:
            file["x"] = 1
    elif kind == ".npy":
        with path.open("wb") as file:
            np.save(file, np.zeros(3))
    elif kind == ".npz":
        with path.open("wb") as file:
            np.savez(file, rgb=np.zeros(3))
    elif kind == "Parquet":
        parquet = pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pytest.importorskip("pyarrow").table({"id": ["a"]}), path)
    elif kind == "Arrow":
        feather = pytest.importorskip("pyarrow.feather")
        feather.write_feather(pytest.importorskip("pyarrow").table({"id": ["a"]}), path)
    elif kind == "tar":
        with tarfile.open(path, "w") as file:
            file.add(__file__, "x")
    elif kind == "zip":
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("x.txt", "x")
    else:
        write_shard(path, [b"x"])


KINDS = [
    *("HDF5", ".npy", ".npz", "Parquet", "Arrow", "tar", "zip", "TFRecord", "gzip", "zlib", "zstd", "pickle"),
    *("Git LFS pointer", "web page", "SequenceExample", "JSON", "text"),
]


@pytest.mark.parametrize("kind", KINDS)
def test_the_kind_is_that_of_the_content_whatever_the_name(kind, tmp_path):
    _write(tmp_path / "x.tfrecord", kind)
    assert kinds.recognise(tmp_path / "x.tfrecord") == kind
    assert kinds.recognise_content((tmp_path / "x.tfrecord").read_bytes()) == kind


def test_other_forms_of_the_same_kinds(tmp_path):
    torch.save({"rgb": torch.zeros(3)}, tmp_path / "x.pt")
    assert kinds.recognise(tmp_path / "x.pt") == kinds.PICKLE
    pa = pytest.importorskip("pyarrow")
    table = pa.table({"id": ["a"]})
    with pa.ipc.new_stream(tmp_path / "x", table.schema) as writer:
        writer.write_table(table)
    assert kinds.recognise(tmp_path / "x") == kinds.ARROW
    message = Example()
    message.features.feature["id"].bytes_list.value.append(b"a")
    assert kinds.recognise_content(message.SerializeToString()) == kinds.MESSAGE
    assert kinds.recognise_content("id,é".encode("utf-16")) == kinds.TEXT


@pytest.mark.parametrize("content", [b"", b"\0\0\0", bytes(range(256)), b"\n\0", b" \n"])
def test_anything_else_has_no_kind(content, tmp_path):
    (tmp_path / "x").write_bytes(content)
    assert kinds.recognise(tmp_path / "x") is None


def test_a_file_that_cannot_be_read_is_an_error(tmp_path):
    with pytest.raises(UsageError, match="x: cannot be read"):
        kinds.recognise(tmp_path / "x")
    with pytest.raises(UsageError, match="cannot be read"):
        kinds.recognise(tmp_path)
