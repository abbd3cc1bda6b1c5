"""The order by shards: every video once an epoch, few shards at a time, the same wherever training begins."""

import pickle

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from reeltag.data.sampler import ShardWindowOrder, step_positions


@given(
    counts=st.lists(st.integers(0, 7), min_size=1, max_size=9).filter(any),
    window=st.integers(1, 10),
    seed=st.integers(0, 9),
    epoch=st.integers(0, 9),
)
def test_an_epoch_is_windows_of_whole_shards_and_every_video_once(counts, window, seed, epoch):
    shards = np.repeat(np.arange(len(counts)), counts)
    order = ShardWindowOrder(shards, window)(len(shards), seed, epoch)
    assert sorted(order) == list(range(len(shards)))
    present, at, left = sum(map(bool, counts)), 0, np.array(counts)
    for begin in range(0, present, window):
        mixed: set[int] = set()
        while len(mixed) < min(window, present - begin) or any(left[list(mixed)]):  # before any other shard begins
            mixed.add(int(shards[order[at]]))
            left[shards[order[at]]] -= 1
            at += 1
        assert len(mixed) == min(window, present - begin)
    assert at == len(order)


def test_shards_and_videos_of_a_window_are_drawn_anew_each_epoch_and_for_each_seed():
    shards = np.repeat(np.arange(12), 20)
    order = ShardWindowOrder(shards, 3)
    epochs = {(seed, epoch): order(240, seed, epoch) for seed in range(3) for epoch in range(3)}
    assert len({tuple(found) for found in epochs.values()}) == 9
    firsts = {frozenset(shards[found[:60]]) for found in epochs.values()}
    assert len(firsts) > 3
    mixed = np.mean([len(set(shards[found[i : i + 10]])) for found in epochs.values() for i in range(0, 60, 10)])
    assert mixed > 2.5  # of three: a batch is no run of one shard
    again = pickle.loads(pickle.dumps(order))
    assert all((again(240, *key) == found).all() for key, found in epochs.items())


def test_videos_of_a_shard_may_lie_anywhere_among_the_indices():
    shards = np.array([4, 2, 4, 0, 2, 4])
    order = ShardWindowOrder(shards, 1)(6, 0, 0)
    assert sorted(order) == list(range(6))
    assert (np.diff(shards[order]) != 0).sum() == 2


def test_one_window_of_all_shards_is_every_order():
    shards = np.repeat([0, 1], 2)
    order = ShardWindowOrder(shards, 2)
    assert len({tuple(order(4, 0, epoch)) for epoch in range(400)}) == 24


@given(
    sizes=st.lists(st.integers(1, 5), min_size=1, max_size=6), batch_size=st.integers(1, 12), step=st.integers(0, 20)
)
def test_a_step_is_its_part_of_the_epochs_one_after_the_other(sizes, batch_size, step):
    shards = np.repeat(np.arange(len(sizes)), sizes)
    order, count = ShardWindowOrder(shards, 2), len(shards)
    stream = np.concatenate([order(count, 5, epoch) for epoch in range((step + 1) * batch_size // count + 1)])
    found = step_positions(count, 5, step, batch_size, order)
    np.testing.assert_array_equal(found, stream[step * batch_size : (step + 1) * batch_size])
