"""Options that several commands share: devices, executor, time limit, progress."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Literal

from cyclopts import Parameter

Devices = Annotated[
    str,
    Parameter(
        help="Devices on which stages run in parallel, one process each, such as cuda:0,cuda:1 or cpu,cpu; by default "
        "stages run one after another."
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
Quiet = Annotated[bool, Parameter(help="Show only errors and the result, no progress.")]
