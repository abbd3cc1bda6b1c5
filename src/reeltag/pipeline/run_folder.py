"""The folder of a run: on this machine, or at a URL with a working copy on this machine.

Each stage has a folder `stages/NAME-HASH`. Its marker `stage.json` is written last, so a folder without one is
unfinished. `format.json` has the format number of the folder, which changes when stages of older runs cannot be reused.
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
from reeltag.core.remote_files import RemoteFile, download, exists, is_url, list_files, read, remove, stat, upload
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

logger = logging.getLogger(__name__)

MARKER = "stage.json"
FORMAT = "format.json"
RUN_FORMAT = 2  # raise it when the layout of a run's folder changes; folders of format 1 have no `format.json`
UPLOAD_SECONDS = 60.0  # between two uploads of the changed files of an unfinished stage


def outputs_at(out: Path | str) -> Outputs:
    """Return the outputs of a run at a path or a URL."""
    return RemoteOutputs(str(out)) if is_url(str(out)) else Outputs(Path(out))


class Outputs:
    """Outputs of a run in a folder, on this machine or shared by all machines that work on the run.

    Args:
        out: the run's folder.

    Attributes:
        name: the folder or the URL, for messages.
    """

    def __init__(self, out: Path) -> None:
        self.out, self.name = out, str(out)

    def folder(self, stage: str) -> Path:
        """Return the folder of a stage `NAME-HASH`."""
        return self.out / "stages" / stage

    def marker(self, stage: str) -> dict[str, Any] | None:
        """Return the content of a stage's marker; None for an unfinished stage.

        Raises:
            UsageError: the marker is damaged.
        """
        path = self.folder(stage) / MARKER
        return _checked(read_json(path), str(path)) if path.exists() else None

    def has_begun(self, stage: str) -> bool:
        """Return True if the stage's folder exists."""
        return self.folder(stage).exists()

    def finish(self, stage: str, content: dict[str, Any]) -> None:
        """Write the marker of a finished stage."""
        write_json(self.folder(stage) / MARKER, content)

    def reopen(self, stage: str) -> None:
        """Remove the marker of a finished stage, which then has to be computed again."""
        (self.folder(stage) / MARKER).unlink()

    def keeps(self, stage: str, name: str) -> bool:
        """Return True if a finished stage still has a file."""
        return (self.folder(stage) / name).exists()

    def drop(self, stage: str, name: str) -> None:
        """Remove a file of a finished stage, if it is still there."""
        (self.folder(stage) / name).unlink(missing_ok=True)

    def files(self, stage: str) -> set[str]:
        """Return the names of the files in a stage's folder."""
        return set(_files(self.folder(stage)))

    @contextmanager
    def at_work(self, stage: str, inputs: Iterable[str], *, leftovers: bool) -> Iterator[None]:
        """Provide a stage's inputs on this machine while it runs; with `leftovers` also its own existing files."""
        yield

    def bring(self, stage: str) -> Path:
        """Return the folder of a finished stage, with all its files on this machine."""
        return self.folder(stage)

    def publish(self, source: Path, name: str) -> None:
        """Copy a file of a stage to a place in the run's folder; a copy with equal content is not written again."""
        target = self.out / name
        if not target.exists() or file_hash(target) != file_hash(source):
            write_bytes(target, source.read_bytes())

    def check_format(self) -> None:
        """Refuse a run that was made by a reeltag whose stages cannot be reused.

        Raises:
            UsageError: the run has stages, and its format is another one.
        """
        if (found := self._format()) not in (None, RUN_FORMAT):
            made = "an earlier" if found < RUN_FORMAT else "a later"
            raise UsageError(
                f"{self.name}: {made} version of reeltag made this run (format {found}, this version has format "
                f"{RUN_FORMAT}), and its stages cannot be continued; choose another --out, or continue with that "
                "version"
            )

    def set_format(self) -> None:
        """Write the format number of a new run.

        Raises:
            UsageError: as `check_format`.
        """
        self.check_format()
        if not (self.out / FORMAT).exists():
            write_json(self.out / FORMAT, {"format": RUN_FORMAT})

    def _format(self) -> int | None:
        """Return the format number of the run; None for a new one."""
        path, stages = self.out / FORMAT, self.out / "stages"
        if path.exists():
            return _format_number(path.read_bytes(), str(path))
        return 1 if stages.is_dir() and any(stages.iterdir()) else None

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Reserve the folder of a new or an existing run for this process, and prepare it.

        Raises:
            UsageError: the folder has other content, another process works in it, or another version of reeltag made
                it.
        """
        if self.out.exists() and not self.out.is_dir():
            raise UsageError(f"{self.out}: is a file; choose another --out")
        if self.out.is_dir() and any(self.out.iterdir()) and not (self.out / "stages").is_dir():
            raise UsageError(f"{self.out}: is not empty and holds no reeltag run; choose another --out")
        self.check_format()
        make_folder(self.out / "stages")
        with locked(self.out):
            remove_partials(self.out)
            yield


class RemoteOutputs(Outputs):
    """Outputs of a run at a URL, which any machine can resume; each machine has a working copy in its cache.

    The marker of a finished stage is kept only at the URL. It lists the stage's files with their hashes, so that a
    machine downloads again what is older in its working copy. Changed files of an unfinished stage are uploaded about
    every minute.

    Args:
        url: of the run.
    """

    def __init__(self, url: str) -> None:
        if url.startswith(("http://", "https://")):
            raise UsageError(f"{url}: web servers are only read; give an --out at s3:// or gs://, or a folder")
        super().__init__(cache_folder() / "runs" / content_hash(url)[:16])
        self.name = url.rstrip("/")

    def marker(self, stage: str) -> dict[str, Any] | None:
        """See `Outputs`.

        Raises:
            TransferError: the URL cannot be reached.
            UsageError: the marker is damaged.
        """
        url = self._url(stage, MARKER)
        return _checked(json.loads(read(url)), url) if exists(url) else None

    def has_begun(self, stage: str) -> bool:
        """See `Outputs`."""
        return super().has_begun(stage) or bool(list_files(self._url(stage, "")))

    def finish(self, stage: str, content: dict[str, Any]) -> None:
        """See `Outputs`; the stage's files were uploaded before."""
        hashes = {name: file_hash(path) for name, path in _files(self.folder(stage)).items()}
        self._write_marker(stage, {**content, "files": hashes})

    def reopen(self, stage: str) -> None:
        """See `Outputs`."""
        remove(self._url(stage, MARKER))

    def keeps(self, stage: str, name: str) -> bool:
        """See `Outputs`."""
        return name in (self.marker(stage) or {"files": {}})["files"]

    def drop(self, stage: str, name: str) -> None:
        """See `Outputs`; first the marker stops listing the file, so that no machine asks for it."""
        if self.keeps(stage, name):
            marker = self.marker(stage)
            assert marker is not None
            del marker["files"][name]
            self._write_marker(stage, marker)
        remove(self._url(stage, name))
        _mark(self.folder(stage) / name).unlink(missing_ok=True)
        super().drop(stage, name)

    def files(self, stage: str) -> set[str]:
        """See `Outputs`; lists the files at the URL."""
        return set(self._remote_files(stage))

    def set_format(self) -> None:
        """See `Outputs`."""
        super().set_format()
        if not exists(f"{self.name}/{FORMAT}"):
            upload(self.out / FORMAT, f"{self.name}/{FORMAT}")

    def _format(self) -> int | None:
        url = f"{self.name}/{FORMAT}"
        if exists(url):
            return _format_number(read(url), url)
        return 1 if list_files(f"{self.name}/stages/") else None

    @contextmanager
    def at_work(self, stage: str, inputs: Iterable[str], *, leftovers: bool) -> Iterator[None]:
        """See `Outputs`."""
        for name in inputs:
            self.bring(name)
        folder, remote = self.folder(stage), self._remote_files(stage)
        for name, path in _files(folder).items():
            if name not in remote:
                _mark(path).unlink(missing_ok=True)
        for name, file in remote.items() if leftovers else ():
            if not (folder / name).exists():
                _fetch(file, folder / name)
        done = threading.Event()
        uploader = threading.Thread(target=self._upload_until, args=(done, stage), daemon=True)
        uploader.start()
        try:
            yield
        finally:
            done.set()
            uploader.join()
            self._upload(stage)

    def bring(self, stage: str) -> Path:
        """See `Outputs`."""
        marker, folder = self.marker(stage), self.folder(stage)
        if marker is None:
            raise UsageError(f"{self._url(stage, MARKER)}: is gone; run again, and the stage is computed again")
        for name, digest in marker["files"].items():
            path, url = folder / name, self._url(stage, name)
            if not path.is_file() or file_hash(path) != digest:
                _fetch(stat(url), path)
                if file_hash(path) != digest:
                    where = self._url(stage, "")
                    raise UsageError(
                        f"{url}: is not what {MARKER} beside it says; remove {where}, and it is computed again"
                    )
        return folder

    def publish(self, source: Path, name: str) -> None:
        """See `Outputs`."""
        super().publish(source, name)
        upload(source, f"{self.name}/{name}")

    def _url(self, stage: str, name: str) -> str:
        return f"{self.name}/stages/{stage}/{name}"

    def _write_marker(self, stage: str, content: dict[str, Any]) -> None:
        local = self.out / f"{stage}.json"
        write_json(local, content)
        upload(local, self._url(stage, MARKER))

    def _remote_files(self, stage: str) -> dict[str, RemoteFile]:
        root = self._url(stage, "")
        found = {file.url.removeprefix(root): file for file in list_files(root)}
        return {name: file for name, file in found.items() if name != MARKER}

    def _upload_until(self, done: threading.Event, stage: str) -> None:
        while not done.wait(UPLOAD_SECONDS):
            try:
                self._upload(stage)
            except (TransferError, UsageError) as error:
                logger.warning("%s", error)  # a later upload may succeed; the last one raises

    def _upload(self, stage: str) -> None:
        """Upload the changed files of a stage, including those of a process of this machine that was killed."""
        for name, path in _files(self.folder(stage)).items():
            changed = path.stat().st_mtime_ns
            mark = _mark(path)
            if not mark.exists() or mark.stat().st_mtime_ns != changed:
                upload(path, self._url(stage, name))
                _set_mark(path, changed)


