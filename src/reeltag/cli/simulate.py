"""The command `reeltag simulate`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from reeltag.cli.options import Overrides
from reeltag.cli.output import Json, say
from reeltag.core.text import megabytes

if TYPE_CHECKING:
    from reeltag.pipeline.simulation.scaling import Scaling

_UNITS = (("hours", "h", 1), ("minutes", "min", 60), ("seconds", "s", 3600))  # name, symbol, number per hour


def simulate(
    recipe: str,
    /,
    *,
    machines: str,
    set_: Overrides = [],  # noqa: B006
    json: Json = False,
) -> None:
    """Estimate time, price and bottleneck of a recipe on 1, 2, 4, … GPUs; needs no data and no GPU.

    All estimates are computed from the recipe and the description of the machines; see docs/scale.md.

    Example: reeltag simulate yt8m-2018 --machines eight-gpus

    Args:
        recipe: A TOML file, or the name of a recipe that comes with reeltag.
        machines: A TOML file that describes the machines, or eight-gpus or single-gpus, which come with reeltag.
    """
    from reeltag.pipeline.simulation.machines import load_machines
    from reeltag.recipe import shipped
    from reeltag.recipe.load import load_recipe

    # Report faults of the recipe and the machines before the slow imports.
    loaded = load_recipe(recipe, set_)
    described = load_machines(shipped.path_of(machines, shipped.FOLDER / "machines"))
    from reeltag.pipeline.plan import plan
    from reeltag.pipeline.simulation.scaling import scaling
    from reeltag.pipeline.stages.data import video_bytes

    size, measured = video_bytes(loaded)
    result = scaling(plan(loaded, without_data=True), described, size)
    each = f"{size:,} bytes each, as {'in the first shard' if measured else 'the longest possible'}"
    lines = [f"{loaded.name} on {described.name}", "", *_lines(result, each)]
    say(asdict(result) | {"video_bytes": size}, lines, json)


def _lines(result: Scaling, each_video: str) -> list[str]:
    """Format the estimates as a table and a summary."""
    # The largest unit of which the slowest row takes at least one.
    longest = max(row.hours for row in result.rows)
    unit, short, scale = next(each for each in _UNITS if longest * each[2] >= 1 or each is _UNITS[-1])
    lines = [f"GPUs  nodes  {unit:>7}  computing  waiting  GB/s a node, at most      price  limited by"]
    for row in result.rows:
        lines.append(
            f"{row.gpus:4}  {row.nodes:5}  {scale * row.hours:7.4g}  {row.computing:9.0%}  {row.waiting:7.0%}"
            f"  {row.read_gb_s:11.2f}  {row.peak_gb_s:7.2f}  {row.cost:9,.0f}"
            f"  {row.limit}, {scale * row.bound:.4g} {short}"
        )
    hours = sum(hours for _, hours in result.path)
    lines += ["", f"No number of GPUs is 10 % faster than {result.enough}."]
    lines += [f"The critical path takes {scale * hours:.4g} {unit} on any number of these machines:"]
    lines += [f"  {scale * each:7.4g}  {name}" for name, each in result.path if each > hours / 1000]
    traffic = {
        f"of videos read, {each_video}": result.read,
        "of soft targets written": result.targets_written,
        "of soft targets read": result.targets_read,
        "of checkpoints written at most": result.checkpoints,
    }
    lines += ["", f"{scale * result.gpu_hours:.4g} GPU {unit} of arithmetic"]
    lines += [
        f"{f'{size / 1e9:,.1f} GB' if size >= 1e9 else megabytes(round(size))} {what}" for what, size in traffic.items()
    ]
    return lines
