"""Concurrent requests are computed in batches, in turn, and only while their clients are connected."""

import asyncio
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import make_video
from reeltag.core.errors import RequestError
from reeltag.serve.app import create_app
from reeltag.serve.batching import Batcher, groups
from serving import (
    SCHEMA,
    TFRECORD,
    concurrent_client,
    frames_of,
    gate,
    limits,
    predictor,
    record,
    scores_of,
)

__all__ = ["gate", "predictor"]


def ask(client, length=4, seed=0, **more):
    return client.post("/predict", json={"frames": frames_of(length, seed).tolist(), **more})


def run(predictor, story, **changes):
    """Run a scenario, a coroutine of a client, against a service."""

    async def live():
        async with concurrent_client(create_app(predictor, "m", limits(**changes))) as client:
            return await story(client)

    return asyncio.run(live())


def test_waiting_requests_are_computed_as_one_batch(predictor, gate):
    async def story(client):
        first = asyncio.create_task(ask(client))
        await gate.entered()
        others = [asyncio.create_task(ask(client, 4 + n, n)) for n in range(10)]
        await asyncio.sleep(0.3)
        gate.open.set()
        return await asyncio.gather(first, *others)

    answers = run(predictor, story)
    assert gate.calls == [1, 10]
    for n, answer in enumerate(answers[1:]):
        np.testing.assert_allclose(
            scores_of(answer.json()), gate_free(gate, frames_of(4 + n, n)), atol=1e-6, err_msg=str(n)
        )


def gate_free(gate, frames):
    """Return the scores of a single video, computed alone."""
    import torch

    with torch.inference_mode():
        return gate.model(torch.from_numpy(frames)[None], torch.tensor([len(frames)]))[0].numpy()


def test_a_batch_has_no_more_than_it_may_and_a_large_request_does_not_hold_up_others(predictor, gate):
    videos = [make_video(SCHEMA, 3, name=f"v{n}") for n in range(10)]
    order = []

    async def story(client):
        async def noted(name, request):
            answer = await request
            order.append(name)
            return answer

        body = b"".join(map(record, videos))
        large = client.post("/predict", content=body, headers={"Content-Type": TFRECORD})
        tasks = [asyncio.create_task(noted("large", large))]
        await gate.entered()
        tasks += [asyncio.create_task(noted("small", ask(client, seed=n))) for n in range(2)]
        await asyncio.sleep(0.3)
        gate.open.set()
        return await asyncio.gather(*tasks)

    large, *_ = run(predictor, story, max_batch=4)
    assert gate.calls == [4, 4, 4]  # of the large 4; its next 4; 2 small ones and the last 2
    assert [each["id"] for each in large.json()["videos"]] == [video.id for video in videos]
    for video, each in zip(videos, large.json()["videos"], strict=True):
        np.testing.assert_allclose(scores_of(each), gate_free(gate, video.frames()), atol=1e-6)
    assert sorted(order) == ["large", "small", "small"]


def test_a_bad_video_does_not_hurt_those_beside_it(predictor, gate):
    async def story(client):
        first = asyncio.create_task(ask(client))
        await gate.entered()
        bad = [client.post("/predict", json={"frames": [[300] * 8]}), client.post("/predict", content=b"x")]
        good = [asyncio.create_task(ask(client, seed=n)) for n in range(3)]
        refused = await asyncio.gather(*bad)
        gate.open.set()
        return refused, await asyncio.gather(first, *good)

    refused, answered = run(predictor, story)
    assert [answer.status_code for answer in refused] == [400, 415]
    assert [answer.status_code for answer in answered] == [200] * 4
    assert sum(gate.calls) == 4


def test_a_request_past_its_deadline_gets_504_and_is_not_computed(predictor, gate):
    async def story(client):
        first, late = asyncio.create_task(ask(client)), asyncio.create_task(ask(client, seed=1))
        answers = [await first, await late]
        gate.open.set()
        return [*answers, await ask(client, seed=2)]

    answers = run(predictor, story, timeout=0.4, max_batch=1)
    assert [answer.status_code for answer in answers] == [504, 504, 200]
    assert "not answered in time" in answers[0].json()["error"]
    assert gate.calls == [1, 1]  # the first, which had begun, and the last


def test_too_many_requests_get_503_and_a_retry_header(predictor, gate):
    async def story(client):
        waiting = [asyncio.create_task(ask(client, seed=n)) for n in range(3)]
        await gate.entered()
        await asyncio.sleep(0.2)
        refused = await ask(client)
        health = await client.get("/healthz")
        gate.open.set()
        return refused, health, await asyncio.gather(*waiting), await ask(client)

    refused, health, answered, later = run(predictor, story, max_waiting=3)
    assert refused.status_code == 503 and refused.headers["Retry-After"] == "1" and "try again later" in refused.text
    assert health.status_code == 200
    assert [answer.status_code for answer in (*answered, later)] == [200] * 4


def test_a_client_that_left_is_not_computed(predictor):
    sizes = []

    async def story():
        def slow(batch):
            sizes.append(len(batch))
            time.sleep(0.3)
            return np.zeros((len(batch), 8), np.float32)

        async def here():
            return False

        async def gone():
            return True

        batcher = Batcher(slow, SCHEMA, 64, lambda size: None)
        videos = [make_video(SCHEMA)]
        late = asyncio.get_running_loop().time() + 20
        first = asyncio.create_task(batcher.tag(videos, late, here))
        await asyncio.sleep(0.05)
        others = batcher.tag(videos, late, gone), batcher.tag(videos, late, here)
        result = await asyncio.gather(first, *others, return_exceptions=True)
        batcher.close()
        return result

    first, left, stayed = asyncio.run(story())
    assert isinstance(left, RequestError) and left.status == 499
    assert sizes == [1, 1] and first.shape == stayed.shape == (1, 8)


@given(st.lists(st.integers(1, 300), min_size=1, max_size=64))
def test_groups_pad_no_video_to_more_than_four_times_its_length(lengths):
    found = groups(lengths)
    assert sorted(place for group in found for place in group) == list(range(len(lengths)))
    for group in found:
        assert max(lengths[place] for place in group) <= 4 * min(lengths[place] for place in group)
    assert len(found) <= 5


def test_a_lone_request_is_computed_alone(predictor, gate):
    gate.open.set()

    async def story(client):
        for n in range(3):
            assert (await ask(client, seed=n, timeline=True)).status_code == 200

    run(predictor, story)
    assert len(gate.calls) == 3  # four frames and its segments of one: one group


@pytest.mark.parametrize("length", [45, 50])
def test_long_videos_and_short_segments_are_not_padded_to_one_length(predictor, gate, length):
    gate.open.set()
    run(predictor, lambda client: ask(client, length, timeline=True))
    assert gate.calls == [1, 40]
