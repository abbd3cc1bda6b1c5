"""The commands `reeltag data …`: inspect, verify, generate and download shards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from cyclopts import App

from reeltag.cli.data_import import import_
from reeltag.cli.options import MaxBadRecords, OneOrMore, Overrides, load_schema
from reeltag.cli.output import Json, say
from reeltag.core.errors import DataError, UsageError
from reeltag.core.text import one_line, toml

if TYPE_CHECKING:
    from reeltag.core.storage import DataFile
    from reeltag.data.schema import Schema
    from reeltag.data.schema_draft import Draft

data = App(name="data", help="Import, inspect, verify, generate and download shards.")
data.command(import_, name="import")


@data.command(name="inspect")
def data_inspect(*shards: OneOrMore, json: Json = False) -> None:
    """Show the number of records, the first record, and a draft of the recipe table [data.schema].

    The draft is inferred from all records of the first shard; feature names may be any.

    Example: reeltag data inspect 'shards/*.tfrecord'

    Args:
        shards: Paths, URLs or glob patterns of TFRecord files.
    """
    from reeltag.core.storage import file_size, find_files
    from reeltag.core.text import counted, megabytes
    from reeltag.data.formats.tfrecord import ShardFile
    from reeltag.data.inspect import describe_record
    from reeltag.data.schema_draft import draft

    paths = find_files(shards)
    files = [ShardFile(path) for path in paths]
    records = sum(len(file.offsets()) for file in files)
    size = sum(map(file_size, paths))
    try:
        lines = describe_record(files[0].record(0, 0).payload)
    except DataError as error:
        raise DataError(error.reason, file=files[0].name, record=0, offset=0) from error
    summary = f"{counted(len(files), 'shard')}, {counted(records, 'record')}, {megabytes(size)}"
    drafted = draft(record.payload for record in files[0].records(_pass))
    text = [summary, f"first record of {files[0].path}:", *(f"  {line}" for line in lines), "", *_draft_lines(drafted)]
    result = {"shards": len(files), "records": records, "bytes": size, "first_record": lines}
    say({**result, "draft": asdict(drafted)}, text, json)


@data.command
def verify(
    *shards: OneOrMore, schema: str | None = None, max_bad_records: MaxBadRecords = 0, json: Json = False
) -> None:
    """Verify checksums, features, labels and ids of all records; exit with code 2 at the first fault.

    Example: reeltag data verify '/data/audioset/eval-*.tfrecord' --schema audioset

    Args:
        shards: Paths, URLs or glob patterns of TFRecord files.
        schema: A preset (yt8m-frame, yt8m-video, audioset), or a recipe with a data.schema; by default that of the
            manifest beside the shards, which `extract` and `data import` write, and without one a draft from all
            records.
    """
    from reeltag.core.progress import default_progress
    from reeltag.core.storage import file_size, find_files
    from reeltag.core.text import counted, megabytes
    from reeltag.data.bad_records import format_remarks
    from reeltag.data.shards import scan

    paths = find_files(shards)
    loaded, origin = (load_schema(schema), schema) if schema is not None else _found_schema(paths)
    with default_progress().task("verify", sum(map(file_size, paths)), "bytes") as task:
        manifest = scan(paths, loaded, task.advance, max_bad_records=max_bad_records)
    if not len(manifest):
        fault = f"; the first fault is {manifest.left_out[0]}" if manifest.left_out else ""
        raise UsageError(f"no record is valid{fault}")
    frames = manifest.frames[manifest.first_examples]
    cut = int((frames > loaded.max_frames).sum())
    occurring, labels = int((manifest.class_counts > 0).sum()), float(manifest.class_counts.sum() / len(manifest))
    examples = counted(len(manifest), loaded.example)
    text = [
        *([] if schema is not None else [f"schema    {origin}"]),
        f"{counted(len(paths), 'shard')}, {examples}, {megabytes(manifest.bytes)}: all checksums and ids are valid",
        *(f"bad       {bad}" for bad in manifest.left_out),
        *(f"allowed   {line}" for line in format_remarks(manifest.remarks)),
        f"frames    {frames.min()} to {frames.max()} a video, {frames.mean():.1f} on average",
        *(
            [f"          {cut:,} videos have more than {loaded.max_frames}; their later frames are left out"]
            if cut
            else []
        ),
        f"labels    {manifest.labelled:,} {loaded.example}s have labels, {labels:.2f} on average",
        f"classes   {occurring:,} of {loaded.classes:,} occur",
    ]
    result = {
        "schema": origin,
        "shards": len(paths),
        "videos": len(manifest),
        "bytes": manifest.bytes,
        "left_out": list(map(str, manifest.left_out)),
        "remarks": dict(manifest.remarks),
        "frames": {"min": int(frames.min()), "max": int(frames.max()), "mean": float(frames.mean()), "cut": cut},
        "labelled": manifest.labelled,
        "labels_a_video": labels,
        "classes": loaded.classes,
        "classes_that_occur": occurring,
    }
    say(result, text, json)


@data.command
def synth(out: Path, /, *, set_: Overrides = [], json: Json = False) -> None:  # noqa: B006
    """Generate synthetic shards whose labels can be learned.

    Example: reeltag data synth shards/ --set train_videos=1000 --set test_videos=200

    Args:
        out: A new folder.
    """
    from reeltag.core.storage import refuse_nonempty
    from reeltag.data.synthetic import write_synthetic
    from reeltag.recipe.load import synthetic_settings

    refuse_nonempty(out)
    settings = synthetic_settings(set_)
    write_synthetic(out, settings)
    schema = settings.record_schema
    table = schema.model_dump(mode="json", exclude_defaults=True)
    text = [
        f"{out}: {settings.train_videos} training and {settings.test_videos} test videos",
        "for a recipe:",
        "",
        *_schema_lines(table),
    ]
    counts = {"train_videos": settings.train_videos, "test_videos": settings.test_videos}
    say({"folder": out, **counts, "schema": schema.model_dump(mode="json")}, text, json)


@data.command
def download(
    data_set: Literal["yt8m"],
    /,
    *,
    split: Literal["train", "validate", "test"],
    out: Path,
    level: Literal["frame", "video"] = "frame",
    part: str = "1/1",
    mirror: Literal["us", "eu", "asia"] = "us",
    json: Json = False,
) -> None:
    """Download the official YouTube-8M shards (2018) and verify their MD5 checksums.

    The same command resumes after an interruption. Addresses and parts are those of the
    official download.py; this has not been tried against the real servers yet (docs/scale.md).

    Example: reeltag data download yt8m --split train --part 1/100 --mirror eu --out yt8m_frame

    Args:
        data_set: Name of the data set.
        split: Split of the data set; test has no public labels.
        out: A new folder, or one that this command began; the shards are OUT/train0000.tfrecord and so on.
        level: Features of every frame (1.5 TB in total), or their mean per video (31 GB).
        part: Download the i-th of n disjoint parts of about equal size, written i/n.
        mirror: Region of the server; choose the nearest.
    """
    from reeltag.core.progress import default_progress
    from reeltag.core.text import counted, megabytes
    from reeltag.data import yt8m_download

    chosen = yt8m_download.parse_part(part)
    shards = yt8m_download.download(
        out, level, split, chosen, mirror=mirror, progress=default_progress(), source=yt8m_download.OFFICIAL_URLS
    )
    size = sum(shard.stat().st_size for shard in shards)
    text = [
        f"{out}: {counted(len(shards), 'shard')}, {megabytes(size)}, each with the official MD5",
        f"verify them: reeltag data verify '{out}/{split}????.tfrecord' --schema yt8m-{level}",
    ]
    say({"folder": out, "shards": len(shards), "bytes": size}, text, json)


def _found_schema(paths: Sequence[DataFile]) -> tuple[Schema, str]:
    """Return the schema of the manifest beside shards, or else a draft, and the origin of it.

    Raises:
        UsageError: there is no manifest, and no schema fits the records.
    """
    from itertools import chain

    from pydantic import ValidationError

    from reeltag.data.extractor_origin import schema_beside
    from reeltag.data.formats.tfrecord import ShardFile
    from reeltag.data.schema import Schema
    from reeltag.data.schema_draft import draft

    if (beside := schema_beside(paths)) is not None:
        return beside[0], f"of {beside[1]}"
    shards = (ShardFile(path) for path in paths)
    drafted = draft(record.payload for record in chain.from_iterable(shard.records(_pass) for shard in shards))
    try:
        schema = Schema.model_validate({"classes": 1} | drafted.schema)
    except ValidationError as error:
        reason = "; ".join(drafted.remarks)
        raise UsageError(
            f"no manifest lies beside these shards, and no schema fits them: {reason}; give --schema"
        ) from error
    remarks = "".join(f"\n          {one_line(remark)}" for remark in drafted.remarks)
    return schema, f"drafted from these records: {toml(drafted.schema)}{remarks}"


def _pass(damaged: DataError) -> None:
    """Leave a damaged record to the check that follows."""


def _draft_lines(drafted: Draft) -> list[str]:
    """Format a draft of [data.schema], with the facts it was inferred from."""
    from reeltag.core.text import counted

    label = "no labels" if drafted.highest_label is None else f"highest label {drafted.highest_label:,}"
    facts = [label, *([f"{drafted.most_frames:,} frames at most"] if drafted.most_frames else [])]
    if drafted.unlabelled and drafted.highest_label is not None:
        facts.append(f"{drafted.unlabelled:,} without labels")
    notes = {"classes": "highest label + 1; write the real number, as other shards may have more"}
    notes |= {"max_frames": "of the longest record; later frames are left out"}
    return [
        f"draft for a recipe, from the first shard's {counted(drafted.records, 'record')} ({', '.join(facts)}):",
        "",
        *_schema_lines(drafted.schema, notes),
        *([f'# or schema = "{drafted.preset}" in [data], which these records follow'] if drafted.preset else []),
        *(f"# {one_line(remark)}" for remark in drafted.remarks),
    ]


def _schema_lines(table: Mapping[str, Any], notes: Mapping[str, str] = MappingProxyType({})) -> list[str]:
    """Format the table [data.schema] in TOML, with comments on some keys."""
    lines = [f"{key} = {toml(value)}" + (f"  # {notes[key]}" if key in notes else "") for key, value in table.items()]
    return ["[data.schema]", *lines]
