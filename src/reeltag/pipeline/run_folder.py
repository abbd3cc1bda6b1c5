"""Where the stages of a run leave what they make: a folder of this machine, or behind a URL with a working copy here.

Each stage has a folder `stages/NAME-HASH`. Its marker, `stage.json`, comes last, so a folder without one is unfinished.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from reeltag.core.download_cache import cache_folder
from reeltag.core.errors import TransferError, UsageError
from reeltag.core.storage import (
    atomic_path,
    content_hash,
    file_hash,
    locked,
    make_folder,
    read_json,
    remove_partials,
    write_bytes,
    write_json,
)
from reeltag.core.transfer import RemoteFile, download, exists, is_url, list_files, read, stat, upload

logger = logging.getLogger(__name__)

MARKER = "stage.json"
KEEP_SECONDS = 60.0  # between two looks for what an unfinished stage has to be kept of


def outputs_at(out: Path | str) -> Outputs:
    """The outputs of a run at a path or a URL."""
    return RemoteOutputs(str(out)) if is_url(str(out)) else Outputs(Path(out))


class Outputs:
    """Outputs in a folder of this machine, or of all machines that work on the run.

    Args:
        out: the run's folder.

    Attributes:
        name: of the place, for people.
    """

    def __init__(self, out: Path) -> None:
        self.out, self.name = out, str(out)

    def folder(self, stage: str) -> Path:
        """Where a stage, `NAME-HASH`, works and its output is looked for."""
        return self.out / "stages" / stage

    def marker(self, stage: str) -> dict[str, Any] | None:
        """What a finished stage left said; None of one that is not finished.

        Raises:
            UsageError: the marker is damaged.
        """
        path = self.folder(stage) / MARKER
        return _checked(read_json(path), str(path)) if path.exists() else None

    def has_begun(self, stage: str) -> bool:
        """Whether something of a stage is there."""
        return self.folder(stage).exists()

    def finish(self, stage: str, content: dict[str, Any]) -> None:
        """Mark a stage as finished."""
        write_json(self.folder(stage) / MARKER, content)

    def files(self, stage: str) -> set[str]:
        """Names of what is there of a stage."""
        return set(_files(self.folder(stage)))

    @contextmanager
    def at_work(self, stage: str, inputs: Iterable[str], *, leftovers: bool) -> Iterator[None]:
        """Have the inputs here while a stage works in a process, and with `leftovers` what is there of it already."""
        yield

    def bring(self, stage: str) -> Path:
        """The folder of a finished stage with all its files."""
        return self.folder(stage)

    def publish(self, source: Path, name: str) -> None:
        """Put a stage's output where people look for it; equal content is left alone."""
        target = self.out / name
        if not target.exists() or file_hash(target) != file_hash(source):
            write_bytes(target, source.read_bytes())

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Keep the folder, which is new or was made by a run, to this process, and make it ready.

        Raises:
            UsageError: it holds something else, or another process works in it.
        """
        if self.out.exists() and not self.out.is_dir():
            raise UsageError(f"{self.out}: is a file; choose another --out")
        if self.out.is_dir() and any(self.out.iterdir()) and not (self.out / "stages").is_dir():
            raise UsageError(f"{self.out}: is not empty and holds no reeltag run; choose another --out")
        make_folder(self.out / "stages")
        with locked(self.out):
            remove_partials(self.out)
            yield


class RemoteOutputs(Outputs):
    """Outputs behind a URL, which any machine may go on with; each has a working copy in its cache.

    A finished stage's marker is there alone, and lists the files with their hashes, so that whoever has an older state
    of one in a working copy fetches it anew. Of an unfinished stage what changed is put there about every minute.

    Args:
        url: of the run.
    """

    def __init__(self, url: str) -> None:
        if url.startswith(("http://", "https://")):
            raise UsageError(f"{url}: web servers are only read; give an --out at s3:// or gs://, or a folder")
        super().__init__(cache_folder() / "runs" / content_hash(url)[:16])
        self.name = url.rstrip("/")

    def marker(self, stage: str) -> dict[str, Any] | None:
        """See `Outputs`; raises TransferError where the other side cannot be reached."""
        url = self._url(stage, MARKER)
        return _checked(json.loads(read(url)), url) if exists(url) else None

    def has_begun(self, stage: str) -> bool:
        """See `Outputs`."""
        return super().has_begun(stage) or bool(list_files(self._url(stage, "")))

    def finish(self, stage: str, content: dict[str, Any]) -> None:
        """See `Outputs`; the stage's files are there already."""
        hashes = {name: file_hash(path) for name, path in _files(self.folder(stage)).items()}
        marker = self.out / f"{stage}.json"
        write_json(marker, {**content, "files": hashes})
        upload(marker, self._url(stage, MARKER))

    def files(self, stage: str) -> set[str]:
        """See `Outputs`; of what is behind the URL."""
        return set(self._there(stage))

    @contextmanager
    def at_work(self, stage: str, inputs: Iterable[str], *, leftovers: bool) -> Iterator[None]:
        """See `Outputs`."""
        for name in inputs:
            self.bring(name)
        folder, there = self.folder(stage), self._there(stage)
        for name, path in _files(folder).items():
            if name not in there:
                _mark(path).unlink(missing_ok=True)
        for name, file in there.items() if leftovers else ():
            if not (folder / name).exists():
                _fetch(file, folder / name)
        done = threading.Event()
        keeper = threading.Thread(target=self._keep_until, args=(done, stage), daemon=True)
        keeper.start()
        try:
            yield
        finally:
            done.set()
            keeper.join()
            self._keep(stage)

    def bring(self, stage: str) -> Path:
        """See `Outputs`."""
        marker, folder = self.marker(stage), self.folder(stage)
        if marker is None:
            raise UsageError(f"{self._url(stage, MARKER)}: is gone; run again, and the stage is done anew")
        for name, digest in marker["files"].items():
            path, url = folder / name, self._url(stage, name)
            if not path.is_file() or file_hash(path) != digest:
                _fetch(stat(url), path)
                if file_hash(path) != digest:
                    where = self._url(stage, "")
                    raise UsageError(f"{url}: is not what {MARKER} beside it says; remove {where}, and it is made anew")
        return folder

    def publish(self, source: Path, name: str) -> None:
        """See `Outputs`."""
        super().publish(source, name)
        upload(source, f"{self.name}/{name}")

    def _url(self, stage: str, name: str) -> str:
        return f"{self.name}/stages/{stage}/{name}"

    def _there(self, stage: str) -> dict[str, RemoteFile]:
        root = self._url(stage, "")
        found = {file.url.removeprefix(root): file for file in list_files(root)}
        return {name: file for name, file in found.items() if name != MARKER}

    def _keep_until(self, done: threading.Event, stage: str) -> None:
        while not done.wait(KEEP_SECONDS):
            try:
                self._keep(stage)
            except (TransferError, UsageError) as error:
                logger.warning("%s", error)  # it may pass; at the end it may not

    def _keep(self, stage: str) -> None:
        """Put what is not there as it is here, whichever process of this machine made it and was killed."""
        for name, path in _files(self.folder(stage)).items():
            changed = path.stat().st_mtime_ns
            mark = _mark(path)
            if not mark.exists() or mark.stat().st_mtime_ns != changed:
                upload(path, self._url(stage, name))
                _set_mark(path, changed)


def _files(folder: Path) -> dict[str, Path]:
    """The whole files below a folder, by their names in it; partial ones and marks are hidden."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    return {path.relative_to(folder).as_posix(): path for path in files}


def _mark(path: Path) -> Path:
    """A hidden file that has the time of change of the one that it stands for when that was last behind the URL."""
    return path.with_name(f".{path.name}.kept")


def _set_mark(path: Path, changed: int) -> None:
    _mark(path).touch()
    os.utime(_mark(path), ns=(changed, changed))


def _fetch(file: RemoteFile, path: Path) -> None:
    with atomic_path(path) as temporary:
        download(file.url, temporary, file.size, version=file.version)
    _set_mark(path, path.stat().st_mtime_ns)


def _checked(marker: Any, place: str) -> dict[str, Any]:
    if not isinstance(marker, dict) or not isinstance(marker.get("digest"), str):
        folder = place.rpartition("/")[0]
        raise UsageError(f"{place}: is damaged; remove {folder}, and the stage is done again")
    return marker
