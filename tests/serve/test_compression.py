"""Bodies in gzip mean what they hold, within the limits, and answers are compressed for clients that accept it."""

import asyncio
import gzip
import random
import zlib
from contextlib import aclosing

import pytest

from conftest import make_video
from reeltag.serve.compression import accepts_gzip, decoded
from serving import SCHEMA, TFRECORD, client, client_of, post_records, predictor, record

__all__ = ["client", "predictor"]
RECORDS = record(make_video(SCHEMA)) * 20
PLAIN = {"Accept-Encoding": "identity"}


def post(client, body, encoding="gzip", kind=TFRECORD, **headers):
    headers = {"Content-Type": kind, "Content-Encoding": encoding, **PLAIN, **headers}
    return client.post("/predict", content=body, headers=headers)


def test_a_compressed_body_is_what_it_holds(client):
    expected = post_records(client, RECORDS).json()
    drops = (bytes([byte]) for byte in gzip.compress(RECORDS))
    for body in (gzip.compress(RECORDS), drops):
        assert post(client, body).json() == expected
    assert post(client, gzip.compress(RECORDS), "X-GZIP").json() == expected
    assert post(client, RECORDS, "identity").json() == expected
    json = gzip.compress(b'{"frames": [[1, 2, 3, 4, 5, 6, 7, 8]]}')
    assert post(client, json, kind="application/json").status_code == 200


@pytest.mark.parametrize("kind", [TFRECORD, "application/x-npy", "application/json"])
def test_a_body_is_refused_at_the_limit_of_what_it_holds(predictor, kind):
    """Zeros, of which gzip makes a thousandth."""
    limit = 300_000
    with client_of(predictor, max_body=limit) as client:
        for size in (limit + 1, 100 * limit):
            answer = post(client, gzip.compress(bytes(size), 1), kind=kind)
            assert answer.status_code == 413 and "the body has more than" in answer.json()["error"]
        assert post(client, gzip.compress(bytes(1000)), kind=kind).status_code == 400  # no records, and so on


def test_no_more_is_decompressed_than_the_limit_needs():
    """One piece beyond it, of a thousand; and not all of the body is asked for."""
    asked = 0

    async def chunks():
        nonlocal asked
        compressor = zlib.compressobj(1, wbits=31)
        for _ in range(1000):
            asked += 1
            yield compressor.compress(bytes(1_000_000)) + compressor.flush(zlib.Z_SYNC_FLUSH)

    async def take(limit):
        size = 0
        async with aclosing(decoded("gzip", chunks())) as pieces:
            async for piece in pieces:
                assert len(piece) <= 1_000_000
                size += len(piece)
                if size > limit:
                    break
        return size

    assert asyncio.run(take(3_000_000)) <= 4_000_000 and asked <= 4


def test_damaged_and_unknown_encodings_are_refused(client):
    body = gzip.compress(RECORDS)
    for wrong in (b"", body[:-1], body[:30]):
        assert "incomplete gzip" in post(client, wrong).json()["error"]
    for wrong in (body + body, body + b"\0"):
        assert "goes on after" in post(client, wrong).json()["error"]
    for wrong in (RECORDS, body[:-5] + b"12345"):
        answer = post(client, wrong)
        assert answer.status_code == 400 and "damaged gzip" in answer.json()["error"]
    for encoding in ("br", "deflate", "gzip, gzip", "\u00e4".encode()):
        answer = post(client, body, encoding)
        assert answer.status_code == 415 and "or in gzip" in answer.json()["error"]
    rng = random.Random(0)
    for _ in range(100):
        flipped = bytearray(body)
        flipped[rng.randrange(len(body))] ^= 1 << rng.randrange(8)
        assert post(client, bytes(flipped)).status_code in (200, 400)  # a header's name or time says nothing


def test_large_answers_are_compressed_where_the_client_accepts_it(client):
    plain = post(client, RECORDS, "identity")
    packed = post(client, RECORDS, "identity", **{"Accept-Encoding": "br, gzip;q=0.5"})
    assert "Content-Encoding" not in plain.headers and packed.headers["Content-Encoding"] == "gzip"
    assert int(packed.headers["Content-Length"]) < len(plain.content) / 3
    assert packed.json() == plain.json()
    small = client.post("/predict", json={"frames": [[0] * 8]}, headers={"Accept-Encoding": "gzip"})
    assert "Content-Encoding" not in small.headers


@pytest.mark.parametrize(
    ("accepted", "expected"),
    [
        ("gzip", True),
        ("deflate, GZip;q=0.001", True),
        ("gzip; q=1", True),
        ("", False),
        ("identity", False),
        ("gzip;q=0", False),
        ("br, gzip ; q=0.000", False),
    ],
)
def test_a_weight_of_0_refuses(accepted, expected):
    assert accepts_gzip(accepted) is expected
