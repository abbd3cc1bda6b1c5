"""Open the pool of processes, or the Ray cluster, on which stages run."""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import TYPE_CHECKING

from reeltag.core.errors import UsageError

if TYPE_CHECKING:
    from reeltag.core.distributed.process_pool import Pool


def max_seconds(max_time: timedelta | None) -> float | None:
    """Return the time limit of a run in seconds; None if there is none.

    Raises:
        UsageError: the limit is not positive.
    """
    if max_time is not None and max_time <= timedelta():
        raise UsageError("--max-time: must be more than zero, such as 2h30m, 45m or 90s")
    return None if max_time is None else max_time.total_seconds()


def open_pool(
    devices: str, executor: str, address: str | None, wanted: Iterable[str] = (), processes: Iterable[int] = ()
) -> AbstractContextManager[Pool] | None:
    """Return the context manager of the pool that the options ask for; None to run all work in this process.

    Args:
        devices: devices of this machine, separated by commas; empty for no pool.
        executor: `local` or `ray`.
        address: address of the Ray cluster.
        wanted: devices that the recipe names.
        processes: number of processes of each stage.

    Raises:
        UsageError: options exclude each other, or a device is not available.
    """
    from reeltag.core.distributed.process_group import world_size

    several, together = {count for count in processes if count > 1}, world_size()
    if together > 1 and (several - {together} or devices or executor != "local"):
        what = f"{together} processes were started together to share each training"
        advice = f"set training.devices × training.nodes to {together}, and leave out --devices and --executor"
        raise UsageError(f"{what}; {advice}")
    if executor == "ray":
        from reeltag.core.distributed.ray_pool import open_ray_pool

        if devices:
            raise UsageError(
                "--devices: names devices of this machine, but Ray assigns its own; leave out one of the two"
            )
        return open_ray_pool(address, gpu="cuda" in wanted)
    from reeltag.core.environment import check_device

    if address is not None:
        raise UsageError("--address: is the address of a Ray cluster; add --executor ray")
    for device in wanted:
        check_device(device)
    if not devices:
        return None
    if several:
        raise UsageError(
            "--devices: gives a stage one device, but training.devices asks for more; leave out one of the two"
        )
    from reeltag.core.distributed.process_pool import open_process_pool

    return open_process_pool([_device(name.strip()) for name in devices.split(",")])


def _device(name: str) -> str:
    import torch

    from reeltag.core.text import counted

    if not re.fullmatch(r"cpu|cuda:\d+", name):
        raise UsageError(f"--devices: {name!r} is not a device; give a list of cpu and cuda:N, such as cuda:0,cuda:1")
    count = torch.cuda.device_count()
    if name != "cpu" and int(name.removeprefix("cuda:")) >= count:
        what = f"{name} does not exist, since this machine has {counted(count, 'GPU')}"
        raise UsageError(f"--devices: {what}; see `reeltag doctor`")
    return name
