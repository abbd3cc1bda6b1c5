"""Whatever is sent, the answer says what is wrong: a 4xx and one shape, and the service goes on."""

import base64
import io
import json
import logging

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conftest import make_video
from reeltag.data.formats.tfrecord import frame_record
from reeltag.inference.metrics.video_metrics import top_k
from reeltag.inference.predictor import load
from reeltag.inference.timeline import best_classes
from serving import FLOATS, SCHEMA, client, client_of, frames_of, post_records, predictor, record, write_model

__all__ = ["client", "predictor"]
GOOD = frames_of(3).tolist()
B64 = base64.b64encode(bytes(24)).decode()


def post_json(client, content, kind="application/json"):
    return client.post("/predict", content=content, headers={"Content-Type": kind})


def refuses(answer, status, *words):
    assert answer.status_code == status, answer.text
    assert list(answer.json()) == ["error"]
    for word in words:
        assert word in answer.json()["error"]
    assert "Traceback" not in answer.text


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, ["frames", "frames_base64"]),
        ({"frames": GOOD, "frames_base64": B64}, ["one of"]),
        ({"frames": []}, ["at least one frame"]),
        ({"frames": None}, ["at least one frame"]),
        ({"frames": "abc"}, ["at least one frame"]),
        ({"frames": {"0": [1]}}, ["at least one frame"]),
        ({"frames": [1, 2]}, ["frame 0 is 1", "list of 8 numbers"]),
        ({"frames": [[]]}, ["frame 0 has 0 values", "reads 8"]),
        ({"frames": [[1] * 9]}, ["frame 0 has 9 values", "reads 8"]),
        ({"frames": [[1] * 8, [1] * 7]}, ["frame 1 has 7 values"]),
        ({"frames": [[1] * 8, [1] * 7 + ["1"]]}, ["frame 1", "other than numbers"]),
        ({"frames": [[1] * 7 + [None]]}, ["other than numbers"]),
        ({"frames": [[1] * 7 + [True]]}, ["other than numbers"]),
        ({"frames": [[1] * 7 + [[1]]]}, ["other than numbers"]),
        ({"frames": [[1] * 8, [0] * 7 + [256]]}, ["frame 1, value 7 is 256", "0 to 255"]),
        ({"frames": [[-1] * 8]}, ["frame 0, value 0 is -1", "whole numbers"]),
        ({"frames": [[0.5] * 8]}, ["0.5", "whole numbers"]),
        ({"frames": [[1e308] * 8]}, ["0 to 255"]),
        ({"frames": [[10**400] * 8]}, ["beyond all"]),
        ({"frames": GOOD, "top": 0}, ["top is 0", "1 to 8"]),
        ({"frames": GOOD, "top": 9}, ["top is 9", "1 to 8"]),
        ({"frames": GOOD, "top": 2.0}, ["top"]),
        ({"frames": GOOD, "top": "2"}, ["top"]),
        ({"frames": GOOD, "top": True}, ["top"]),
        ({"frames": GOOD, "top": None}, ["top"]),
        ({"frames": GOOD, "timeline": 1}, ["timeline", "true or false"]),
        ({"frames": GOOD, "id": 7}, ["id is 7", "string"]),
        ({"frames": GOOD, "shape": [3, 8]}, ["shape goes with frames_base64"]),
        ({"frames": GOOD, "tpo": 3}, ["'tpo'", "top"]),
        ({"frames_base64": B64}, ["shape is None"]),
        ({"frames_base64": B64, "shape": [3]}, ["shape is [3]"]),
        ({"frames_base64": B64, "shape": [0, 8]}, ["at least one frame"]),
        ({"frames_base64": B64, "shape": [-3, -8]}, ["at least one frame"]),
        ({"frames_base64": B64, "shape": [6, 4]}, ["reads 8"]),
        ({"frames_base64": B64, "shape": [4, 8]}, ["24 bytes", "4 × 8"]),
        ({"frames_base64": B64, "shape": [10**30, 8]}, ["24 bytes"]),
        ({"frames_base64": B64 + "!", "shape": [3, 8]}, ["not base64"]),
        ({"frames_base64": "ä" * 32, "shape": [3, 8]}, ["not base64"]),
        ({"frames_base64": 7, "shape": [3, 8]}, ["string"]),
    ],
)
def test_json_that_is_no_video(client, given, words):
    refuses(post_json(client, json.dumps(given)), 400, *words)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ["not JSON"]),
        (b"{", ["not JSON"]),
        (b"[]", ["must be an object"]),
        (b"null", ["must be an object"]),
        (b'{"frames": [[0, 0, 0, NaN, 0, 0, 0, 0]]}', ["value 3 is nan"]),
        (b'{"frames": [[-Infinity, 0, 0, 0, 0, 0, 0, 0]]}', ["value 0 is -inf"]),
        (b'{"frames": [[1e999, 0, 0, 0, 0, 0, 0, 0]]}', ["inf", "0 to 255"]),
        (b'{"frames": [[' + b"9" * 5000 + b"]]}", ["thousands of digits"]),
        (b"[" * 30_000, ["nested too deeply"]),
        (b'{"frames": ' + b"[" * 20_000 + b"]" * 20_000 + b"}", ["nested too deeply"]),
        (b'{"frames": "\xff\xfe"}', ["not UTF-8", "byte 12"]),
        (json.dumps({"frames": GOOD}).encode("utf-16"), ["not UTF-8"]),
        (b"\xef\xbb\xbf{}", ["not JSON"]),
        (b"\x00" * 100, ["not JSON"]),
    ],
)
def test_bytes_that_are_no_json(client, content, words):
    refuses(post_json(client, content), 400, *words)


