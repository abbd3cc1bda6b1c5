"""Promise 9: every damaged tensor file is refused before it takes memory."""

import json
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch
from fuzz.forge import Tensor, decoded, plain, put_together, take_apart

import tensor_mutants as mutants
from reeltag.artifact.file import load_artifact, save_artifact
from reeltag.artifact.quantization.encodings import CodedTensor
from reeltag.artifact.quantization.sizes import ENCODINGS
from reeltag.core import tensorfile
from reeltag.core.errors import ArtifactError, UsageError
from reeltag.core.tensorfile import TensorFile
from reeltag.data.shards import Manifest
from reeltag.training import checkpoint
from small_models import CLASSES, FORMS, small_artifact

ROOM = 24 << 20  # most bytes by which the process that opens the mutants, of some kilobytes each, may grow
FAMILIES = ["netvlad", "dbof", "mean", "netfv", "rnn", "nextvlad", "attention", "rnn"]
# A model whose codes are stored with entropy coding, which saves too little of the others.
STREAMS = "streams.reeltag"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Write a small file of each encoding and of each family, an ensemble with label names, and one of streams."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("reeltag.artifact.quantization.sizes.MIN_ELEMENTS", 8)
        return written(tmp_path_factory.mktemp("models"))


def written(folder):
    paths = []
    for family, encoding in zip(FAMILIES, ENCODINGS, strict=True):
        paths.append(folder / f"{encoding}.reeltag")
        save_artifact(paths[-1], small_artifact(family, FORMS.get(family, [{}])[0], encoding))
    members = [
        replace(load_artifact(path).members[0], name=f"m{number}", weight=weight)
        for number, (path, weight) in enumerate(zip((*paths[:2], paths[-1]), (0.5, 0.25, 0.25), strict=True))
    ]
    one = load_artifact(paths[0])
    names = tuple(f"Klasse {number} é" for number in range(CLASSES))
    provenance = {"recipe": "x", "versions": {"reeltag": "0"}, "holdout_gap": {"file": 0.5}, "list": [1, [2.5, None]]}
    together = replace(one, members=tuple(members), label_names=names, provenance=provenance)
    save_artifact(folder / "ensemble.reeltag", together)
    both = [
        small_artifact("mean", {}, encoding, hidden=hidden).members[0]
        for encoding, hidden in (("uniform-8", 600), ("coded", 150))
    ]
    streams = [replace(each, name=name, weight=0.5) for each, name in zip(both, "ab", strict=True)]
    save_artifact(folder / STREAMS, replace(one, members=tuple(streams)))
    return [*paths, folder / "ensemble.reeltag", folder / STREAMS]


def test_every_mutant_without_recomputed_checksums_is_refused(models, tiny_manifests, promise):
    damage, kept = [mutants.blind, mutants.by_hand], intermediates(models[0].parent, tiny_manifests["train"])
    count, few, forged = promise.amount(400, 50_100), promise.amount(40, 3_000), promise.amount(300, 20_000)
    streams, coded = promise.amount(60, 50_000), [mutants.write_coded(models[0].with_name("arrays"))]
    jobs = [
        (mutants.predicts, models, damage, count, 0),
        *((opener, [path], damage, few, 1) for path, opener in kept),
        (mutants.predicts, models, [mutants.sealed], forged, 2),
        (mutants.reads_exactly, coded, [mutants.recoded], streams, 3),
    ]
    with ProcessPoolExecutor(
        1, mp_context=get_context("spawn")
    ) as pool:  # a process of its own, in which no other test raised the peak of memory
        *damaged, sealed, recoded = pool.submit(mutants.try_each, jobs).result(timeout=1200)
    assert [opened for _, opened, _, _ in damaged] == [[]] * len(damaged)
    refused = [refused for refused, _, _, _ in damaged]
    assert sum(refused) > 0.99 * (count + few * len(kept))  # a few mutants equal the file
    assert sealed[0] > 0.5 * forged
    assert recoded[0] > 0.7 * streams
    growth = sum(grown for _, _, _, grown in (*damaged, sealed, recoded))
    assert growth < ROOM
    slowest = max(seconds for _, _, seconds, _ in (*damaged, sealed, recoded))
    promise.found(
        9,
        f"{refused[0]:,} mutants of {len(models)} models in {len(ENCODINGS)} encodings and {sum(refused[1:]):,} of a "
        f"checkpoint, predictions and a manifest: all refused, the file named; {forged:,} with recomputed checksums: "
        f"{sealed[0]:,} refused, {len(sealed[1]):,} are models that tag; {streams:,} of coded arrays: "
        f"{recoded[0]:,} refused, {len(recoded[1]):,} read exactly; slowest {slowest:.2f} s, "
        f"and the process grew by {growth / 2**20:.1f} MiB",
    )


