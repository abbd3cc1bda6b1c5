"""Make the files of this folder; each tries to run code, to fill memory or to hang the program that opens it.

`python tests/attacks/make.py` from the root of the repository writes them again. Code that runs would create the
file `canary` in the working directory.
"""

from __future__ import annotations

import gzip
import io
import pickle
import struct
import sys
import zipfile
from pathlib import Path

import numpy as np
import torch

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "support"), str(HERE.parent.parent)]

from fuzz.forge import Tensor, framed, plain, put_together, take_apart  # noqa: E402

from bundles import block, entry, field, message, table, varint  # noqa: E402
from reeltag.artifact.file import save_artifact  # noqa: E402
from reeltag.data.formats.tfrecord import frame_record as record  # noqa: E402
from small_models import small_artifact  # noqa: E402

ZEROS = 10_000_000  # bytes, which compress to some kilobytes


class Payload:
    """Object whose unpickling would create a file."""

    def __reduce__(self):
        """Return the call that unpickling makes."""
        return open, ("canary", "w")


def model():
    """Return the tensors and the header of a small valid model."""
    path = HERE / "model.tmp"
    save_artifact(path, small_artifact("mean", {}))
    content = path.read_bytes()
    path.unlink()
    return take_apart(content)


def models():
    """Yield names and bytes of files that pretend to be models."""
    yield "pickle.reeltag", pickle.dumps(Payload())
    archive = io.BytesIO()
    torch.save({"state_dict": {"x": torch.zeros(2)}, "hook": Payload()}, archive)
    yield "torch.reeltag", archive.getvalue()
    yield "length.reeltag", struct.pack("<Q", 2**63) + b"{}"
    claim = b'{"dtype":"F32","shape":[1099511627776],"data_offsets":[0,4398046511104]}'
    yield "claims.reeltag", framed(b'{"__metadata__":{"reeltag":"{}"},"x":' + claim + b"}")
    tensors, content = model()
    tensors["m/x"] = Tensor("F32", [2**40], b"")
    yield "claims-sealed.reeltag", put_together(tensors, plain(content))
    tensors, content = model()
    content["members"][0]["config"]["hidden"] = 10**9
    content["data"]["classes"] = 10**9
    yield "sizes-sealed.reeltag", put_together(tensors, plain(content))
    tensors, content = model()
    deep = '{"x":' * 20_000 + "1" + "}" * 20_000
    yield (
        "nesting-sealed.reeltag",
        put_together(tensors, plain(content).replace('"provenance":{', f'"provenance":{{"x":{deep}', 1)),
    )
    tensors, content = model()
    odd = "<script>alert(1)</script> [x](javascript:alert(1)) \x1b]0;x\x07 `\n---\nlicense: mit\n"
    content["members"][0]["name"] = odd.replace("/", "")
    tensors = {f"{odd.replace('/', '')}/{name.partition('/')[2]}": tensor for name, tensor in tensors.items()}
    content["provenance"] = {"recipe": odd, "data": {"shards": [odd], "videos": 3}}
    content["label_names"] = [f"{number} {odd}" for number in range(content["data"]["classes"])]
    content["data"]["features"][0]["name"] = odd
    yield "names-sealed.reeltag", put_together(tensors, plain(content))


def arrays():
    """Yield an array of soft targets that holds Python objects."""
    file = io.BytesIO()
    np.save(file, np.array([[Payload()]], dtype=object), allow_pickle=True)
    yield "objects.npy", file.getvalue()


def recipes():
    """Yield recipes with code, with huge numbers, or with deep nesting."""
    head = 'name = "x"\nbudget_mb = 1\n[data.synthetic]\n[models.a]\nfamily = '
    call = "__import__('builtins').open('canary', 'w')"
    yield "tag.toml", f"{head}!!python/object/apply:builtins.open ['canary', 'w']\n".encode()
    yield "call.toml", f'{head}"{call}"\nhidden = "{{{{{call}}}}}"\n'.encode()
    yield "number.toml", f"name = {'9' * 100_000}\n".encode()
    yield "nesting.toml", f"name = {'[' * 20_000}{']' * 20_000}\n".encode()
    yield "tables.toml", f"name = {'{a = ' * 20_000}1{'}' * 20_000}\n".encode()
    yield "dotted.toml", f"{'.'.join('a' * 20_000)} = 1\n".encode()


