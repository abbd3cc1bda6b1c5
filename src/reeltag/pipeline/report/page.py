"""A run, or two beside each other, as one HTML file that asks nothing of anybody."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from functools import lru_cache
from importlib.resources import files
from operator import itemgetter
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from reeltag.core.text import counted, megabytes, one_line
from reeltag.data.bad_records import format_first
from reeltag.inference.timeline import segment_spans
from reeltag.pipeline.report.charts import curve_charts, frontier_chart, reliability_chart
from reeltag.pipeline.report.compare import class_changes, differences, recipe_changes
from reeltag.pipeline.report.gating import BINS
from reeltag.pipeline.report.paper_tables import NOTE, missing_tables, paper_tables
from reeltag.pipeline.report.remarks import remarks, weights
from reeltag.pipeline.report.results import (
    METRICS,
    ReliabilityBin,
    Run,
    best_single,
    best_single_tested,
    noun_of,
    seconds_by_kind,
)


def render_run(run: Run) -> str:
    """The page of a run."""
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
        weights=weights(results),
        unseen=sum(not count for count in results["class_counts"]["test"]),
        frontier=frontier_chart([run]),
        curves=curve_charts([run]),
        reliability=reliability_chart([run]),
        calibrated=[_calibrated(run)],
        tables=(tables := paper_tables(results)),
        tables_note=" ".join([NOTE, *missing_tables(tables)]),
        members=_members(run),
        classes=_classes(run),
        over_time=any(
            video["frames"] > 1 for shown in (results["videos"]["best"], results["videos"]["worst"]) for video in shown
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
    """The page of two runs, with what changed from the first to the second."""
    runs = [before, after]
    return _page(
        "compare.html",
        runs,
        title=f"{before.name} and {after.name}",
        differences=differences(before, after),
        frontier=frontier_chart(runs),
        curves=curve_charts(runs),
        reliability=reliability_chart(runs),
        calibrated=[_calibrated(run) for run in runs],
        classes=class_changes(before, after),
        recipe=recipe_changes(before.recipe, after.recipe),
    )


def _members(run: Run) -> list[dict[str, Any]]:
    """Every model with what it has in the file, the heaviest first."""
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


def _calibrated(run: Run) -> dict[str, Any]:
    """What a mean over tags hides: the bin that most tags are in, and the one that is furthest off."""
    bins = run.results["calibration"]["bins"]
    most, furthest = max(bins, key=itemgetter("count")), max(bins, key=_distance)
    low = min(int(most["score"] * BINS), BINS - 1) / BINS
    return {
        "name": run.name,
        "tags": sum(each["count"] for each in bins),
        "most": most["count"],
        "span": (low, low + 1 / BINS),
        "furthest": furthest["count"],
        "distance": _distance(furthest),
    }


def _distance(each: ReliabilityBin) -> float:
    """From the diagonal."""
    return abs(each["score"] - each["share"])


def _classes(run: Run) -> list[tuple[str, float, int, int]]:
    """Name, AP, and videos in training and test of each class, the best first."""
    counts = run.results["class_counts"]
    rows = [
        (name, ap, train, test)
        for (name, ap), train, test in zip(
            run.results["test"]["class_ap"], counts["train"], counts["test"], strict=True
        )
    ]
    return sorted(rows, key=lambda row: -row[1])


def _page(template: str, runs: Sequence[Run], **content: Any) -> str:
    script = files("reeltag.pipeline.report").joinpath("templates/page.js").read_text(encoding="utf-8")
    style = files("reeltag.pipeline.report").joinpath("templates/page.css").read_text(encoding="utf-8")
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
    environment.filters |= {"listed": _listed, "segments": segment_spans}
    return environment


def _listed(values: Sequence[object]) -> str:
    """Values in words: 1, 2 and 4."""
    *before, last = map(str, values)
    return f"{', '.join(before)} and {last}" if before else last


def _gap(value: float) -> str:
    return f"{value:.5f}"


def change(value: float, decimals: int = 5) -> str:
    """A difference with its sign."""
    return f"{value:+,.{decimals}f}".replace("-", "−")


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{seconds:.1f} s"
