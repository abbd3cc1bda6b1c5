"""The command `reeltag train`."""

from __future__ import annotations

from pathlib import Path

from reeltag.cli.options import Address, Devices, Executor, Log, MaxTime, Overrides, Quiet
from reeltag.cli.output import Json, say


def train(
    recipe: str,
    /,
    *,
    model: list[str] = [],  # noqa: B006
    out: str | None = None,
    set_: Overrides = [],  # noqa: B006
    devices: Devices = "auto",
    executor: Executor = "local",
    address: Address = None,
    max_time: MaxTime = None,
    log: Log = None,
    quiet: Quiet = False,
    profile: Path | None = None,
    json: Json = False,
) -> None:
    """Train models of a recipe and write each as a float32 .reeltag file.

    Example: reeltag train audioset-families --model netvlad --set data.root=/data/audioset

    Args:
        recipe: A TOML file, or the name of a recipe that comes with reeltag (`reeltag recipe list`).
        model: Name of a model in the recipe; repeat for several, all by default.
        out: Folder or URL of the run; runs/NAME by default. A later `run` with the same folder reuses the models.
        profile: Profile ten steps of one model instead: write a trace for chrome://tracing to this new .json file and
            print the slowest operations.
    """
    from reeltag.recipe.load import load_recipe

    loaded = load_recipe(recipe, set_)  # report its faults before the slow imports
    from reeltag.pipeline import run as api

    work = api.Work(devices, executor, address, max_time, quiet, log)
    if profile is not None:
        print(api.profile(loaded, model, profile, out=out, work=work))
        return
    files = api.train_models(loaded, model, out=out, work=work)
    say({"files": files}, files.values(), json)
