"""A run's results as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from reeltag.core.text import NAME_SEPARATOR, counted, escaped, megabytes, one_line
from reeltag.data.bad_records import BadRecord, format_first
from reeltag.pipeline.report.remarks import remarks, weights
from reeltag.pipeline.report.results import METRICS, best_single, best_single_tested, noun_of

SHOWN_CLASSES = 10  # best and worst


def headline(results: Mapping[str, Any]) -> str:
    """The run in a few lines: size, GAP beside what it has to beat, of segments test MAP@K, and remarks."""
    holdout, test, noun = results["holdout_gap"], results["test"], noun_of(results)
    (best, best_gap), (best_tested, tested_gap) = best_single(results), best_single_tested(results)
    lines = []
    if (at_k := test["file"].get("map_at_k")) is not None:
        lines.append(f"test MAP@K    {at_k:.5f}  (of segments; class prior {test['prior']['map_at_k']:.5f})")
    return "\n".join(
        [
            f"size          {megabytes(results['bytes'])} of {megabytes(results['budget'])}",
            f"hold-out GAP  {holdout['file']:.5f}  (best single member {best_gap:.5f}, {best}; class prior "
            f"{holdout['prior']:.5f}; {counted(holdout['videos'], noun)} kept for this)",
            f"test GAP      {test['file']['gap']:.5f}  (best single member, float, {tested_gap:.5f}, {best_tested}; "
            f"class prior {test['prior']['gap']:.5f}; {counted(test['file']['videos'], noun)})",
            *lines,
            *(f"note          {remark}" for remark in remarks(results)),
        ]
    )


def examples(results: Mapping[str, Any]) -> list[str]:
    """One line a test video: its tags with scores, and its labels; names may have commas."""
    lines = []
    for example in results["examples"]:
        tags = NAME_SEPARATOR.join(f"{name} {score:.2f}" for name, score in example["tags"])
        labels = NAME_SEPARATOR.join(example["labels"]) or "none"
        lines.append(f"{one_line(example['id'])}: {one_line(tags)}  [labels: {one_line(labels)}]")
    return lines


def render(results: Mapping[str, Any]) -> str:
    """The whole report."""
    test, holdout, noun = results["test"], results["holdout_gap"], noun_of(results)
    rows = [_row("**the file**", "", results["bytes"], holdout["file"], test["file"])]
    shipped = {entry["name"]: f"{entry['encoding']}, {entry['weight']:.3f}" for entry in results["shipped"]}
    for name, member in results["members"].items():
        for encoding, scores in member["test"].items():
            gap = holdout["members"].get(name) if encoding == "float32" else None
            label = "left out" if name in results["left_out"] else shipped.get(name, "")
            rows.append(
                _row(f"{name}, {encoding}", label if encoding == "float32" else "", scores["bytes"], gap, scores)
            )
    rows.append(_row("class prior", "", None, holdout["prior"], test["prior"]))
    columns = [
        "model",
        "shipped in, weight",
        "size",
        "hold-out GAP@20, the half below",
        *(title for _, title in _measured(test["file"])),
    ]
    heading = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    best = sorted(test["class_ap"], key=lambda item: -item[1])
    classes = [f"| {escaped(name)} | {ap:.5f} |" for name, ap in best]
    if len(classes) > 2 * SHOWN_CLASSES:
        classes[SHOWN_CLASSES:-SHOWN_CLASSES] = ["| … | |"]
    return "\n".join(
        [
            f"# {results['recipe']}",
            "",
            "```",
            headline(results),
            "```",
            "",
            *heading,
            *rows,
            "",
            f"Hold-out: members, encodings and weights were chosen on one half, {counted(holdout['chosen_on'], noun)}, "
            f"where the file has {holdout['file_where_chosen']:.5f}; the figures above are of the other half, "
            f"{counted(holdout['videos'], noun)}. Test: {counted(test['file']['videos'], noun)}; nothing was chosen "
            "on the test set.",
            "",
            *_weights(results),
            *_bad_records(results["bad_records"]),
            "The paper's four tables for this run are in [tables.md](tables.md).",
            "",
            "![GAP against megabytes](frontier.svg)",
            "",
            "## Examples",
            "",
            *[f"- {escaped(line)}" for line in examples(results)],
            "",
            "## Classes, best and worst on the test set",
            "",
            "| class | AP |",
            "|---|---|",
            *classes,
            "",
        ]
    )


def _weights(results: Mapping[str, Any]) -> list[str]:
    """How the weights were found, and what others would have."""
    if not (told := weights(results)):
        return []
    holdout = results["holdout_gap"]
    return [
        f"{told} On the other half the file has {holdout['file']:.5f}, with equal weights "
        f"{holdout['equal_weights']:.5f}, with the best of equal and random ones {holdout['random_search']:.5f}.",
        "",
    ]


def _bad_records(by_split: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    """What was left out of the data, if anything was."""
    lines = []
    for split, records in by_split.items():
        if records:
            found = [BadRecord(**record) for record in records]
            lines += [f"{counted(len(found), 'bad record')} of data.{split} left out:", ""]
            lines += [*(f"- {escaped(line)}" for line in format_first(found)), ""]
    return lines


def _measured(test: Mapping[str, float]) -> list[tuple[str, str]]:
    """Keys and titles of the test metrics that there are."""
    return [(key, title) for key, title in METRICS.items() if key in test]


def _row(name: str, shipped: str, size: int | None, holdout: float | None, test: Mapping[str, float]) -> str:
    cells = [
        name,
        shipped,
        "" if size is None else megabytes(size),
        "" if holdout is None else f"{holdout:.5f}",
        *(f"{test[key]:.5f}" for key, _ in _measured(test)),
    ]
    return f"| {' | '.join(cells)} |"