def test_float32_takes_what_a_model_can_square(tmp_path):
    with client_of(load(write_model(tmp_path / "m.reeltag", FLOATS))) as client:
        refuses(post_json(client, json.dumps({"frames": [[0.0] * 7 + [1e39]]})), 400, "value 7 is 1e+39", "1e+15")
        coded = base64.b64encode(np.full(8, np.nan, "<f4").tobytes()).decode()
        refuses(post_json(client, json.dumps({"frames_base64": coded, "shape": [1, 8]})), 400, "NaN")
        bad = make_video(FLOATS)
        bad.features[0][1, 2] = np.inf
        refuses(post_records(client, record(bad, FLOATS)), 400, "record 0, byte 0", "NaN or infinite")


@pytest.mark.parametrize("kind", ["text/plain", "", "multipart/form-data; boundary=x", "application/jsonx", "\xe4"])
def test_other_content_types(client, kind):
    answer = client.post("/predict", content=b"{}", headers={"Content-Type": kind.encode("latin-1")})
    refuses(answer, 415, "application/json", "application/x-tfrecord", "video/* or audio/*")


@pytest.mark.parametrize("kind", ["application/octet-stream", "application/x-tfrecord"])
def test_a_video_of_the_type_of_records_is_told_its_own(client, kind):
    video = b"\0\0\0\x20ftypisom" + bytes(400)
    answer = client.post("/predict", content=video, headers={"Content-Type": kind})
    refuses(answer, 400, "if it is a video, send it with its type, such as Content-Type: video/mp4")
    altered = bytearray(record(make_video(SCHEMA, 2)))
    altered[-1] ^= 1
    assert "video/mp4" not in post_records(client, bytes(altered)).json()["error"]


def test_content_types_with_parameters_and_capitals(client):
    assert post_json(client, json.dumps({"frames": GOOD}), "Application/JSON; charset=utf-8").status_code == 200


