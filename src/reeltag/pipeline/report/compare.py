"""Differences between two runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

from reeltag.pipeline.report.results import METRICS, Results, Run, best_single, best_single_tested, seconds_by_kind
from reeltag.recipe.tables import differences as table_differences
from reeltag.recipe.tables import keys_of

Unit: TypeAlias = Literal["gap", "bytes", "seconds", "count"]
SHOWN_KEYS = 3  # of the keys in which two models with the same name differ


@dataclass(frozen=True)
class Difference:
    """Number of two runs side by side; None if a run does not have it.

    Attributes:
        name: label of the number.
        before, after: its values in the first and the second run.
        unit: unit that the page formats it in; `gap` for all numbers from 0 to 1.
        note: reason why the two values are not comparable; empty if they are.
    """

    name: str
    before: float | None
    after: float | None
    unit: Unit = "gap"
    note: str = ""

    @property
    def change(self) -> float | None:
        """Second value minus the first."""
        return None if self.before is None or self.after is None else self.after - self.before


def differences(before: Run, after: Run) -> dict[str, list[Difference]]:
    """Return the numbers of two runs side by side: of their files, of all their models, of their kinds of stages."""
    files = [_file_numbers(run.results) for run in (before, after)]
    models = [_model_numbers(run.results) for run in (before, after)]
    times = [_times(run) for run in (before, after)]
    return {
        "The file": _side_by_side(*files),
        "Models, test GAP@20 in float32": [
            replace(row, note=_configuration_note(before, after, row.name)) for row in _side_by_side(*models)
        ],
        "Time": _side_by_side(*times),
    }


def class_changes(before: Run, after: Run) -> list[tuple[str, int, float, float]]:
    """Return name, number of test videos in the second run, and both APs of each class with the same index and name.

    Classes that gained most come first. A gain measured on few videos means little.
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
    """Return dotted key and both values of each difference; a table that only one recipe has is one row."""
    return [(key, _as_text(old), _as_text(new)) for key, old, new in table_differences(before, after)]


def _as_text(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"only here: {keys_of(value)}"
    return "none" if value is None else str(value)


def _configuration_note(before: Run, after: Run, name: str) -> str:
    """List the differences between the configurations of two models with the same name; empty if there are none."""
    old, new = (_configuration(run, name) for run in (before, after))
    if not old or not new:
        return ""
    changes = [f"{key} {_as_text(first)} → {_as_text(second)}" for key, first, second in table_differences(old, new)]
    more = [f"and {len(changes) - SHOWN_KEYS} more"] if len(changes) > SHOWN_KEYS else []
    return f"another configuration: {', '.join(changes[:SHOWN_KEYS] + more)}" if changes else ""


def _configuration(run: Run, name: str) -> dict[str, Any]:
    """Return a model's table of the recipe; for a student with a teacher's architecture, that of the teacher."""
    tables: dict[str, dict[str, Any]] = {**run.recipe.get("models", {}), **run.recipe.get("students", {})}
    member = run.results["members"].get(name)
    if name in tables or member is None or "like" not in member:
        return tables.get(name, {})
    dropout = (run.recipe.get("distillation") or {}).get("dropout")
    return tables[member["like"]] | ({} if dropout is None else {"dropout": dropout})


Numbers: TypeAlias = Mapping[str, tuple[float, Unit]]


def _file_numbers(results: Results) -> Numbers:
    test, holdout = results["test"], results["holdout_gap"]
    metrics = [(key, title) for key, title in METRICS.items() if key in test["file"]]
    return {
        "size": (results["bytes"], "bytes"),
        "budget": (results["budget"], "bytes"),
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


def _model_numbers(results: Results) -> Numbers:
    return {name: (member["test"]["float32"]["gap"], "gap") for name, member in results["members"].items()}


def _times(run: Run) -> Numbers:
    kinds = {kind: seconds for kind, _, seconds in seconds_by_kind(run.timings)}
    return {name: (seconds, "seconds") for name, seconds in {**kinds, "all stages": sum(kinds.values())}.items()}


def _side_by_side(before: Numbers, after: Numbers) -> list[Difference]:
    rows = []
    for name in dict.fromkeys([*before, *after]):
        unit = (before.get(name) or after[name])[1]
        old, new = (side[name][0] if name in side else None for side in (before, after))
        rows.append(Difference(name, old, new, unit))
    return rows
