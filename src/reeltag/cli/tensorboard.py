"""The command `reeltag tensorboard`."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path

FOLLOW_SECONDS = 10.0


def tensorboard(run: Path, /, *, follow: bool = False) -> None:
    """Convert the training logs of a run to TensorBoard event files in RUN/logs/tensorboard.

    Needs pip install 'reeltag[tensorboard]'.

    Example: reeltag tensorboard runs/audioset --follow

    Args:
        run: Folder of a run, which may still be in progress.
        follow: Keep converting new log rows until Ctrl-C.
    """
    from reeltag.core.text import counted
    from reeltag.training.tensorboard import EventFiles

    files = EventFiles(run)
    print(f"{files.folder}: {counted(files.update(), 'row')}; tensorboard --logdir {files.folder}", flush=True)
    with suppress(KeyboardInterrupt):  # users stop --follow with Ctrl-C
        while follow:
            time.sleep(FOLLOW_SECONDS)
            files.update()
