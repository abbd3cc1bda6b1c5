"""A damaged shard never crashes, hangs or fills memory, and is never read silently wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from conftest import REPO, golden, make_video
from reeltag.data.formats.example import Video, encode
from reeltag.data.formats.protos import SequenceExample
from reeltag.data.formats.tfrecord import write_shard
from reeltag.data.schema import Feature, Schema, preset_schema
from reliability import Promise

FRAMES = Schema(features=(Feature(name="rgb", width=24), Feature(name="audio", width=8)), classes=20, max_frames=40)
FLOATS = FRAMES.model_copy(update={"dtype": "float32"})
VECTORS = FLOATS.model_copy(update={"level": "video"})
LARGE = 64 * 2**20


def with_more(content: bytes) -> bytes:
    """The record with features that the schema does not name, as AudioSet's have."""
    message = SequenceExample.FromString(content)
    message.context.feature["start_time_seconds"].float_list.value.append(1.5)
    message.context.feature["other"].bytes_list.value.append(b"another name")
    message.feature_lists.feature_list["depth"].feature.add().float_list.value.extend([0.5, 2])
    return message.SerializeToString(deterministic=True)


def sources(folder: Path) -> dict[Path, Schema]:
    """Six small shards: bytes, floats and vectors, with more than the schema names, and one of TensorFlow's own."""

    def videos(schema: Schema, lengths: list[int]) -> list[Video]:
        labels: list[list[int] | None] = [[0, 3], [], None, [19]]
        made = [make_video(schema, n, labels[i % 4], f"video {i}") for i, n in enumerate(lengths)]
        if schema.dtype == "float32":
            return [replace(v, features=tuple((f / 16 - 8).astype(np.float32) for f in v.features)) for v in made]
        return made

    shards = {
        "short": (FRAMES, [encode(video, FRAMES) for video in videos(FRAMES, [1, 2, 3, 1, 5, 9, 2, 4])]),
        "long": (FRAMES, [encode(video, FRAMES) for video in videos(FRAMES, [40, 41, 90])]),
        "more": (FRAMES, [with_more(encode(video, FRAMES)) for video in videos(FRAMES, [3, 1, 7, 12])]),
        "floats": (FLOATS, [encode(video, FLOATS) for video in videos(FLOATS, [1, 4, 2, 6])]),
        "vectors": (VECTORS, [encode(video, VECTORS) for video in videos(VECTORS, [1] * 10)]),
    }
    paths = {}
    for name, (schema, records) in shards.items():
        paths[folder / f"{name}.tfrecord"] = schema
        write_shard(folder / f"{name}.tfrecord", records)
    (folder / "theirs.tfrecord").write_bytes(golden("tfrecord_frame")["tfrecord_bytes"].tobytes())
    return paths | {folder / "theirs.tfrecord": preset_schema("yt8m-frame")}


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc, which Linux has")
def test_damaged_shards_are_refused_or_read_for_what_they_hold(promise: Promise, tmp_path: Path) -> None:
    count = promise.amount(360, 60_000)
    shards = sources(tmp_path)
    plan = [
        {"path": str(path), "schema": schema.model_dump(mode="json"), "count": count // len(shards), "seed": number}
        for number, (path, schema) in enumerate(shards.items())
    ]
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    reader = REPO / "tests" / "support" / "shard_mutants.py"
    child = subprocess.run(
        [sys.executable, reader, tmp_path / "plan.json"], capture_output=True, text=True, timeout=600, check=False
    )
    assert child.returncode == 0, child.stderr[-3000:]
    found = json.loads(child.stdout)
    for each in found:
        assert each["slowest"] < 2
        assert each["grown"] <= each["bytes"] + LARGE
        assert len(each["outcomes"]) >= 29
        assert each["outcomes"]["refused"] > count // len(shards) // 2
    refused, unchanged = (sum(each["outcomes"][key] for each in found) for key in ("refused", "unchanged"))
    slowest = max(each["slowest"] for each in found)
    grown = max(each["grown"] for each in found)
    promise.found(
        3,
        f"{count:,} mutants of {len(shards)} shards by 27 kinds of damage, {unchanged} of which changed nothing; "
        f"{refused:,} refused without a manifest, the others whole records of the original or, where the checksum was "
        f"forged, what the protobuf library reads; with a manifest every change noticed; slowest {slowest:.2f} s, "
        f"memory grew by {grown / 2**20:.0f} MiB, most of it the copies of the test",
    )
