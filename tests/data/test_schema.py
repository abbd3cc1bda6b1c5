"""Schemas: presets, overrides, contradictions and the names of the classes."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from reeltag.core.errors import UsageError
from reeltag.data.schema import PRESETS, Feature, Schema, expand_preset, preset_schema

RGB = {"name": "rgb", "width": 4}


@pytest.mark.parametrize(
    ("name", "level", "dtype", "widths", "classes", "max_frames"),
    [
        ("yt8m-frame", "frame", "uint8", (1024, 128), 3862, 300),
        ("yt8m-video", "video", "float32", (1024, 128), 3862, 300),
        ("audioset", "frame", "uint8", (128,), 527, 10),
    ],
)
def test_presets_follow_the_published_data_sets(
    name: str, level: str, dtype: str, widths: tuple[int, ...], classes: int, max_frames: int
) -> None:
    schema = preset_schema(name)
    assert (schema.level, schema.dtype, schema.widths) == (level, dtype, widths)
    assert (schema.classes, schema.max_frames, schema.width) == (classes, max_frames, sum(widths))


def test_every_preset_is_covered_above() -> None:
    assert set(PRESETS) == {"yt8m-frame", "yt8m-video", "audioset"}


def test_a_preset_can_be_overridden_and_stays_as_it_was() -> None:
    schema = Schema.model_validate(expand_preset({"preset": "audioset", "classes": 12, "max_frames": 3}))
    assert (schema.classes, schema.max_frames) == (12, 3)
    assert schema.features == (Feature(name="audio_embedding", width=128),)
    assert preset_schema("audioset").classes == 527


def test_a_name_alone_is_a_preset_and_a_table_without_one_is_left_alone() -> None:
    assert Schema.model_validate(expand_preset("yt8m-frame")) == preset_schema("yt8m-frame")
    table = {"features": [RGB], "classes": 3}
    assert expand_preset(table) == table


def test_an_unknown_preset_names_the_known_ones() -> None:
    with pytest.raises(UsageError, match=r"no preset 'yt9m'; the presets are yt8m-frame, yt8m-video, audioset"):
        preset_schema("yt9m")
    with pytest.raises(ValueError, match="no preset 'yt9m'"):
        expand_preset({"preset": "yt9m", "classes": 3})


def test_a_preset_that_is_no_name_is_refused_like_an_unknown_one() -> None:
    with pytest.raises(ValueError, match="preset"):
        expand_preset({"preset": ["audioset"]})


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"level": "video"}, "video-level features are float32"),
        ({"features": [RGB, RGB]}, "each name may occur only once"),
        ({"features": []}, "features"),
        ({"features": [RGB | {"width": 0}]}, "width"),
        ({"ids": []}, "ids"),
        ({"classes": 0}, "classes"),
        ({"max_frames": 0}, "max_frames"),
        ({"dtype": "float16"}, "dtype"),
        ({"level": "shot"}, "level"),
        ({"clases": 3}, "clases"),
    ],
)
def test_a_contradictory_schema_is_refused_by_name(change: dict[str, object], fault: str) -> None:
    sound = {"features": [RGB], "classes": 3}
    assert Schema.model_validate(sound).width == 4
    with pytest.raises(ValidationError, match=fault):
        Schema.model_validate(sound | change)


def test_a_schema_survives_json() -> None:
    for name in PRESETS:
        assert Schema(**preset_schema(name).model_dump(mode="json")) == preset_schema(name)
