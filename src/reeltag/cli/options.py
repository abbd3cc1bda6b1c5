"""How a command's work is done: the options that say where, for how long, and what is shown of it."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

if TYPE_CHECKING:
    pass

Devices = Annotated[
    str,
    Parameter(
        help="Devices of this machine on which stages run side by side, a process each, such as cuda:0,cuda:1 or "
        "cpu,cpu; by default one stage after the other."
    ),
]
Executor = Annotated[
    Literal["local", "ray"],
    Parameter(
        help="Who runs the work: this machine, or a Ray cluster (pip install 'reeltag[ray]').",
    ),
]
Address = Annotated[
    str | None,
    Parameter(help="The Ray cluster's; that of RAY_ADDRESS by default, or else one is started on this machine."),
]
MaxTime = Annotated[
    timedelta | None,
    Parameter(
        help="Stop after this long, such as 2h30m: save a checkpoint as for Ctrl-C, and exit with 75; the same command "
        "goes on."
    ),
]
Quiet = Annotated[bool, Parameter(help="Show no progress: errors and the result alone.")]