def intermediates(folder, manifest):
    """Return the intermediate files of a run and the functions that open them."""
    weights = {"a": torch.rand(9, 4), "b": torch.rand(4)}
    state = checkpoint.TrainingState(7, weights, {"a/exp_avg": torch.rand(9, 4)}, {"a": torch.zeros(9, 4)})
    checkpoint.save(folder / "checkpoint.safetensors", state)
    predictions = {"float32": torch.rand(20, 9), "labels": torch.rand(20, 9) < 0.3}
    tensorfile.save_tensors(folder / "predictions.safetensors", predictions, {"videos": 20})
    manifest.save(folder / "manifest.safetensors")
    return [
        (folder / "checkpoint.safetensors", checkpoint.load),
        (folder / "predictions.safetensors", tensorfile.load_tensors),
        (folder / "manifest.safetensors", Manifest.load),
    ]


def test_the_safetensors_library_reads_and_writes_the_same_bytes(models, tiny_manifests):
    for path in [*models, *(path for path, _ in intermediates(models[0].parent, tiny_manifests["train"]))]:
        file, content = TensorFile(path), path.read_bytes()
        with safetensors.safe_open(path, "np") as peer:
            arrays = {name: peer.get_tensor(name) for name in peer.keys()}  # noqa: SIM118 - not a dict
            assert safetensors.numpy.save(arrays, peer.metadata()) == content
        assert arrays.keys() == set(file.names)
        coded = take_apart(content)[1].get("coded", {})
        assert bool(coded) == (path.name == STREAMS)
        for name, array in arrays.items():
            if name in coded:
                dtype = {"U8": np.uint8, "I8": np.int8}[coded[name]["dtype"]]
                array = np.frombuffer(decoded(coded[name], array.tobytes()), dtype).reshape(coded[name]["shape"])
            np.testing.assert_array_equal(file.read(name), array)
            assert file.read(name).dtype == array.dtype


def test_a_file_written_by_the_documented_format_has_the_same_bytes(models):
    for path in models:
        tensors, content = take_apart(path.read_bytes())
        assert put_together(tensors, plain(content)) == path.read_bytes()


def test_coded_weights_are_among_the_streams(models):
    tensors, content = take_apart(models[-1].read_bytes())
    kinds = {name.partition("/")[0]: coded["dtype"] for name, coded in content["coded"].items()}
    assert kinds == {"a": "U8", "b": "I8"}
    assert tensors["b/hidden.weight"].dtype == "U8" and tensors["b/hidden.weight#steps"].dtype == "F16"
    coded = load_artifact(models[ENCODINGS.index("coded")]).members[0].state
    assert {value.outputs_first for value in coded.values() if isinstance(value, CodedTensor)} == {True, False}


def test_codes_are_memory_mapped_and_floats_are_copied(models):
    file = TensorFile(models[ENCODINGS.index("uniform-8")])
    kinds = {(tensor := tensorfile.read_tensor(file, name)).dtype: tensor for name in file.names}
    assert set(kinds) == {torch.uint8, torch.float32}
    assert is_mapped(kinds[torch.uint8])
    assert not is_mapped(kinds[torch.float32])


