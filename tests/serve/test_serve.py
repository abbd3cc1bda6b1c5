"""The service answers as the predictor does, one video or many, and says what it does."""

import base64
import re
from importlib.resources import files

import numpy as np
import pytest

from conftest import make_video, records_of
from reeltag.core.errors import DataError, UsageError
from reeltag.data.formats.example import decode, encode
from reeltag.data.formats.tfrecord import write_shard
from reeltag.inference.predictor import load
from reeltag.inference.timeline import segment_spans
from reeltag.serve.limits import Limits
from reeltag.serve.samples import read_samples
from serving import (
    FLOATS,
    SCHEMA,
    VECTORS,
    client,
    client_of,
    frames_of,
    post_records,
    predictor,
    record,
    scores_of,
    write_model,
)

__all__ = ["client", "predictor"]
parser = pytest.importorskip("prometheus_client.parser")


def test_json_is_tagged_as_the_predictor_does(client, predictor):
    frames = frames_of(12)
    answer = client.post("/predict", json={"frames": frames.tolist(), "id": "ä"})
    assert answer.status_code == 200, answer.text
    tagged = answer.json()
    assert (tagged["id"], tagged["frames"], tagged["cut"]) == ("ä", 12, 0)
    np.testing.assert_allclose(scores_of(tagged), predictor.predict(frames), atol=1e-6)
    assert [tag["score"] for tag in tagged["tags"]] == sorted((t["score"] for t in tagged["tags"]), reverse=True)
    assert [tag["name"] for tag in tagged["tags"]] == [str(tag["class"]) for tag in tagged["tags"]]


def test_top_gives_the_first_tags(client):
    body = {"frames": frames_of(5).tolist()}
    everything = client.post("/predict", json=body).json()["tags"]
    assert client.post("/predict", json=body | {"top": 3}).json()["tags"] == everything[:3]


@pytest.mark.parametrize("schema", [SCHEMA, FLOATS], ids=["uint8", "float32"])
def test_base64_is_the_same_video_as_a_list(schema, tmp_path):
    frames = frames_of(7, schema=schema) / schema.classes if schema is FLOATS else frames_of(7)
    frames = frames.astype(schema.dtype)
    coded = {"frames_base64": base64.b64encode(frames.astype("<f4" if schema is FLOATS else "u1")).decode()}
    with client_of(load(write_model(tmp_path / "m.reeltag", schema))) as client:
        listed = client.post("/predict", json={"frames": frames.tolist()})
        assert listed.status_code == 200
        assert client.post("/predict", json=coded | {"shape": list(frames.shape)}).json() == listed.json()


def test_records_are_tagged_one_by_one_in_order(client, predictor, tmp_path):
    videos = [make_video(SCHEMA, length, name=f"v{length}") for length in (3, 50, 1, 9, 60)]
    shard = tmp_path / "shard"
    write_shard(shard, (encode(video, SCHEMA) for video in videos))
    answer = post_records(client, shard.read_bytes())
    found = answer.json()["videos"]
    assert [each["id"] for each in found] == [video.id for video in videos]
    assert [(each["frames"], each["cut"]) for each in found] == [(3, 0), (50, 0), (1, 0), (9, 0), (50, 10)]
    (expected,) = predictor.predict_shards([str(shard)])
    for each, row in zip(found, expected.probabilities.numpy(), strict=True):
        np.testing.assert_allclose(scores_of(each), row, atol=1e-6)


@pytest.mark.parametrize("length", [1, 2, 39, 40, 41, 97, 300])
def test_segments_are_a_partition_into_equal_parts(length):
    spans = segment_spans(length)
    assert len(spans) == min(length, 40)
    assert [frame for begin, end in spans for frame in range(begin, end)] == list(range(length))
    assert max(end - begin for begin, end in spans) - min(end - begin for begin, end in spans) <= 1


