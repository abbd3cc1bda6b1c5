"""Tag a set of shards into one file, in several processes; a killed run resumes with the unfinished shards.

The predictions of each shard are written to a part, a file in the folder `OUT.parts`. When all shards are finished, the
parts are joined in the order of the shards, and the folder is removed. A part's name is a hash of everything that
determines its content, so a run with other settings or changed shards never uses a stale part. After a part, a marker
with its counts is written beside it; a part without a marker is unfinished.
"""

from __future__ import annotations

import logging
import re
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from reeltag.artifact.file import stream_artifact
from reeltag.artifact.tagging_rule import class_thresholds, require_calibration
from reeltag.core.distributed.process_pool import PROCESS_BYTES, Pool, Resources, open_process_pool
from reeltag.core.environment import one_torch_thread
from reeltag.core.errors import UsageError
from reeltag.core.progress import Progress
from reeltag.core.storage import (
    LOCK,
    DataFile,
    Patterns,
    content_hash,
    exclusive_parts,
    file_hash,
    file_identity,
    file_size,
    find_files,
    read_json,
    refuse_existing,
    remove_folder,
    write_json,
)
from reeltag.core.text import counted
from reeltag.data.bad_records import BadRecord, BadRecords
from reeltag.data.extractor_origin import refuse_other_origin
from reeltag.data.flat_videos import is_flat, rgb_feature_index
from reeltag.data.formats.example import Video
from reeltag.data.loader import Batch, stream_batches
from reeltag.data.prefetch import prefetched
from reeltag.data.schema import Schema
from reeltag.data.shards import read_examples
from reeltag.data.sources.files import find_features
from reeltag.data.sources.pieces import Piece, pieces, read_piece
from reeltag.inference.engines.choice import ASKED_FOR, Choice, choose, everywhere, parse_choice
from reeltag.inference.engines.ways import is_installed
from reeltag.inference.ensemble import Predictions, predict_batches, videos_at_once
from reeltag.inference.formats.table import output_format, refuse_ending
from reeltag.inference.frame_subset import FrameSubset, frame_subset
from reeltag.inference.inputs import refuse_videos
from reeltag.inference.metrics.video_metrics import TOP_K
from reeltag.inference.predictor import AnyMode, Predictor, load, resolve_device, resolve_model
from reeltag.inference.selection import ALL, Selection, check_selection

PARTS_FORMAT = 3  # raise it when the content of a part changes for the same shard, model and options
logger = logging.getLogger(__name__)
_PARTS = re.compile(rf"\.?part-.*|{re.escape(LOCK)}")


@dataclass
class TagCounts:
    """Numbers of videos or segments tagged and of flat videos dropped, the bad records, and what was forgiven.

    `choice` says how the model was computed, once it is known.
    """

    videos: int = 0
    dropped: int = 0
    bad: BadRecords = field(default_factory=BadRecords)
    choice: Choice | None = field(default=None, compare=False)

    def add(self, other: TagCounts) -> None:
        """Add the counts of another shard.

        Raises:
            DataError: there are more bad records than may be left out.
        """
        self.videos += other.videos
        self.dropped += other.dropped
        for record in other.bad.records:
            self.bad.skip(record.error)
        self.bad.skipped += other.bad.skipped
        self.bad.remarks.update(other.bad.remarks)

    def dump(self) -> dict[str, Any]:
        """Return the counts as JSON."""
        bad = [vars(record) for record in self.bad.records]
        counts = {"videos": self.videos, "dropped": self.dropped, "skipped": self.bad.skipped}
        return {**counts, "bad": bad, "remarks": dict(self.bad.remarks)}

    @classmethod
    def load(cls, content: dict[str, Any]) -> TagCounts:
        """Restore counts from what `dump` returned."""
        records = [BadRecord(**record) for record in content["bad"]]
        bad = BadRecords(len(records), records, content["skipped"], Counter(content["remarks"]))
        return cls(content["videos"], content["dropped"], bad)


@dataclass(frozen=True)
class _Job:
    """Settings with which shards are tagged; `model_hash` is that of the file."""

    model: Path
    model_hash: str
    device: str
    choice: Choice
    subset: FrameSubset | None
    drop_flat: bool
    max_bad_records: int
    workers: int
    calibrated: bool
    selection: Selection
    names: bool