def test_damaged_records_are_named_by_number_and_byte(client):
    whole = [record(make_video(SCHEMA, 3, name=f"v{n}")) for n in range(3)]
    second = len(whole[0])
    body = b"".join(whole)
    refuses(post_records(client, body[:-5]), 400, f"record 2, byte {2 * second}", "truncated: 5 bytes are missing")
    altered = bytearray(body)
    altered[second + 20] ^= 1
    refuses(post_records(client, bytes(altered)), 400, f"record 1, byte {second}", "CRC of the payload")
    refuses(
        post_records(client, body + frame_record(b"nonsense")), 400, f"record 3, byte {3 * second}", "SequenceExample"
    )
    refuses(post_records(client, b"{}" * 50), 400, "record 0, byte 0", "is JSON, not a TFRecord file")
    refuses(post_records(client, b""), 400, "empty")
    empty = make_video(SCHEMA, 0)
    refuses(post_records(client, body + record(empty)), 400, "record 3", "0 frames")


def test_options_of_records_stand_in_the_address(client):
    body = record(make_video(SCHEMA))
    for query, words in [
        ({"top": "0"}, "1 to 8"),
        ({"top": "9" * 5000}, "1 to 8"),
        ({"top": "٣"}, "1 to 8"),
        ({"top": "-1"}, "1 to 8"),
        ({"top": "true"}, "1 to 8"),
        ({"timeline": "yes"}, "true or false"),
        ({"timeline": "1"}, "true or false"),
        ({"tpo": "1"}, "top, timeline"),
    ]:
        refuses(post_records(client, body, **query), 400, words)
    answer = client.post("/predict?top=3", json={"frames": GOOD})
    refuses(answer, 400, "'top'", "body")


def test_bodies_that_are_too_large(predictor):
    body = record(make_video(SCHEMA, 10))
    with client_of(predictor, max_body=2 * len(body)) as client:
        assert post_records(client, 2 * body).status_code == 200
        refuses(post_records(client, 2 * body + b"x"), 413, "more than", "raise --max-body-mb")
        chunks = client.post("/predict", content=iter([body] * 3), headers={"Content-Type": "application/x-tfrecord"})
        refuses(chunks, 413, "more than")  # which has no Content-Length
    with client_of(predictor) as client:  # JSON is bounded by what a video may have
        refuses(post_json(client, b" " * 90_000 + b"{}"), 413, "instead of JSON")


def test_too_many_frames_and_too_large_answers(predictor):
    fifty = record(make_video(SCHEMA, 60))
    with client_of(predictor, max_frames=100) as client:
        assert post_records(client, 2 * fifty).status_code == 200  # 60 frames are cut to 50
        refuses(post_records(client, 3 * fifty), 413, "more than 100 frames")
    with client_of(predictor, max_frames=20) as client:
        refuses(post_json(client, json.dumps({"frames": [[0] * 8] * 21})), 413, "more than 20 frames")
    with client_of(predictor, max_frames=10**6) as client:
        refuses(post_records(client, record(make_video(SCHEMA, 1)) * 1025), 413, "1,024 videos and segments")
        refuses(post_records(client, 25 * fifty, timeline="true"), 413, "1,024 videos and segments")


def test_an_error_is_one_line_in_the_log_and_a_success_none(client, caplog):
    caplog.set_level(logging.INFO, "reeltag.serve")
    client.get("/a%0A2026-01-01 00:00:00,000 made up")
    post_json(client, json.dumps({"frames": GOOD, "x\ny": 1}))
    assert post_json(client, json.dumps({"frames": GOOD})).status_code == 200
    lines = [entry.getMessage() for entry in caplog.records if entry.name == "reeltag.serve"]
    assert len(lines) == 2
    assert all("\n" not in line and "\r" not in line for line in lines)
    assert "POST /predict: 400" in lines[1]


# --- whatever comes -------------------------------------------------------------------------------

VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.integers(0, 255), st.just([1] * 8)
)
FRAMES = st.one_of(
    VALUES,
    st.lists(st.lists(VALUES, max_size=9), max_size=4),
    st.lists(st.lists(st.integers(-1, 256), min_size=8, max_size=8), max_size=4),
)
OBJECTS = st.fixed_dictionaries(
    {},
    optional={
        "frames": FRAMES,
        "frames_base64": st.one_of(VALUES, st.binary(max_size=32).map(lambda raw: base64.b64encode(raw).decode())),
        "shape": st.one_of(VALUES, st.lists(st.integers(-1, 9), max_size=3)),
        "top": VALUES,
        "timeline": VALUES,
        "id": VALUES,
        "other": VALUES,
    },
)


