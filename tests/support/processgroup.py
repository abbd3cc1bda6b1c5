"""The processes of a group, for tests that end some of them."""

import subprocess
import time


def living(group):
    """Number and command of every process in a group that runs."""
    table = subprocess.run(
        ["ps", "-A", "-ww", "-o", "pgid=,pid=,stat=,args="], capture_output=True, text=True, check=True
    )
    rows = (line.split(None, 3) for line in table.stdout.splitlines())
    return {int(pid): args for pgid, pid, state, args in rows if int(pgid) == group and state[0] != "Z"}


def all_end(group):
    """Return True if no process of a group is left after a while."""
    deadline = time.monotonic() + 20
    while living(group) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not living(group)
