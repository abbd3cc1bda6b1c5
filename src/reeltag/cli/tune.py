"""The command `reeltag tune`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reeltag.cli.options import Address, Devices, Executor, MaxTime, Overrides, Quiet
from reeltag.cli.output import Json, say
from reeltag.core.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from reeltag.recipe.search_space import Value

SHOWN = 5  # of the best trials


def tune(
    recipe: str,
    /,
    *,
    trials: int,
    model: str | None = None,
    out: str | None = None,
    set_: Overrides = [],  # noqa: B006
    devices: Devices = "",
    executor: Executor = "local",
    address: Address = None,
    max_time: MaxTime = None,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Search the ranges of a recipe's table [tune] for the best sizes and rates of a model.

    Each trial is trained like a model of `train` and judged by GAP on the hold-out; the test set is not looked at. The
    same command goes on from an interruption. Writes OUT/tune/MODEL/best.toml, a recipe for `run`. See docs/tuning.md.

    Example: reeltag tune recipe.toml --trials 20

    Args:
        recipe: A TOML file, or the name of a recipe that comes with reeltag (`reeltag recipe list`).
        trials: Number of trials, those of an earlier search in the same folder included.
        model: Name of the model in the recipe; by default the one that [tune] names, or the only one.
        out: Folder of the run whose stages the trainings are; runs/NAME by default.
    """
    from reeltag.core.text import counted
    from reeltag.pipeline.run import Work
    from reeltag.pipeline.tuning.tune import tune as search

    done = search(
        recipe,
        trials,
        model=model,
        out=out,
        overrides=set_,
        work=Work(devices, executor, address, max_time, quiet),
    )
    number, values, outcome = done.best
    if outcome.gap is None:
        raise UsageError(f"none of {counted(len(done.trials), 'trial')} has a model; see {done.folder / 'trials.csv'}")
    ranked = sorted((each for each in done.trials if each[2].gap is not None), key=lambda each: -(each[2].gap or 0.0))
    lines = [f"{each.gap:.5f}  {_values(tried)}  (trial {at})" for at, tried, each in ranked[:SHOWN]]
    result = {
        "recipe": done.recipe,
        "best": {"trial": number, "holdout_gap": outcome.gap, "values": values},
        "trials": [
            {"trial": at, "state": each.state, "holdout_gap": each.gap, "values": tried, "reason": each.reason}
            for at, tried, each in done.trials
        ],
    }
    states = [each.state for _, _, each in done.trials]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    text = [
        "hold-out GAP",
        *lines,
        "",
        f"{counted(len(states), 'trial')}: {counts}; {done.folder / 'trials.csv'}",
        str(done.recipe),
    ]
    say(result, text, json)


def _values(values: Mapping[str, Value]) -> str:
    from reeltag.core.text import toml

    return ", ".join(f"{key} = {toml(value)}" for key, value in values.items())