@dataclass(frozen=True)
class _Part:
    """Shard and the file of its predictions."""

    shard: DataFile | Piece
    size: int
    path: Path

    @property
    def marker(self) -> Path:
        return self.path.with_suffix(".json")

    @property
    def finished(self) -> bool:
        return self.marker.is_file() and self.path.is_file()


class ShardTagger:
    """Tagger of shards that computes several batches at a time, each on a single thread.

    If torch split one batch over several threads, the last bits of a matrix product would depend on their number. The
    bytes of the output would then depend on the number of workers and on the machine.

    Args:
        predictor: the model.
        threads: number of batches that are computed at a time.
        subset: frames that each video is tagged from; all by default.
        drop_flat: leave out the challenge's fake test videos.

    Raises:
        UsageError: `drop_flat` is set, but the model reads no image feature.
    """

    def __init__(
        self, predictor: Predictor, threads: int, *, subset: FrameSubset | None = None, drop_flat: bool = False
    ) -> None:
        self.predictor, self.threads, self.subset = predictor, threads, subset
        self._rgb = rgb_feature_index(predictor.schema) if drop_flat else None

    def tag(self, shard: DataFile | Piece, counts: TagCounts) -> Iterator[Predictions]:
        """Tag the videos of a shard, in order, and count them, and what is forgiven in them.

        Raises:
            DataError: more records are damaged or do not follow the model's schema than the counts allow.
        """
        batches = stream_batches(
            self._videos(shard, counts), self.predictor.schema, videos_at_once(self.predictor.schema)
        )
        with one_torch_thread(), ThreadPoolExecutor(self.threads) as pool:
            waiting: deque[Future[Predictions]] = deque()
            for batch in batches:
                waiting.append(pool.submit(self._predict, batch))
                if len(waiting) > self.threads:
                    yield waiting.popleft().result()
            yield from (future.result() for future in waiting)

    def _videos(self, shard: DataFile | Piece, counts: TagCounts) -> Iterator[Video]:
        schema = self.predictor.schema
        if isinstance(shard, Piece):
            videos = read_piece(shard, schema)
        else:
            videos = read_examples([shard], schema.lenient, counts.bad)
        for video in videos:
            if self._rgb is not None and is_flat(video, self._rgb):
                counts.dropped += 1
            else:
                counts.videos += 1
                yield video

    def _predict(self, batch: Batch) -> Predictions:
        used = batch if self.subset is None else self.subset.select(batch)
        (predictions,) = predict_batches(self.predictor.model, [used])
        return predictions


def stream_predictions(
    predictor: Predictor,
    patterns: Patterns,
    *,
    frames: int | None = None,
    seed: int | None = None,
    drop_flat: bool = False,
    max_bad_records: int = 0,
) -> tuple[Iterator[Predictions], TagCounts]:
    """Tag every video of shards lazily, with the same arguments and probabilities as `predict_to_file`.

    Returns:
        The predictions, and the counts, which grow while the predictions are read.

    Raises:
        UsageError: a pattern matches nothing, the features are of another extractor, so many frames cannot be drawn,
            or there is no image to drop videos by.
    """
    threads = _threads(torch.device(predictor.device).type, 1)
    subset = frame_subset(frames, seed, predictor.schema)
    tagger = ShardTagger(predictor, threads, subset=subset, drop_flat=drop_flat)
    counts = TagCounts(bad=BadRecords(max_bad_records))
    shards = _find(patterns, predictor.schema)
    return chain.from_iterable(tagger.tag(shard, counts) for shard in _prefetched(shards)), counts


