"""Functions that run recipes, for scripts and notebooks; the command line calls them too."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from reeltag.core.distributed.pools import max_seconds, open_pool
from reeltag.core.distributed.process_group import rank, world_size
from reeltag.core.environment import describe_environment, return_freed_memory, versions
from reeltag.core.errors import UsageError
from reeltag.core.interrupts import deadline
from reeltag.core.progress import default_progress
from reeltag.core.remote_files import is_url
from reeltag.core.storage import as_strings, read_json, refuse_existing, write_json
from reeltag.core.text import did_you_mean
from reeltag.pipeline import executor
from reeltag.pipeline.follow import following
from reeltag.pipeline.plan import plan, plan_without_test
from reeltag.pipeline.report.publish import write_page, write_timings
from reeltag.pipeline.run_folder import Outputs, outputs_at
from reeltag.pipeline.side_by_side import side_by_side
from reeltag.pipeline.stages.check import beside_members
from reeltag.pipeline.stages.data import shard_changes
from reeltag.pipeline.stages.profile import profile_training
from reeltag.pipeline.stages.trained_model import recipe_model
from reeltag.recipe.load import load_recipe
from reeltag.recipe.schema import Recipe
from reeltag.recipe.shipped import path_of
from reeltag.recipe.smoke import smoked
from reeltag.training.log import LOG
from reeltag.training.trackers.registry import TrackerName

if TYPE_CHECKING:
    from reeltag.core.distributed.process_pool import Pool
    from reeltag.pipeline.executor import Stage


@dataclass(frozen=True)
class Work:
    """Options of a run that do not change its results.

    Attributes:
        devices: devices of this machine on which stages run in parallel, such as "cuda:0,cuda:1"; "auto" for several
            CPUs where that is faster, as the commands do; by default stages run one after the other.
        executor: "local", or "ray" for a cluster.
        address: of the Ray cluster.
        max_time: stop after this time, with a checkpoint; raises `interrupts.TimeLimitReached`.
        quiet: show no progress.
        log: tracker to which the logs of trainings are sent: "wandb", "mlflow", "tensorboard" or "csv"; none by
            default.
    """

    devices: str = ""
    executor: str = "local"
    address: str | None = None
    max_time: timedelta | None = None
    quiet: bool = False
    log: TrackerName | None = None

    def pool(self, recipe: Recipe, stages: Sequence[Stage]) -> AbstractContextManager[Pool] | None:
        """Return the pool that runs the stages of a recipe; None for this process."""
        processes, devices = {stage.processes for stage in stages}, self.devices
        if devices == "auto":
            alone = self.executor == "local" and world_size() == 1
            devices = side_by_side(recipe, stages) if alone else ""
            if devices:
                how = f"{devices.count('cpu')} stages run at a time; --devices cpu runs one after the other"
                default_progress(quiet=self.quiet).say(how)
        return open_pool(devices, self.executor, self.address, recipe.devices, processes)


@dataclass(frozen=True)
class RunResult:
    """Results of a run.

    Attributes:
        out: folder or URL of the run.
        results: content of `results.json`: sizes, GAP on hold-out and test set, members.
    """

    out: str
    results: Mapping[str, Any] = field(repr=False)

    @property
    def file(self) -> str:
        """Path or URL of the model file."""
        return f"{self.out}/model.reeltag"

    @property
    def report(self) -> str:
        """Path or URL of the report."""
        return f"{self.out}/report/report.html"


def run(
    recipe: str | Path | Recipe,
    *,
    out: str | Path | None = None,
    overrides: str | Sequence[str] = (),
    smoke: bool = False,
    work: Work = Work(),
) -> RunResult:
    """Run a recipe end to end, as `reeltag run` does; resumes an earlier run of the same recipe.

    Args:
        recipe: a TOML file, the name of a recipe that comes with reeltag, or a loaded recipe.
        out: folder of the run, or its URL; runs/NAME by default.
        overrides: `dotted.key=value`, one or several, as with `--set`; not for a loaded recipe.
        smoke: try the recipe with one batch per training and a few videos, in OUT-smoke; the metrics mean nothing.
        work: devices and time limit.

    Raises:
        ReeltagError: bad input; see `reeltag.core.errors`.
    """
    loaded = _load(recipe, overrides)
    loaded, out = (smoked(loaded) if smoke else loaded), folder_of(loaded, out, smoke=smoke)
    stages = plan(loaded)
    with executed(loaded, stages, out, work.pool(loaded, stages), work) as (outputs, folders):
        outputs.publish(folders["pack"] / "model.reeltag", "model.reeltag")
        for name in ("results.json", "report/report.md", "report/tables.md", "report/frontier.svg"):
            outputs.publish(folders["report"] / name, name)
        outputs.publish(folders["test.file"] / "classes.json", "classes.json")
        write_timings(outputs, folders)
        write_page(outputs)
    return RunResult(outputs.name, read_json(folders["report"] / "results.json"))


def train_models(
    recipe: str | Path | Recipe,
    models: str | Sequence[str] = (),
    *,
    out: str | Path | None = None,
    overrides: str | Sequence[str] = (),
    work: Work = Work(),
) -> dict[str, str]:
    """Train models of a recipe, as `reeltag train` does; its test shards may be missing.

    Args:
        recipe: a TOML file, the name of a recipe that comes with reeltag, or a loaded recipe.
        models: names in the recipe, one or several; all by default.
        out: folder of the run, or its URL; runs/NAME by default. A later `run` there continues from it.
        overrides: `dotted.key=value`, one or several, as with `--set`; not for a loaded recipe.
        work: devices and time limit.

    Returns:
        The float32 file of each.

    Raises:
        ReeltagError: bad input; see `reeltag.core.errors`.
    """
    from reeltag.artifact.file import load_artifact, save_artifact  # imports torch

    loaded, names = _load(recipe, overrides), as_strings(models)
    check_models(loaded, names)
    targets = {name: recipe_model(loaded, name).finished for name in names or loaded.models}
    stages = executor.needed_for(targets.values(), plan_without_test(loaded))
    with executed(loaded, stages, folder_of(loaded, out), work.pool(loaded, stages), work) as (outputs, folders):
        beside = beside_members(loaded)
        with TemporaryDirectory() as temporary:
            for name, stage in targets.items():
                model = load_artifact(folders[stage] / "model.reeltag")  # stages have no names, which change no weights
                complete = replace(model, label_names=beside.label_names, projections=beside.projections)
                save_artifact(Path(temporary) / "model.reeltag", complete)
                outputs.publish(Path(temporary) / "model.reeltag", f"{name}.reeltag")
                del model, complete
                return_freed_memory()
    return {name: f"{outputs.name}/{name}.reeltag" for name in targets}


def profile(
    recipe: str | Path | Recipe,
    models: Sequence[str],
    trace: Path,
    *,
    out: str | Path | None = None,
    overrides: str | Sequence[str] = (),
    work: Work = Work(),
) -> str:
    """Profile ten steps of a model's training, as `reeltag train --profile` does.

    Args:
        recipe: a TOML file, the name of a recipe that comes with reeltag, or a loaded recipe.
        models: the name of one model in the recipe.
        trace: a new .json file in the format of Chrome's tracing.
        out: folder of the run, whose data stages are used; runs/NAME by default.
        overrides: `dotted.key=value`, one or several, as with `--set`; not for a loaded recipe.
        work: devices and time limit.

    Returns:
        A table of the operations that take most time.

    Raises:
        ReeltagError: bad input; see `reeltag.core.errors`.
    """
    loaded = _load(recipe, overrides)
    check_models(loaded, models)
    refuse_existing(trace)
    if len(models) != 1 or world_size() > 1 or work.devices not in ("", "auto") or work.executor != "local":
        how = "name it with --model, and leave --devices, --executor and torchrun out"
        raise UsageError(f"--profile: profiles one model in this process; {how}")
    training = recipe_model(loaded, models[0]).training
    stages = executor.needed_for(training.inputs, plan_without_test(loaded))
    with executed(loaded, stages, folder_of(loaded, out), None, work) as (_, folders):
        return profile_training(training, folders, trace)


def remarks_on_plan(recipe: Recipe, stages: Sequence[Stage], out: str) -> list[str]:
    """Return one line for each change of the training shards since the last run in a folder, and how to go on."""
    files = next(stage.parameters["files"] for stage in stages if stage.name == "data.train")
    return shard_changes(recipe, "train", files, Path(out) / "stages") if files and not is_url(out) else []


def _load(recipe: str | Path | Recipe, overrides: str | Sequence[str]) -> Recipe:
    """Return a loaded recipe, or load one.

    Raises:
        UsageError: overrides for a loaded recipe.
    """
    if not isinstance(recipe, Recipe):
        return load_recipe(recipe, overrides)
    if as_strings(overrides):
        raise UsageError("overrides: apply only while a recipe is loaded; give them to load_recipe")
    return recipe


def folder_of(recipe: Recipe, out: str | Path | None, *, smoke: bool = False) -> str:
    """Return the folder or the URL of a run."""
    folder = str(out or f"runs/{recipe.name}")
    return f"{folder.rstrip('/')}-smoke" if smoke else folder


def check_models(recipe: Recipe, names: Sequence[str]) -> None:
    """Refuse names of models that a recipe does not train.

    Raises:
        UsageError: a name is unknown; the message has the most similar one.
    """
    if unknown := [name for name in names if name not in recipe.models]:
        meant = " ".join(filter(None, (did_you_mean(name, recipe.models) for name in unknown)))
        raise UsageError(
            f"{recipe.source or recipe.name}: no model {', '.join(unknown)} under models; {meant and meant + ' '}"
            f"there are {', '.join(recipe.models) or 'none'}; students and imported models need the whole `reeltag run`"
        )


def _refuse_start_in(recipe: Recipe, out: str) -> None:
    """Refuse a run in the folder of the run that it starts from, which it would write over."""
    own = [each.training for each in (*recipe.models.values(), *recipe.students.values())]
    taught = [recipe.distillation.training] if recipe.distillation else []
    for start in (each.start for each in (recipe.training, *taught, *own)):
        if start is not None and not is_url(out) and Path(start.file).resolve() == Path(out).resolve():
            raise UsageError(f"training.start: {start.file} is the folder of this run as well; give another --out")


@contextmanager
def executed(
    recipe: Recipe,
    stages: Sequence[Stage],
    out: str,
    pool: AbstractContextManager[Pool] | None,
    work: Work,
) -> Iterator[tuple[Outputs, dict[str, Path]]]:
    """Run stages, and yield the outputs and the folders of the stages; the run is locked until the block ends.

    Of processes that were started together, only the first enters the block; the others exit.
    """
    _refuse_start_in(recipe, out)
    outputs, seconds = outputs_at(out), max_seconds(work.max_time)
    with outputs.claimed() if rank() == 0 else nullcontext():
        progress = default_progress(quiet=work.quiet or rank() > 0)
        follows = following(work.log if rank() == 0 else None, recipe, outputs, progress)
        with deadline(seconds), follows as follower, pool or nullcontext() as workers:
            begun = [follower.add] if follower else []
            folders = executor.run(stages, out, progress, workers, *begun)
        if rank() > 0:
            sys.exit(0)
        file = None if recipe.source is None else path_of(recipe.source)
        environment = {"versions": versions(), "git": None} if file is None else describe_environment(file)
        for name, content in (("recipe.json", recipe.dump()), ("environment.json", environment)):
            write_json(outputs.out / name, content)
            outputs.publish(outputs.out / name, name)
        brought = {name: outputs.bring(folder.name) for name, folder in folders.items()}
        for name, folder in brought.items():
            if (folder / LOG).exists():
                outputs.publish(folder / LOG, f"logs/{name}.csv")
        yield outputs, brought