def is_mapped(tensor):
    for line in Path("/proc/self/maps").read_text().splitlines():
        begin, end = (int(number, 16) for number in line.split()[0].split("-"))
        if begin <= tensor.data_ptr() < end:
            return line.endswith(".reeltag")
    raise AssertionError("no memory mapping holds the tensor")


@pytest.mark.parametrize(
    ("length", "message"),
    [
        (2**63, "is truncated, or not a reeltag file"),
        (2_000_000, "has a header of 2,000,000 bytes; at most 1,000,000 are allowed"),
        (0, "is not a reeltag file"),
    ],
)
def test_a_forged_length_is_refused_before_the_header_is_read(tmp_path, length, message):
    path = tmp_path / "forged.reeltag"
    with path.open("wb") as file:
        file.write(length.to_bytes(8, "little"))
        file.truncate(3_000_000_000)  # a sparse file: reading it would take 3 GB of memory
    with pytest.raises(ArtifactError, match=rf"forged\.reeltag: {message}"):
        load_artifact(path)


SIZES = {
    "hidden": lambda c: c["members"][0]["config"].update(hidden=10**9),
    "hidden beyond 64 bits": lambda c: c["members"][0]["config"].update(hidden=2**70),
    "classes": lambda c: c["data"].update(classes=10**12),
    "classes beyond 64 bits": lambda c: c["data"].update(classes=10**30),
    "width": lambda c: c["data"]["features"][0].update(width=10**12),
    "features": lambda c: c["data"].update(features=[{"name": str(n), "width": 1} for n in range(20_000)]),
    "experts": lambda c: c["members"][0]["config"]["head"].update(experts=10**9),
    "groups": lambda c: c["members"][0]["config"].update(family="nextvlad", groups=10**6, expansion=1),
}


@pytest.mark.parametrize("size", SIZES)
def test_sizes_that_no_tensor_has_are_refused_despite_valid_checksums(models, tmp_path, size):
    tensors, content = take_apart(models[0].read_bytes())
    SIZES[size](content)
    path = tmp_path / "huge.reeltag"
    path.write_bytes(put_together(tensors, plain(content)))
    with pytest.raises(ArtifactError, match=r"huge\.reeltag: (the weights .* do not fit|needs another|.* any memory)"):
        load_artifact(path)


def test_weights_that_are_not_finite_are_refused(models, tmp_path):
    tensors, content = take_apart(models[0].read_bytes())
    name = next(name for name, tensor in tensors.items() if tensor.dtype == "F32")
    tensor = tensors[name]
    tensors[name] = Tensor("F32", tensor.shape, tensor.data[:-4] + np.float32(np.nan).tobytes())
    (tmp_path / "nan.reeltag").write_bytes(put_together(tensors, plain(content)))
    with pytest.raises(ArtifactError, match=rf"tensor {name} is not finite"):
        load_artifact(tmp_path / "nan.reeltag")


def test_a_file_of_the_first_format_is_refused(tmp_path):
    text = json.dumps({"checksum": 1, "content": {"format": 1, "members": []}})
    safetensors.numpy.save_file({"m/x": np.zeros(3, np.float32)}, tmp_path / "old.reeltag", {"reeltag": text})
    with pytest.raises(ArtifactError, match="is not a reeltag file, or is one of another version"):
        load_artifact(tmp_path / "old.reeltag")


def test_a_header_that_cannot_be_read_back_is_not_written(tmp_path):
    path = tmp_path / "x.safetensors"
    with pytest.raises(UsageError, match=r"the header takes 1.05 MB, of which at most 1,000,000 bytes are allowed"):
        tensorfile.write(path, {}, {"names": ["x" * 100] * 10_000})
    with pytest.raises(UsageError, match="is not finite"):
        tensorfile.write(path, {}, {"gap": float("nan")})
    assert not list(tmp_path.iterdir())
    tensorfile.write(path, {}, {1: "one", "numbers": {10: (1.5,), 9: ()}})
    assert TensorFile(path).content == {"1": "one", "numbers": {"10": [1.5], "9": []}}