@st.composite
def altered_records(draw):
    body = bytearray(record(make_video(SCHEMA, draw(st.integers(0, 3)))) * draw(st.integers(1, 2)))
    for _ in range(draw(st.integers(0, 3))):
        body[draw(st.integers(0, len(body) - 1))] = draw(st.integers(0, 255))
    return bytes(body[: draw(st.integers(0, len(body)))])


@st.composite
def foreign_payloads(draw):
    """Records that are framed well, with payloads that are damaged."""
    payload = bytearray(record(make_video(SCHEMA, 2))[12:-4])
    for _ in range(draw(st.integers(1, 3))):
        payload[draw(st.integers(0, len(payload) - 1))] = draw(st.integers(0, 255))
    return frame_record(bytes(payload))


BODIES = st.one_of(
    OBJECTS.map(lambda given: ("application/json", json.dumps(given).encode())),
    st.tuples(st.just("application/json"), st.binary(max_size=60)),
    st.tuples(st.just("application/x-tfrecord"), st.one_of(altered_records(), foreign_payloads())),
    st.tuples(st.text(st.characters(max_codepoint=126, min_codepoint=32), max_size=20), st.binary(max_size=40)),
)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sent=BODIES, query=st.dictionaries(st.sampled_from(["top", "timeline", "x"]), st.text(max_size=4), max_size=1))
def test_nothing_that_is_sent_makes_the_service_fail(client, sent, query):
    kind, body = sent
    answer = client.post("/predict", params=query, content=body, headers={"Content-Type": kind})
    assert answer.status_code in (200, 400, 413, 415)
    assert answer.status_code == 200 or list(answer.json()) == ["error"]
    if answer.status_code == 200:
        assert answer.json().get("tags") or answer.json()["videos"]


def test_the_best_classes_of_a_video_are_those_of_a_batch():
    """Ties included, also across the edge."""
    rng = np.random.default_rng(0)
    for classes, count in ((5, 5), (50, 1), (50, 20), (3862, 20)):
        scores = rng.integers(0, 12, (30, classes)).astype(np.float32) / 16
        _, expected = top_k(torch.from_numpy(scores), count)
        found = [best_classes(row, count) for row in scores]
        np.testing.assert_array_equal(found, expected)


def test_an_array_is_the_same_video_as_a_list(client):
    frames = frames_of(7)
    array = io.BytesIO()
    np.save(array, frames)
    answer = post_json(client, array.getvalue(), "application/x-npy")
    assert answer.status_code == 200, answer.text
    assert answer.json() == client.post("/predict", json={"frames": frames.tolist()}).json()


def arrays():
    def saved(values, **options):
        file = io.BytesIO()
        np.save(file, values, **options)
        return file.getvalue()

    good = saved(frames_of(3))
    huge = good.replace(b"(3, ", b"(3000000000, ").replace(b" " * 9 + b"\n", b"\n")
    assert len(huge) == len(good)
    return {
        "": (good[:40], "not an array"),
        "short": (good[:-1], "not an array"),
        "of a header that tells too much": (huge, "not those of"),
        "of objects": (saved(np.array([{}], object), allow_pickle=True), "not an array"),
        "of floats": (saved(frames_of(3).astype(np.float32)), "this model reads"),
        "of another width": (saved(frames_of(3)[:, 1:]), "this model reads"),
        "of no frames": (saved(frames_of(3)[:0]), "0 frames"),
        "of NaN": (saved(np.full((2, 3), np.nan)), "NaN"),
        "of three axes": (saved(frames_of(3)[None]), "expected"),
        "that is no array": (b"[[1, 2]]", "not an array"),
        "that is empty": (b"", "the body is empty"),
    }


@pytest.mark.parametrize("name", arrays())
def test_a_body_that_is_no_array_of_frames_is_refused(client, name):
    body, reason = arrays()[name]
    refuses(post_json(client, body, "application/x-npy"), 400, reason)
