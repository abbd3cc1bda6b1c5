"""The command `reeltag tensorboard`."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path

FOLLOW_SECONDS = 10.0


def tensorboard(run: Path, /, *, follow: bool = False) -> None:
    """Write the logs of a run's trainings as event files for TensorBoard, into RUN/logs/tensorboard.

    Needs pip install 'reeltag[tensorboard]'.

    Example: reeltag tensorboard runs/audioset --follow

    Args:
        run: Folder of a run, which may still be at work.
        follow: Go on with what the trainings write, until Ctrl-C.
    """
    from reeltag.core.text import counted
    from reeltag.training.tensorboard import EventFiles

    files = EventFiles(run)
    print(f"{files.folder}: {counted(files.update(), 'row')}; tensorboard --logdir {files.folder}", flush=True)
    with suppress(KeyboardInterrupt):  # the way to end it
        while follow:
            time.sleep(FOLLOW_SECONDS)
            files.update()
