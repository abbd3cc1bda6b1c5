"""Odd but valid records are read for what they are, and predictions are finite; the rest is refused and says why."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from oddrecords import BYTES, FLOATS, ODD, REFUSED, by_protobuf
from reeltag.core.errors import DataError, UsageError
from reeltag.data.flat_videos import is_flat
from reeltag.data.formats.example import Video, decode
from reeltag.data.loader import stream_batches
from reeltag.data.schema import Schema
from reeltag.inference.ensemble import Predictions, predict_batches
from reeltag.inference.formats.table import output_format
from reliability import PAGE, Promise
from small_models import ALL, OPTIONS, in_mode, small_artifact


@pytest.mark.parametrize("kind", ODD)
def test_an_odd_record_is_what_the_protobuf_library_reads(kind: str) -> None:
    schema, content = ODD[kind]
    video, expected = decode(content, schema), by_protobuf(schema, content)
    assert video.id == expected["id"]
    assert (None if video.labels is None else video.labels.tolist()) == expected["labels"]
    assert [np.ascontiguousarray(frames).tobytes() for frames in video.features] == expected["features"]
    assert video.length + video.cut == {"more frames than the schema allows": 57}.get(kind, video.length)


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_refused_says_why(kind: str) -> None:
    schema, content, reason = REFUSED[kind]
    with pytest.raises(DataError, match=re.escape(reason)):
        decode(content, schema)


def test_the_page_names_every_kind() -> None:
    page = PAGE.read_text()
    assert [kind for kind in (*ODD, *REFUSED) if f"| {kind} |" not in page] == []


def videos_by_schema() -> dict[Schema, list[Video]]:
    found: dict[Schema, list[Video]] = defaultdict(list)
    for schema, content in ODD.values():
        found[schema].append(decode(content, schema))
    return found


def test_predictions_of_odd_records_are_finite_in_every_family(promise: Promise) -> None:
    modes = ("exact", "bf16", "small", "fast") if promise.in_full else ("exact",)
    options = [{}, *OPTIONS.values()] if promise.in_full else [{}]
    models = 0
    for family, form in ALL:
        for chosen in options:
            ensemble = small_artifact(family, form, **chosen)
            for mode in modes:
                model = in_mode(ensemble, mode).model
                models += 1
                for schema, videos in videos_by_schema().items():
                    for size in (64, 1):  # side by side, and each alone
                        for part in predict_batches(model, stream_batches(videos, schema, size)):
                            assert torch.isfinite(part.probabilities).all(), (family, form, chosen, mode, part.ids)
                            assert ((part.probabilities >= 0) & (part.probabilities <= 1)).all()
    promise.found(
        7,
        f"{len(ODD)} kinds are read as the protobuf library reads them, {len(REFUSED)} are refused and say why (the "
        f"tables below); predictions of {models} models are finite, of all records side by side and of each alone",
    )


def test_the_largest_values_still_tell_frames_apart() -> None:
    """A frame whose squares overflowed would be scaled to zeros, and tagged like an empty one."""
    model = in_mode(small_artifact(*ALL[0]), "exact").model
    videos = [decode(ODD[kind][1], FLOATS) for kind in ("floats of ±1e15, the largest", "floats of zero")]
    (part,) = predict_batches(model, stream_batches(videos, FLOATS, 2))
    assert not torch.equal(part.probabilities[0], part.probabilities[1])
    predictor = in_mode(replace(small_artifact(*ALL[0]), schema=FLOATS), "exact")
    with pytest.raises(UsageError, match="some beyond"):
        predictor.predict(np.full((3, 16), 1e16, np.float32))


def test_frames_that_are_all_the_same_are_flat_and_no_others() -> None:
    for kind in ("frames of zeros", "frames of 255", "frames that are all the same"):
        assert is_flat(decode(ODD[kind][1], BYTES), 0)
    assert not is_flat(decode(ODD["one frame"][1], BYTES), 0)
    assert not is_flat(decode(ODD["floats of ±1e15, the largest"][1], FLOATS), 0)


@pytest.mark.parametrize("ending", [".csv", ".jsonl"])
def test_odd_ids_come_back_from_what_is_written(tmp_path: Path, ending: str) -> None:
    import csv
    import json

    names = [decode(content, BYTES).id for kind, (schema, content) in ODD.items() if "id" in kind and schema is BYTES]
    path = tmp_path / f"p{ending}"
    part = Predictions(tuple(names), torch.rand(len(names), 9), None)
    output_format(path, BYTES).write(path, [part], list(map(str, range(9))))
    if ending == ".csv":
        with path.open(newline="", encoding="utf-8") as file:
            # csv reads NUL from Python 3.11 on
            rows = csv.reader(line.replace("\0", "<NUL>") for line in file)
            assert [row[0] for row in rows] == [name.replace("\0", "<NUL>") for name in names]
    else:
        with path.open(encoding="utf-8", newline="\n") as file:
            assert [json.loads(line)["id"] for line in file] == names
