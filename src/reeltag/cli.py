"""The command line: parse and call. torch is imported only by commands that compute."""

from __future__ import annotations

import json as json_module
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from cyclopts import App, CycloptsError, Parameter

from reeltag import __version__
from reeltag.cli_data import MaxBad, Mode, Overrides, data, given, say_left_out
from reeltag.cli_export import export
from reeltag.cli_models import average, import_tf, quantize
from reeltag.cli_serve import serve
from reeltag.cli_share import share
from reeltag.cli_simulate import simulate
from reeltag.cli_workers import Address, Devices, Executor, pool_of
from reeltag.environment import keep_freed_memory
from reeltag.errors import ReeltagError, UsageError
from reeltag.interrupts import Terminated, ended_by_sigterm
from reeltag.text import plain, printable

if TYPE_CHECKING:
    from reeltag.executors import Stage
    from reeltag.outputs import Outputs
    from reeltag.processes import Pool
    from reeltag.recipe import Recipe

app = App(
    name="reeltag",
    help="Train video taggers from frame features and ship an ensemble of them as one small file.",
    version=__version__,
    default_parameter=Parameter(negative=(), show_default=False),
    suppress_keyboard_interrupt=False,  # `main` says how to go on
)
app.command(average)
app.command(data)
app.command(export)
app.command(import_tf)
app.command(quantize)
app.command(serve)
app.command(share)
app.command(simulate)


@app.command
def run(
    recipe: Path,
    /,
    *,
    out: str | None = None,
    set_: Overrides = [],  # noqa: B006
    devices: Devices = "",
    executor: Executor = "local",
    address: Address = None,
    dry_run: bool = False,
) -> None:
    """Do a whole recipe: train, average, quantise, ensemble, pack, test, report.

    Whatever an earlier run of the same recipe finished is kept, so the same command goes on after an
    interruption and does nothing when all is done. docs/recipes.md lists the keys of a recipe.

    Example: reeltag run recipes/audioset.toml --set data.root=/data/audioset --out runs/audioset

    Args:
        recipe: A TOML file.
        out: Folder of the run, or its URL on an object store; runs/NAME by default.
        dry_run: Print the plan with sizes, estimated GPU hours and what is done already, and stop; needs no data.
    """
    from reeltag.recipe_file import load_recipe

    loaded = load_recipe(recipe, set_)  # before the slow imports
    from reeltag import executors
    from reeltag.report.markdown import examples, headline
    from reeltag.stages.plan import plan
    from reeltag.storage import read_json

    stages = plan(loaded, without_data=dry_run)
    out = out or f"runs/{loaded.name}"
    if dry_run:
        print("\n".join(executors.listing(stages, out)))
        return
    pool = pool_of(devices, executor, address, loaded.devices, {stage.processes for stage in stages})
    with _executed(loaded, stages, out, pool) as (outputs, folders):
        outputs.publish(folders["pack"] / "model.reeltag", "model.reeltag")
        for name in ("results.json", "report/report.md", "report/tables.md", "report/frontier.svg"):
            outputs.publish(folders["report"] / name, name)
    results = read_json(folders["report"] / "results.json")
    said = [f"\n{outputs.name}/model.reeltag", headline(results), "", "five test videos:", *examples(results)]
    print("\n".join([*said, f"\nreport: {outputs.name}/report/report.md"]))


@app.command
def train(
    recipe: Path,
    /,
    *,
    model: list[str] = [],  # noqa: B006
    out: str | None = None,
    set_: Overrides = [],  # noqa: B006
    devices: Devices = "",
    executor: Executor = "local",
    address: Address = None,
) -> None:
    """Train models of a recipe, as `run` does, and stop there; each becomes a float32 .reeltag file.

    Example: reeltag train recipes/audioset-families.toml --model netvlad --set data.root=/data/audioset

    Args:
        recipe: A TOML file.
        model: Name of a model in the recipe; repeat for several, all by default.
        out: Folder or URL of the run; runs/NAME by default. A later `run` with the same folder goes on from it.
    """
    from reeltag.recipe_file import load_recipe

    loaded = load_recipe(recipe, set_)  # before the slow imports
    from reeltag import executors
    from reeltag.stages.model import candidate
    from reeltag.stages.plan import plan

    if unknown := [name for name in model if name not in loaded.models]:
        raise UsageError(
            f"{recipe}: no model {', '.join(unknown)} under models; there are {', '.join(loaded.models) or 'none'}; "
            "students and imported files take a whole `reeltag run`"
        )
    targets = {name: candidate(loaded, name).finished for name in model or loaded.models}
    out = out or f"runs/{loaded.name}"
    stages = executors.needed_for(targets.values(), plan(loaded))
    pool = pool_of(devices, executor, address, loaded.devices, {stage.processes for stage in stages})
    with _executed(loaded, stages, out, pool) as (outputs, folders):
        for name, stage in targets.items():
            outputs.publish(folders[stage] / "model.reeltag", f"{name}.reeltag")
            print(f"{outputs.name}/{name}.reeltag")