def predict_to_file(  # noqa: PLR0913 (each is an option of `reeltag predict`)
    model: str | Path | Predictor,
    patterns: Patterns,
    out: str | Path,
    *,
    mode: AnyMode = "auto",
    device: str = "auto",
    workers: int = 1,
    frames: int | None = None,
    seed: int | None = None,
    drop_flat: bool = False,
    max_bad_records: int = 0,
    top: int = TOP_K,
    threshold: float | None = None,
    thresholds: bool = False,
    calibrated: bool = False,
    names: bool = False,
    progress: Progress | None = None,
    pool: AbstractContextManager[Pool] | None = None,
) -> TagCounts:
    """Tag every video of shards into one file, whose bytes do not depend on the workers or on interruptions.

    Args:
        model: a `.reeltag` file, a folder that `reeltag share` wrote, a URL, or a loaded `Predictor`, whose mode,
            device and calibration are used instead of the arguments.
        patterns: paths, URLs or glob patterns of shards, one or several.
        out: a new .csv, .jsonl or .parquet file.
        mode: how the model is computed; see `load`. With `auto` all workers compute as this process chooses, and a run
            that resumes goes on as it began.
        device: that computes; by default a GPU, if there is one and the mode supports it.
        workers: number of processes. Each loads the model and gets an equal part of the threads. A script that asks
            for more than one must run its code under `if __name__ == "__main__"`.
        frames: number of frames to tag each video from, drawn uniformly with replacement; all by default.
        seed: of the drawn frames, 0 by default; the draw depends on it and on the video's id alone.
        drop_flat: leave out the challenge's fake test videos.
        max_bad_records: largest number of records, in all shards together, that may be left out because they are
            damaged or do not follow the model's schema.
        top: largest number of tags of a video.
        threshold: least probability of a tag; without one all are written.
        thresholds: write only tags that reach the model's own thresholds.
        calibrated: apply the calibration in the file to all probabilities.
        names: CSV with a line for each tag, with the name of its class, instead of Kaggle's.
        progress: reports finished shards.
        pool: processes of a cluster, used instead of local workers; every machine needs all files at the same paths.

    Raises:
        UsageError: an argument is invalid, the features are of another extractor, or `out` cannot be written.
        ArtifactError: the model is missing or damaged.
        DataError: there are more bad records than may be left out; finished shards are kept.
        WorkerError: a worker was killed; finished shards are kept.
    """
    progress, out, file = progress or Progress(), Path(out), resolve_model(model)
    if workers < 1:
        raise UsageError(f"workers: must be 1 or more, not {workers}")
    chosen = None
    if isinstance(model, Predictor):
        mode, chosen, device, calibrated = model.mode, model.choice, model.device, model.calibrated
    device = resolve_device(mode, device)
    check_selection(top, threshold, thresholds)
    refuse_ending(out, names=names)
    refuse_existing(out)
    total = TagCounts(bad=BadRecords(max_bad_records))
    head, _ = stream_artifact(file)
    if calibrated:
        require_calibration(head)
    least = tuple(class_thresholds(head, calibrated=calibrated).tolist()) if thresholds else threshold or 0.0
    selection = Selection(top, least)
    output = output_format(out, head.schema, selection, names=names)
    subset = frame_subset(frames, seed, head.schema)
    if drop_flat:
        rgb_feature_index(head.schema)
    shards = _find(patterns, head.schema)
    drawn: list[object] = [] if subset is None else [subset.frames, subset.seed]
    if calibrated or names or selection != ALL:  # the file's hash says which thresholds
        drawn += [top, threshold, thresholds, calibrated, names]
    model_hash, folder = file_hash(file), _folder_of_parts(out)
    with exclusive_parts(folder, out):
        if mode != "auto":
            chosen = everywhere(mode, head.members, ASKED_FOR)
        total.choice = choice = chosen or _earlier_choice(folder, model_hash) or _choose(file, device, head.schema)
        computed = choice.ways if choice.measured else mode
        settings = [PARTS_FORMAT, model_hash, device, computed, drop_flat, *drawn, out.suffix]
        job = _Job(
            file, model_hash, device, choice, subset, drop_flat, max_bad_records, workers, calibrated, selection, names
        )
        parts = [_part(shard, folder, settings) for shard in shards]
        _tag_missing(job, parts, total, progress, pool)
        order = {str(shard): number for number, shard in enumerate(shards)}
        total.bad.records.sort(key=lambda record: (order[record.file], record.record))
        output.join(out, [part.path for part in parts])
        remove_folder(folder)
    return total


def _choose(file: Path, device: str, schema: Schema) -> Choice:
    with one_torch_thread():  # as batches are computed
        return choose(file, torch.device(device).type, videos_at_once(schema))


def _earlier_choice(folder: Path, model_hash: str) -> Choice | None:
    """Return how an interrupted run computed the same model, if this machine can; the output is of one piece."""
    for marker in sorted(folder.glob("part-*.json")):
        content = read_json(marker)
        if content.get("model") == model_hash and "choice" in content:
            choice = parse_choice(content["choice"])
            if choice is not None and all(map(is_installed, choice.ways.values())):
                return choice
            logger.warning("%s: began with engines that are not available here; its shards are tagged again", folder)
            return None
    return None


