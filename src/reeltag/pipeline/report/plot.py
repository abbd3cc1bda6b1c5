"""GAP against megabytes: the whole frontier, as SVG."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from reeltag.pipeline.report.charts import log_ticks

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
        dashes, line = ("o--", "o-") if len(points) > 1 else ("o", "o")
        axes.plot(sizes, [p["chosen"] for p in points], dashes, color=GREY, ms=4, lw=1, label="where it was chosen")
        axes.plot(sizes, [p["checked"] for p in points], line, color=BLUE, ms=5, label="on the other half")
        axes.plot(results["bytes"] / 1e6, holdout["file"], "*", color=RED, ms=14, label="the file")
        axes.axvline(results["budget"] / 1e6, color=RED, lw=1, ls=":", label="budget")
        axes.set(
            xscale="log",
            xlabel="MB, logarithmic",
            ylabel="hold-out GAP@20",
            title=f"{results['recipe']}: GAP against size",
        )
        ticks = log_ticks(*axes.get_xlim())
        axes.set_xticks(ticks, [f"{value:g}" for value in ticks])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        figure.legend(edgecolor="none", loc="outside lower center", ncols=4)
        content = io.BytesIO()
        figure.savefig(content, format="svg", metadata={"Date": None})
    return content.getvalue()