def test_a_timeline_tags_each_segment_as_a_video_of_its_own(client, predictor):
    videos = [make_video(SCHEMA, length, name=f"v{length}") for length in (45, 3)]
    answer = post_records(client, b"".join(map(record, videos)), timeline="true", top=4)
    for video, tagged in zip(videos, answer.json()["videos"], strict=True):
        timeline = tagged["timeline"]
        assert timeline["segments"] == [list(span) for span in segment_spans(video.length)]
        whole = predictor.predict(video.frames())
        np.testing.assert_allclose([tag["score"] for tag in tagged["tags"]], np.sort(whole)[::-1][:4], atol=1e-6)
        for place, (begin, end) in enumerate(timeline["segments"]):
            expected = predictor.predict(video.frames()[begin:end])
            for tag, scores in zip(tagged["tags"], timeline["scores"], strict=True):
                assert scores[place] == pytest.approx(expected[tag["class"]], abs=1e-6)


def test_video_level_features_and_names(tmp_path):
    names = tuple(f"<img src=x onerror=alert({n})>" for n in range(8))
    model = load(write_model(tmp_path / "m.reeltag", VECTORS, names))
    vector = np.linspace(-2, 2, 8, dtype=np.float32)[None]
    with client_of(model) as client:
        tagged = client.post("/predict", json={"frames": vector.tolist(), "timeline": True}).json()
        assert "one vector per video" in client.post("/predict", json={"frames": [[0.5] * 8] * 2}).json()["error"]
        assert client.get("/model").json()["named"]
    np.testing.assert_allclose(scores_of(tagged), model.predict(vector), atol=1e-6)
    assert tagged["tags"][0]["name"] == names[tagged["tags"][0]["class"]]
    assert tagged["timeline"]["segments"] == [[0, 1]]


def test_scores_that_are_no_numbers_are_the_request_s_fault(tmp_path):
    model = load(write_model(tmp_path / "m.reeltag", FLOATS))
    for parameter in model.model.parameters():
        parameter.data.mul_(1e30)  # so that values which the service takes overflow on their way
    with client_of(model) as client:
        answer = client.post("/predict", json={"frames": [[1e15] * 8] * 3})
        assert answer.status_code == 422 and "not finite" in answer.json()["error"]


def test_a_bug_is_a_500_in_the_same_shape_and_the_service_goes_on(client, predictor, monkeypatch):
    body = {"frames": frames_of(4).tolist()}
    with monkeypatch.context() as broken:
        broken.setattr(predictor, "model", None)
        answer = client.post("/predict", json=body)
        assert answer.status_code == 500 and list(answer.json()) == ["error"]
        assert "Traceback" not in answer.text
    assert client.post("/predict", json=body).status_code == 200


def test_what_the_service_says_of_itself(client, predictor):
    assert client.get("/healthz").json() == {"status": "ok"}
    model = client.get("/model").json()
    assert (model["name"], model["classes"], model["named"]) == ("m.reeltag", 8, False)
    assert model["data"] == predictor.schema.model_dump(mode="json")
    assert [member["name"] for member in model["members"]] == ["a"]
    assert model["provenance"] == {"recipe": "none"} and model["limits"]["max_body"] == 1_000_000
    paths = client.get("/openapi.json").json()["paths"]
    assert set(paths) == {"/predict", "/healthz", "/metrics", "/model", "/samples", "/samples/{number}"}
    assert set(paths["/predict"]["post"]["requestBody"]["content"]) >= {"application/json", "application/x-tfrecord"}


def test_errors_of_the_routes_have_one_shape(client):
    for method, path, status in [
        ("GET", "/nowhere", 404),
        ("GET", "/docs", 404),
        ("GET", "/predict", 405),
        ("POST", "/healthz", 405),
        ("GET", f"/samples/{'9' * 5000}", 404),
        ("GET", "/samples/-1", 404),
        ("GET", "/samples/%00%0A", 404),
    ]:
        answer = client.request(method, path)
        assert answer.status_code == status and list(answer.json()) == ["error"]
    assert client.get("/predict").headers["Allow"] == "POST"


