"""The command `reeltag simulate`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from reeltag import shipped
from reeltag.cli_data import Overrides
from reeltag.cli_output import Json, say

if TYPE_CHECKING:
    from reeltag.scaling import Scaling


def simulate(
    recipe: str,
    /,
    *,
    machines: str,
    set_: Overrides = [],  # noqa: B006
    json: Json = False,
) -> None:
    """Estimate a recipe's hours and price on 1, 2, 4, … GPUs, and what limits them; needs no data and no GPU.

    All figures follow from the recipe and from what the description of the machines assumes; docs/scale.md says how.

    Example: reeltag simulate yt8m-2018 --machines eight-gpus

    Args:
        recipe: A TOML file, or the name of a recipe that comes with reeltag.
        machines: A TOML file that describes the machines, or eight-gpus or single-gpus, which come with reeltag.
    """
    from reeltag.machines import load_machines
    from reeltag.recipe_file import load_recipe

    loaded, described = (
        load_recipe(recipe, set_),
        load_machines(shipped.path_of(machines, shipped.FOLDER / "machines")),
    )  # before the slow imports
    from reeltag.scaling import scaling
    from reeltag.stages.plan import plan

    schema = loaded.data.record_schema
    frames = schema.example_frames if schema.level == "frame" else 1  # as many as the GPU hours are estimated for
    video_bytes = frames * schema.width * (1 if schema.dtype == "uint8" else 4)
    found = scaling(plan(loaded, without_data=True), described, video_bytes)
    say(asdict(found), [f"{loaded.name} on {described.name}", "", *_lines(found)], json)


def _lines(found: Scaling) -> list[str]:
    """What was found, for people."""
    lines = ["GPUs  nodes    hours  computing  waiting  GB/s a node, at most      price  limited by"]
    for row in found.rows:
        lines.append(
            f"{row.gpus:4}  {row.nodes:5}  {row.hours:7.4g}  {row.computing:9.0%}  {row.waiting:7.0%}"
            f"  {row.read_gb_s:11.2f}  {row.peak_gb_s:7.2f}  {row.cost:9,.0f}"
            f"  {row.limit}, {row.bound:.4g} h"
        )
    hours = sum(hours for _, hours in found.path)
    lines += ["", f"No number of GPUs is 10 % faster than {found.enough}."]
    lines += [f"The critical path takes {hours:.4g} hours on any number of these machines:"]
    lines += [f"  {each:7.4g}  {name}" for name, each in found.path if each > hours / 1000]
    traffic = {
        "of videos read": found.read,
        "of soft targets written": found.targets_written,
        "of soft targets read": found.targets_read,
        "of checkpoints written at most": found.checkpoints,
    }
    lines += ["", f"{found.gpu_hours:.4g} GPU hours of arithmetic"]
    lines += [f"{size / 1e9:,.1f} GB {what}" for what, size in traffic.items()]
    return lines
