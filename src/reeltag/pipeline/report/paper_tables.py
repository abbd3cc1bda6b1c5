"""Tables 1 to 4 of the paper for a run, beside the paper's own numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import fsum
from statistics import mean
from typing import Any

from reeltag.core.text import megabytes

PAPER_AVERAGING = {"rnn": 0.00339, "netfv": -0.00186, "dbof": 0.00216, "netvlad": 0.00072}
PAPER_DISTILLATION = {"rnn": 0.01290, "netfv": 0.00772, "dbof": 0.00409, "netvlad": 0.00684}


MISSING = {1: "the recipe has no [averaging]", 3: "the recipe has no [distillation]"}
NOTE = (
    "GAP@20: Tables 1 and 2 on the hold-out, by which models were chosen, Table 3 on the test set. "
    "The paper's numbers are of its own models, on YouTube-8M."
)


@dataclass(frozen=True)
class Table:
    """Table to display.

    Attributes:
        title: starts with the number of the table in the paper.
        note: explanation of its numbers.
        heading: one title for each column.
        rows: rows of cells.
    """

    title: str
    note: str
    heading: Sequence[str]
    rows: Sequence[Sequence[object]]

    @property
    def number(self) -> int:
        """Number of the table in the paper."""
        return int(self.title.removeprefix("Table ").partition(".")[0])


def paper_tables(results: Mapping[str, Any]) -> list[Table]:
    """Return the tables; Table 1 needs a recipe with weight averaging, Table 3 one with distillation."""
    members = results["members"]
    tables = [_averaging(members), _quantization(members), _distillation(results), _file(results)]
    return [table for table in tables if table.rows]


def missing_tables(tables: Sequence[Table]) -> list[str]:
    """Return a sentence for each of the four tables that is missing, with the reason."""
    existing = [table.number for table in tables]
    return [f"Table {number} is missing: {reason}." for number, reason in MISSING.items() if number not in existing]


def render_tables(results: Mapping[str, Any]) -> str:
    """Return the tables as Markdown."""
    tables = paper_tables(results)
    parts = [f"# {results['recipe']}: the paper's tables", "", " ".join([NOTE, *missing_tables(tables)])]
    for table in tables:
        rule = "|---" * len(table.heading) + "|"
        parts += ["", f"## {table.title}", "", table.note, "", markdown_row(table.heading), rule]
        parts += map(markdown_row, table.rows)
    return "\n".join(parts) + "\n"


def _averaging(members: Mapping[str, Any]) -> Table:
    rows: list[list[object]] = []
    for family, models in _by_family(members, students=False).items():
        trained = [model for model in models.values() if "averaging" in model]
        if trained:
            scores = [model["averaging"] for model in trained]
            changes = [score["averaged"] - score["plain"] for score in scores]
            kept = sum(model.get("averaged", change > 0) for model, change in zip(trained, changes, strict=True))
            rows.append([family, len(scores), _change(mean(changes)), kept, _change(PAPER_AVERAGING.get(family))])
    heading = ["family", "models", "GAP change after averaging", "kept averaged", "paper"]
    return Table("Table 1. Weight averaging", "On the hold-out; models trained on hard labels.", heading, rows)


def _quantization(members: Mapping[str, Any]) -> Table:
    models = [model["holdout"] for model in members.values()]
    plain = [scores["float32"] for scores in models]
    rows = []
    for encoding in sorted(models[0], key=lambda name: -models[0][name]["bytes"]):
        scores = [scores[encoding] for scores in models]
        changes = [score["gap"] - before["gap"] for score, before in zip(scores, plain, strict=True)]
        seconds, of_plain = (fsum(score["seconds"] for score in each) for each in (scores, plain))
        rows.append(
            [
                encoding,
                f"{mean(score['gap'] for score in scores):.5f}",
                _change(mean(changes)),
                _change(min(changes)),
                megabytes(sum(score["bytes"] for score in scores)),
                f"{seconds:.1f} s",
                f"{seconds / of_plain:.2f}",
            ]
        )
    note = (
        "On the hold-out, all models. Time to open the file and to tag the hold-out, in seconds and relative to "
        "float32. The paper, one FVNet: 467.5 MB → 117 MB, change +0.00001, 476.96 s → 507.79 s, which is 1.06."
    )
    heading = ["encoding", "mean GAP", "mean change", "worst change", "size, all models", "time", "relative"]
    return Table("Table 2. Quantisation", note, heading, rows)


def _distillation(results: Mapping[str, Any]) -> Table:
    members = results["members"]
    rows: list[list[object]] = []
    for family, students in _by_family(members, students=True).items():
        pairs = {name: (model, members[model["like"]]) for name, model in students.items() if "like" in model}
        gains = [_gap(student) - _gap(before) for student, before in pairs.values()]
        for number, (name, (student, before)) in enumerate(pairs.items()):
            last = number == len(pairs) - 1
            rows.append(
                [
                    f"{name} (like {student['like']})",
                    ", ".join(student["taught_by"]),
                    f"{_gap(student):.5f}",
                    f"{_gap(before):.5f}",
                    _change(gains[number]),
                    _change(mean(gains)) if last else "",
                    _change(PAPER_DISTILLATION.get(family)) if last else "",
                ]
            )
        for name, model in students.items():
            if name not in pairs:
                rows.append([name, ", ".join(model["taught_by"]), f"{_gap(model):.5f}", "", "", "", ""])
    heading = ["model", "taught by", "post distillation", "no distillation", "gain", "family's average gain", "paper"]
    notes = [
        "On the test set, in float32. A gain needs a model of the student's architecture that learned labels only."
    ]
    for family, ranking in results["teachers"].items():
        notes.append(f"Teacher of {family}: {_ranked(ranking)}.")
    return Table("Table 3. Distillation", " ".join(notes), heading, rows)


def _ranked(ranking: Sequence[Mapping[str, Any]]) -> str:
    """Name the combination of candidates that teaches, and how the others ranked."""
    best, *others = ranking
    text = f"{', '.join(best['models'])}, hold-out GAP {best['gap']:.5f}"
    if not others:
        return text
    return (
        f"{text}; of {len(ranking)} combinations the next is {', '.join(others[0]['models'])}, "
        f"{others[0]['gap']:.5f}, and the last has {others[-1]['gap']:.5f}"
    )


def _file(results: Mapping[str, Any]) -> Table:
    total = sum(entry["bytes"] for entry in results["shipped"])
    rows = [
        [
            entry["name"],
            results["members"][entry["name"]]["family"],
            entry["encoding"],
            megabytes(entry["bytes"]),
            f"{entry['bytes'] / total:.2%}",
            f"{entry['weight']:.4f}",
        ]
        for entry in results["shipped"]
    ]
    note = f"{megabytes(results['bytes'])} of {megabytes(results['budget'])}. The paper: nine models, 1052 MB."
    heading = ["model", "family", "encoding", "size", "% of overall size", "weight in the ensemble"]
    return Table("Table 4. The file", note, heading, rows)


def _by_family(members: Mapping[str, Any], *, students: bool) -> dict[str, dict[str, Any]]:
    families: dict[str, dict[str, Any]] = {}
    for name, model in members.items():
        if bool(model["taught_by"]) == students:
            families.setdefault(model["family"], {})[name] = model
    return families


def _gap(model: Mapping[str, Any]) -> float:
    gap: float = model["test"]["float32"]["gap"]
    return gap


def _change(value: float | None) -> str:
    return "" if value is None else f"{value:+.5f}"


def markdown_row(cells: Sequence[object]) -> str:
    """Return a row of a Markdown table."""
    return f"| {' | '.join(map(str, cells))} |"
