"""The command line: parse and call. torch is imported only by commands that compute."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from cyclopts import App, CycloptsError, MissingArgumentError, Parameter

from reeltag.cli.benchmark import benchmark
from reeltag.cli.data import MaxBad, Mode, OneOrMore, Overrides, data, say_left_out
from reeltag.cli.doctor import doctor
from reeltag.cli.export import export
from reeltag.cli.inspect import inspect
from reeltag.cli.logs import tensorboard
from reeltag.cli.models import average, import_tf, quantize
from reeltag.cli.options import Address, Devices, Executor, MaxTime, Quiet
from reeltag.cli.output import Json, say
from reeltag.cli.recipe import recipe
from reeltag.cli.report import report
from reeltag.cli.serve import serve
from reeltag.cli.share import share
from reeltag.cli.simulate import simulate
from reeltag.cli.tag import tag
from reeltag.cli.video import extract
from reeltag.core.distributed.pools import open_pool
from reeltag.core.environment import keep_freed_memory, limit_openmp_spinning
from reeltag.core.errors import ReeltagError, UsageError
from reeltag.core.interrupts import Terminated, TimeLimitReached, raise_on_sigterm
from reeltag.core.memory import explain_out_of_memory
from reeltag.core.text import printable
from reeltag.core.version import __version__


def _shown_default(value: object) -> str | None:
    """A default as help shows it; none where leaving the option out means just that."""
    return str(value) if type(value) in (int, float, str) and value != "" else None


def _said(error: CycloptsError) -> str:
    """What is wrong with the words of a command; of one that is missing, what it should be."""
    missing = error.argument
    if not isinstance(error, MissingArgumentError) or missing is None or missing.tokens or error.keyword:
        return f"error: {error}"
    command = app
    for name in error.command_chain or ():
        command = command[name]
    described = command.assemble_argument_collection(parse_docstring=True)
    what = next(each.parameter.help for each in described if each.name == missing.name)
    if choices := missing.get_choices():
        what = f"choose one of {', '.join(choices)}"
    return f"error: {missing.name} is missing: {what}"


app = App(
    name="reeltag",
    help="Train video taggers from frame features and ship an ensemble of them as one small file.",
    version=__version__,
    default_parameter=Parameter(negative=(), show_default=_shown_default),
    suppress_keyboard_interrupt=False,  # `main` says how to go on
    error_formatter=_said,
)
app.command(average)
app.command(benchmark)
app.command(data)
app.command(doctor)
app.command(export)
app.command(extract)
app.command(import_tf)
app.command(inspect)
app.command(quantize)
app.command(recipe)
app.command(report)
app.command(serve)
app.command(share)
app.command(simulate)
app.command(tag)
app.command(tensorboard)


@app.command
def run(
    recipe: str,
    /,
    *,
    out: str | None = None,
    set_: Overrides = [],  # noqa: B006
    devices: Devices = "",
    executor: Executor = "local",
    address: Address = None,
    max_time: MaxTime = None,
    quiet: Quiet = False,
    smoke: bool = False,
    dry_run: bool = False,
    json: Json = False,
) -> None:
    """Run a recipe end to end: train, average, quantize, ensemble, pack, test, report.

    Finished stages of an earlier run of the same recipe are kept: the same command resumes after an interruption and
    does nothing when the run is complete. docs/recipes.md lists the keys of a recipe.

    Example: reeltag run audioset --set data.root=/data/audioset --out runs/audioset

    Args:
        recipe: A TOML file, or the name of a recipe that comes with reeltag (`reeltag recipe list`).
        out: Folder of the run, or its URL on an object store; runs/NAME by default.
        smoke: Try every stage of the recipe with one batch per training and a few videos, in the folder OUT-smoke.
        dry_run: Print the plan with sizes, estimated GPU hours and finished stages, and exit. Needs no data; the hours
            are estimated from data.videos if the shards are not available.
    """
    from reeltag.recipe.load import load_recipe

    loaded = load_recipe(recipe, set_)  # report its faults before the slow imports
    from reeltag.core.text import counted
    from reeltag.pipeline import run as api
    from reeltag.pipeline.executor import listing, planned
    from reeltag.pipeline.plan import plan
    from reeltag.pipeline.report.markdown import examples, headline
    from reeltag.recipe.smoke import smoked

    if dry_run:
        stages = plan(smoked(loaded) if smoke else loaded, without_data=True)
        place = api.folder_of(loaded, out, smoke=smoke)
        lines = listing(stages, place)
        if loaded.models and not any(stage.gpu_hours for stage in stages):
            lines.append(
                "GPU hours are not estimated: no shards are here, and data.videos does not say how many videos"
            )
        say({"stages": planned(stages, place)}, lines, json)
        return
    work = api.Work(devices, executor, address, max_time, quiet)
    done = api.run(loaded, out=out, smoke=smoke, work=work)
    shown = examples(done.results)
    text = ["", done.file, headline(done.results), "", f"{counted(len(shown), 'test video')}:", *shown]
    if smoke:
        text = [f"{done.out}: the recipe works from end to end; so short, its figures mean nothing"]
    else:
        text += ["", f"report: {done.report}"]
    say({"file": done.file, "report": done.report, "results": done.results}, text, json)


@app.command
def train(
    recipe: str,
    /,
    *,
    model: list[str] = [],  # noqa: B006
    out: str | None = None,
    set_: Overrides = [],  # noqa: B006
    devices: Devices = "",
    executor: Executor = "local",
    address: Address = None,
    max_time: MaxTime = None,
    quiet: Quiet = False,
    profile: Path | None = None,
    json: Json = False,
) -> None:
    """Train models of a recipe and write each as a float32 .reeltag file.

    Example: reeltag train audioset-families --model netvlad --set data.root=/data/audioset

    Args:
        recipe: A TOML file, or the name of a recipe that comes with reeltag (`reeltag recipe list`).
        model: Name of a model in the recipe; repeat for several, all by default.
        out: Folder or URL of the run; runs/NAME by default. A later `run` with the same folder reuses the models.
        profile: Profile ten steps of one model instead: write a trace for chrome://tracing to this new .json file and
            print the slowest operations.
    """
    from reeltag.recipe.load import load_recipe

    loaded = load_recipe(recipe, set_)  # report its faults before the slow imports
    from reeltag.pipeline import run as api

    work = api.Work(devices, executor, address, max_time, quiet)
    if profile is not None:
        print(api.profile(loaded, model, profile, out=out, work=work))
        return
    files = api.train_models(loaded, model, out=out, work=work)
    say({"files": files}, files.values(), json)


@app.command
def evaluate(
    model: str,
    /,
    *shards: OneOrMore,
    all_scores: bool = False,
    per_class: Path | None = None,
    mode: Mode = "exact",
    max_bad_records: MaxBad = 0,
    json: Json = False,
) -> None:
    """Evaluate a model on labelled shards: GAP@20, Hit@1, PERR, mAP, and MAP@K (map_at_k) of segment models.

    Example: reeltag evaluate model.reeltag '/data/audioset/eval-*.tfrecord'

    Args:
        model: A .reeltag file, a folder that `share` wrote, or a URL.
        shards: Paths, URLs or glob patterns of TFRecord files.
        all_scores: Also compute mAP over all scores (map_all), as AudioSet reports it; needs 10 bytes of memory per
            video and class.
        per_class: Write the average precision of each class to this CSV file.
    """
    from reeltag.core.storage import refuse_existing
    from reeltag.data.bad_records import BadRecords
    from reeltag.inference.formats.table import write_class_ap
    from reeltag.inference.predictor import load

    if per_class is not None:
        refuse_existing(per_class)
    bad = BadRecords(max_bad_records)
    predictor = load(model, mode)
    scores = predictor.evaluate_shards(shards, bad, all_scores=all_scores)
    if per_class is not None:
        write_class_ap(per_class, scores.class_ap.tolist(), predictor.label_names)
    summary = scores.summary()
    say(summary, [f"{name:<9} {value}" for name, value in summary.items()], json)
    say_left_out(bad)


@app.command
def predict(
    model: str,
    /,
    *shards: OneOrMore,
    out: Path | None = None,
    mode: Mode = "exact",
    workers: int = 1,
    executor: Executor = "local",
    address: Address = None,
    quiet: Quiet = False,
    drop_flat: bool = False,
    max_bad_records: MaxBad = 0,
    json: Json = False,
) -> None:
    """Predict the tags of videos in shards.

    With --out, the predictions of each finished shard are kept in the folder OUT.parts, so the same command resumes
    after an interruption. See docs/predicting.md.

    Example: reeltag predict model.reeltag 'shards/*.tfrecord' --out predictions.csv

    Args:
        model: A .reeltag file, a folder that `share` wrote, or a URL.
        shards: Paths, URLs or glob patterns of TFRecord files; labels are not needed.
        out: A new .csv (Kaggle's format), .jsonl or .parquet file; JSON Lines to standard output by default.
        workers: Processes among which shards and CPU threads are divided; each loads the model.
        drop_flat: Skip the fake test videos of the YouTube-8M challenge: those whose mean rgb hardly varies.
    """
    from reeltag.artifact.file import resolve_artifact, stream_artifact
    from reeltag.core.progress import default_progress
    from reeltag.core.text import counted
    from reeltag.inference.formats.table import json_lines
    from reeltag.inference.predictor import load
    from reeltag.inference.shard_tagger import predict_to_file, stream_predictions

    if out is None:
        if workers != 1 or executor != "local":
            raise UsageError("workers: share whole shards, which takes a file; give --out")
        if json:
            raise UsageError("--json: tells of a file that was written; without --out the output is JSON Lines anyway")
        predictor = load(model, mode)
        predictions, counts = stream_predictions(
            predictor, shards, drop_flat=drop_flat, max_bad_records=max_bad_records
        )
        for line in json_lines(predictions, predictor.label_names):
            print(line)
    else:
        file = resolve_artifact(model)
        counts = predict_to_file(
            file,
            shards,
            out,
            mode=mode,
            workers=workers,
            drop_flat=drop_flat,
            max_bad_records=max_bad_records,
            progress=default_progress(quiet=quiet),
            pool=open_pool("", executor, address),
        )
        told = {"file": out, "videos": counts.videos, "dropped": counts.dropped, "left_out": len(counts.bad.records)}
        example = stream_artifact(file)[0].schema.example
        say(told, [f"{out}: {counted(counts.videos, example)}"], json)
    if drop_flat:
        print(f"{counted(counts.dropped, 'flat video')} dropped", file=sys.stderr)
    say_left_out(counts.bad)


@app.command
def completion(shell: Literal["bash", "zsh", "fish"], /) -> None:
    """Print a script that makes a shell complete the commands and options of reeltag.

    Example: reeltag completion bash > ~/.local/share/bash-completion/completions/reeltag

    Args:
        shell: bash, zsh or fish. For zsh, save the script as _reeltag in a folder of $fpath; for fish, to
            ~/.config/fish/completions/reeltag.fish.
    """
    print(app.generate_completion(shell=shell))


def _on_again(words: Sequence[str]) -> str:
    """How a command that was ended goes on, if it does."""
    ways = {
        "run": "from its last checkpoint",
        "train": "from its last checkpoint",
        "extract": "after the videos that are finished",
        "data download": "where it was",
    }
    if any(word.partition("=")[0] == "--out" for word in words):
        ways["predict"] = "after the shards that are finished"
    way = next((ways[name] for name in (" ".join(words[:2]), *words[:1]) if name in ways), None)
    return f"; the same command goes on {way}" if way else ""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        The exit code: 0 done, 2 bad input, 75 the time of --max-time is over, 130 interrupted, 143 terminated.
    """
    keep_freed_memory()
    limit_openmp_spinning()
    try:
        with (
            raise_on_sigterm(),
            explain_out_of_memory("this command", "end other programs, or take a machine with more"),
        ):
            app(arguments, exit_on_error=False, result_action="return_value")
    except CycloptsError:
        return 2  # printed already
    except ReeltagError as error:
        print(printable(f"error: {error}"), file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        endings = {Terminated: ("terminated", 143), TimeLimitReached: ("out of time", 75)}
        what, code = endings.get(type(error), ("interrupted", 130))
        print(f"{what}{_on_again(sys.argv[1:] if arguments is None else arguments)}", file=sys.stderr)
        return code
    except BrokenPipeError:
        sys.stdout = None  # the reader left; nothing may be flushed at exit
        return 0
    return 0
