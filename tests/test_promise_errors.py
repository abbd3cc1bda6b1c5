"""Every error of data names file, record, byte offset and reason, wherever it is found."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from multiprocessing import active_children
from pathlib import Path

import numpy as np
import pytest
import torch

from badshards import FORGIVEN, KINDS, NEED_LABELS, REPEATED, SCHEMA, make_case, video_of
from conftest import encode_unchecked, make_video
from reeltag.artifact.file import Artifact, Member, save_artifact
from reeltag.cli.main import main
from reeltag.core.errors import DataError, RequestError
from reeltag.core.progress import Progress
from reeltag.data.formats.example import encode
from reeltag.data.formats.protos import SequenceExample
from reeltag.data.formats.tfrecord import ShardFile, frame_record, write_shard
from reeltag.data.holdout import refuse_overlap
from reeltag.data.loader import sequential_batches, training_batches
from reeltag.data.sampler import Shuffle
from reeltag.data.schema import Schema
from reeltag.data.shards import Shards, read_examples, scan
from reeltag.data.soft_targets import SoftTargets, TargetsWriter
from reeltag.inference.predictor import load
from reeltag.inference.shard_tagger import predict_to_file
from reeltag.models.families import parse_config
from reeltag.models.tagger import build_tagger
from reeltag.pipeline import executor
from reeltag.pipeline.stages.data import data_stages
from reeltag.recipe.load import load_recipe
from reeltag.serve.limits import Limits
from reeltag.serve.requests import RECORDS, parse
from reeltag.serve.samples import read_samples
from reliability import Promise

FLOATS = SCHEMA.model_copy(update={"dtype": "float32"})


def float_record(value: float) -> bytes:
    video = make_video(FLOATS, 3, [1], "floats")
    frames = video.features[0].copy()
    frames[1, 2] = value
    return frame_record(encode_unchecked(replace(video, features=(frames, video.features[1])), FLOATS))


def with_id(name: bytes) -> bytes:
    message = SequenceExample.FromString(encode(video_of("x"), SCHEMA))
    message.context.feature["id"].bytes_list.value[:] = [name]
    return frame_record(message.SerializeToString())


MORE: dict[str, Callable[[str], bytes]] = {
    "the id b'caf\\xe9' is not UTF-8": lambda name: with_id(b"caf\xe9"),
    "CRC of the length does not match": lambda name: b"\x01" + frame_record(b"")[1:],
    "bytes are missing": lambda name: frame_record(bytes(10**6))[:12],
}
IN_FLOATS: dict[str, Callable[[str], bytes]] = {
    "NaN or infinite values": lambda name: float_record(np.nan),
    "or some beyond ±1e+15": lambda name: float_record(-1e16),
    "'rgb', frame 0: is a bytes_list, expected a float_list": lambda name: frame_record(encode(video_of("x"), SCHEMA)),
}


@dataclass(frozen=True)
class Fault:
    """A shard of sound records with one bad one.

    Attributes:
        path: of the shard.
        record: number of the bad one.
        offset: where it begins.
        reason: part of what has to be said.
        schema: of the records.
    """

    path: Path
    record: int
    offset: int
    reason: str
    schema: Schema


def make_fault(folder: Path, reason: str, rng: random.Random) -> Fault:
    schema = FLOATS if reason in IN_FLOATS else SCHEMA
    number = rng.randrange(1, 9)
    names = [f"video-{n}" for n in range(9)]
    sound = [frame_record(encode(make_video(schema, 2 + n % 4, [n % 8], name), schema)) for n, name in enumerate(names)]
    bad = (KINDS | MORE | IN_FLOATS)[reason](names[0])
    before, path = b"".join(sound[:number]), folder / "bad.tfrecord"
    path.write_bytes(before + bad + b"".join(sound[number:]))
    return Fault(path, number, len(before), reason, schema)


def model_for(folder: Path, schema: Schema) -> Path:
    config = parse_config({"family": "mean", "hidden": 3})
    state = build_tagger(config, schema.widths, schema.classes, 0).state_dict()
    save_artifact(folder / "m.reeltag", Artifact(schema, None, (Member("a", config, 1.0, state),), {}))
    return folder / "m.reeltag"


LIMITS = Limits(max_batch=8, max_body=10**7, max_frames=1000, timeout=1.0, max_waiting=8)
RECIPE = """name = "r"
budget_mb = 1
[data]
root = "%s"
train = ["bad.tfrecord"]
test = ["bad.tfrecord"]
[data.schema]
features = [{ name = "rgb", width = 6 }, { name = "audio", width = 2 }]
classes = 8
max_frames = 9
dtype = "%s"
[models.a]
family = "mean"
"""


def staged(fault: Fault, folder: Path) -> None:
    (folder / "r.toml").write_text(RECIPE % (folder, fault.schema.dtype))
    executor.run(data_stages(load_recipe(folder / "r.toml"), False), folder / "out", Progress())


def tagged(fault: Fault, folder: Path, workers: int) -> None:
    predict_to_file(model_for(folder, fault.schema), [str(fault.path)], folder / "p.csv", workers=workers)


def tagged_by_two(fault: Fault, folder: Path) -> None:
    write_shard(folder / "good.tfrecord", [encode(make_video(fault.schema, 2, [1], "good"), fault.schema)])
    patterns = [str(folder / "good.tfrecord"), str(fault.path)]
    predict_to_file(model_for(folder, fault.schema), patterns, folder / "p.csv", workers=2)


WAYS: dict[str, Callable[[Fault, Path], object]] = {
    "scan": lambda fault, folder: scan([fault.path], fault.schema, labelled=True),
    "read_all": lambda fault, folder: list(read_examples([fault.path], fault.schema, labelled=True)),
    "a run": staged,
    "predict --out": lambda fault, folder: tagged(fault, folder, 1),
    "predict_shards": lambda fault, folder: list(
        load(model_for(folder, fault.schema)).predict_shards([str(fault.path)], labelled=True)
    ),
    "samples": lambda fault, folder: read_samples([fault.path], fault.schema),
    "predict --out --workers 2": tagged_by_two,
}
# Faults of records that have no id, or whose bytes tell none.
NAMELESS = (
    "CRC of the payload does not match",
    "is not a valid SequenceExample",
    "no feature 'rgb'",
    "no id",
    "occurs already in record",  # the reason says which
    "CRC of the length does not match",
    "bytes are missing",
)
WITHOUT_LABELS = ("predict --out", "samples", "predict --out --workers 2")
WITH_IDS = ("scan", "a run")  # where a repeated id is bad


def applies(way: str, reason: str) -> bool:
    if reason in FORGIVEN:
        return "predict --out" not in way
    return (reason != NEED_LABELS or way not in WITHOUT_LABELS) and (reason != REPEATED or way in WITH_IDS)


def test_every_fault_in_every_way_of_reading_has_its_place(promise: Promise, tmp_path: Path) -> None:
    reasons = [*KINDS, *MORE, *IN_FLOATS]
    pairs = [(way, reason) for way in WAYS for reason in reasons if applies(way, reason)]
    few = [pair for number, pair in enumerate(pairs) if "workers" not in pair[0] or number % 16 == 0]
    seeds = promise.amount(1, 3)
    tried = 0
    for seed in range(seeds):
        for number, (way, reason) in enumerate(pairs if promise.in_full and not seed else few):
            folder = tmp_path / f"{seed}-{number}"
            folder.mkdir()
            fault = make_fault(folder, reason, random.Random(f"{seed} {number}"))
            with pytest.raises(DataError, match=re.escape(reason)) as caught:
                WAYS[way](fault, folder)
            error = caught.value
            assert (error.file, error.record, error.offset) == (str(fault.path), fault.record, fault.offset), way
            place = f"{error.file}, record {error.record}, byte {error.offset}: "
            assert str(error) == place + (f"video {error.id!r}: " if error.id is not None else "") + error.reason
            assert (error.id is None) == (reason in NAMELESS)
            tried += 1
    promise.found(
        5,
        f"{tried} cases: {len(reasons)} kinds of faults, found by {len(WAYS)} ways of reading; besides these, loader "
        "processes, soft targets, overlapping splits, requests to the service and the commands. A fault of a whole "
        "file, such as one that is missing or empty, has no record to name",
    )


@pytest.mark.parametrize("command", ["predict", "evaluate", "verify"])
def test_commands_print_the_place(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for reason in (*KINDS, *MORE):
        if reason == REPEATED or (reason == NEED_LABELS and command != "evaluate"):
            continue
        if reason in FORGIVEN and command == "predict":
            continue
        fault = make_fault(tmp_path, reason, random.Random(reason))
        model = model_for(tmp_path, fault.schema)
        (tmp_path / "r.toml").write_text(RECIPE % (tmp_path, fault.schema.dtype))
        verify = ["data", "verify", "--schema", str(tmp_path / "r.toml")]
        assert main([*(verify if command == "verify" else [command, str(model)]), str(fault.path)]) == 2
        printed = capsys.readouterr().err
        assert f"error: {fault.path}, record {fault.record}, byte {fault.offset}: " in printed
        assert reason in printed
        assert "Traceback" not in printed


def test_a_first_record_that_is_nothing_is_shown_with_its_place(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "s").write_bytes(frame_record(b"These are notes."))
    assert main(["data", "inspect", str(tmp_path / "s")]) == 2
    assert f"error: {tmp_path / 's'}, record 0, byte 0: is neither" in capsys.readouterr().err


@pytest.mark.parametrize("reason", [reason for reason in (*KINDS, *MORE) if applies("samples", reason)])
def test_a_request_is_told_record_and_byte(reason: str, tmp_path: Path) -> None:
    fault = make_fault(tmp_path, reason, random.Random(reason))
    with pytest.raises(RequestError, match=rf"^record {fault.record}, byte {fault.offset}: .*") as caught:
        parse(RECORDS[0], {}, fault.path.read_bytes(), fault.schema, LIMITS)
    assert reason in str(caught.value)
    assert caught.value.status == 400


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("training", [False, True])
def test_a_loader_tells_the_place_of_what_changed(tmp_path: Path, workers: int, training: bool) -> None:
    others = set(active_children())
    case = make_case(tmp_path, random.Random(1), kinds=())
    manifest = scan(case.bad, SCHEMA)
    content, offset = bytearray(case.bad[1].read_bytes()), int(ShardFile(case.bad[1]).offsets()[7])
    content[offset + 60] ^= 1
    case.bad[1].write_bytes(content)
    everything = np.arange(len(manifest))
    with pytest.raises(DataError, match="CRC of the payload does not match") as caught:
        if training:
            list(
                training_batches(
                    Shards(manifest), everything, shuffle=Shuffle(1), batch_size=4, steps=range(9), workers=workers
                )
            )
        else:
            list(sequential_batches(Shards(manifest), batch_size=4, workers=workers))
    assert (caught.value.file, caught.value.record, caught.value.offset) == (str(case.bad[1]), 7, offset)
    assert set(active_children()) <= others, "loader processes outlived the error"


@pytest.mark.parametrize("workers", [0, 2])
def test_soft_targets_tell_the_place_of_the_video_that_has_none(tmp_path: Path, workers: int) -> None:
    case = make_case(tmp_path, random.Random(1), kinds=("no id", "0 frames"))
    manifest = scan(case.bad, SCHEMA, max_bad_records=2)
    writer = TargetsWriter(tmp_path / "targets", manifest, 3)
    taught = np.delete(np.arange(len(manifest)), 20)
    writer.put(taught, torch.rand(len(taught), SCHEMA.classes))
    writer.finish({})
    targets = SoftTargets(tmp_path / "targets", manifest)
    with pytest.raises(DataError, match="has no soft targets") as caught:
        list(
            training_batches(
                Shards(manifest),
                np.arange(len(manifest)),
                shuffle=Shuffle(0),
                batch_size=6,
                steps=range(6),
                targets=targets.rows,
                workers=workers,
            )
        )
    expected = Shards(manifest).location(20)
    assert (caught.value.file, caught.value.record, caught.value.offset) == expected
    assert ShardFile(Path(expected[0])).offsets()[expected[1]] == expected[2]


def test_a_video_in_both_splits_is_told_with_its_place(tmp_path: Path) -> None:
    case = make_case(tmp_path, random.Random(1), kinds=("no id",))
    train = scan(case.clean[:2], SCHEMA)
    test = scan([case.bad[1]], SCHEMA, max_bad_records=1)
    with pytest.raises(DataError, match="12 test videos are training videos too") as caught:
        refuse_overlap(train, test)
    error = caught.value
    assert error.file == str(case.bad[1])
    assert ShardFile(case.bad[1]).offsets()[error.record] == error.offset


@pytest.mark.parametrize("content", [None, b""])
def test_a_fault_of_a_whole_file_names_the_file(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "s.tfrecord"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=r"cannot be read|is empty") as caught:
        scan([path], SCHEMA)
    assert (caught.value.file, caught.value.record) == (str(path), None)
