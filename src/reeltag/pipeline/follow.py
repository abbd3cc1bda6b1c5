"""Follow a run: send the logs of its trainings to a tracker while they are written.

The logs are files that all machines of a run write, so this process alone speaks to the tracker, and no training waits
for it. A tracker that cannot be reached is reported once; the rows that it lacks are sent when it can, or by the next
run with the same command.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from reeltag.core.errors import UsageError
from reeltag.core.progress import Progress
from reeltag.core.storage import read_json, write_json
from reeltag.core.text import counted, one_line
from reeltag.pipeline.run_folder import Outputs, RemoteOutputs
from reeltag.recipe.schema import Recipe
from reeltag.recipe.tables import leaves
from reeltag.training.log import LOG, Row, read_rows
from reeltag.training.trackers.registry import TrackerName, open_tracker
from reeltag.training.trackers.tracker import Run, Tracker

SECONDS = 10.0  # between two looks at the logs


class Follower:
    """Sends new rows of the logs of a run's trainings.

    Args:
        name: of the tracker.
        tracker: the tracker.
        sent: JSON file with the number of rows of each training that each place of the tracker has.
        progress: for the message about a tracker that cannot be reached.
    """

    def __init__(self, name: str, tracker: Tracker, sent: Path, progress: Progress) -> None:
        self.name, self.tracker, self.progress = name, tracker, progress
        self._file, self._folders = sent, dict[str, Path]()
        self._places: dict[str, dict[str, int]] = read_json(sent) if tracker.place and sent.exists() else {}
        self._sent = self._places.setdefault(tracker.place, {})
        self._unreached = False

    def add(self, folder: Path) -> None:
        """Follow the training in a stage's folder, if it is one."""
        self._folders[folder.name] = folder

    def send(self) -> None:
        """Send the rows that are new; a failure is reported once, and what is left is sent later."""
        for name, rows in self._new().items():
            try:
                self.tracker.log(name, rows)
            except Exception as error:  # of the tracker's libraries and its network, none of which may end a training
                if not self._unreached:
                    how = "training goes on, and what it lacks is sent when it can be reached, or by the same command"
                    self.progress.say(f"--log {self.name}: cannot be reached ({one_line(error)[:200]}); {how}")
                self._unreached = True
                return
            self._sent[name] = self._sent.get(name, 0) + len(rows)
            if self.tracker.place:
                write_json(self._file, self._places)

    def close(self, *, finished: bool) -> None:
        """Send the last rows, end the trainings, and say what was not sent."""
        self.send()
        try:
            self.tracker.close(finished=finished)
        except Exception as error:  # as in `send`
            self.progress.say(f"--log {self.name}: cannot be closed ({one_line(error)[:200]})")
        if left := sum(map(len, self._new().values())):
            self.progress.say(f"--log {self.name}: {counted(left, 'row')} not sent; the same command sends them later")

    def _new(self) -> dict[str, list[Row]]:
        """Return the rows that are not sent yet, of each training that has any."""
        logs = {name: folder / LOG for name, folder in list(self._folders.items())}
        rows = {name: read_rows(log)[self._sent.get(name, 0) :] for name, log in logs.items() if log.exists()}
        return {name: each for name, each in rows.items() if each}


@contextmanager
def following(
    name: TrackerName | None, recipe: Recipe, outputs: Outputs, progress: Progress
) -> Iterator[Follower | None]:
    """Follow the trainings of a run in a block, in a thread of its own; for no tracker do nothing.

    Args:
        name: of the tracker.
        recipe: of the run.
        outputs: of the run.
        progress: for messages.

    Raises:
        UsageError: the tracker is not installed, or the run's folder is at a URL.
    """
    if name is None:
        yield None
        return
    if isinstance(outputs, RemoteOutputs):
        raise UsageError(f"--log {name}: reads logs in a folder; give --out a folder that all machines share")
    tracker = open_tracker(name, Run(recipe.name, outputs.out, dict(leaves(recipe.dump()))))
    follower = Follower(name, tracker, outputs.out / "logs" / f"{name}.json", progress)
    done = threading.Event()

    def follow() -> None:
        while not done.wait(SECONDS):
            follower.send()

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    finished = False
    try:
        yield follower
        finished = True
    finally:
        done.set()
        thread.join()
        follower.close(finished=finished)
