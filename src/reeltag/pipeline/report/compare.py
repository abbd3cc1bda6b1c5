"""What changed from one run to another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from reeltag.pipeline.report.results import METRICS, Results, Run, best_single, best_single_tested, seconds_by_kind
from reeltag.recipe.tables import differences as table_differences
from reeltag.recipe.tables import keys_of

SHOWN_KEYS = 3  # in which two models of one name differ


@dataclass(frozen=True)
class Difference:
    """A number of two runs; None where a run does not have it.

    Attributes:
        name: of the number.
        before, after: its values.
        unit: `gap` for shares, `mb` for bytes, `duration` for seconds, `count`.
        note: why the two are not of the same thing; empty where they are.
    """

    name: str
    before: float | None
    after: float | None
    unit: str = "gap"
    note: str = ""

    @property
    def change(self) -> float | None:
        """From the first run to the second."""
        return None if self.before is None or self.after is None else self.after - self.before


def differences(before: Run, after: Run) -> dict[str, list[Difference]]:
    """Every number of two runs side by side: of the files, of the models that either has, of the kinds of stages."""
    files = [(_file_numbers(run.results)) for run in (before, after)]
    models = [_model_numbers(run.results) for run in (before, after)]
    times = [_times(run) for run in (before, after)]
    return {
        "The file": _beside(*files),
        "Models, test GAP@20 in float32": [
            replace(row, note=_other(before, after, row.name)) for row in _beside(*models)
        ],
        "Time": _beside(*times),
    }


def class_changes(before: Run, after: Run) -> list[tuple[str, int, float, float]]:
    """Name, test videos of the second run, and both AP of the classes that both have under one number.

    Those that gained most come first. Of few videos a gain says little.
    """
    classes = zip(
        before.results["test"]["class_ap"],
        after.results["test"]["class_ap"],
        after.results["class_counts"]["test"],
        strict=False,
    )
    rows = [(name, tested, old, new) for (name, old), (same, new), tested in classes if name == same]
    return sorted(rows, key=lambda row: row[2] - row[3])


def recipe_changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Dotted key and both values of what differs; a table that only one recipe has is one row."""
    return [(key, _told(old), _told(new)) for key, old, new in table_differences(before, after)]


def _told(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"only here: {keys_of(value)}"
    return "none" if value is None else str(value)


def _other(before: Run, after: Run, name: str) -> str:
    """What differs between the configurations of two runs' models of one name; empty where nothing does."""
    old, new = (_configuration(run, name) for run in (before, after))
    if not old or not new:
        return ""
    found = [f"{key} {_told(first)} → {_told(second)}" for key, first, second in table_differences(old, new)]
    more = [f"and {len(found) - SHOWN_KEYS} more"] if len(found) > SHOWN_KEYS else []
    return f"another configuration: {', '.join(found[:SHOWN_KEYS] + more)}" if found else ""


def _configuration(run: Run, name: str) -> dict[str, Any]:
    """What the recipe says of a model; of a student with a teacher's architecture that of the teacher."""
    member = run.results["members"].get(name)
    like = member.get("like") if member else None
    found = {**run.recipe.get("models", {}), **run.recipe.get("students", {})}.get(like or name, {})
    dropout = (run.recipe.get("distillation") or {}).get("dropout")
    return {**found, "dropout": dropout} if like and dropout is not None else found


_Numbers = Mapping[str, tuple[float, str]]


def _file_numbers(results: Results) -> dict[str, tuple[float, str]]:
    test, holdout = results["test"], results["holdout_gap"]
    metrics = [(key, title) for key, title in METRICS.items() if key in test["file"]]
    return {
        "size": (results["bytes"], "mb"),
        "budget": (results["budget"], "mb"),
        "members": (len(results["shipped"]), "count"),
        "hold-out GAP@20": (holdout["file"], "gap"),
        "hold-out GAP@20 of the best single model": (best_single(results)[1], "gap"),
        "hold-out GAP@20 with equal weights": (holdout["equal_weights"], "gap"),
        "hold-out GAP@20 of the class prior": (holdout["prior"], "gap"),
        **{title: (test["file"][key], "gap") for key, title in metrics},
        "test GAP@20 of the best single model, float": (best_single_tested(results)[1], "gap"),
        "test GAP@20 of the class prior": (test["prior"]["gap"], "gap"),
        "expected calibration error": (results["calibration"]["ece"], "gap"),
        "hold-out videos": (holdout["videos"], "count"),
        "test videos": (test["file"]["videos"], "count"),
    }


def _model_numbers(results: Results) -> dict[str, tuple[float, str]]:
    return {name: (member["test"]["float32"]["gap"], "gap") for name, member in results["members"].items()}


def _times(run: Run) -> dict[str, tuple[float, str]]:
    kinds = {kind: seconds for kind, _, seconds in seconds_by_kind(run.timings)}
    return {name: (seconds, "duration") for name, seconds in {**kinds, "all stages": sum(kinds.values())}.items()}


def _beside(before: _Numbers, after: _Numbers) -> list[Difference]:
    rows = []
    for name in dict.fromkeys([*before, *after]):
        unit = (before.get(name) or after[name])[1]
        old, new = (side[name][0] if name in side else None for side in (before, after))
        rows.append(Difference(name, old, new, unit))
    return rows