@app.command
def evaluate(
    model: str,
    /,
    *shards: str,
    all_scores: bool = False,
    per_class: Path | None = None,
    mode: Mode = "exact",
    max_bad_records: MaxBad = 0,
    json: bool = False,
) -> None:
    """Measure a model on labelled shards: GAP@20, Hit@1, PERR, mAP; of a model of segments also MAP@K (map_at_k).

    Example: reeltag evaluate model.reeltag '/data/audioset/eval-*.tfrecord'

    Args:
        model: A .reeltag file, a folder that `share` wrote, or a URL.
        shards: Paths, URLs or glob patterns of TFRecord files.
        all_scores: Also mAP over all scores (map_all), as AudioSet reports it; takes 10 bytes a video and class.
        per_class: Write the average precision of each class to this CSV file.
        json: Print one JSON object instead of text.
    """
    from reeltag import predict as prediction
    from reeltag.data.badrecords import BadRecords
    from reeltag.formats import write_class_ap
    from reeltag.storage import refuse_existing

    if per_class is not None:
        refuse_existing(per_class)
    bad = BadRecords(max_bad_records)
    predictor = prediction.load(model, mode)
    predictions = predictor.predict_shards(given(shards), bad, labelled=True)
    classes = predictor.schema.segment_classes
    scores = prediction.evaluate(predictions, all_scores=all_scores, classes=classes).compute()
    if per_class is not None:
        write_class_ap(per_class, scores.class_ap.tolist(), predictor.label_names)
    summary = scores.summary()
    if json:
        print(json_module.dumps(summary))
    else:
        print("\n".join(f"{name:<9} {value}" for name, value in summary.items()))
    say_left_out(bad)


@app.command
def predict(
    model: str,
    /,
    *shards: str,
    out: Path | None = None,
    mode: Mode = "exact",
    workers: int = 1,
    executor: Executor = "local",
    address: Address = None,
    drop_flat: bool = False,
    max_bad_records: MaxBad = 0,
) -> None:
    """Tag videos.

    With --out the predictions of each shard are kept as they are finished, in the folder OUT.parts, so the same
    command goes on after an interruption; docs/predicting.md says more.

    Example: reeltag predict model.reeltag 'shards/*.tfrecord' --out predictions.csv

    Args:
        model: A .reeltag file, a folder that `share` wrote, or a URL.
        shards: Paths, URLs or glob patterns of TFRecord files; labels are not needed.
        out: A new .csv (Kaggle's format), .jsonl or .parquet file; JSON Lines to standard output by default.
        workers: Processes that share the shards and the processor's threads; each holds the model.
        drop_flat: Leave out the challenge's fake test videos: those whose mean rgb hardly varies.
    """
    from reeltag import artifact, bulk
    from reeltag import predict as prediction
    from reeltag.formats import json_lines
    from reeltag.progress import default_progress
    from reeltag.storage import counted

    if out is None:
        if workers != 1 or executor != "local":
            raise UsageError("workers: share whole shards, which takes a file; give --out")
        predictor = prediction.load(model, mode)
        predictions, counts = bulk.stream(
            predictor, given(shards), drop_flat=drop_flat, max_bad_records=max_bad_records
        )
        for line in json_lines(predictions, predictor.label_names):
            print(line)
    else:
        counts = bulk.predict_to_file(
            artifact.local_file(model),
            given(shards),
            out,
            mode=mode,
            workers=workers,
            drop_flat=drop_flat,
            max_bad_records=max_bad_records,
            progress=default_progress(),
            pool=pool_of("", executor, address),
        )
        print(f"{out}: {counted(counts.videos, artifact.stream(artifact.local_file(model))[0].schema.example)}")
    if drop_flat:
        print(f"{counted(counts.dropped, 'flat video')} dropped", file=sys.stderr)
    say_left_out(counts.bad)


