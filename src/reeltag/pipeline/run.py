"""What commands do, as functions for scripts and notebooks; the command line calls the same ones."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reeltag.core.distributed.pools import pool_of, seconds_of
from reeltag.core.distributed.process_group import rank, world_size
from reeltag.core.environment import describe_environment
from reeltag.core.errors import UsageError
from reeltag.core.interrupts import deadline
from reeltag.core.progress import default_progress
from reeltag.core.storage import as_strings, read_json, refuse_existing, write_json
from reeltag.core.text import did_you_mean
from reeltag.pipeline import executor
from reeltag.pipeline.plan import plan
from reeltag.pipeline.report.publish import write_page, write_timings
from reeltag.pipeline.run_folder import Outputs, outputs_at
from reeltag.pipeline.stages.candidate import candidate
from reeltag.pipeline.stages.profile import profile_training
from reeltag.recipe.load import load_recipe
from reeltag.recipe.schema import Recipe
from reeltag.recipe.shipped import path_of
from reeltag.recipe.smoke import smoked
from reeltag.training.log import LOG

if TYPE_CHECKING:
    from reeltag.core.distributed.process_pool import Pool
    from reeltag.pipeline.executor import Stage


@dataclass(frozen=True)
class Work:
    """How a run is done; nothing of it changes what comes out.

    Attributes:
        devices: of this machine on which stages run side by side, such as "cuda:0,cuda:1"; by default one after the
            other.
        executor: "local", or "ray" for a cluster.
        address: the Ray cluster's.
        max_time: stop after this long, with a checkpoint; raises `interrupts.TimeLimitReached`.
        quiet: show no progress.
    """

    devices: str = ""
    executor: str = "local"
    address: str | None = None
    max_time: timedelta | None = None
    quiet: bool = False

    def pool(self, recipe: Recipe, stages: Sequence[Stage]) -> AbstractContextManager[Pool] | None:
        """Where the stages of a recipe run; None for this process."""
        processes = {stage.processes for stage in stages}
        return pool_of(self.devices, self.executor, self.address, recipe.devices, processes)


@dataclass(frozen=True)
class RunResult:
    """What a run ended with.

    Attributes:
        out: the run's folder, or its URL.
        results: what `results.json` says: sizes, GAP on hold-out and test, members.
    """

    out: str
    results: Mapping[str, Any] = field(repr=False)

    @property
    def file(self) -> str:
        """The shipped model."""
        return f"{self.out}/model.reeltag"

    @property
    def report(self) -> str:
        """The report."""
        return f"{self.out}/report/report.html"


def run(
    recipe: str | Path,
    *,
    out: str | Path | None = None,
    overrides: str | Sequence[str] = (),
    smoke: bool = False,
    work: Work = Work(),
) -> RunResult:
    """Do a whole recipe, as `reeltag run` does; goes on where an earlier run of the same recipe stopped.

    Args:
        recipe: a TOML file, or the name of a recipe that comes with reeltag.
        out: folder of the run, or its URL; runs/NAME by default.
        overrides: `dotted.key=value`, one or several, as with `--set`.
        smoke: try it with one batch a training and a few videos, in OUT-smoke; its figures mean nothing.
        work: where and how long.

    Raises:
        ReeltagError: bad input; see `reeltag.core.errors`.
    """
    loaded = load_recipe(recipe, overrides)
    loaded, out = (smoked(loaded) if smoke else loaded), folder_of(loaded, out, smoke=smoke)
    stages = plan(loaded)
    with executed(loaded, path_of(recipe), stages, out, work.pool(loaded, stages), work) as (outputs, folders):
        outputs.publish(folders["pack"] / "model.reeltag", "model.reeltag")
        for name in ("results.json", "report/report.md", "report/tables.md", "report/frontier.svg"):
            outputs.publish(folders["report"] / name, name)
        write_timings(outputs, folders)
        write_page(outputs)
    return RunResult(outputs.name, read_json(folders["report"] / "results.json"))


def train_models(
    recipe: str | Path,
    models: str | Sequence[str] = (),
    *,
    out: str | Path | None = None,
    overrides: str | Sequence[str] = (),
    work: Work = Work(),
) -> dict[str, str]:
    """Train models of a recipe, as `reeltag train` does.

    Args:
        recipe: a TOML file, or the name of a recipe that comes with reeltag.
        models: names in the recipe, one or several; all by default.
        out: folder of the run, or its URL; runs/NAME by default. A later `run` there goes on from it.
        overrides: `dotted.key=value`, one or several, as with `--set`.
        work: where and how long.

    Returns:
        The float32 file of each.

    Raises:
        ReeltagError: bad input; see `reeltag.core.errors`.
    """
    loaded, names = load_recipe(recipe, overrides), as_strings(models)
    check_models(str(recipe), loaded, names)
    targets = {name: candidate(loaded, name).finished for name in names or loaded.models}
    stages = executor.needed_for(targets.values(), plan(loaded))
    place, pool = folder_of(loaded, out), work.pool(loaded, stages)
    with executed(loaded, path_of(recipe), stages, place, pool, work) as (outputs, folders):
        for name, stage in targets.items():
            outputs.publish(folders[stage] / "model.reeltag", f"{name}.reeltag")
    return {name: f"{outputs.name}/{name}.reeltag" for name in targets}


def profile(
    recipe: str | Path,
    models: Sequence[str],
    trace: Path,
    *,
    out: str | Path | None = None,
    overrides: str | Sequence[str] = (),
    work: Work = Work(),
) -> str:
    """Profile ten steps of one model's training, as `reeltag train --profile` does.

    Args:
        recipe: a TOML file, or the name of a recipe that comes with reeltag.
        models: one name in the recipe.
        trace: a new .json file, for Chrome's tracing.
        out: folder of the run, whose data are used; runs/NAME by default.
        overrides: `dotted.key=value`, one or several, as with `--set`.
        work: where and how long.

    Returns:
        A table of what takes most time.

    Raises:
        ReeltagError: bad input; see `reeltag.core.errors`.
    """
    loaded = load_recipe(recipe, overrides)
    check_models(str(recipe), loaded, models)
    refuse_existing(trace)
    if len(models) != 1 or world_size() > 1 or work.devices or work.executor != "local":
        how = "name it with --model, and leave --devices, --executor and torchrun out"
        raise UsageError(f"--profile: is of one model in this process; {how}")
    training = candidate(loaded, models[0]).training
    stages = executor.needed_for(training.inputs, plan(loaded))
    with executed(loaded, path_of(recipe), stages, folder_of(loaded, out), None, work) as (_, folders):
        return profile_training(training, folders, trace)


def folder_of(recipe: Recipe, out: str | Path | None, *, smoke: bool = False) -> str:
    """Where a run leaves what it makes."""
    folder = str(out or f"runs/{recipe.name}")
    return f"{folder.rstrip('/')}-smoke" if smoke else folder


def check_models(source: str, recipe: Recipe, names: Sequence[str]) -> None:
    """Refuse names of models that a recipe does not train.

    Raises:
        UsageError: says what was probably meant.
    """
    if unknown := [name for name in names if name not in recipe.models]:
        meant = " ".join(filter(None, (did_you_mean(name, recipe.models) for name in unknown)))
        raise UsageError(
            f"{source}: no model {', '.join(unknown)} under models; {meant and meant + ' '}"
            f"there are {', '.join(recipe.models) or 'none'}; students and imported files take a whole `reeltag run`"
        )


@contextmanager
def executed(
    recipe: Recipe,
    file: Path,
    stages: Sequence[Stage],
    out: str,
    pool: AbstractContextManager[Pool] | None,
    work: Work,
) -> Iterator[tuple[Outputs, dict[str, Path]]]:
    """The outputs and folders of stages that were run; until the block ends no other process works on the same run.

    Of processes that were started together only the first gets there; the others end.
    """
    outputs, seconds = outputs_at(out), seconds_of(work.max_time)
    with outputs.claimed() if rank() == 0 else nullcontext():
        with deadline(seconds), pool or nullcontext() as workers:
            folders = executor.run(stages, out, default_progress(quiet=work.quiet or rank() > 0), workers)
        if rank() > 0:
            sys.exit(0)
        for name, content in (("recipe.json", recipe.dump()), ("environment.json", describe_environment(file))):
            write_json(outputs.out / name, content)
            outputs.publish(outputs.out / name, name)
        brought = {name: outputs.bring(folder.name) for name, folder in folders.items()}
        for name, folder in brought.items():
            if (folder / LOG).exists():
                outputs.publish(folder / LOG, f"logs/{name}.csv")
        yield outputs, brought
