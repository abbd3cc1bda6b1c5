"""Stages that make the data ready: every record is read and checked before anything trains."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from reeltag.data.shards import refuse_overlap, scan
from reeltag.data.synthetic import write_synthetic
from reeltag.data.tfrecord import ShardFile
from reeltag.errors import DataError, ReeltagError, UsageError
from reeltag.executors import Job, Stage
from reeltag.recipe import Recipe
from reeltag.stages.files import MANIFEST, load_manifest
from reeltag.storage import counted, find, megabytes


def data_stages(recipe: Recipe, without_data: bool) -> list[Stage]:
    """Generate the data if need be, then read each split through once."""
    data = recipe.data
    stages = []
    if data.synthetic is not None:
        videos = data.synthetic.train_videos + data.synthetic.test_videos
        parameters = data.synthetic.model_dump(mode="json")
        size = videos * data.synthetic.frames[1] * sum(data.record_schema.widths)
        note = f"{videos:,} videos"
        stages.append(Stage("synthetic", partial(_do_synthetic, recipe), (), parameters, note, bytes=size))
    before: tuple[str, ...] = ("synthetic",) if data.synthetic is not None else ()
    for split, patterns in {"train": data.train, "test": data.test}.items():
        files, missing = [], ""
        try:
            files = [] if data.synthetic else find(patterns, data.root)
        except UsageError as error:
            if not without_data:
                raise
            missing = str(error)
        identities = [[str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns] for file in files]
        parameters = {"files": identities, "schema": data.record_schema.model_dump(mode="json")}
        note = (
            f"{counted(len(files), 'shard')}, {megabytes(sum(file.stat().st_size for file in files))}"
            if files
            else missing
        )
        inputs = before if split == "train" else (*before, "data.train")
        stages.append(Stage(f"data.{split}", partial(_do_data, recipe, split, files), inputs, parameters, note))
    return stages


def with_videos(recipe: Recipe) -> Recipe:
    """The recipe with the number of its training videos, judged by the first shard where it does not say."""
    data = recipe.data
    if data.expected_videos is not None:
        return recipe
    try:
        files = find(data.train, data.root)
        records = len(ShardFile(files[0]).offsets())
    except ReeltagError:  # a plan without data, or what the data stage will find and say
        return recipe
    sizes = [file.stat().st_size for file in files]
    videos = records * sum(sizes) // sizes[0]
    return recipe.model_copy(update={"data": data.model_copy(update={"videos": videos})})


def _do_synthetic(recipe: Recipe, job: Job) -> None:
    assert recipe.data.synthetic is not None
    write_synthetic(job.folder, recipe.data.synthetic)


def _do_data(recipe: Recipe, split: str, files: list[Path], job: Job) -> str:
    """Read the shards through once. What follows depends on what they say, not on where they lie."""
    files = files or find([f"{split}-*"], job.inputs["synthetic"])
    total = sum(file.stat().st_size for file in files)
    with job.progress.task("check and index", total, "bytes") as task:
        manifest = scan(files, recipe.data.record_schema, task.advance)
    if manifest.labelled < len(manifest):
        missing = len(manifest) - manifest.labelled
        raise DataError(f"{missing} of {len(manifest)} videos have no labels; data.{split} needs labelled shards")
    if split == "test":
        refuse_overlap(load_manifest(job, "train"), manifest)
    manifest.save(job.folder / MANIFEST)
    return manifest.fingerprint
