"""Odd and damaged media files: none ends the work or holds it up, and what becomes of each is told by its name."""

import time
from contextlib import contextmanager
from itertools import islice

import pytest

import oddmedia
from reeltag.core.progress import Progress, Task
from reeltag.data.schema import Schema
from reeltag.data.video.dataset import find_videos
from reeltag.data.video.decode import STALLED_SECONDS
from reeltag.data.video.extractors.registry import image_extractor, sound_extractor
from reeltag.data.video.features import Pipeline
from reeltag.inference.predictor import load
from reeltag.inference.video.tagger import open_tagger, tag_files
from tagged import write_untrained

onnx = pytest.importorskip("onnx")


@pytest.fixture(scope="module")
def tagger(tmp_path_factory):
    """Of the mean colour, which takes no time, and of the sound."""
    folder = tmp_path_factory.mktemp("mean")
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    mean = helper.make_node("ReduceMean", ["x"], ["y"], axes=[2, 3], keepdims=0)
    values = [helper.make_tensor_value_info(name, kind, shape) for name, shape in (("x", ["N", 3, 8, 8]), ("y", None))]
    graph = helper.make_graph([mean], "g", values[:1], values[1:])
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), folder / "mean.onnx")
    image = f"onnx:{folder / 'mean.onnx'}"
    features = Pipeline(image_extractor(image), sound_extractor("logmel")).features
    model = write_untrained(folder / "m.reeltag", Schema(features=features, classes=4))
    return open_tagger(load(model), "m.reeltag", image)


class Times(Progress):
    """Record the time that each file takes."""

    def __init__(self):
        self.seconds = []

    @contextmanager
    def task(self, name, total, unit):
        yield _Timed(name, total, unit, seconds=self.seconds)


class _Timed(Task):
    def __init__(self, *arguments, seconds):
        super().__init__(*arguments)
        self._seconds, self._last = seconds, time.monotonic()

    def advance(self, amount, *, waited=0.0, note=""):
        self._seconds.append(time.monotonic() - self._last)
        self._last = time.monotonic()


def tagged(tagger, paths, pictures):
    times, items = Times(), find_videos([str(path) for path in paths], None).items
    results, left_out = tag_files(tagger, items, 2, times, timeline=True, pictures=pictures)
    assert len(times.seconds) == len(paths)
    assert max(times.seconds) < STALLED_SECONDS
    found = {result.tagged["id"]: result for result in results}
    assert {*found, *left_out} == {path.name for path in paths}
    assert len(found) + len(left_out) == len(paths)
    assert all(reason and "\n" not in reason for reason in left_out.values())
    assert all(1 <= result.tagged["frames"] <= 300 for result in results)
    return found, left_out


def check(tagger, folder, files):
    """Odd files are tagged, those that hold nothing are not, and of the rest, which are damaged, either."""
    odd, nothing = list(oddmedia.odd(folder)), list(oddmedia.no_media(folder))
    broken = list(islice(oddmedia.damaged(folder), files - len(odd) - len(nothing)))
    assert len(broken) >= files // 3
    found, left_out = tagged(tagger, [*odd, *nothing, *broken], pictures=True)
    assert {path.name for path in odd} <= set(found)
    assert {path.name for path in nothing} <= set(left_out)
    return found, left_out, [path for path in broken if path.name in found]


@pytest.mark.slow
def test_two_hundred_odd_and_damaged_files(tagger, tmp_path):
    found, left_out, tagged_anyway = check(tagger, tmp_path, 200)
    assert len(found) + len(left_out) == 200
    assert 30 < len(tagged_anyway) < 120  # the damage is neither nothing nor all
    again, _ = tagged(tagger, tagged_anyway[:20], pictures=False)
    assert all(again[name].tagged == found[name].tagged for name in again)


@pytest.mark.slow
def test_odd_files_are_tagged_and_what_is_none_is_told(tagger, tmp_path):
    found, left_out, _ = check(tagger, tmp_path, 100)
    frames = {name: result.tagged["frames"] for name, result in found.items()}
    assert all(frames[f"whole.{kind[0]}"] == 3 for kind in oddmedia.KINDS)
    assert (frames["five seconds.mp4"], frames["times jump.mkv"], frames["one frame.mkv"]) == (5, 300, 1)
    assert all(frames[name] == 3 for name in frames if name.startswith(("rotated", "says", "pixels")))
    assert "no sound, taken as silence" in found["no sound.mp4"].remarks
    assert "no pictures, taken as black" in found["no pictures.mp4"].remarks
    assert not found["no pictures.mp4"].pictures
    assert len(found["five seconds.mp4"].pictures) == 5
    assert "is empty" in left_out["empty.mp4"]
