"""Generated shards: equal settings give equal bytes, and there is something to learn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from conftest import TINY
from reeltag.core.storage import file_hash
from reeltag.data.holdout import refuse_overlap
from reeltag.data.shards import scan
from reeltag.data.synthetic import SyntheticSettings, _World, write_synthetic


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: file_hash(path) for path in folder.iterdir()}


def test_equal_settings_give_equal_bytes(tmp_path: Path, tiny_shards: Path) -> None:
    write_synthetic(tmp_path, TINY)
    assert len(hashes(tmp_path)) == 4
    assert hashes(tmp_path) == hashes(tiny_shards)


def test_another_seed_gives_other_bytes(tmp_path: Path, tiny_shards: Path) -> None:
    write_synthetic(tmp_path, TINY.model_copy(update={"seed": 1}))
    assert not set(hashes(tmp_path).values()) & set(hashes(tiny_shards).values())


def test_the_shards_hold_what_the_settings_ask(tiny_shards: Path) -> None:
    train = scan(sorted(tiny_shards.glob("train-*")), TINY.record_schema)
    test = scan(sorted(tiny_shards.glob("test-*")), TINY.record_schema)
    assert (len(train), len(test)) == (TINY.train_videos, TINY.test_videos)
    assert train.labelled == TINY.train_videos
    assert set(train.frames.tolist()) <= set(range(4, 10))
    refuse_overlap(train, test)


def test_without_noise_every_frame_is_a_distractor_or_shows_a_label() -> None:
    settings = TINY.model_copy(update={"noise": 0.0, "frames": (10, 30)})
    world, rng = _World(settings), np.random.default_rng(0)

    def codes(looks: np.ndarray) -> set[bytes]:
        # The inverse of the published dequantisation of [-2, 2] to a byte, up to its half-step offset.
        return {row.tobytes() for row in np.clip(np.round((looks / 2 + 2) * 255 / 4), 0, 255).astype(np.uint8)}

    shown = 0
    for number in range(50):
        video = world.video(str(number), rng)
        frames = {frame.tobytes() for frame in video.frames()}
        looks = set().union(*(codes(world._look(label, 2)) for label in video.labels.tolist()))
        assert frames <= looks | codes(world.distractors)
        shown += bool(frames & looks)
    assert shown == 50


def test_labels_come_together_within_themes_more_than_by_chance() -> None:
    settings = SyntheticSettings()
    world, rng = _World(settings), np.random.default_rng(1)
    videos = [labels for labels in (world.labels(rng) for _ in range(3000)) if len(labels) > 1]
    first, second = np.array([labels[:2] for labels in videos]).T
    together = np.mean(world.theme_of[first] == world.theme_of[second])
    by_chance = np.mean(world.theme_of[first] == world.theme_of[rng.permutation(second)])
    assert together > 2 * by_chance


def test_a_video_has_distinct_labels_and_never_both_members_of_an_order_pair() -> None:
    world, rng = _World(TINY.model_copy(update={"order_pairs": 3})), np.random.default_rng(2)
    for _ in range(2000):
        labels = world.labels(rng)
        pairs = [(label - world.first_in_pair) // 2 for label in labels if label >= world.first_in_pair]
        assert len(set(labels)) == len(labels)
        assert len(set(pairs)) == len(pairs)


@pytest.mark.parametrize("frames", [2, 5, 8])
@pytest.mark.parametrize("pair", [(2, 3), (4, 5), (6, 7)])
def test_an_order_pair_shows_the_same_frames_in_opposite_order(pair: tuple[int, int], frames: int) -> None:
    world = _World(TINY.model_copy(update={"order_pairs": 3}))
    one, other = (world._look(label, frames) for label in pair)
    assert {frame.tobytes() for frame in one} == {frame.tobytes() for frame in other}
    np.testing.assert_array_equal(one[0], other[-1])
    np.testing.assert_array_equal(one[-1], other[0])
    assert not np.array_equal(one[0], one[-1])


def test_other_classes_show_one_frame_of_their_own() -> None:
    world = _World(TINY)
    looks = [world._look(label, 5) for label in range(world.first_in_pair)]
    assert all((look == look[0]).all() for look in looks)
    assert len({look[0].tobytes() for look in looks}) == world.first_in_pair


@pytest.mark.parametrize(
    "change",
    [
        {"train_videos": 0},
        {"shards": 0},
        {"classes": 7},
        {"rgb": 0},
        {"noise": -0.1},
        {"order_pairs": -1},
        {"vidoes": 3},
        {"frames": (9, 4)},
        {"frames": (0, 4)},
        {"order_pairs": 5},
    ],
    ids=str,
)
def test_settings_that_cannot_work_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=next(iter(change))):
        SyntheticSettings(**(TINY.model_dump() | change))


@pytest.mark.parametrize("change", [{"frames": (1, 3)}, {"train_videos": 1}, {"seed": -1}, {"order_pairs": 4}], ids=str)
def test_settings_are_refused_or_give_shards_that_can_be_read(tmp_path: Path, change: dict[str, object]) -> None:
    try:
        settings = SyntheticSettings(**(TINY.model_dump() | change))
    except ValidationError:
        return
    write_synthetic(tmp_path, settings)
    assert len(scan(sorted(tmp_path.glob("train-*")), settings.record_schema)) == settings.train_videos
