"""Results of a run as text: the last lines of `reeltag run`, and the Markdown report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from reeltag.core.text import NAME_SEPARATOR, counted, escaped, megabytes, one_line
from reeltag.data.bad_records import BadRecord, format_first
from reeltag.pipeline.report.paper_tables import markdown_row
from reeltag.pipeline.report.remarks import remarks, weights_note
from reeltag.pipeline.report.results import (
    DIVERSITY,
    DIVERSITY_COLUMNS,
    METRICS,
    best_single,
    best_single_tested,
    noun_of,
)

LISTED_CLASSES = 10  # so many of the best and so many of the worst


def headline(results: Mapping[str, Any]) -> str:
    """Return a few lines: size, GAP beside the baselines, test MAP@K if segments were tagged, and remarks."""
    holdout, test, noun = results["holdout_gap"], results["test"], noun_of(results)
    (best, best_gap), (best_tested, tested_gap) = best_single(results), best_single_tested(results)
    lines = []
    if (at_k := test["file"].get("map_at_k")) is not None:
        lines.append(f"test MAP@K    {at_k:.5f}  (of segments; class prior {test['prior']['map_at_k']:.5f})")
    return "\n".join(
        [
            f"size          {megabytes(results['bytes'])} of {megabytes(results['budget'])}",
            f"hold-out GAP  {holdout['file']:.5f}  (best single model {best_gap:.5f}, {best}; class prior "
            f"{holdout['prior']:.5f}; {counted(holdout['videos'], noun)} not used to choose)",
            f"test GAP      {test['file']['gap']:.5f}  (best single model, float, {tested_gap:.5f}, {best_tested}; "
            f"class prior {test['prior']['gap']:.5f}; {counted(test['file']['videos'], noun)})",
            *lines,
            *(f"note          {remark}" for remark in remarks(results)),
        ]
    )


def examples(results: Mapping[str, Any]) -> list[str]:
    """Return one line for each example video: its tags with probabilities, and its labels."""
    lines = []
    for example in results["examples"]:
        tags = NAME_SEPARATOR.join(f"{name} {score:.2f}" for name, score in example["tags"])
        labels = NAME_SEPARATOR.join(example["labels"]) or "none"
        lines.append(f"{one_line(example['id'])}: {one_line(tags)}  [labels: {one_line(labels)}]")
    return lines


def render(results: Mapping[str, Any]) -> str:
    """Return the report as Markdown."""
    test, holdout, noun = results["test"], results["holdout_gap"], noun_of(results)
    parts = [
        f"# {results['recipe']}",
        "",
        "```",
        headline(results),
        "```",
        "",
        *_models_table(results),
        "",
        f"Hold-out: members, encodings and weights were chosen on one half ({counted(holdout['chosen_on'], noun)}), "
        f"where the file has {holdout['file_where_chosen']:.5f}; the numbers above were measured on the other half "
        f"({counted(holdout['videos'], noun)}). Test: {counted(test['file']['videos'], noun)}; nothing was chosen "
        "on the test set.",
        "",
        *_weights(results),
        *_starts(results["members"]),
        *_bad_records(results["bad_records"]),
        "The paper's four tables for this run are in [tables.md](tables.md).",
        "",
        "![GAP against megabytes](frontier.svg)",
        "",
        *_diversity(results["diversity"]),
        "## Examples",
        "",
        *[f"- {escaped(line)}" for line in examples(results)],
        "",
        "## Classes, best and worst on the test set",
        "",
        *_classes_table(test["class_ap"]),
        "",
    ]
    return "\n".join(parts)


def _models_table(results: Mapping[str, Any]) -> list[str]:
    """Return a row for the file, one for each model and encoding, and one for the class prior."""
    test, holdout = results["test"], results["holdout_gap"]
    titles = [title for _, title in _metrics(test["file"])]
    columns = ["model", "encoding and weight in the file", "size", "hold-out GAP@20", *titles]
    shipped = {entry["name"]: f"{entry['encoding']}, {entry['weight']:.3f}" for entry in results["shipped"]}
    rows = [_row("**the file**", "", results["bytes"], holdout["file"], test["file"])]
    for name, member in results["members"].items():
        for encoding, scores in member["test"].items():
            gap = holdout["members"].get(name) if encoding == "float32" else None
            label = "left out" if name in results["left_out"] else shipped.get(name, "")
            cell = label if encoding == "float32" else ""
            rows.append(_row(f"{name}, {encoding}", cell, scores["bytes"], gap, scores))
    rows.append(_row("class prior", "", None, holdout["prior"], test["prior"]))
    return [markdown_row(columns), "|---" * len(columns) + "|", *rows]


def _classes_table(class_ap: Sequence[tuple[str, float]]) -> list[str]:
    """Return the classes with the best and the worst average precision."""
    ranked = sorted(class_ap, key=lambda item: -item[1])
    rows = [f"| {escaped(name)} | {ap:.5f} |" for name, ap in ranked]
    if len(rows) > 2 * LISTED_CLASSES:
        rows[LISTED_CLASSES:-LISTED_CLASSES] = ["| … | |"]
    return ["| class | AP |", "|---|---|", *rows]


def _weights(results: Mapping[str, Any]) -> list[str]:
    """Explain how the weights were chosen, beside the GAP of the alternatives."""
    if not (note := weights_note(results)):
        return []
    holdout = results["holdout_gap"]
    return [
        f"{note} On the other half the file has {holdout['file']:.5f}, with equal weights "
        f"{holdout['equal_weights']:.5f}, with the best of equal and random weights {holdout['random_search']:.5f}.",
        "",
    ]


def _starts(members: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """List the finished models that trainings went on from, with all classes that are new or dropped."""
    starts = {name: member["start"] for name, member in members.items() if "start" in member}
    if not starts:
        return []
    lines = ["Models that went on from a finished one:", ""]
    for name, start in starts.items():
        classes = [f"{start['kept']:,} classes kept by {start['by']}"]
        classes += [
            f"{len(start[key]):,} {key}: {NAME_SEPARATOR.join(start[key])}" for key in ("new", "dropped") if start[key]
        ]
        place = f"{name}, from {start['member']} of {start['file']}"
        lines.append(f"- {escaped(place + ': ' + '; '.join(classes))}")
    return [*lines, ""]


def _diversity(groups: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the mean correlation of errors in each group of models; nothing if no group has two."""
    if not groups:
        return []
    rows = [markdown_row([each["group"], ", ".join(each["models"]), f"{each['correlation']:.5f}"]) for each in groups]
    return ["## Diversity", "", DIVERSITY, "", markdown_row(DIVERSITY_COLUMNS), "|---|---|---|", *rows, ""]


def _bad_records(by_split: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    """List the records that were left out of the data."""
    lines = []
    for split, records in by_split.items():
        if records:
            bad = [BadRecord(**record) for record in records]
            lines += [f"{counted(len(bad), 'bad record')} of data.{split} left out:", ""]
            lines += [*(f"- {escaped(line)}" for line in format_first(bad)), ""]
    return lines


def _metrics(test: Mapping[str, float]) -> list[tuple[str, str]]:
    """Return key and title of the test metrics that were measured."""
    return [(key, title) for key, title in METRICS.items() if key in test]


def _row(name: str, shipped: str, size: int | None, holdout: float | None, test: Mapping[str, float]) -> str:
    cells = [
        name,
        shipped,
        "" if size is None else megabytes(size),
        "" if holdout is None else f"{holdout:.5f}",
        *(f"{test[key]:.5f}" for key, _ in _metrics(test)),
    ]
    return markdown_row(cells)
