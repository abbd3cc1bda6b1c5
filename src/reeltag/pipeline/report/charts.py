"""Charts as geometry: what the page's templates draw as SVG, in the colours of its style sheet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from matplotlib.ticker import LogLocator, MaxNLocator

from reeltag.core.text import megabytes
from reeltag.pipeline.report.results import Curve, Results, Run

WIDTH, HEIGHT = 640, 330
LEFT, RIGHT, TOP, BOTTOM = 58, 16, 36, 50
FEWEST_TICKS = 4  # of a logarithmic axis


@dataclass(frozen=True)
class Point:
    """A place, and what is said of it."""

    x: float
    y: float
    tip: str


@dataclass(frozen=True)
class Series:
    """Points that belong together.

    Attributes:
        name: of the series; none for the reader to choose it by or see in the legend.
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
        """Its line."""
        return " ".join(f"{point.x:.1f},{point.y:.1f}" for point in self.points)


@dataclass(frozen=True)
class Tick:
    """A value on an axis and its place."""

    at: float
    label: str


@dataclass(frozen=True)
class Rule:
    """An upright line at a value."""

    at: float
    label: str
    kind: str = "first"


@dataclass(frozen=True)
class Chart:
    """All that is drawn, in a box of WIDTH by HEIGHT; y goes down.

    Attributes:
        title: for those who do not see it.
        x_label, y_label: titles of the axes.
        x_ticks, y_ticks: their values.
        series: as they are drawn, one over the other.
        rules: upright lines.
        scale: value at the left, right, bottom and top.
        log: the axis that is logarithmic, if one is.
    """

    title: str
    x_label: str
    y_label: str
    x_ticks: Sequence[Tick]
    y_ticks: Sequence[Tick]
    series: Sequence[Series]
    rules: Sequence[Rule] = ()
    scale: tuple[float, float, float, float] = (0.0, 1.0, 0.0, 1.0)
    log: Literal["", "x", "y"] = ""

    width, height = WIDTH, HEIGHT
    left, right, top, bottom = LEFT, WIDTH - RIGHT, TOP, HEIGHT - BOTTOM

    @property
    def legend(self) -> list[Series]:
        """The series that have a name."""
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
        title: of the chart.
        labels: of the axes.
        series: with points in values.
        rules: at values of x.
        log: the axis that is logarithmic.
        unit: both axes from 0 to 1, instead of what the values need.
    """
    xs = [0.0, 1.0] if unit else [p.x for s in series for p in s.points] + [rule.at for rule in rules]
    ys = [0.0, 1.0] if unit else [p.y for s in series for p in s.points]
    x_low, x_high, x_values = _logarithmic(xs) if log == "x" else _tight(xs, 6)
    y_low, y_high, y_values = _logarithmic(ys) if log == "y" else _linear(ys, 5)

    def across(value: float) -> float:
        return LEFT + _share(value, x_low, x_high, log == "x") * (WIDTH - LEFT - RIGHT)

    def up(value: float) -> float:
        return HEIGHT - BOTTOM - _share(value, y_low, y_high, log == "y") * (HEIGHT - TOP - BOTTOM)

    placed = [Series(s.name, [Point(across(p.x), up(p.y), p.tip) for p in s.points], s.kind, s.marks) for s in series]
    return Chart(
        title,
        *labels,
        [Tick(across(value), label) for value, label in _labelled(x_values)],
        [Tick(up(value), label) for value, label in _labelled(y_values)],
        placed,
        [Rule(across(rule.at), rule.label, rule.kind) for rule in rules],
        (x_low, x_high, y_low, y_high),
        log,
    )


def _share(value: float, low: float, high: float, log: bool) -> float:
    """How far a value is from the low end of an axis to the high one."""
    if log:
        return math.log(value / low) / math.log(high / low)
    return (value - low) / (high - low)


def _linear(values: Sequence[float], ticks: int) -> tuple[float, float, list[float]]:
    low, high = min(values), max(values)
    if low == high:
        low, high = low - abs(low) / 10 - 1e-6, high + abs(high) / 10 + 1e-6
    found = [float(value) for value in MaxNLocator(ticks, steps=[1, 2, 5, 10]).tick_values(low, high)]
    return found[0], found[-1], found


def _tight(values: Sequence[float], ticks: int) -> tuple[float, float, list[float]]:
    """An axis that ends where the values do, and begins there or at 0, if that is near."""
    found = _linear(values, ticks)[2]
    low, high = (min(values), max(values)) if min(values) < max(values) else (found[0], found[-1])
    low = 0.0 if 0 < low < (high - low) / 10 else low
    return low, high, [value for value in found if low <= value <= high]


def _logarithmic(values: Sequence[float]) -> tuple[float, float, list[float]]:
    low, high = min(values) / 1.15, max(values) * 1.15
    return low, high, log_ticks(low, high)


def log_ticks(low: float, high: float) -> list[float]:
    """Values to write on a logarithmic axis: 1, 10, 100 …, and more of them the shorter it is."""
    rising = ((1,), (1, 2, 5), (1, 2, 3, 4, 6, 8))
    found: list[float] = []
    for locator in (*(LogLocator(subs=subs) for subs in rising), MaxNLocator(6, steps=[1, 2, 5, 10])):
        found = [float(value) for value in locator.tick_values(low, high) if low <= value <= high]
        if len(found) >= FEWEST_TICKS:
            break
    return found


def _labelled(values: Sequence[float]) -> list[tuple[float, str]]:
    """Values with as many decimals as one of them needs."""
    shortest = [f"{value:.6g}" for value in values]
    linear = len({round(b - a, 9) for a, b in pairwise(values)}) == 1
    decimals = max((len(text.partition(".")[2]) for text in shortest if "e" not in text), default=0)
    return [(v, f"{v:.{decimals}f}" if linear else text) for v, text in zip(values, shortest, strict=True)]


KINDS = ("first", "second")


def frontier_chart(runs: Sequence[Run]) -> Chart:
    """GAP against megabytes, of one run with the half that it was chosen on, or of two."""
    series: list[Series] = []
    rules: list[Rule] = []
    for run, kind in zip(runs, KINDS, strict=False):
        results, whose = run.results, f"{run.name}: " if len(runs) > 1 else ""
        if len(runs) == 1:
            series.append(Series("where it was chosen", _sizes(results, "chosen"), "quiet", "dot"))
        if len(results["frontier"]) > 1:  # one point is the file itself
            series.append(Series(f"{whose}on the other half", _sizes(results, "checked"), kind, "dot"))
        gap = results["holdout_gap"]["file"]
        said = f"{whose}the file, {megabytes(results['bytes'])}: GAP {gap:.5f}"
        series.append(Series(f"{whose}the file", [Point(results["bytes"] / 1e6, gap, said)], kind, "star"))
        rules.append(Rule(results["budget"] / 1e6, f"budget {megabytes(results['budget'])}", kind))
    if len({rule.at for rule in rules}) == 1:
        rules = rules[:1]
    return chart("Hold-out GAP@20 against megabytes", ("MB", "hold-out GAP@20"), series, rules=rules, log="x")


def _sizes(results: Results, half: Literal["chosen", "checked"]) -> list[Point]:
    return [
        Point(point["bytes"] / 1e6, point[half], f"{megabytes(point['bytes'])}: GAP {point[half]:.5f}")
        for point in results["frontier"]
    ]


def curve_charts(runs: Sequence[Run]) -> list[Chart]:
    """Loss by epoch of every training, and hold-out GAP where it was measured; of one run or two."""
    charts = []
    shown: list[tuple[str, str, Literal["", "y"]]] = [
        ("loss", "training loss", "y"),
        ("holdout_gap", "hold-out GAP@20", ""),
    ]
    for key, label, log in shown:
        series = [
            Series(f"{run.name}: {name}" if len(runs) > 1 else name, points, kind)
            for run, kind in zip(runs, KINDS, strict=False)
            for name, curve in run.results["curves"].items()
            if len(points := _points(curve, key)) > 1
        ]
        if series:
            charts.append(chart(f"{label} by epoch", ("epoch", label), series, log=log))
    return charts


def _points(curve: Curve, key: str) -> list[Point]:
    values = curve["loss"] if key == "loss" else curve["holdout_gap"]
    told = [(epoch, value) for epoch, value in zip(curve["epoch"], values, strict=True) if value is not None]
    return [Point(epoch, value, "") for epoch, value in told if key != "loss" or value > 0]  # its axis is logarithmic


def reliability_chart(runs: Sequence[Run]) -> Chart:
    """Share of right tags by their probability, of one run or two, beside what they should be."""
    diagonal = Series("as it should be", [Point(0, 0, ""), Point(1, 1, "")], "quiet")
    series = [diagonal]
    for run, kind in zip(runs, KINDS, strict=False):
        points = [
            Point(b["score"], b["share"], f"{b['count']:,} tags of {b['score']:.3f} on average: {b['share']:.3f} right")
            for b in run.results["calibration"]["bins"]
        ]
        series.append(Series(run.name if len(runs) > 1 else "the file", points, kind, "dot"))
    return chart("Reliability", ("probability", "share that is right"), series, unit=True)
