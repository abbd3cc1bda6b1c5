"""Concurrent requests are computed in batches, in turn, and only while their clients are connected."""

import asyncio

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import make_video
from reeltag.core.errors import RequestError
from reeltag.serve.batching import Batcher, groups
from serving import (
    SCHEMA,
    TFRECORD,
    app_of,
    concurrent_client,
    frames_of,
    gate,
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
        async with concurrent_client(app_of(predictor, **changes)) as client:
            return await story(client)

    return asyncio.run(live())


def test_waiting_requests_are_computed_in_two_batches(predictor, gate):
    async def story(client):
        first = asyncio.create_task(ask(client))
        await gate.entered()
        others = [asyncio.create_task(ask(client, 4 + n, n)) for n in range(10)]
        await asyncio.sleep(0.3)
        gate.open.set()
        return await asyncio.gather(first, *others)

    answers = run(predictor, story)
    assert gate.calls == [1, 6, 4]  # while one is computed, the requests of the other are read and answered
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
    assert gate.calls == [4, 4, 2, 2]  # of the large 4; its next 4; the 2 small ones; the last 2 of the large
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


class Recording:
    """Model that takes its time; the sizes of its batches, and the tasks that it is computing."""

    deaths = 0

    def __init__(self, seconds=0.0):
        self.seconds, self.sizes = seconds, []

    async def tag(self, videos):
        self.sizes.append(len(videos))
        await asyncio.sleep(self.seconds)
        return np.array([[video.length] * 8 for video in videos], np.float32)


async def here():
    return False


async def gone():
    return True


def asked(batcher, lengths, left=here):
    """Ask for the videos of a request."""
    return batcher.tag([make_video(SCHEMA, length) for length in lengths], asyncio.get_running_loop().time() + 20, left)


def test_a_client_that_left_is_not_computed():
    model = Recording(0.3)

    async def story():
        batcher = Batcher([model], 8, 64, lambda size: None)
        first = asyncio.create_task(asked(batcher, [3]))
        await asyncio.sleep(0.05)
        others = asked(batcher, [3], gone), asked(batcher, [3])
        return await asyncio.gather(first, *others, return_exceptions=True)

    first, left, stayed = asyncio.run(story())
    assert isinstance(left, RequestError) and left.status == 499
    assert model.sizes == [1, 1] and first.shape == stayed.shape == (1, 8)


def test_requests_spread_over_all_models_and_so_does_a_large_one():
    models = [Recording(0.05) for _ in range(3)]

    async def story():
        batcher = Batcher(models, 8, 16, lambda size: None)
        await asyncio.gather(*(asked(batcher, [3]) for _ in range(3)))
        small = await asyncio.gather(*(asked(batcher, [3, length]) for length in range(3, 12)))
        return small, await asked(batcher, range(10, 58))

    small, large = asyncio.run(story())
    for length, scores in zip(range(3, 12), small, strict=True):
        assert scores[:, 0].tolist() == [3, length]
    np.testing.assert_array_equal(large[:, 0], range(10, 58))
    sizes = [model.sizes for model in models]
    assert all(each[0] == 1 and each[-1] == 16 for each in sizes), sizes
    assert all(max(each[1:-1]) <= 8 for each in sizes), sizes


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
