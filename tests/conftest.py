"""Fixtures that all tests share: golden numbers, real data where it lies, and tiny generated shards."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import settings

import reliability
from decoders import kept_decoders
from objectstores import gs, s3, store, web  # noqa: F401
from reeltag.artifact.file import Artifact, Member, save_artifact
from reeltag.data.formats import example
from reeltag.data.formats.example import Video, encode
from reeltag.data.formats.tfrecord import ShardFile
from reeltag.data.schema import Schema
from reeltag.data.shards import Manifest, scan
from reeltag.data.synthetic import SyntheticSettings, write_synthetic
from reeltag.models.families import parse_config
from reeltag.models.tagger import build_tagger

# A shell lets what it starts in the background ignore Ctrl-C, and all that it starts in turn.
signal.signal(signal.SIGINT, signal.default_int_handler)
settings.register_profile("untimed", deadline=None)  # a busy machine is no fault
settings.load_profile("untimed")

REPO = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("REELTAG_DATA", REPO.parent / "shared" / "data"))
TINY = SyntheticSettings(
    train_videos=24, test_videos=8, shards=2, classes=8, rgb=6, audio=2, frames=(4, 9), order_pairs=1
)

# The data and the training of recipes that run in seconds.
TINY_RUN = """[data.synthetic]
train_videos = 300
test_videos = 60
shards = 2
classes = 12
rgb = 24
audio = 8
frames = [5, 12]
[training]
epochs = 6
batch_size = 32
frames = 12
learning_rate = 5e-3
schedule = "cosine"
device = "cpu"
[averaging]
epochs = 1
time_constant = 5
"""

# A whole recipe, for what does not hang on its results.
SMALL_RECIPE = """name = "small"
budget_mb = 1
[data.synthetic]
train_videos = 60
test_videos = 20
shards = 2
classes = 8
rgb = 6
audio = 2
frames = [4, 6]
order_pairs = 1
[training]
epochs = 1
batch_size = 8
frames = 4
device = "cpu"
[models.a]
family = "mean"
"""


def golden(name: str) -> dict[str, npt.NDArray[Any]]:
    """The arrays of a golden file."""
    with np.load(REPO / "tests" / "golden" / f"{name}.npz", allow_pickle=False) as arrays:
        return dict(arrays)


def data_file(name: str) -> Path:
    """A file of real data; the test is skipped where it is missing."""
    path = DATA / name
    if not path.is_file():
        pytest.skip(f"no {name} in {DATA}; set REELTAG_DATA")
    return path


def make_video(schema: Schema, length: int = 2, labels: Sequence[int] | None = (1, 3), name: str = "ab") -> Video:
    """A video of random codes that depend on the name and the length alone."""
    rng = np.random.default_rng([length, *name.encode()])
    features = tuple(rng.integers(0, 256, (length, width)).astype(schema.dtype) for width in schema.widths)
    return Video(name, None if labels is None else np.array(labels, np.int64), features)


def encode_unchecked(video: Video, schema: Schema) -> bytes:
    """A record that the writer may refuse."""
    with mock.patch.object(example, "_refuse_unreadable"):
        return encode(video, schema)


def assert_same(one: Video, other: Video) -> None:
    """Two videos agree in everything, types included."""
    assert (one.id, one.cut, one.labels is None) == (other.id, other.cut, other.labels is None)
    if one.labels is not None:
        np.testing.assert_array_equal(one.labels, other.labels)
    for frames, others in zip(one.features, other.features, strict=True):
        assert frames.dtype == others.dtype
        np.testing.assert_array_equal(frames, others)


def records_of(path: Path) -> list[bytes]:
    """The payloads of a shard."""
    shard = ShardFile(path)
    return [shard.record(offset, number).payload for number, offset in enumerate(shard.offsets().tolist())]


@pytest.fixture(scope="session", autouse=True)
def decoders() -> Iterator[None]:
    """Keep decoder processes between commands that run in this process."""
    with kept_decoders():
        yield


@pytest.fixture(scope="session")
def tiny_schema() -> Schema:
    """The schema of `tiny_shards`."""
    return TINY.record_schema


@pytest.fixture(scope="session")
def tiny_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `train-*.tfrecord` and `test-*.tfrecord` made from `TINY`; read it, never change it."""
    folder = tmp_path_factory.mktemp("tiny")
    write_synthetic(folder, TINY)
    return folder


@pytest.fixture(scope="session")
def tiny_manifests(tiny_shards: Path, tiny_schema: Schema) -> dict[str, Manifest]:
    """Manifests of `tiny_shards`, `train` and `test`."""
    return {split: scan(sorted(tiny_shards.glob(f"{split}-*")), tiny_schema) for split in ("train", "test")}


@pytest.fixture(scope="session")
def tiny_model(tiny_schema: Schema, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with one untrained member that reads `tiny_shards`."""
    config = parse_config({"family": "netvlad", "clusters": 4, "hidden": 8})
    state = build_tagger(config, tiny_schema.widths, tiny_schema.classes, 0).state_dict()
    path = tmp_path_factory.mktemp("model") / "tiny.reeltag"
    save_artifact(path, Artifact(tiny_schema, None, (Member("a", config, 1.0, state),), {}))
    return path


def pytest_addoption(parser: pytest.Parser) -> None:
    """The option of `make stress`."""
    parser.addoption("--stress", action="store_true", help="test promises in full and write docs/reliability.md")


@pytest.fixture
def promise(request: pytest.FixtureRequest) -> reliability.Promise:
    """Record of what a promise test does and finds; see `reliability`."""
    return reliability.Promise(request.config.getoption("--stress"))


@pytest.fixture
def everything_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Quantise the small weights of the tests' models too."""
    monkeypatch.setattr("reeltag.artifact.quantization.sizes.MIN_ELEMENTS", 8)
