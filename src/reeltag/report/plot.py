"""GAP against megabytes: the whole frontier, as SVG."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import matplotlib
from matplotlib.figure import Figure

BLUE, GREY, RED = "#2b6cb0", "#8a94a6", "#c53030"
# Equal results are equal bytes: no date, and ids that do not change from run to run.
STYLE: Any = {"svg.hashsalt": "reeltag", "svg.fonttype": "none", "font.size": 10}


def frontier_plot(results: Mapping[str, Any]) -> bytes:
    """The best ensemble at every size, on the half of the hold-out that it was chosen on and on the other."""
    points, holdout = results["frontier"], results["holdout_gap"]
    sizes = [point["bytes"] / 1e6 for point in points]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7, 4), layout="constrained")
        axes = figure.add_subplot()
        axes.plot(sizes, [p["chosen"] for p in points], "o--", color=GREY, ms=4, lw=1, label="where it was chosen")
        axes.plot(sizes, [p["checked"] for p in points], "o-", color=BLUE, ms=5, label="on the other half")
        axes.plot(results["bytes"] / 1e6, holdout["file"], "*", color=RED, ms=14, label="the file")
        axes.axvline(results["budget"] / 1e6, color=RED, lw=1, ls=":", label="budget")
        axes.set(xscale="log", xlabel="MB", ylabel="hold-out GAP@20", title=f"{results['recipe']}: GAP against size")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.xaxis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:.0e}"[0] in "25" else "")
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(edgecolor="none", framealpha=1, loc="lower right")
        content = io.BytesIO()
        figure.savefig(content, format="svg", metadata={"Date": None})
    return content.getvalue()