def _tag_missing(
    job: _Job,
    parts: Sequence[_Part],
    total: TagCounts,
    progress: Progress,
    pool: AbstractContextManager[Pool] | None,
) -> None:
    """Tag the shards that have no finished part yet, and add the counts of all shards to `total`."""
    done, todo = [part for part in parts if part.finished], [part for part in parts if not part.finished]
    if done:
        progress.say(f"{len(done):,} of {counted(len(parts), 'shard')} were done before")
    for part in done:
        total.add(TagCounts.load(read_json(part.marker)))
    with progress.task("predict", sum(part.size for part in parts), "bytes") as task:
        task.resume_at(sum(part.size for part in done))
        with _finished(job, todo, pool) as results:
            for part, counts in results:
                total.add(counts)
                task.advance(part.size, note=counted(total.videos, "video"))


def _find(patterns: Patterns, schema: Schema) -> Sequence[DataFile | Piece]:
    """Return the shards that patterns name, or the pieces of other files of features.

    Raises:
        UsageError: a pattern matches nothing or videos, or the features are of another extractor than the schema's.
    """
    refuse_videos(patterns)
    if paths := find_features(patterns):
        return pieces(paths, schema)
    shards = find_files(patterns)
    refuse_other_origin(schema, shards)
    return shards


def _prefetched(shards: Sequence[DataFile | Piece]) -> Iterator[DataFile | Piece]:
    """Yield shards while the next remote ones are downloaded."""
    files = [shard for shard in shards if not isinstance(shard, Piece)]
    return prefetched(files) if files else iter(shards)


def _folder_of_parts(out: Path) -> Path:
    """Return the folder for the parts of an output.

    Raises:
        UsageError: the folder exists and holds other files.
    """
    folder = out.with_name(f"{out.name}.parts")
    if folder.exists() and not (folder.is_dir() and all(_PARTS.fullmatch(entry.name) for entry in folder.iterdir())):
        raise UsageError(f"{folder}: holds more than parts of predictions; move it or choose another --out")
    return folder


def _part(shard: DataFile | Piece, folder: Path, settings: Sequence[object]) -> _Part:
    if isinstance(shard, Piece):
        state, size = list(shard.identity), shard.size
    else:
        state = file_identity(shard) + ([shard.stat().st_ctime_ns] if isinstance(shard, Path) else [])
        size = file_size(shard)
    digest = content_hash([*settings, *state])
    return _Part(shard, size, folder / f"part-{digest[:32]}{settings[-1]}")


@contextmanager
def _finished(
    job: _Job, todo: Sequence[_Part], pool: AbstractContextManager[Pool] | None
) -> Iterator[Iterator[tuple[_Part, TagCounts]]]:
    """Yield an iterator over the parts in the order in which they are finished, by this process or by several."""
    if not todo:
        yield iter(())
        return
    workers = min(job.workers, len(todo))
    threads = _threads(job.device, workers)
    if workers == 1 and pool is None:
        tagger = _open(job, threads)
        parts = zip(todo, _prefetched([part.shard for part in todo]), strict=True)
        yield ((part, _write(tagger, part, job)) for part, _ in parts)
    else:
        needs = Resources(1, int(job.device != "cpu"), 3 * job.model.stat().st_size + PROCESS_BYTES)
        with pool or open_process_pool([job.device] * workers) as processes:
            futures = {processes.submit(needs, _write_in_worker, job, threads, part): part for part in todo}
            yield ((futures[future], future.result()) for future in as_completed(futures))


def _threads(device: str, workers: int) -> int:
    """Return the number of torch threads of a worker: an equal part of all on CPUs, one for a GPU."""
    return max(1, torch.get_num_threads() // workers) if device == "cpu" else 1


def _open(job: _Job, threads: int) -> ShardTagger:
    with one_torch_thread():
        predictor = load(job.model, job.choice, job.device, calibrated=job.calibrated)
    return ShardTagger(predictor, threads, subset=job.subset, drop_flat=job.drop_flat)


_open_once = lru_cache(maxsize=1)(_open)


def _write_in_worker(job: _Job, threads: int, part: _Part) -> TagCounts:
    return _write(_open_once(job, threads), part, job)


def _write(tagger: ShardTagger, part: _Part, job: _Job) -> TagCounts:
    counts = TagCounts(bad=BadRecords(job.max_bad_records))
    predictor = tagger.predictor
    output = output_format(part.path, predictor.schema, job.selection, names=job.names)
    output.write(part.path, tagger.tag(part.shard, counts), predictor.label_names)
    computed = {"model": job.model_hash, "choice": job.choice.dump()} if job.choice.measured else {}
    write_json(part.marker, counts.dump() | computed)
    return counts
