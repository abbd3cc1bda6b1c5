"""A run's results as Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from reeltag.storage import megabytes


def headline(results: Mapping[str, Any]) -> str:
    """The run in three lines: size, hold-out GAP beside what it has to beat, and test GAP."""
    holdout, test = results["holdout_gap"], results["test"]
    best, best_gap = max(holdout["members"].items(), key=lambda item: item[1])
    tested = {name: scores["float"]["gap"] for name, scores in results["test_members"].items()}
    best_tested = max(tested, key=tested.__getitem__)
    return "\n".join(
        [
            f"size          {megabytes(results['bytes'])} of {megabytes(results['budget'])}",
            f"hold-out GAP  {holdout['file']:.5f}  (best single member {best_gap:.5f}, {best}; "
            f"class prior {holdout['prior']:.5f})",
            f"test GAP      {test['file']['gap']:.5f}  (best single member, float, {tested[best_tested]:.5f}, "
            f"{best_tested}; class prior {test['prior']['gap']:.5f})",
        ]
    )


def examples(results: Mapping[str, Any]) -> list[str]:
    """One line a test video: its tags with scores, and its labels."""
    lines = []
    for example in results["examples"]:
        tags = ", ".join(f"{name} {score:.2f}" for name, score in example["tags"])
        lines.append(f"{example['id']}: {tags}  [labels: {', '.join(example['labels']) or 'none'}]")
    return lines


def render(results: Mapping[str, Any]) -> str:
    """The whole report."""
    test, holdout = results["test"], results["holdout_gap"]
    rows = [_row("**the file**", None, results["bytes"], holdout["file"], test["file"])]
    for name, scores in results["test_members"].items():
        weight = results["weights"][name]
        rows.append(_row(f"{name}, 8-bit", weight, scores["8-bit"]["bytes"], holdout["members"][name], scores["8-bit"]))
        rows.append(_row(f"{name}, float", None, scores["float"]["bytes"], None, scores["float"]))
    rows.append(_row("class prior", None, None, holdout["prior"], test["prior"]))
    best = sorted(test["class_ap"], key=lambda item: -item[1])
    classes = [f"| {_cell(name)} | {ap:.5f} |" for name, ap in [*best[:10], ("…", float("nan")), *best[-10:]]]
    return "\n".join(
        [
            f"# {results['recipe']}",
            "",
            "```",
            headline(results),
            "```",
            "",
            "| model | weight | size | hold-out GAP@20 | test GAP@20 | Hit@1 | PERR | mAP |",
            "|---|---|---|---|---|---|---|---|",
            *rows,
            "",
            f"Hold-out: {holdout['videos']:,} videos, on which the weights were chosen (equal weights: "
            f"{holdout['equal_weights']:.5f}). Test: {test['file']['videos']:,} videos that nothing was chosen on.",
            "",
            "## Examples",
            "",
            *[f"- {_cell(line)}" for line in examples(results)],
            "",
            "## Classes, best and worst on the test set",
            "",
            "| class | AP |",
            "|---|---|",
            *[row.replace("nan", "") for row in classes],
            "",
        ]
    )


def _row(name: str, weight: float | None, size: int | None, holdout: float | None, test: Mapping[str, float]) -> str:
    cells = [
        name,
        "" if weight is None else f"{weight:.3f}",
        "" if size is None else megabytes(size),
        "" if holdout is None else f"{holdout:.5f}",
        *(f"{test[key]:.5f}" for key in ("gap", "hit_at_1", "perr", "map")),
    ]
    return f"| {' | '.join(cells)} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
