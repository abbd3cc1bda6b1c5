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


def seconds_of(max_time: timedelta | None) -> float | None:
    """The time that is given, in seconds.

    Raises:
        UsageError: it is none.
    """
    if max_time is not None and max_time <= timedelta():
        raise UsageError("--max-time: must be longer than nothing, such as 2h30m, 45m or 90s")
    return None if max_time is None else max_time.total_seconds()


def pool_of(
    devices: str, executor: str, address: str | None, wanted: Iterable[str] = (), processes: Iterable[int] = ()
) -> AbstractContextManager[Pool] | None:
    """The pool that the options ask for; None where the work is done in this process.

    Args:
        devices: of this machine, separated by commas.
        executor: `local` or `ray`.
        address: of the Ray cluster.
        wanted: devices that a recipe names.
        processes: that its stages take.

    Raises:
        UsageError: options that exclude each other, or a device that is not there.
    """
    from reeltag.core.distributed.process_group import world_size

    several, together = {count for count in processes if count > 1}, world_size()
    if together > 1 and (several - {together} or devices or executor != "local"):
        what = f"{together} processes were started together, which share each training"
        raise UsageError(f"{what}; set training.devices × training.nodes to {together}, and leave other options out")
    if executor == "ray":
        from reeltag.core.distributed.ray_pool import ray_cluster

        if devices:
            raise UsageError("--devices: are those of this machine; Ray knows its own, so leave one of the two out")
        return ray_cluster(address, gpu="cuda" in wanted)
    from reeltag.core.environment import check_device

    if address is not None:
        raise UsageError("--address: is that of a Ray cluster; add --executor ray")
    for device in wanted:
        check_device(device)
    if not devices:
        return None
    if several:
        raise UsageError("--devices: gives a stage one device, and training.devices more; leave one of the two out")
    from reeltag.core.distributed.process_pool import spawned

    return spawned([_device(name.strip()) for name in devices.split(",")])


def _device(name: str) -> str:
    import torch

    from reeltag.core.text import counted

    if not re.fullmatch(r"cpu|cuda:\d+", name):
        raise UsageError(f"--devices: {name!r} is none; give cpu or cuda:N for each process, such as cuda:0,cuda:1")
    count = torch.cuda.device_count()
    if name != "cpu" and int(name.removeprefix("cuda:")) >= count:
        raise UsageError(f"--devices: there is no {name} here, but {counted(count, 'GPU')}; see `reeltag doctor`")
    return name