def test_samples_are_records_that_predict_takes(predictor, tmp_path):
    videos = [make_video(SCHEMA, 2 + n, name=f"v{n}") for n in range(15)]
    write_shard(tmp_path / "shard", (encode(video, SCHEMA) for video in videos))
    samples = read_samples([tmp_path / "shard"], SCHEMA)
    with client_of(predictor, samples) as client:
        listed = client.get("/samples").json()
        assert listed == [{"id": f"v{n}", "frames": 2 + n} for n in range(12)]
        found = client.get("/samples/7")
        assert found.headers["Content-Type"] == "application/x-tfrecord"
        assert post_records(client, found.content).json()["videos"][0]["id"] == "v7"
    payloads = records_of(tmp_path / "shard")
    assert decode(payloads[7], SCHEMA).id == "v7"
    write_shard(tmp_path / "bad", [payloads[0], b"nonsense"])
    with pytest.raises(DataError, match="bad, record 1, byte"):
        read_samples([tmp_path / "bad"], SCHEMA)


def test_metrics_count_what_happened(client):
    def read():
        families = parser.text_string_to_metric_families(client.get("/metrics").text)
        return {(s.name, s.labels.get("status")): s.value for f in families for s in f.samples if "le" not in s.labels}

    client.post("/predict", json={"frames": frames_of(4).tolist()})
    post_records(client, record(make_video(SCHEMA)) * 3)
    client.post("/predict", json={"frames": []})
    found = read()
    assert found["reeltag_requests_total", "200"] == 2 and found["reeltag_requests_total", "400"] == 1
    assert found["reeltag_predict_seconds_count", None] == 3
    assert found["reeltag_batch_videos_count", None] == 2 and found["reeltag_batch_videos_sum", None] == 4
    assert found["reeltag_videos_total", None] == 4 and found["reeltag_waiting", None] == 0
    assert found["reeltag_model_info", None] == 1
    assert read()["reeltag_requests_total", "200"] == 3


def test_the_page_asks_nobody_else(client):
    policy = client.get("/").headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'self'") and "unsafe" not in policy
    for path, package, file, kind in [
        ("/", "reeltag.serve", "page.html", "text/html; charset=utf-8"),
        ("/page.css", "reeltag.inference.video", "page/base.css", "text/css; charset=utf-8"),
        ("/page.js", "reeltag.serve", "page.js", "text/javascript; charset=utf-8"),
        ("/chart.js", "reeltag.inference.video", "page/chart.js", "text/javascript; charset=utf-8"),
        ("/icon.svg", "reeltag.serve", "icon.svg", "image/svg+xml"),
    ]:
        answer = client.get(path)
        assert answer.headers["Content-Type"] == kind
        assert answer.content == files(package).joinpath(file).read_bytes()
        addresses = set(re.findall(r"https?://[^\s\"']+", answer.text)) - {"http://www.w3.org/2000/svg"}
        assert not addresses
    assert "innerHTML" not in client.get("/page.js").text


@pytest.mark.parametrize("path", ["/", "/page.js", "/healthz", "/metrics", "/model", "/samples", "/openapi.json"])
def test_head_is_get_without_the_body(client, path):
    head, got = (client.request(method, path, headers={"Accept-Encoding": "identity"}) for method in ("HEAD", "GET"))
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["Content-Type"] == got.headers["Content-Type"]
    assert path == "/metrics" or head.headers["Content-Length"] == str(len(got.content))
    assert client.head("/predict").status_code == 405
    assert client.post(path).headers["Allow"] == "GET, HEAD"


@pytest.mark.parametrize("field", ["max_batch", "max_body", "max_frames", "timeout", "max_waiting"])
def test_limits_are_more_than_nothing(field):
    usual = {"max_batch": 1, "max_body": 1, "max_frames": 1, "timeout": 1.0, "max_waiting": 1}
    for wrong in (0, -1, float("nan")):
        with pytest.raises(UsageError, match=field.replace("_", "-")):
            Limits(**usual | {field: wrong})