def _files(folder: Path) -> dict[str, Path]:
    """Return the complete files below a folder by their relative names; partial files and marks are hidden files."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    return {path.relative_to(folder).as_posix(): path for path in files}


def _mark(path: Path) -> Path:
    """Return the hidden file whose modification time is that of `path` when it was last equal to the URL's copy."""
    return path.with_name(f".{path.name}.kept")


def _set_mark(path: Path, changed: int) -> None:
    _mark(path).touch()
    os.utime(_mark(path), ns=(changed, changed))


def _fetch(file: RemoteFile, path: Path) -> None:
    with atomic_path(path) as temporary:
        download(file.url, temporary, file.size, version=file.version)
    _set_mark(path, path.stat().st_mtime_ns)


def _checked(marker: Any, location: str) -> dict[str, Any]:
    if not isinstance(marker, dict) or not isinstance(marker.get("digest"), str):
        folder = location.rpartition("/")[0]
        raise UsageError(f"{location}: is damaged; remove {folder}, and the stage is computed again")
    return marker


def _format_number(content: bytes, location: str) -> int:
    try:
        return int(json.loads(content)["format"])
    except (ValueError, TypeError, KeyError) as error:
        how = f'write {{"format": N}} into it, with the N of the reeltag that made the run ({RUN_FORMAT} for this one)'
        raise UsageError(f"{location}: is damaged; {how}, or choose another --out") from error
