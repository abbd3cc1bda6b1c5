"""A server process that forks processes which run commands and kill themselves at a given moment.

Each line on stdin is a command in JSON, `{"arguments": [...], ...}`, and so is each answer. Modules are imported once,
in the server, so that a command takes only the time of its work. A forked process counts moments in each stage: before
every change of a folder or file (by Python's audit events), before every fsync, and before and after every training
step. It kills itself at the given moment, at the latest when the next stage begins.
"""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

CHANGES = {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.chmod"}
TITLE = re.compile(r"\[\d+/\d+\] ([^\s:]+)(: done before)?")


class Moments:
    """Moments that a forked process has passed, and the one at which it kills itself.

    Args:
        command: `stage` and `moment` to be killed at, `report` to write to.
    """

    def __init__(self, command):
        self.stage, self.number, self.counts = "begin", 0, {}
        self.end, self.report = (command.get("stage"), command.get("moment")), Path(command["report"])
        self.within = str(command["within"])

    def enter(self, stage):
        passed, self.stage, self.number = self.stage == self.end[0], stage, 0
        if passed:
            self.kill()

    def miss(self, stage):
        """Note a stage that was finished before: if the kill belongs there, it comes when the next stage begins."""
        if stage == self.end[0]:
            self.stage, self.number = stage, math.inf

    def pass_(self, *ignored, **named):
        if (self.stage, self.number) == self.end:
            self.kill()
        self.number += 1
        self.counts[self.stage] = self.number

    def audit(self, event, arguments):
        writes = event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if (writes and str(arguments[0]).startswith(self.within)) or event in CHANGES:
            self.pass_()

    def kill(self):
        self.write({"stage": self.stage})
        os.kill(os.getpid(), signal.SIGKILL)

    def write(self, content):
        self.end = (None, None)
        file = os.open(self.report, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.write(file, json.dumps(content).encode())


def watch(moments, every_step):
    """Count the moments of this process."""
    import reeltag.training.trainer
    from reeltag.core.progress import PlainProgress, Task
    from reeltag.pipeline import executor
    from reeltag.training.replica import Replica

    def before(call, first, then=lambda: None):
        def wrapped(*arguments, **named):
            first(*arguments, **named)
            result = call(*arguments, **named)
            then()
            return result

        return wrapped

    def entered(progress, line):
        if title := TITLE.fullmatch(line):
            moments.miss(title[1]) if title[2] else moments.enter(title[1])

    PlainProgress.say = before(PlainProgress.say, entered)
    Task.advance = before(Task.advance, moments.pass_)
    os.fsync = before(os.fsync, moments.pass_)
    Replica.train_step = before(Replica.train_step, moments.pass_, moments.pass_)
    executor.run = before(executor.run, lambda *arguments: None, lambda: moments.enter("publish"))
    sys.addaudithook(moments.audit)
    if every_step:
        reeltag.training.trainer.CHECKPOINT_SHARE = math.inf
        reeltag.training.trainer.Trainer.__init__.__kwdefaults__["checkpoint_seconds"] = 0.0


def forked(command):
    """Run a command in the forked process."""
    from reeltag.cli.main import main

    os.setsid()
    log = os.open(command["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.chdir(command.get("folder", "."))
    moments = Moments(command)
    if not command.get("seconds"):
        watch(moments, command.get("every_step", False))
    code = main(command["arguments"])
    sys.stdout.flush()
    moments.write({"counts": moments.counts})
    os._exit(code)


def answer(command):
    """Fork a process for a command, and kill it from outside after `seconds`; with `group` also its children."""
    begin = time.monotonic()
    child = os.fork()
    if not child:
        try:
            forked(command)
        finally:
            import traceback

            traceback.print_exc()
            os._exit(70)
    ended, status = 0, 0
    while not ended and "seconds" in command and time.monotonic() - begin < command["seconds"]:
        ended, status = os.waitpid(child, os.WNOHANG)
        time.sleep(0.002)
    if not ended:
        if "seconds" in command:
            (os.killpg if command["group"] else os.kill)(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
    return {"code": os.waitstatus_to_exitcode(status), "process": child}


class Killer:
    """Client of the server: runs commands of reeltag in processes that may be killed.

    Args:
        folder: for their output.
        environment: of the processes.
    """

    def __init__(self, folder, **environment):
        self.log, self.report = folder / "log", folder / "report"
        source = Path(__file__).parents[2] / "src"
        everything = os.environ | {"PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"} | environment
        self.process = subprocess.Popen(
            [sys.executable, __file__], env=everything, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self, *arguments, within="/", **how):
        """Run a command; return its `code`, and the `counts` of its moments or the `stage` in which it was killed."""
        self.report.unlink(missing_ok=True)
        given = {"arguments": list(map(str, arguments)), "within": str(within), "log": str(self.log), **how}
        self.process.stdin.write(json.dumps(given | {"report": str(self.report)}) + "\n")
        self.process.stdin.flush()
        found = json.loads(self.process.stdout.readline())
        report = json.loads(self.report.read_text()) if self.report.exists() else {}
        assert found["code"] in (0, -signal.SIGKILL), self.log.read_text()[-3000:]
        return found | report

    def close(self):
        self.process.stdin.close()
        assert self.process.wait(20) == 0


@contextmanager
def killer(folder, **environment):
    """Yield a `Killer`, and end it with the block."""
    opened = Killer(folder, **environment)
    try:
        yield opened
    finally:
        opened.close()


LAZY_IMPORTS = (
    "reeltag.inference.shard_tagger",
    "reeltag.cli.main",
    "reeltag.recipe.load",
    "reeltag.pipeline.report.markdown",
    "reeltag.pipeline.plan",
    "torch.profiler",
    "torch.utils.data",
)


def import_all():
    """Import the modules that commands import lazily, so that forked processes need not."""
    for name in LAZY_IMPORTS:
        import_module(name)
    from reeltag.pipeline.stages import training_plan

    training_plan.gpu_hours = lambda *arguments: 0.0  # the estimate takes a second and decides nothing


if __name__ == "__main__":
    import_all()
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)
