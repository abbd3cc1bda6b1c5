"""Options that several commands share."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

if TYPE_CHECKING:
    from reeltag.data.schema import Schema

Devices = Annotated[
    str,
    Parameter(
        help="Devices on which stages run in parallel, one process each, such as cuda:0,cuda:1 or cpu,cpu; auto takes "
        "several CPUs where that is faster, and cpu runs one stage after the other."
    ),
]
Executor = Annotated[
    Literal["local", "ray"],
    Parameter(
        help="Run on this machine or on a Ray cluster (pip install 'reeltag[ray]').",
    ),
]
Address = Annotated[
    str | None,
    Parameter(
        help="Address of the Ray cluster; by default RAY_ADDRESS, and without it a cluster is started on this machine."
    ),
]
MaxTime = Annotated[
    timedelta | None,
    Parameter(
        help="Stop after this time, such as 2h30m: save a checkpoint and exit with code 75; the same command resumes."
    ),
]
# The same names as `reeltag.training.trackers.registry.TrackerName`, whose module imports more.
Log = Annotated[
    Literal["wandb", "mlflow", "tensorboard", "csv"] | None,
    Parameter(
        help="Send the logs of trainings there while they are written (docs/training.md); wandb without an account and "
        "mlflow without MLFLOW_TRACKING_URI write files in OUT/logs."
    ),
]
Quiet = Annotated[bool, Parameter(help="Show only errors and the result, no progress.")]
# The same names as `reeltag.inference.predictor.MODES`, whose module imports torch.
Mode = Annotated[
    Literal["auto", "exact", "bf16", "small", "fast"],
    Parameter(
        help="auto: the fastest on this machine that costs at most 0.0005 GAP; in PyTorch, exact: float32; bf16: about "
        "twice as fast on CPUs with bf16; small: weights stay quantized in memory; fast: 8-bit products."
    ),
]
Frames = Annotated[
    int | None,
    Parameter(
        help="Tag each video from this number of its frames, drawn uniformly with replacement; by default from all."
    ),
]
FramesSeed = Annotated[
    int | None,
    Parameter(help="Seed of --frames, 0 by default; the draw depends on it and on the video's id alone."),
]
MaxBadRecords = Annotated[
    int,
    Parameter(
        name="--max-bad-records",
        help="Number of damaged or invalid records, over all shards, that may be skipped before the command fails.",
    ),
]
# The same names as `reeltag.data.labels.Encoding`, whose module imports NumPy.
LabelEncoding = Annotated[
    Literal["index", "n-hot", "name"] | None,
    Parameter(
        help="Form of the labels: class numbers, 0 or 1 for every class, or names and ids; by default it is found, if "
        "only one fits."
    ),
]
Thresholds = Annotated[
    bool,
    Parameter(help="Only tags that reach the thresholds in the file, which `reeltag thresholds` wrote."),
]
Calibrated = Annotated[
    bool,
    Parameter(help="Apply the calibration in the file, which `reeltag thresholds --calibrate` wrote."),
]
OneOrMore = Annotated[str, Parameter(required=True)]
Overrides = Annotated[
    list[str],
    Parameter(name="--set", consume_multiple=False, help="Override a key: dotted.key=value; repeat for several."),
]


def load_schema(name: str) -> Schema:
    """Return the preset with this name, or the schema of a recipe if the name ends in .toml."""
    from reeltag.data.schema import preset_schema
    from reeltag.recipe.load import load_recipe

    if name.endswith(".toml"):
        return load_recipe(name).data.record_schema
    return preset_schema(name)
