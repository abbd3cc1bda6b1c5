"""Import a data set: features of any format and their labels, to shards that a recipe beside them trains on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from typing_extensions import TypeIs

from reeltag.core.errors import UsageError
from reeltag.core.progress import Progress
from reeltag.core.storage import (
    Patterns,
    atomic_folder,
    content_hash,
    exclusive_parts,
    file_identity,
    free_bytes,
    link_or_copy,
    make_folder,
    refuse_nonempty,
    remove_folder,
    write_bytes,
    write_json,
)
from reeltag.core.text import counted, first_lines, megabytes, one_line
from reeltag.data.extractor_origin import MANIFEST
from reeltag.data.importing import Input, Split, SplitWriter, Unlabelled, padding_remarks, write_shards
from reeltag.data.label_table import LabelTable
from reeltag.data.labels import Encoding
from reeltag.data.ratings import ENDS, STARTS
from reeltag.data.recipe_draft import draft_recipe
from reeltag.data.schema import Schema
from reeltag.data.sources.files import find_source, list_files, open_files
from reeltag.data.sources.labels import first_video, label_table
from reeltag.data.sources.memory import Items, PythonVideos
from reeltag.data.sources.records import schema_of
from reeltag.data.sources.videos import Source
from reeltag.data.video.dataset import label_names_csv
from reeltag.data.vocabulary import read_vocabulary

SPLITS: tuple[Split, ...] = ("train", "test")
FORMAT = 1  # of the shards and the manifest; raised when the same source gives others
LABEL_NAMES = "label_names.csv"
RECIPE = "recipe.toml"
TEST_SHARE = 0.2  # of the videos, where no test set is given


@dataclass(frozen=True)
class Imported:
    """Data set that was imported.

    Attributes:
        folder: with the shards, their manifest, label names and a recipe.
        schema: of the records.
        train_videos: number of training videos.
        test_videos: number of test videos.
        remarks: what a user should know of videos and labels that were left out or unusual.
    """

    folder: Path
    schema: Schema
    train_videos: int
    test_videos: int
    remarks: tuple[str, ...]


def import_features(  # noqa: PLR0913 (each is an option of `reeltag data import`)
    source: Patterns | Items,
    labels: str | Path | None,
    out: str | Path,
    *,
    test: Patterns | Items | None = None,
    test_share: float | None = None,
    features: Sequence[str] = (),
    label_names: str | Path | None = None,
    label_encoding: Encoding | None = None,
    unlabelled: Unlabelled = "fail",
    workers: int = 1,
    progress: Progress | None = None,
) -> Imported:
    """Import features and labels to shards, and draft a recipe that trains on them.

    An import from files that was interrupted goes on after the shards that are finished.

    Args:
        source: a folder, files or glob patterns; or in Python, videos as tuples of an id, features and labels, in an
            iterable that can be iterated twice. Features are an array [T, D] or [D], or arrays by name.
        labels: file of the labels; by default they are found beside the features.
        out: a new folder.
        test: source of the test videos.
        test_share: without `test`, the fraction of the videos that become test videos, by a hash of their ids; 0.2 by
            default.
        features: names of the features to import; by default all.
        label_names: file of the names of the classes; by default names are numbered in sorted order.
        label_encoding: form of the labels, `index`, `n-hot` or `name`; by default it is found, if only one fits.
        unlabelled: a video without labels is refused (`fail`), left out (`skip`), or written without labels (`keep`).
        workers: number of processes that read the source.
        progress: reports progress.

    Raises:
        UsageError: an option, the source or the labels cannot be used, videos have no labels, or the disk is full.
        DataError: a video cannot be read or trusted, or its id occurred before.
        WorkerError: a process was killed; finished shards are kept.
    """
    out, progress = Path(out), progress or Progress()
    refuse_nonempty(out)
    share = _test_share(test, test_share)
    given = [_open(each, features) for each in ([source] if test is None else [source, test])]
    inputs = [Input(each.source, share if test is None else number) for number, each in enumerate(given)]
    vocabulary = None if label_names is None else read_vocabulary(label_names)
    _refuse_small_disk(out, given)
    sources = [each.source for each in given]
    table = label_table(labels, sources, encoding=label_encoding, vocabulary=vocabulary, progress=progress)
    schema = _schema(sources, table)
    folder = out.with_name(f"{out.name}.parts")
    with exclusive_parts(folder, out):
        settings = [FORMAT, share, label_encoding, unlabelled, schema.model_dump(mode="json")]
        files = [Path(each) for each in (labels, label_names) if each is not None]
        parts = folder / content_hash([settings, [each.identity for each in given], list(map(file_identity, files))])
        make_folder(parts)
        shards = write_shards(inputs, schema, table, parts, unlabelled=unlabelled, workers=workers, progress=progress)
        _refuse_empty(shards)
        imported = _write(out, given[0].source.kind, schema, table, shards)
        remove_folder(folder)
    return imported


@dataclass(frozen=True)
class _Given:
    """An opened source, its files, and what identifies their state."""

    source: Source
    files: tuple[Path, ...]
    identity: Any


def _open(given: Patterns | Items, features: Sequence[str]) -> _Given:
    if not _are_paths(given):
        return _Given(PythonVideos(given, tuple(features)), (), uuid4().hex)  # unknown state, so nothing is resumed
    paths = find_source(given)
    files = list_files(paths)
    return _Given(open_files(paths, features), tuple(files), list(map(file_identity, files)))


def _are_paths(given: Patterns | Items) -> TypeIs[Patterns]:
    several = isinstance(given, Sequence) and len(given) > 0 and all(isinstance(each, str | Path) for each in given)
    return isinstance(given, str | Path) or several


def _test_share(test: object, share: float | None) -> float:
    if test is not None:
        if share is not None:
            raise UsageError("test_share: does not apply beside a source of test videos; give one of the two")
        return 1.0
    share = TEST_SHARE if share is None else share
    if not 0 <= share < 1:
        raise UsageError(f"test_share: {share} is not a valid fraction; give one from 0 to below 1")
    return share


def _refuse_small_disk(out: Path, given: Sequence[_Given]) -> None:
    """Refuse a disk that cannot hold the shards, which have at least half the bytes of their source: of float64."""
    least = sum(file.stat().st_size for each in given for file in each.files) // 2
    if least > (free := free_bytes(out)):
        what = f"the shards need {megabytes(least)} at least, and the disk has {megabytes(free)} free"
        raise UsageError(f"{out}: {what}; make room or choose another disk")


def _refuse_empty(shards: Mapping[Split, SplitWriter]) -> None:
    for name, writer in shards.items():
        if not writer.finished:
            hint = "; change test_share, or give a source of test videos" if len(shards) > 1 else ""
            raise UsageError(f"there are no {name} videos{hint}")


def _schema(sources: Sequence[Source], table: LabelTable | None) -> Schema:
    """Return the schema of the first video, by which all are checked; its limit of frames is not that of the data."""
    schema = schema_of(first_video(sources[0]), 1 if table is None else table.classes)
    if table is None or not table.ratings:
        return schema
    sizes = {
        int(end - start)
        for lists in table.ratings.values()
        for start, end in zip(lists[STARTS], lists[ENDS], strict=True)
    }
    if len(sizes) > 1 or schema.level == "video":
        what = f"rates segments of {', '.join(map(str, sorted(sizes)))} frames" if len(sizes) > 1 else "rates segments"
        need = "segments of one length, of features with frames"
        raise UsageError(f"the file of labels {what}; it takes {need}")
    return schema.model_copy(update={"segments": sizes.pop()})


def _write(
    out: Path, kind: str, schema: Schema, table: LabelTable | None, shards: Mapping[Split, SplitWriter]
) -> Imported:
    """Write the folder of a data set: the shards, their manifest, label names and a recipe."""
    finished = {name: shards[name].finished if name in shards else [] for name in SPLITS}
    most = max(counts.most_frames for each in finished.values() for counts in each)
    if schema.level == "frame":
        schema = schema.model_copy(update={"max_frames": max(most, schema.segments or 1)})
    videos = {name: sum(counts.videos for counts in each) for name, each in finished.items()}
    with atomic_folder(out) as new:
        listed = {}
        for name, writer in shards.items():
            for number, (shard, counts) in enumerate(zip(writer.shards, writer.finished, strict=True)):
                listed[f"{name}-{number:05}-of-{len(writer.shards):05}.tfrecord"] = counts.videos
                link_or_copy(shard, new / list(listed)[-1])
        manifest = {"format": FORMAT, "source": kind, "schema": schema.model_dump(mode="json"), "shards": listed}
        write_json(new / MANIFEST, manifest)
        if table is not None:
            names = None if table.names is None else LABEL_NAMES
            if table.names is not None:
                write_bytes(new / LABEL_NAMES, label_names_csv(table.names).encode())
            draft = draft_recipe(
                schema, videos["train"], out, command="reeltag data import", label_names=names, tests=videos["test"] > 0
            )
            write_bytes(new / RECIPE, draft.encode())
    remarks = (*padding_remarks(shards, schema.level), *_remarks(table, shards))
    return Imported(out, schema, videos["train"], videos["test"], remarks)


def _remarks(table: LabelTable | None, shards: Mapping[Split, SplitWriter]) -> Iterator[str]:
    """Yield what a user should know of the labels."""
    if table is None:
        return
    yield from table.remarks
    finished = {name: writer.finished for name, writer in shards.items()}
    labelled = sum(counts.labelled for each in finished.values() for counts in each)
    if skipped := sum(writer.skipped for writer in shards.values()):
        yield f"{counted(skipped, 'video')} without labels left out"
    if bare := sum(counts.videos - counts.labelled for each in finished.values() for counts in each):
        yield f"{counted(bare, 'video')} without labels kept, which training takes for bad records"
    if unused := len(table.labels) - labelled:
        yield f"the labels have {counted(unused, 'id')} without a video"
    taught = {label for counts in finished.get("train", []) for label in counts.labels}
    names = table.names or tuple(map(str, range(table.classes)))
    untaught = [name for label, name in enumerate(names) if label not in taught]
    yield from first_lines(
        [f"no training video has the label {one_line(name)}, so it cannot be learned" for name in untaught]
    )
