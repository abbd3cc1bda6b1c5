"""A run, or two beside each other, as one HTML file that asks nothing of anybody."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from functools import lru_cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from reeltag.data.badrecords import listed
from reeltag.report.charts import curve_charts, frontier_chart, reliability_chart
from reeltag.report.compare import class_changes, differences, recipe_changes
from reeltag.report.results import METRICS, Run, best_single, best_single_tested, seconds_by_kind
from reeltag.report.tables import NOTE, paper_tables
from reeltag.storage import counted, megabytes
from reeltag.text import plain


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
        frontier=frontier_chart([run]),
        curves=curve_charts([run]),
        reliability=reliability_chart([run]),
        tables=paper_tables(results),
        tables_note=NOTE,
        members=_members(run),
        classes=_classes(run),
        gated={name: member["gating"] for name, member in results["members"].items() if "gating" in member},
        names=[name for name, _ in results["test"]["class_ap"]],
        bad_records={
            split: [counted(len(records), "bad record"), *listed(records)]
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
    script = files("reeltag.report").joinpath("templates/page.js").read_text(encoding="utf-8")
    style = files("reeltag.report").joinpath("templates/page.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    own = {"script": Markup(script), "style": Markup(style), "script_hash": digest}
    return _environment().get_template(template).render(runs=runs, **own, **content)


@lru_cache(maxsize=1)
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("reeltag.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: value if isinstance(value, Markup) else plain(value),
    )
    environment.filters |= {"gap": _gap, "change": change, "mb": megabytes, "duration": _duration}
    return environment


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
