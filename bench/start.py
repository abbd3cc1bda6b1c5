"""Time `reeltag --help` and `reeltag doctor` beside importing TensorFlow, as each peer's command does first.

CPU seconds of the whole process; files are in the page cache after the first round, which is not counted.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from functools import partial

from measure import Times, options, pin, print_json, print_table, run_rounds, seconds

REACH = {"reeltag --help": 0.3, "reeltag doctor": 3.0}
PEER = "import tensorflow"


def lived(*command: str) -> Times:
    """Seconds that a process lives, and its CPU seconds."""
    wall, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"cpu": cpu, "wall": time.perf_counter() - wall}


def main() -> None:
    arguments = options("Start-up of the command line.").parse_args()
    pin()
    ours = (sys.executable, "-c", "import sys; from reeltag.cli.main import main; sys.exit(main())")
    rows = {name: partial(lived, *ours, name.removeprefix("reeltag ")) for name in REACH}
    rows["python -c pass"] = partial(lived, sys.executable, "-c", "pass")
    rows["import torch"] = partial(lived, sys.executable, "-c", "import torch")
    if arguments.peers.exists():
        rows[PEER] = partial(lived, str(arguments.peers), "-c", "import tensorflow")
    else:
        print(f"No peer: there is no {arguments.peers} (make bench-env)")
    passes = run_rounds(rows, arguments.rounds)
    table = seconds(passes, PEER, per="cpu")
    print(f"{arguments.rounds} rounds in turns on one core\n")
    print_table(table, PEER)
    for name, limit in REACH.items():
        print(f"{name}: {table[name]['cpu_seconds']['median']:.2f} s, to be at most {limit} s")
    print_json(arguments.json, "start", rounds=arguments.rounds, against=PEER, reach=REACH, rows=table)


if __name__ == "__main__":
    main()
