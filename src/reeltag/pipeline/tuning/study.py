"""The study of a search: its trials in a file that outlives a kill, what is tried next, and what is given up.

Optuna chooses and records. Its sampler is seeded for each trial by the recipe and the trial's place in the order, so a
search that was interrupted tries the same values as one that was not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reeltag.core.environment import install_command
from reeltag.core.errors import UsageError
from reeltag.core.storage import content_hash, make_folder
from reeltag.recipe.search_space import Dimension, Value

if TYPE_CHECKING:
    import optuna

IDENTITY, REASON = "recipe", "reason"  # attributes of a study and of a trial


@dataclass(frozen=True)
class Outcome:
    """Outcome of a trial.

    Attributes:
        gap: GAP@20 on the hold-out; None if the trial has no trained model.
        reason: why it has none; empty if it was given up for better ones, or has one.
    """

    gap: float | None = None
    reason: str = ""

    @property
    def state(self) -> str:
        """`done`, `given up` or `failed`."""
        return "done" if self.gap is not None else "failed" if self.reason else "given up"


@dataclass(frozen=True)
class GivenUp:
    """The rule by which a trial is given up: its GAP is below the median of earlier trials at the same evaluation.

    Attributes:
        trial: of the study; it can be sent to another process.
    """

    trial: optuna.Trial

    def __call__(self, gaps: Sequence[float]) -> bool:
        """Report the evaluations that the study does not know yet, and decide after the last one."""
        known = self.trial.study.trials[self.trial.number].intermediate_values
        for number, gap in enumerate(gaps, 1):
            if number not in known:
                self.trial.report(gap, number)
        return self.trial.should_prune()


class Study:
    """Trials of one search.

    Args:
        path: of its file, Optuna's journal; created if it is missing.
        space: the values to try.
        seed: of the recipe.
        identity: everything that decides what a trial measures, as JSON.

    Raises:
        UsageError: Optuna is not installed, or the file is the study of another recipe, or damaged.
    """

    def __init__(self, path: Path, space: Mapping[str, Dimension], seed: int, identity: Any) -> None:
        optuna = import_optuna()
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        self._optuna, self._seed, wanted = optuna, seed, content_hash(identity)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._distributions = {key: _distribution(optuna, dimension) for key, dimension in space.items()}
        make_folder(path.parent)
        _drop_unfinished_line(path)
        try:
            self._study = optuna.create_study(
                storage=JournalStorage(JournalFileBackend(str(path))),
                study_name=path.parent.name,
                direction="maximize",
                pruner=optuna.pruners.MedianPruner(),
                load_if_exists=True,
            )
        except (ValueError, KeyError, TypeError) as error:
            raise UsageError(f"{path}: is damaged ({error}); remove it, and the search begins anew") from error
        if self._study.user_attrs.get(IDENTITY, wanted) != wanted:
            raise UsageError(
                f"{path}: is the study of another recipe, other ranges or other data, whose trials cannot be compared "
                f"with new ones; remove {path.parent} to begin anew, or choose another --out"
            )
        self._study.set_user_attr(IDENTITY, wanted)

    def begin_with(self, values: Mapping[str, Value]) -> None:
        """Let a new study begin with these values."""
        if not self._study.trials:
            self._study.enqueue_trial(dict(values))

    def recover(self) -> int:
        """Let the trials that were interrupted come first, with their values; returns how many they are."""
        interrupted = [each for each in self._study.trials if each.state.name == "RUNNING"]
        for each in interrupted:
            self._study.tell(each.number, state=self._optuna.trial.TrialState.FAIL)
            self._study.enqueue_trial(each.params)
        return len(interrupted)

    def ask(self) -> optuna.Trial:
        """Return the next trial, whose values are in its `params`."""
        trials = self._study.trials
        place = sum(each.state.name not in ("FAIL", "WAITING") or REASON in each.user_attrs for each in trials)
        self._study.sampler = self._optuna.samplers.TPESampler(seed=int(content_hash([self._seed, place])[:7], 16))
        trial: optuna.Trial = self._study.ask(self._distributions)
        return trial

    def same(self, trial: optuna.Trial) -> Outcome | None:
        """Return the outcome of an earlier trial with the same values; None if there is none."""
        return next((outcome for _, values, outcome in self.finished() if values == trial.params), None)

    def tell(self, trial: optuna.Trial, outcome: Outcome) -> None:
        """Record the outcome of a trial."""
        states = self._optuna.trial.TrialState
        if outcome.gap is not None:
            self._study.tell(trial.number, outcome.gap)
        elif outcome.reason:
            trial.set_user_attr(REASON, outcome.reason)
            self._study.tell(trial.number, state=states.FAIL)
        else:
            self._study.tell(trial.number, state=states.PRUNED)

    def finished(self) -> list[tuple[int, dict[str, Value], Outcome]]:
        """Return number, values and outcome of each trial that is finished, in the order of their numbers from 1."""
        found = []
        for each in self._study.trials:
            if each.state.name == "COMPLETE":
                found.append((dict(each.params), Outcome(each.value)))
            elif each.state.name == "PRUNED" or REASON in each.user_attrs:
                found.append((dict(each.params), Outcome(None, each.user_attrs.get(REASON, ""))))
        return [(number, *each) for number, each in enumerate(found, 1)]


def import_optuna() -> Any:
    """Import Optuna.

    Raises:
        UsageError: it is not installed.
    """
    try:
        import optuna
    except ModuleNotFoundError as error:
        raise UsageError(f"a search needs {error.name}, which is not installed; {install_command('tune')}") from error
    return optuna


def _distribution(optuna: Any, dimension: Dimension) -> Any:
    """Return a dimension as Optuna describes it."""
    settings, distributions = dimension.settings, optuna.distributions
    if settings.choices:
        return distributions.CategoricalDistribution(settings.choices)
    assert settings.low is not None
    assert settings.high is not None
    if dimension.whole:
        step = int(settings.step or 1)
        return distributions.IntDistribution(int(settings.low), int(settings.high), log=settings.log, step=step)
    return distributions.FloatDistribution(settings.low, settings.high, log=settings.log, step=settings.step)


def _drop_unfinished_line(path: Path) -> None:
    """Cut off the line that a crash of the machine left half written, which Optuna would refuse."""
    content = path.read_bytes() if path.exists() else b""
    if content and not content.endswith(b"\n"):
        with path.open("r+b") as file:
            file.truncate(content.rfind(b"\n") + 1)
