"""Tune a model: train it with values from the ranges of `[tune]`, and write the recipe with the best ones.

A trial is judged by GAP on the hold-out. The test set is not even looked for.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tomli_w

from reeltag.core.distributed.pools import max_seconds
from reeltag.core.distributed.process_group import world_size
from reeltag.core.distributed.process_pool import Pool, Resources
from reeltag.core.errors import (
    BudgetError,
    OutOfMemoryError,
    RecipeError,
    TrainingError,
    TrainingStoppedError,
    UsageError,
)
from reeltag.core.interrupts import deadline, raise_on_sigterm
from reeltag.core.progress import Progress, default_progress
from reeltag.core.remote_files import is_url
from reeltag.core.storage import read_json, write_bytes
from reeltag.core.text import counted, toml
from reeltag.pipeline import executor
from reeltag.pipeline.executor import Stage
from reeltag.pipeline.plan import plan_without_test
from reeltag.pipeline.run import Work, check_models, folder_of
from reeltag.pipeline.run_folder import outputs_at
from reeltag.pipeline.stages.files import SCORES
from reeltag.pipeline.stages.trained_model import recipe_model
from reeltag.pipeline.tuning.study import GivenUp, Outcome, Study, import_optuna
from reeltag.recipe.load import parse_recipe, recipe_table
from reeltag.recipe.schema import Recipe
from reeltag.recipe.search_space import Dimension, Value, own_value, search_space, tuned_model, with_trial
from reeltag.recipe.tables import Table, with_values

if TYPE_CHECKING:
    import optuna

    from reeltag.training.early_stopping import StopRule

STUDY, TRIALS, BEST = "study.journal", "trials.csv", "best.toml"
HOPELESS = (BudgetError, OutOfMemoryError, RecipeError, TrainingError)  # of a trial; others may still succeed


@dataclass(frozen=True)
class Tuned:
    """Result of a search.

    Attributes:
        folder: with the study, `trials.csv` and `best.toml`.
        trials: number, values and outcome of each trial.
    """

    folder: Path
    trials: Sequence[tuple[int, Mapping[str, Value], Outcome]] = field(repr=False)

    @property
    def best(self) -> tuple[int, Mapping[str, Value], Outcome]:
        """The trial with the highest GAP on the hold-out; of equal ones the first."""
        return max(self.trials, key=lambda each: (each[2].gap is not None, each[2].gap or 0.0))

    @property
    def recipe(self) -> Path:
        """The recipe with the best values."""
        return self.folder / BEST


def tune(
    recipe: str | Path,
    trials: int,
    *,
    model: str | None = None,
    out: str | Path | None = None,
    overrides: str | Sequence[str] = (),
    work: Work | None = None,
) -> Tuned:
    """Search the ranges of a recipe for the values with which a model reaches the highest GAP on the hold-out.

    Args:
        recipe: a TOML file, or the name of a recipe that comes with reeltag.
        trials: number of trials, those of an earlier search in the same folder included.
        model: name of the model; by default the one that the ranges name, or the only one.
        out: folder of the run whose stages the trainings are; runs/NAME by default.
        overrides: `dotted.key=value`, one or several, as with `--set`.
        work: devices and time limit; by default this process and none.

    Returns:
        The trials; `best.toml` and `trials.csv` are written after each.

    Raises:
        ReeltagError: bad input; see `reeltag.core.errors`.
    """
    table, faults = recipe_table(recipe, overrides)
    loaded = parse_recipe(table, recipe, faults)
    check_models(loaded, [model] if model else [])
    name, work = tuned_model(loaded, model), work or Work()
    space = search_space(loaded, table, name)
    folder = folder_of(loaded, out)
    if trials < 1:
        raise UsageError(f"--trials: {trials} is not a number of trials; give 1 or more")
    if is_url(folder):
        raise UsageError(f"{folder}: a search keeps its study in a folder; give --out a folder that all machines share")
    if world_size() > 1:
        raise UsageError("tune: starts the processes of each training itself; leave torchrun out")
    import_optuna()
    progress = default_progress(quiet=work.quiet)
    return _Search(loaded, table, name, space, Path(folder), trials, progress).run(work)


@dataclass(frozen=True)
class _Search:
    """A search: the recipe and its table, the model, the values to try, and the number of trials."""

    recipe: Recipe
    table: Table
    model: str
    space: Mapping[str, Dimension]
    out: Path
    trials: int
    progress: Progress

    def run(self, work: Work) -> Tuned:
        """Run the trials that are missing."""
        stages = _stages(self.recipe, self.model)
        name = recipe_model(self.recipe, self.model).training.stage_name
        training = next(stage for stage in stages if stage.name == name)
        before = executor.needed_for(training.inputs, stages)
        pool, outputs = work.pool(self.recipe, stages), outputs_at(self.out)
        with outputs.claimed(), deadline(max_seconds(work.max_time)), pool or nullcontext(_Here()) as workers:
            folders = executor.run(before, self.out, self.progress, None if isinstance(workers, _Here) else workers)
            data = [outputs.marker(folders[each].name) for each in training.inputs]
            study = self._open(training, data)
            self._try(study, workers, training.needs, labelled=pool is not None)
        return self._write(study)

    @property
    def folder(self) -> Path:
        """Folder of the study."""
        return self.out / "tune" / self.model

    def _open(self, training: Stage, data: Sequence[Mapping[str, Any] | None]) -> Study:
        """Open the study, with the markers of the data that it is of."""
        digests = [marker and marker["digest"] for marker in data]
        averaging = self.recipe.averaging and self.recipe.averaging.model_dump(mode="json")
        ranges = {key: each.settings.model_dump(mode="json") for key, each in self.space.items()}
        identity = [training.parameters, averaging, ranges, digests]
        study = Study(self.folder / STUDY, self.space, self.recipe.seed, identity)
        own = {key: own_value(self.recipe, self.model, key) for key in self.space}
        if outside := [key for key, each in self.space.items() if not each.holds(own[key])]:
            self.progress.say(f"the recipe's own values are not tried first: {', '.join(outside)} is outside its range")
        else:
            study.begin_with(own)
        if interrupted := study.recover():
            self.progress.say(f"{counted(interrupted, 'trial')} of an interrupted search will go on")
        if self.recipe.training_with(self.recipe.models[self.model].training).evaluate_every is None:
            self.progress.say("no trial is given up early; for that, set training.evaluate_every, such as to 1")
        return study

    def _try(self, study: Study, workers: Pool | _Here, needs: Resources, *, labelled: bool) -> None:
        """Keep as many trials running as the workers have room for, until there are enough."""
        running: dict[Future[Outcome], list[optuna.Trial]] = {}
        begun = len(study.finished())
        while running or begun < self.trials:
            while begun < self.trials and len(running) < workers.room(needs):
                trial, begun = study.ask(), begun + 1
                twins = [each for each in running.values() if each[0].params == trial.params]
                if (same := study.same(trial)) is not None:
                    self._tell(study, trial, same)
                elif twins:
                    twins[0].append(trial)
                else:
                    running[self._submit(trial, workers, needs, labelled=labelled)] = [trial]
            for future in wait(running, return_when=FIRST_COMPLETED).done if running else ():
                for trial in running.pop(future):
                    self._tell(study, trial, future.result())

    def _submit(
        self, trial: optuna.Trial, workers: Pool | _Here, needs: Resources, *, labelled: bool
    ) -> Future[Outcome]:
        values = ", ".join(f"{key} = {toml(value)}" for key, value in trial.params.items())
        self.progress.say(f"trial: {values}")
        try:
            recipe = with_trial(self.recipe, self.table, trial.params)
        except RecipeError as error:
            failed: Future[Outcome] = Future()
            failed.set_result(Outcome(None, "; ".join(error.faults)))
            return failed
        progress = self.progress.labelled(f"trial {trial.number}") if labelled else self.progress
        return workers.submit(needs, _run_trial, recipe, self.model, self.out, GivenUp(trial), progress)

    def _tell(self, study: Study, trial: optuna.Trial, outcome: Outcome) -> None:
        study.tell(trial, outcome)
        done = self._write(study)
        what = outcome.reason or (outcome.gap is not None and f"hold-out GAP {outcome.gap:.5f}") or "below the median"
        best = done.best[2].gap
        so_far = "" if best is None else f"; best of {counted(len(done.trials), 'trial')}: {best:.5f}"
        self.progress.say(f"trial {len(done.trials)} of {self.trials}: {outcome.state}, {what}{so_far}")

    def _write(self, study: Study) -> Tuned:
        """Write the table of trials, and the recipe with the best values if there is one."""
        done = Tuned(self.folder, study.finished())
        write_bytes(self.folder / TRIALS, _as_csv(list(self.space), done.trials).encode())
        if done.best[2].gap is not None:
            write_bytes(done.recipe, self._best_recipe(done).encode())
        return done

    def _best_recipe(self, done: Tuned) -> str:
        """Return the recipe with the best values, as TOML; a relative `data.root` starts from its new folder."""
        number, values, outcome = done.best
        table = with_values({key: value for key, value in self.table.items() if key != "tune"}, values)
        root = str(table["data"].get("root", ""))
        if "synthetic" not in table["data"] and not is_url(root) and not Path(root).is_absolute():
            table["data"]["root"] = os.path.relpath(root or ".", self.folder)
        how = f"trial {number} of {len(done.trials)}, with a hold-out GAP of {outcome.gap:.5f} for {self.model}"
        return f"# Written by `reeltag tune {self.recipe.source}`: {how}.\n{tomli_w.dumps(table)}"


class _Here:
    """Calls functions in this process; see `Pool`."""

    def submit(self, resources: Resources, function: Callable[..., Outcome], *arguments: Any) -> Future[Outcome]:
        future: Future[Outcome] = Future()
        future.set_result(function(*arguments))
        return future

    def room(self, resources: Resources) -> int:
        return 1


def _stages(recipe: Recipe, model: str, stop: StopRule | None = None) -> list[Stage]:
    """Return the stages of a trial: the model's trainings, and its predictions of the hold-out.

    Raises:
        BudgetError: the model cannot fit the budget.
    """
    stages, trained = plan_without_test(recipe), recipe_model(recipe, model)
    needed = executor.needed_for([trained.predicted], stages)
    name, work = trained.training.stage_name, partial(trained.training.train, stop=stop)
    return [replace(stage, work=work) if stage.name == name else stage for stage in needed]


def _run_trial(recipe: Recipe, model: str, out: Path, stop: StopRule, progress: Progress) -> Outcome:
    """Train a model and return its GAP on the hold-out; in this process or in a worker."""
    with raise_on_sigterm():
        try:
            folders = executor.run(_stages(recipe, model, stop), out, progress)
        except TrainingStoppedError:
            return Outcome()
        except HOPELESS as error:
            return Outcome(None, " ".join(str(error).split()))
    return Outcome(read_json(folders[recipe_model(recipe, model).predicted] / SCORES)["float32"]["gap"])


def _as_csv(keys: Sequence[str], trials: Sequence[tuple[int, Mapping[str, Value], Outcome]]) -> str:
    """Return the trials as CSV, one a row."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["trial", "state", "holdout_gap", *keys, "reason"])
    for number, values, outcome in trials:
        gap = "" if outcome.gap is None else f"{outcome.gap:.6f}"
        writer.writerow([number, outcome.state, gap, *(toml(values[key]) for key in keys), outcome.reason])
    return text.getvalue()