def shards():
    """Yield files that pretend to be shards."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("shard.tfrecord", bytes(ZEROS))
    yield "zip.tfrecord", archive.getvalue()
    yield "gzip.tfrecord", gzip.compress(bytes(ZEROS), mtime=0)
    length = struct.pack("<Q", 2**60)
    yield "length.tfrecord", length + crc(length) + b"short"
    # Groups are nested messages; a parser recurses into them even in unknown fields.
    yield "groups.tfrecord", record(b"\x0b" * 30_000 + b"\x0c" * 30_000)
    inner = b""
    for _ in range(3_000):
        inner = message(2, inner)
    yield "messages.tfrecord", record(inner)


def crc(content):
    """Return the masked CRC of TFRecord."""
    return record(content)[12 + len(content) :]


def bundles():
    """Yield TensorFlow checkpoints: an index file, some with a data file."""
    small = np.zeros(3, np.float32)
    yield (
        "shard.index",
        table(
            [(b"x", block([(b"", field(1, 0, varint(1))), (b"x", entry(small, 0) + field(3, 0, varint(2**64 - 1)))]))]
        ),
    )
    yield "shards.index", table([(b"x", block([(b"", field(1, 0, varint(2**31 - 1))), (b"x", entry(small, 0))]))])
    claim = field(1, 0, varint(1)) + message(2, message(2, field(1, 0, varint(2**60)))) + field(5, 0, varint(2**62))
    yield "claims.index", table([(b"x", block([(b"", field(1, 0, varint(1))), (b"../x", claim)]))])
    yield "claims.data-00000-of-00001", b"short"
    dims = b"".join(message(2, field(1, 0, varint(1))) for _ in range(5_000))
    many = field(1, 0, varint(4)) + message(2, dims) + field(5, 0, varint(1)) + field(6, 5, crc(b"x"))
    yield "dimensions.index", table([(b"x", block([(b"", field(1, 0, varint(1))), (b"x", many)]))])
    yield "dimensions.data-00000-of-00001", b"x"
    # Each key extends the previous one by a letter: some kilobytes describe 1 GB of keys.
    keys = b"".join(varint(length) + varint(1) + varint(0) + b"k" for length in range(45_000))
    yield "keys.index", table([(b"k", keys + struct.pack("<II", 0, 1))])
    # The index names the same block many times.
    header = (b"", field(1, 0, varint(1)))
    yield "again.index", table([(b"x", block([header, *((b"x%d" % n, b"") for n in range(9_000))]))], repeat=20_000)


def labels():
    """Yield class names with escape codes of terminals, HTML and Markdown."""
    odd = ["<script>alert(1)</script>", "[x](javascript:alert(1))", "\x1b[2J\x1b]0;x\x07", "a|b", "![x](http://x)"]
    rows = "".join(f'{number},"{name}"\n' for number, name in enumerate(odd))
    yield "labels.csv", f"index,name\n{rows}".encode()


def graphs():
    """Yield ONNX files: one with weights in an external file, one with an operator of a foreign library."""
    from onnx import TensorProto, helper

    weight = helper.make_tensor("w", TensorProto.FLOAT, [2], bytes(8), raw=True)
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    for key, value in {"location": "../../../../../../etc/passwd", "offset": "0", "length": "8"}.items():
        weight.external_data.add(key=key, value=value)
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])
    graph = helper.make_graph([helper.make_node("Identity", ["w"], ["y"])], "g", [], [y], [weight])
    yield (
        "elsewhere.onnx",
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString(),
    )
    odd = helper.make_graph([helper.make_node("Run", [], ["y"], domain="evil", library="./canary.so")], "g", [], [y])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("evil", 1)]
    yield "operator.onnx", helper.make_model(odd, opset_imports=opsets, ir_version=8).SerializeToString()


if __name__ == "__main__":
    torch.manual_seed(0)
    for maker in (models, arrays, recipes, shards, bundles, labels, graphs):
        for name, content in maker():
            (HERE / name).write_bytes(content)
            print(f"{name:<32} {len(content):>8,} bytes")
