"""Charts as geometry in a box: positions of lines, points and ticks, which the templates write as SVG.

All drawing is done here and in the templates, so a page needs no script to show its charts, and the Markdown report's
`frontier.svg` is the same chart as the page's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from reeltag.core.text import megabytes
from reeltag.pipeline.report.axes import Axis, linear_axis, log_axis, tight_axis
from reeltag.pipeline.report.results import Curve, FrontierPoint, Run

WIDTH, HEIGHT = 640, 330
LEFT, RIGHT, TOP, BOTTOM = 58, 16, 36, 50  # space around the plot area
KINDS = ("first", "second")  # style classes of the runs that are compared
UNIT = Axis(0.0, 1.0, [0.0, 0.2, 0.4, 0.6, 0.8, 1.0])


@dataclass(frozen=True)
class Point:
    """Position of a point, and the text shown when it is pointed at."""

    x: float
    y: float
    tip: str


@dataclass(frozen=True)
class Series:
    """Points of one line.

    Attributes:
        name: label in the legend; empty for a line that has none.
        points: from left to right.
        kind: class in the style sheet.
        marks: shape of the points; "" for a line alone, "star" for points alone.
    """

    name: str
    points: Sequence[Point]
    kind: str = "first"
    marks: Literal["", "dot", "star"] = ""

    @property
    def path(self) -> str:
        """Coordinates of the line, as SVG writes them."""
        return " ".join(f"{point.x:.1f},{point.y:.1f}" for point in self.points)


@dataclass(frozen=True)
class Tick:
    """Position and label of a value on an axis."""

    at: float
    label: str


@dataclass(frozen=True)
class Rule:
    """Vertical line with a label."""

    at: float
    label: str
    kind: str = "first"


@dataclass(frozen=True)
class Chart:
    """Chart in a box of WIDTH by HEIGHT; y grows downwards.

    Attributes:
        title: accessible name.
        x_label, y_label: titles of the axes.
        x_ticks, y_ticks: labelled values.
        series: in the order in which they are drawn, one over the other.
        rules: vertical lines.
    """

    title: str
    x_label: str
    y_label: str
    x_ticks: Sequence[Tick]
    y_ticks: Sequence[Tick]
    series: Sequence[Series]
    rules: Sequence[Rule] = ()

    width, height = WIDTH, HEIGHT
    left, right, top, bottom = LEFT, WIDTH - RIGHT, TOP, HEIGHT - BOTTOM

    @property
    def legend(self) -> list[Series]:
        """Series that have a name."""
        return [series for series in self.series if series.name]


def chart(
    title: str,
    labels: tuple[str, str],
    series: Sequence[Series],
    *,
    rules: Sequence[Rule] = (),
    log: Literal["", "x", "y"] = "",
    unit: bool = False,
) -> Chart:
    """Place values in the box.

    Args:
        title: accessible name.
        labels: titles of the x and the y axis.
        series: their points hold values.
        rules: vertical lines at values of x.
        log: the axis that is logarithmic, if one is.
        unit: both axes go from 0 to 1, instead of the range that the values need.
    """
    xs = [point.x for each in series for point in each.points] + [rule.at for rule in rules]
    ys = [point.y for each in series for point in each.points]
    x_axis = UNIT if unit else log_axis(xs) if log == "x" else tight_axis(xs, 6)
    y_axis = UNIT if unit else log_axis(ys) if log == "y" else linear_axis(ys, 5)

    def across(value: float) -> float:
        return LEFT + x_axis.fraction(value) * (WIDTH - LEFT - RIGHT)

    def up(value: float) -> float:
        return HEIGHT - BOTTOM - y_axis.fraction(value) * (HEIGHT - TOP - BOTTOM)

    x_label, y_label = (
        f"{label}, logarithmic" if axis.log else label for label, axis in zip(labels, (x_axis, y_axis), strict=True)
    )
    return Chart(
        title,
        x_label,
        y_label,
        [Tick(across(value), label) for value, label in zip(x_axis.ticks, x_axis.labels(), strict=True)],
        [Tick(up(value), label) for value, label in zip(y_axis.ticks, y_axis.labels(), strict=True)],
        [replace(each, points=[Point(across(p.x), up(p.y), p.tip) for p in each.points]) for each in series],
        [replace(rule, at=across(rule.at)) for rule in rules],
    )


def frontier_chart(*runs: tuple[str, Mapping[str, Any]]) -> Chart:
    """Draw hold-out GAP against megabytes.

    Args:
        runs: name and results of one run, which is drawn with the half of the hold-out that its ensembles were chosen
            on, or of two runs.
    """
    series: list[Series] = []
    rules: list[Rule] = []
    for (name, results), kind in zip(runs, KINDS, strict=False):
        prefix = f"{name}: " if len(runs) > 1 else ""
        if len(runs) == 1:
            series.append(Series("where it was chosen", _sizes(results["frontier"], "chosen"), "quiet", "dot"))
            if uncoded := results["frontier_uncoded"]:
                series.append(Series("without coded weights", _sizes(uncoded, "checked"), KINDS[1], "dot"))
        if len(results["frontier"]) > 1:  # a single point is the file itself
            series.append(Series(f"{prefix}on the other half", _sizes(results["frontier"], "checked"), kind, "dot"))
        gap = results["holdout_gap"]["file"]
        tip = f"{prefix}the file, {megabytes(results['bytes'])}: GAP {gap:.5f}"
        series.append(Series(f"{prefix}the file", [Point(results["bytes"] / 1e6, gap, tip)], kind, "star"))
        rules.append(Rule(results["budget"] / 1e6, f"budget {megabytes(results['budget'])}", kind))
    if len({rule.at for rule in rules}) == 1:
        rules = rules[:1]
    return chart("Hold-out GAP@20 against megabytes", ("MB", "hold-out GAP@20"), series, rules=rules, log="x")


def _sizes(points: Sequence[FrontierPoint], half: Literal["chosen", "checked"]) -> list[Point]:
    return [
        Point(point["bytes"] / 1e6, point[half], f"{megabytes(point['bytes'])}: GAP {point[half]:.5f}")
        for point in points
    ]


def curve_charts(runs: Sequence[Run]) -> list[Chart]:
    """Draw the loss of every training by epoch, and hold-out GAP where it was measured, for one run or two."""
    charts = []
    kinds: list[tuple[Literal["loss", "holdout_gap"], str, Literal["", "y"]]] = [
        ("loss", "training loss", "y"),
        ("holdout_gap", "hold-out GAP@20", ""),
    ]
    for column, label, log in kinds:
        series = [
            Series(f"{run.name}: {name}" if len(runs) > 1 else name, points, kind)
            for run, kind in zip(runs, KINDS, strict=False)
            for name, curve in run.results["curves"].items()
            if len(points := _points(curve, column, label)) > 1
        ]
        if series:
            charts.append(chart(f"{label} by epoch", ("epoch", label), series, log=log))
    return charts


def _points(curve: Curve, column: Literal["loss", "holdout_gap"], label: str) -> list[Point]:
    """Return the measured values of a column; a loss of 0 has no place on its logarithmic axis."""
    return [
        Point(epoch, value, f"epoch {epoch:.1f}: {label} {value:.4g}")
        for epoch, value in zip(curve["epoch"], curve[column], strict=True)
        if value is not None and (column != "loss" or value > 0)
    ]


def reliability_chart(runs: Sequence[Run]) -> Chart:
    """Draw the fraction of correct tags against their probability, for one run or two, beside the diagonal."""
    diagonal = Series("perfectly calibrated", [Point(0, 0, ""), Point(1, 1, "")], "quiet")
    series = [diagonal]
    for run, kind in zip(runs, KINDS, strict=False):
        points = [
            Point(
                each["score"],
                each["share"],
                f"{each['count']:,} tags with mean probability {each['score']:.3f}: {each['share']:.3f} are correct",
            )
            for each in run.results["calibration"]["bins"]
        ]
        series.append(Series(run.name if len(runs) > 1 else "the file", points, kind, "dot"))
    return chart("Reliability", ("probability", "fraction correct"), series, unit=True)
