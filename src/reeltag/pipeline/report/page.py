"""Report page of a run, or of two runs side by side: one HTML file that needs no network."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib.resources import files
from operator import itemgetter
from types import MappingProxyType
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from reeltag.core.text import counted, megabytes, one_line
from reeltag.data.bad_records import format_first
from reeltag.inference.metrics.bootstrap import MIN_POSITIVES
from reeltag.inference.metrics.outcomes import CALIBRATION_BINS, worst_first
from reeltag.inference.timeline import segment_spans
from reeltag.pipeline.report.charts import curve_charts, frontier_chart, reliability_chart
from reeltag.pipeline.report.compare import class_changes, differences, recipe_changes
from reeltag.pipeline.report.paper_tables import NOTE, missing_tables, paper_tables
from reeltag.pipeline.report.remarks import remarks, weights_note
from reeltag.pipeline.report.results import (
    DIVERSITY,
    DIVERSITY_COLUMNS,
    METRICS,
    ReliabilityBin,
    Run,
    best_single,
    best_single_tested,
    noun_of,
    seconds_by_kind,
)


def render_run(run: Run, pictures: Mapping[str, str] = MappingProxyType({})) -> str:
    """Return the page of a run.

    Args:
        run: the run.
        pictures: of videos among the mistakes, by id, as addresses of data.
    """
    results = run.results
    return _page(
        "run.html",
        [run],
        title=results["recipe"],
        results=results,
        best=best_single(results),
        best_tested=best_single_tested(results),
        metrics=[(key, title) for key, title in METRICS.items() if key in results["test"]["file"]],
        noun=noun_of(results),
        remarks=remarks(results),
        weights=weights_note(results),
        unseen=sum(not count for count in results["class_counts"]["test"]),
        frontier=frontier_chart((run.name, results)),
        curves=curve_charts([run]),
        reliability=reliability_chart([run]),
        calibrated=[_calibration_notes(run)],
        tables=(tables := paper_tables(results)),
        tables_note=" ".join([NOTE, *missing_tables(tables)]),
        members=_members(run),
        diversity_note=DIVERSITY,
        diversity_columns=DIVERSITY_COLUMNS,
        classes=_classes(run),
        judged=run.judged,
        pictures=pictures,
        enough=MIN_POSITIVES,
        over_time=any(
            video["frames"] > 1
            for videos in (results["videos"]["best"], results["videos"]["worst"])
            for video in videos
        ),
        gated={name: member["gating"] for name, member in results["members"].items() if "gating" in member},
        names=[name for name, _ in results["test"]["class_ap"]],
        bad_records={
            split: [counted(len(records), "bad record"), *format_first(records)]
            for split, records in results["bad_records"].items()
            if records
        },
        timings=run.timings,
        kinds=seconds_by_kind(run.timings),
    )


def render_comparison(before: Run, after: Run) -> str:
    """Return the page that compares two runs."""
    runs = [before, after]
    return _page(
        "compare.html",
        runs,
        title=f"{before.name} and {after.name}",
        differences=differences(before, after),
        frontier=frontier_chart(*((run.name, run.results) for run in runs)),
        curves=curve_charts(runs),
        reliability=reliability_chart(runs),
        calibrated=[_calibration_notes(run) for run in runs],
        classes=class_changes(before, after),
        recipe=recipe_changes(before.recipe, after.recipe),
    )


def render_frontier(results: Mapping[str, Any]) -> str:
    """Return the chart of hold-out GAP against megabytes as a file of SVG; equal results give equal bytes."""
    chart = frontier_chart((results["recipe"], results))
    return _environment().get_template("frontier.svg").render(recipe=results["recipe"], chart=chart)


def _members(run: Run) -> list[dict[str, Any]]:
    """Return every model with its size and weight in the file, the highest weight first."""
    shipped = {entry["name"]: entry for entry in run.results["shipped"]}
    total = sum(entry["bytes"] for entry in shipped.values())
    rows = [
        {
            "name": name,
            "family": member["family"],
            "shipped": shipped.get(name),
            "share": shipped[name]["bytes"] / total if name in shipped else 0.0,
            "weight": shipped[name]["weight"] if name in shipped else 0.0,
            "holdout": run.results["holdout_gap"]["members"].get(name),
            "test": member["test"]["float32"],
        }
        for name, member in run.results["members"].items()
    ]
    return sorted(rows, key=lambda row: -row["weight"])


def _calibration_notes(run: Run) -> dict[str, Any]:
    """Return what a mean over all tags hides: the bin with most tags, and the bin furthest from the diagonal."""
    bins = run.results["calibration"]["bins"]
    most, furthest = max(bins, key=itemgetter("count")), max(bins, key=_distance)
    low = min(int(most["score"] * CALIBRATION_BINS), CALIBRATION_BINS - 1) / CALIBRATION_BINS
    return {
        "name": run.name,
        "tags": sum(each["count"] for each in bins),
        "most": most["count"],
        "span": (low, low + 1 / CALIBRATION_BINS),
        "furthest": furthest["count"],
        "distance": _distance(furthest),
    }


def _distance(each: ReliabilityBin) -> float:
    """Return the distance from the diagonal."""
    return abs(each["score"] - each["share"])


def class_order(run: Run) -> list[int]:
    """Return the classes, the worst first, those of few test videos last."""
    class_ap = [ap for _, ap in run.results["test"]["class_ap"]]
    return worst_first(class_ap, run.results["class_counts"]["test"], MIN_POSITIVES)


def _classes(run: Run) -> list[dict[str, Any]]:
    """Return the number, name, metrics and mistakes of each class, in the order of `class_order`."""
    counts, class_ap = run.results["class_counts"], run.results["test"]["class_ap"]
    return [
        {
            "number": number,
            "name": class_ap[number][0],
            "ap": class_ap[number][1],
            "train": counts["train"][number],
            "tested": counts["test"][number],
            **run.judged["classes"][number],
        }
        for number in class_order(run)
    ]


def spark(strip: Sequence[float]) -> str:
    """Return an SVG path of columns in a box of one unit a value by 9; the highest value fills it."""
    highest = max(strip) or 1.0
    return "M0 9" + "".join(f"V{9 - round(9 * value / highest)}h1" for value in strip) + "V9Z"


def precision_path(curve: Sequence[float]) -> str:
    """Return an SVG path of precision against recall in a box of 100 by 100, as far as recall reaches."""
    reached = [(number, value) for number, value in enumerate(curve, 1) if value > 0]
    points = [f"{number * 100 // len(curve)} {100 - round(100 * value)}" for number, value in reached]
    return "M" + "L".join(points) if points else ""


def _page(template: str, runs: Sequence[Run], **content: Any) -> str:
    folder = files("reeltag.pipeline.report").joinpath("templates")
    script = folder.joinpath("page.js").read_text(encoding="utf-8")
    style = folder.joinpath("page.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    own = {"script": Markup(script), "style": Markup(style), "script_hash": digest}
    return _environment().get_template(template).render(runs=runs, **own, **content)


@lru_cache(maxsize=1)
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("reeltag.pipeline.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: value if isinstance(value, Markup) else one_line(value),
    )
    environment.filters |= {"gap": _gap, "change": change, "mb": megabytes, "duration": _duration, "counted": counted}
    environment.filters |= {"enumerated": _enumerated, "segments": segment_spans}
    environment.filters |= {"spark": spark, "precision_path": precision_path}
    return environment


def _enumerated(values: Sequence[object]) -> str:
    """Join values as in a sentence: 1, 2 and 4."""
    *before, last = map(str, values)
    return f"{', '.join(before)} and {last}" if before else last


def _gap(value: float) -> str:
    return f"{value:.5f}"


def change(value: float, decimals: int = 5) -> str:
    """Format a difference with its sign."""
    return f"{value:+,.{decimals}f}".replace("-", "−")


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{seconds:.1f} s"