@app.command
def inspect(model: str, /, *, json: bool = False) -> None:
    """Show what a model holds: members, weights, sizes, data, provenance.

    Args:
        model: A .reeltag file, a folder that `share` wrote, or a URL.
        json: Print one JSON object instead of text.
    """
    from reeltag import artifact
    from reeltag.quantize import stored_as
    from reeltag.storage import counted, megabytes

    file = artifact.local_file(model)
    shipped, size = artifact.load(file), file.stat().st_size
    if json:
        print(json_module.dumps(artifact.describe(shipped) | {"bytes": size}, ensure_ascii=False))
        return
    schema = shipped.schema
    features = " + ".join(f"{plain(feature.name)} {feature.width}" for feature in schema.features)
    print(f"{model}: {megabytes(size)}, {counted(len(shipped.members), 'member')}")
    print(f"reads     {schema.level} level, {features}, {schema.dtype}, at most {schema.max_frames} frames")
    if schema.segments is not None:
        print(f"tags      segments of {schema.segments} frames")
    print(f"classes   {schema.classes}{'' if shipped.label_names else ', without names'}")
    for member in shipped.members:
        stored = f"{megabytes(artifact.stored_bytes(member.state))}, {stored_as(member.state)}"
        print(f"member    {plain(member.name)}: {stored}, weight {member.weight:.4f}")
        print(f"          {member.config.model_dump_json()}")
    print(f"made by   {plain(json_module.dumps(dict(shipped.provenance), ensure_ascii=False))}")


@app.command
def doctor() -> None:
    """Say what reeltag finds on this machine."""
    import os
    import shutil

    import torch

    from reeltag.environment import default_device, versions

    for name, version in versions().items():
        print(f"{name:<18} {version}")
    print(f"{'processors':<18} {os.cpu_count()}, torch uses {torch.get_num_threads()} threads")
    device = default_device()
    print(f"{'device':<18} {torch.cuda.get_device_name() if device == 'cuda' else 'cpu, no GPU found'}")
    print(f"{'free disk here':<18} {shutil.disk_usage('.').free / 1e9:.1f} GB")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0 done, 2 bad input, 130 interrupted, 143 terminated."""
    keep_freed_memory()
    try:
        with ended_by_sigterm():
            app(arguments, exit_on_error=False, result_action="return_value")
    except CycloptsError:
        return 2  # printed already
    except ReeltagError as error:
        print(printable(f"error: {error}"), file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        what, code = ("terminated", 143) if isinstance(error, Terminated) else ("interrupted", 130)
        how = "run and train go on from their last checkpoint, predict --out after its finished shards, "
        how += "data download where it was"
        print(f"{what}; with the same command {how}", file=sys.stderr)
        return code
    except BrokenPipeError:
        sys.stdout = None  # the reader left; nothing may be flushed at exit
        return 0
    return 0


@contextmanager
def _executed(
    recipe: Recipe, stages: Sequence[Stage], out: str, pool: AbstractContextManager[Pool] | None
) -> Iterator[tuple[Outputs, dict[str, Path]]]:
    """The outputs and folders of stages that were run; until the block ends no other process works on the same run."""
    from reeltag import executors
    from reeltag.distributed import rank
    from reeltag.outputs import outputs_at
    from reeltag.progress import Progress, default_progress
    from reeltag.storage import write_json

    outputs = outputs_at(out)
    with outputs.claimed() if rank() == 0 else nullcontext():
        with pool or nullcontext() as workers:
            folders = executors.run(stages, out, default_progress() if rank() == 0 else Progress(), workers)
        if rank() > 0:
            sys.exit(0)
        write_json(outputs.out / "recipe.json", recipe.dump())
        outputs.publish(outputs.out / "recipe.json", "recipe.json")
        yield outputs, {name: outputs.bring(folder.name) for name, folder in folders.items()}
