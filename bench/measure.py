"""Shared by the benches: rounds in turns, ratios round by round, a table, a line of JSON, the peers' interpreter.

Whoever is measured takes turns in one order, so that a slow minute of the machine hits all alike. Ratios are formed
within a round; the first two only warm up.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

HERE = Path(__file__).parent
Times = dict[str, float]  # CPU seconds and seconds of one pass, for one of what is counted
Passes = dict[str, list[Times]]
KEPT = HERE / "machines.jsonl"  # a line a bench, model and kind of machine
INSTRUCTIONS = {"avx2": "AVX2", "avx512f": "AVX-512", "avx512_bf16": "bf16", "avx512_vnni": "VNNI", "amx_tile": "AMX"}
LIMITS = ("ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY")
ENOUGH = 3  # rounds; what fewer say of `auto` is neither kept nor judged
SAME = 1.05  # `auto` may be so much slower than the best
WARM_UP = 2  # rounds that do not count: compiling, first touch of memory


def options(description: str, rounds: int = 5) -> argparse.ArgumentParser:
    """The options that every bench has."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--peers", type=Path, default=HERE.parent / ".bench-venv/bin/python", metavar="PYTHON")
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--json", action="store_true", help="print one line of JSON last")
    return parser


def pin() -> None:
    """Keep to one core; processes started later inherit it."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def timed(call: Callable[[], Any], count: float = 1) -> Times:
    """Seconds of a call, divided by how many videos (or whatever is counted) it handles."""
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    return {"cpu": (time.process_time() - cpu) / count, "wall": (time.perf_counter() - wall) / count}


def repeated(call: Callable[[], Times], times: int) -> Times:
    """The mean of some passes in a row; the first alone would find the caches as the row before left them."""
    passes = [call() for _ in range(times)]
    return {key: sum(each[key] for each in passes) / times for key in passes[0]}


class Peer:
    """A program of the peers' environment, which answers a line on stdin by a line of JSON and lives until we end.

    The first line, its name and version, comes when it is ready, so its start is never measured.
    """

    def __init__(self, python: Path, script: str, *arguments: str) -> None:
        command = [str(python), str(HERE / script), *arguments]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.name = self._answer()

    @classmethod
    @contextmanager
    def find(cls, python: Path, script: str, *arguments: str) -> Iterator[Peer | None]:
        """The peer, which ends with the block, or None with a message where its interpreter or a package is missing."""
        if not python.exists():
            print(f"No peer: there is no {python} (make bench-env)")
            yield None
            return
        try:
            peer = cls(python, script, *arguments)
        except SystemExit as error:
            print(f"No {script}: {error}")
            yield None
            return
        try:
            yield peer
        finally:
            peer.process.kill()
            peer.process.wait()

    def ask(self, *words: object) -> Any:
        """The answer to one line."""
        self.process.stdin.write(" ".join(map(str, words)) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def timed(self, count: float, *words: object) -> Times:
        """The answer to one line, which is the seconds of a pass over so many videos, as `timed` gives it."""
        return {key: seconds / count for key, seconds in self.ask(*words).items()}

    def _answer(self) -> Any:
        if not (line := self.process.stdout.readline()):
            raise SystemExit(f"the peer ended with status {self.process.wait()}; its message stands above")
        return json.loads(line)


def serve(name: str, answer: Callable[..., Any]) -> None:
    """The other end of `Peer`: name itself, then answer the words of each line."""
    print(json.dumps(name), flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(*line.split())), flush=True)


def exhaust(stream: Iterable[Any]) -> None:
    """Take all and keep nothing."""
    for _ in stream:
        pass


def run_rounds(rows: Mapping[str, Callable[[], Times]], rounds: int) -> Passes:
    """Times of every row's passes, the rows in turn."""
    passes = [{name: call() for name, call in rows.items()} for _ in range(WARM_UP + rounds)][WARM_UP:]
    return {name: [times[name] for times in passes] for name in rows}


def spread(values: Iterable[float]) -> dict[str, float]:
    """Median, minimum and maximum, to four digits."""
    values = [float(f"{value:.4g}") for value in values]
    return {"median": median(values), "min": min(values), "max": max(values)}


def rates(passes: Passes, base: str | None, per: str = "cpu") -> dict[str, dict[str, Any]]:
    """Count a second of every row, and its ratio to the base's rate round by round; above 1 is faster."""
    rows: dict[str, dict[str, Any]] = {}
    for name, times in passes.items():
        rows[name] = {f"per_{per}_second": spread(1 / each[per] for each in times)}
        if base in passes:
            pairs = zip(passes[base], times, strict=True)
            rows[name]["ratio"] = spread(theirs[per] / ours[per] for theirs, ours in pairs)
    return rows


def seconds(passes: Passes, base: str | None, per: str = "wall") -> dict[str, dict[str, Any]]:
    """Seconds of every row, and how many times faster than the base it is."""
    rows = rates(passes, base, per)
    for name, times in passes.items():
        rows[name] = {f"{per}_seconds": spread(each[per] for each in times)} | {
            key: value for key, value in rows[name].items() if key == "ratio"
        }
    return rows


def machine() -> str:
    """Name the processor, its instructions that decide how fast models are, and limits that are set."""
    from reeltag.core.environment import cpu_flags, cpuinfo_value

    flags = cpu_flags() or set()
    has = [title for flag, title in INSTRUCTIONS.items() if flag in flags]
    limits = [f"{name}={os.environ[name]}" for name in LIMITS if name in os.environ]
    return ", ".join([cpuinfo_value("model name") or platform.machine(), *has, *limits])


def keep_row(bench: str, model: str, **row: Any) -> None:
    """Write what was measured of a model to the row of this kind of machine, and keep all other rows."""
    key = {"bench": bench, "model": model, "machine": machine()}
    lines = KEPT.read_text().splitlines() if KEPT.exists() else []
    kept = [line for line in lines if not key.items() <= json.loads(line).items()]
    KEPT.write_text("\n".join([*kept, json.dumps(key | {"date": date.today().isoformat()} | row)]) + "\n")


def slower(passes: Passes, auto: str, ways: Iterable[str]) -> str | None:
    """Say so if `auto` takes over 5 % more CPU time than a way that it could choose, shortest against shortest."""
    least = {name: min(each["cpu"] for each in passes[name]) for name in (auto, *ways)}
    best = min(least, key=least.__getitem__)
    ratio = least[auto] / least[best]
    return f"{auto} takes {ratio:.2f} times as long as {best}" if ratio > SAME else None


def print_table(rows: Mapping[str, Mapping[str, Any]], base: str | None) -> None:
    """Markdown, as docs/performance.md has it."""
    what = next(key for key in next(iter(rows.values())) if key != "ratio").replace("_", " ")
    ratio = any("ratio" in row for row in rows.values())
    print(f"| | {what}: median | min | max |" + (f" ratio to {base}: median | min | max |" if ratio else ""))
    print("|---" * (7 if ratio else 4) + "|")
    for name, row in rows.items():
        cells = [f"{value:,.4g}" if value < 1000 else f"{value:,.0f}" for key in row for value in row[key].values()]
        cells += [""] * ((6 if ratio else 3) - len(cells))
        print(f"| {name} | " + " | ".join(cells) + " |")
    print(flush=True)


def print_json(wanted: bool, bench: str, **content: Any) -> None:
    """The bench's one line of JSON, if wanted."""
    if wanted:
        print(json.dumps({"bench": bench, "machine": machine()} | content))
