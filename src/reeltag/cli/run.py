"""The command `reeltag run`."""

from __future__ import annotations

from reeltag.cli.options import Address, Devices, Executor, Log, MaxTime, Overrides, Quiet
from reeltag.cli.output import Json, say


def run(
    recipe: str,
    /,
    *,
    out: str | None = None,
    set_: Overrides = [],  # noqa: B006
    devices: Devices = "auto",
    executor: Executor = "local",
    address: Address = None,
    max_time: MaxTime = None,
    log: Log = None,
    quiet: Quiet = False,
    smoke: bool = False,
    dry_run: bool = False,
    json: Json = False,
) -> None:
    """Run a recipe end to end: train, average, quantize, ensemble, pack, test, report.

    Finished stages of an earlier run of the same recipe are kept: the same command resumes after an interruption and
    does nothing when the run is complete. docs/recipes.md lists the keys of a recipe.

    Example: reeltag run audioset --set data.root=/data/audioset --out runs/audioset

    Args:
        recipe: A TOML file, or the name of a recipe that comes with reeltag (`reeltag recipe list`).
        out: Folder of the run, or its URL on an object store; runs/NAME by default.
        smoke: Try every stage of the recipe with one batch per training and a few videos, in the folder OUT-smoke.
        dry_run: Print the plan with sizes, estimated GPU hours and finished stages, and exit. Needs no data; the hours
            are estimated from data.videos if the shards are not available.
    """
    from reeltag.recipe.load import load_recipe

    loaded = load_recipe(recipe, set_)  # report its faults before the slow imports
    from reeltag.core.text import counted
    from reeltag.pipeline import run as api
    from reeltag.pipeline.executor import listing, planned
    from reeltag.pipeline.plan import missing_data, plan
    from reeltag.pipeline.report.markdown import examples, headline
    from reeltag.recipe.smoke import smoked

    if dry_run:
        stages = plan(smoked(loaded) if smoke else loaded, without_data=True)
        folder = api.folder_of(loaded, out, smoke=smoke)
        lines = listing(stages, folder) + api.remarks_on_plan(loaded, stages, folder)
        if loaded.models and not any(stage.gpu_hours for stage in stages):
            lines.append("GPU hours are not estimated: there are no shards here; set data.videos, the number of videos")
        missing = missing_data(loaded)
        lines += [f"a run would be refused: {missing}"] if missing else []
        say({"stages": planned(stages, folder), "missing_data": missing}, lines, json)
        return
    work = api.Work(devices, executor, address, max_time, quiet, log)
    done = api.run(loaded, out=out, smoke=smoke, work=work)
    samples = examples(done.results)
    text = ["", done.file, headline(done.results), "", f"{counted(len(samples), 'test video')}:", *samples]
    if smoke:
        text = [f"{done.out}: the recipe works from end to end; the metrics of such a short run mean nothing"]
    else:
        text += ["", f"report: {done.report}"]
    say({"file": done.file, "report": done.report, "results": done.results}, text, json)
