"""Time the start of the command line and of `import reeltag` beside `python -c pass`, `import torch` and TensorFlow.

CPU seconds of the whole process; files are in the page cache after the first round, which is not counted. Each command
of the peers imports TensorFlow first.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from functools import partial

from measure import Times, options, pin, print_json, print_table, run_rounds, seconds

BASE, PEER = "python -c pass", "import tensorflow"
# Most CPU seconds beyond those of `python -c pass`.
REACH = {"import reeltag": 0.1, "reeltag --help": 0.25, "reeltag recipe check quickstart": 1.0, "reeltag doctor": 3.0}


def lived(*command: str) -> Times:
    """Run a process, and return its seconds and CPU seconds."""
    wall, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"cpu": cpu, "wall": time.perf_counter() - wall}


def main() -> None:
    arguments = options("Start-up of the command line.").parse_args()
    pin()
    ours = (sys.executable, "-c", "import sys; from reeltag.cli.main import main; sys.exit(main())")
    rows = {BASE: partial(lived, sys.executable, "-c", "pass")}
    for name in REACH:
        command = (*ours, *name.split()[1:]) if name.startswith("reeltag") else (sys.executable, "-c", name)
        rows[name] = partial(lived, *command)
    rows["import torch"] = partial(lived, sys.executable, "-c", "import torch")
    if arguments.peers.exists():
        rows[PEER] = partial(lived, str(arguments.peers), "-c", "import tensorflow")
    else:
        print(f"No peer: there is no {arguments.peers} (make bench-env)")
    passes = run_rounds(rows, arguments.rounds)
    table = seconds(passes, BASE, per="cpu")
    print(f"{arguments.rounds} rounds in turns on one core\n")
    print_table(table, BASE)
    base = table[BASE]["cpu_seconds"]["median"]
    for name, limit in REACH.items():
        beyond = table[name]["cpu_seconds"]["median"] - base
        print(f"{name}: {beyond:.2f} s beyond {BASE}, to be at most {limit} s")
    print_json(arguments.json, "start", rounds=arguments.rounds, against=BASE, reach=REACH, rows=table)


if __name__ == "__main__":
    main()
