"""Importing features beside copying their files, and reading the imported shards as training does, beside peers.

Features are a `.npy` file a video, and everything is warm. All but the copy wait until their files are on the disk.
Peers are what people write and read instead: webdataset, datasets, and torch.utils.data with numpy.load. Reading is
in random order, in batches of 64.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count, islice
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

import measure
from measure import Passes, exhaust
from reeltag.data.import_features import import_features
from reeltag.data.loader import training_batches
from reeltag.data.sampler import Shuffle
from reeltag.data.schema import Schema
from reeltag.data.shards import Manifest, Shards, scan

FRAMES, WIDTH, CLASSES, BATCH = 200, 512, 20, 64
EPOCHS = 5  # of a training, as a recipe has by default
Floats = npt.NDArray[np.float32]


def generate(folder: Path, videos: int) -> Path:
    """Write the files of features and labels.csv beside their folder."""
    features = folder / "features"
    features.mkdir()
    base = np.random.default_rng(0).normal(size=(FRAMES, WIDTH)).astype(np.float32)
    for number in range(videos):
        np.save(features / f"film{number:05}.npy", base + np.float32(number))
    rows = "".join(f"film{number:05},{number % CLASSES}\n" for number in range(videos))
    (folder / "labels.csv").write_text(f"id,labels\n{rows}")
    return features


def load_all(features: Path) -> Iterator[tuple[str, Floats]]:
    for path in sorted(features.iterdir()):
        yield path.stem, np.load(path)


# --- writing --------------------------------------------------------------------------------------


def write_webdataset(features: Path, out: Path) -> None:
    import webdataset

    with webdataset.ShardWriter(f"{out}/%05d.tar", maxsize=1e8, verbose=0) as writer:
        for name, frames in load_all(features):
            writer.write({"__key__": name, "features.npy": frames, "cls": int(name[4:]) % CLASSES})


def write_datasets(features: Path, out: Path) -> None:
    import datasets

    datasets.disable_progress_bars()
    kinds = {"features": datasets.Array2D((FRAMES, WIDTH), "float32"), "labels": datasets.Value("int64")}

    def rows() -> Iterator[dict[str, Any]]:
        for name, frames in load_all(features):
            yield {"features": frames, "labels": int(name[4:]) % CLASSES}

    made = datasets.Dataset.from_generator(rows, datasets.Features(kinds), cache_dir=str(out / "cache"))
    made.save_to_disk(out / "saved")


def write_hdf5(features: Path, out: Path) -> None:
    import h5py

    with h5py.File(out / "films.h5", "w") as file:
        for name, frames in load_all(features):
            file.create_group(name)["features"] = frames


def write_parquet(features: Path, out: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    kind = pyarrow.list_(pyarrow.list_(pyarrow.float32(), WIDTH))
    schema = pyarrow.schema({"video_id": pyarrow.string(), "features": kind})
    videos = load_all(features)
    with pyarrow.parquet.ParquetWriter(out / "films.parquet", schema, use_dictionary=False) as writer:
        while group := list(islice(videos, BATCH)):
            values = np.concatenate([frames.ravel() for _, frames in group])
            flat = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(values), WIDTH)
            column = pyarrow.ListArray.from_arrays(np.arange(len(group) + 1, dtype=np.int32) * FRAMES, flat)
            ids = pyarrow.array([name for name, _ in group])
            writer.write_batch(pyarrow.record_batch([ids, column], schema=schema))


def import_files(source: Path, out: Path) -> None:
    import_features(source, source.parent / "labels.csv", out / "shards", test_share=0)


def written(write: Callable[[Path, Path], None], source: Path, work: Path, videos: int) -> measure.Times:
    """Time of writing into a new folder, which is removed again."""
    out = work / "out"
    out.mkdir()
    times = measure.timed(partial(write, source, out), videos)
    shutil.rmtree(out)
    return times


def synced(write: Callable[[Path, Path], None], source: Path, out: Path) -> None:
    """Write, and wait until the files are on the disk, as an import does."""
    write(source, out)
    for path in out.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())


def copy(source: Path, out: Path) -> None:
    shutil.copytree(source, out / "copy")


# --- reading --------------------------------------------------------------------------------------


def read_shards(manifest: Manifest, passes: Iterator[int]) -> None:
    steps = len(manifest) // BATCH
    shuffle = Shuffle(next(passes), None)
    indices = np.arange(len(manifest))
    exhaust(training_batches(Shards(manifest), indices, shuffle=shuffle, batch_size=BATCH, steps=range(steps)))


class Arrays(torch.utils.data.Dataset[torch.Tensor]):
    def __init__(self, features: Path) -> None:
        self.paths = sorted(features.iterdir())

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.from_numpy(np.load(self.paths[index]))


def read_arrays(features: Path) -> None:
    exhaust(torch.utils.data.DataLoader(Arrays(features), BATCH, shuffle=True, drop_last=True))


def read_webdataset(folder: Path) -> None:
    import webdataset

    urls = sorted(map(str, folder.glob("*.tar")))
    videos = (
        webdataset.WebDataset(urls, shardshuffle=len(urls), seed=0)
        .shuffle(256)
        .decode()
        .to_tuple("features.npy", "cls")
    )
    exhaust(videos.batched(BATCH, partial=False))


def read_datasets(folder: Path) -> None:
    from datasets import Dataset

    videos = Dataset.load_from_disk(str(folder / "saved")).with_format("torch")
    exhaust(torch.utils.data.DataLoader(videos, BATCH, shuffle=True, drop_last=True))  # type: ignore[arg-type]


# --- the bench ------------------------------------------------------------------------------------


def measure_writing(features: Path, work: Path, videos: int, rounds: int) -> Passes:
    others: dict[str, tuple[Callable[[Path, Path], None], Path]] = {}
    for name, write in (("HDF5", write_hdf5), ("Parquet", write_parquet)):
        folder = work / name
        folder.mkdir()
        write(features, folder)
        shutil.copy(work / "labels.csv", folder)
        (source,) = (path for path in folder.iterdir() if path.name != "labels.csv")
        others[f"reeltag, from {name}"] = import_files, source
    rows = {
        "copy of the files": (copy, features),
        "reeltag, from .npy": (import_files, features),
        **others,
        "webdataset, from .npy": (partial(synced, write_webdataset), features),
        "datasets, from .npy": (partial(synced, write_datasets), features),
    }
    calls = {name: partial(written, write, source, work, videos) for name, (write, source) in rows.items()}
    return measure.run_rounds(calls, rounds)


def measure_reading(features: Path, work: Path, videos: int, rounds: int) -> Passes:
    tars, saved, shards = (work / name for name in ("tars", "datasets", "imported"))
    for folder, write in ((tars, write_webdataset), (saved, write_datasets), (shards, import_files)):
        folder.mkdir()
        write(features, folder)
    schema = Schema(features=({"name": "features", "width": WIDTH},), dtype="float32", classes=CLASSES)
    manifest = scan(sorted(shards.glob("shards/*.tfrecord")), schema)
    rows = {
        "reeltag": partial(read_shards, manifest, count()),
        "torch.utils.data, numpy.load": partial(read_arrays, features),
        "webdataset": partial(read_webdataset, tars),
        "datasets": partial(read_datasets, saved),
    }
    seen = videos // BATCH * BATCH
    return measure.run_rounds({name: partial(measure.timed, read, seen) for name, read in rows.items()}, rounds)


def main() -> None:
    parser = measure.options("Videos imported and read a second, by reeltag and by others.", rounds=3)
    parser.add_argument("--videos", type=int, default=3000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        features = generate(work, options.videos)
        writing = measure_writing(features, work, options.videos, options.rounds)
        reading = measure_reading(features, work, options.videos, options.rounds)
    base = "copy of the files"
    tables = {
        "written": measure.rates(writing, base, "wall"),
        "written_cpu": measure.rates(writing, base),
        "read": measure.rates(reading, "reeltag", "wall"),
    }
    print(f"{options.videos} videos of {FRAMES} × {WIDTH} float32, {options.rounds} rounds, videos a second\n")
    print("Written, from warm files:\n")
    measure.print_table(tables["written"], base)
    measure.print_table(tables["written_cpu"], base)
    print("Read in random order, in batches:\n")
    measure.print_table(tables["read"], "reeltag")
    epoch = median(each["cpu"] for each in reading["reeltag"])
    once = {name: median(each["cpu"] for each in writing[f"reeltag, from {name}"]) for name in ("HDF5", "Parquet")}
    direct = {name: EPOCHS * epoch / (EPOCHS * epoch + seconds) for name, seconds in once.items()}
    for name, ratio in direct.items():
        print(f"{EPOCHS} epochs read from {name}, import included: {ratio:.2f} of the videos a CPU second of shards")
    measure.print_json(options.json, "import", videos=options.videos, rounds=options.rounds, **tables, direct=direct)


if __name__ == "__main__":
    main()
