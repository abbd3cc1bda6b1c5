"""Download the official shards of YouTube-8M, or a part of them, in parallel, by a plan with their MD5s.

Plan, addresses, names and parts are those of the official `download.py` of data.yt8m.org, as copies of it in public
repositories have them. A shard has its name once its MD5 is the plan's; until then it is a hidden file that grows.
"""

from __future__ import annotations

import hashlib
import json
import re
import string
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from threading import Event, Lock
from typing import Literal, TypeVar

from reeltag.core import remote_files
from reeltag.core.errors import TransferError, UsageError
from reeltag.core.progress import Progress
from reeltag.core.remote_files import RemoteFile
from reeltag.core.storage import free_bytes, locked, make_folder
from reeltag.core.text import counted, megabytes

Level = Literal["frame", "video"]
Split = Literal["train", "validate", "test"]
Mirror = Literal["us", "eu", "asia"]

CONCURRENT_DOWNLOADS = 8  # shards
_T = TypeVar("_T")
_LETTERS = string.ascii_lowercase + string.ascii_uppercase + string.digits
_NUMBERS = {"".join(pair): number for number, pair in enumerate(product(_LETTERS, repeat=2))}
_MD5 = re.compile("[0-9a-f]{32}")


class _StoppedError(Exception):
    """Stops a download thread after another one failed."""


@dataclass(frozen=True)
class UrlTemplates:
    """URL templates of plans and shards.

    Attributes:
        plan: URL of a plan, with {level} and {split}.
        shard: URL of a shard, with {mirror}, {level}, {split} and its {name} there.
    """

    plan: str = "http://data.yt8m.org/2/download_plans/{level}_{split}.json"
    shard: str = "http://{mirror}.data.yt8m.org/2/{level}/{split}/{name}"


OFFICIAL_URLS = UrlTemplates()


@dataclass(frozen=True)
class PlannedShard:
    """Shard of a download plan.

    Attributes:
        name: on the server, such as trainbF.tfrecord.
        file: local name, such as train0093.tfrecord.
        md5: in hexadecimal.
    """

    name: str
    file: str
    md5: str

    @property
    def unfinished(self) -> str:
        """Local name until the download is complete and verified; it depends on the MD5."""
        return f".{self.file}.{self.md5[:8]}.part"


@dataclass(frozen=True)
class Part:
    """One of n parts of a plan, by the MD5 of the shards' names there: disjoint, together all, about equal."""

    number: int = 1
    parts: int = 1

    def __contains__(self, shard: PlannedShard) -> bool:
        return int(_md5([shard.name.encode()]), 16) % self.parts == self.number - 1


def parse_part(text: str) -> Part:
    """Parse a part written i/n.

    Raises:
        UsageError: the text has another form, or i is outside 1…n.
    """
    found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    number, parts = map(int, found.groups()) if found else (0, 0)
    if not 1 <= number <= parts:
        raise UsageError(f"part: give i/n, as 1/100 for the first of a hundred parts, not {text!r}")
    return Part(number, parts)


def read_plan(level: Level, split: Split, source: UrlTemplates = OFFICIAL_URLS) -> list[PlannedShard]:
    """Return the shards of a split, sorted by their local names.

    Raises:
        TransferError: the plan cannot be downloaded, or is invalid.
    """
    url = source.plan.format(level=level, split=split)
    content = remote_files.read(url)
    try:
        shards = [_planned(name, md5, split) for name, md5 in json.loads(content)["files"].items()]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise TransferError(f"{url}: is not a plan of {split} shards with their MD5s ({error}); report it") from error
    return sorted(shards, key=lambda shard: shard.file)


def _planned(name: str, md5: str, split: str) -> PlannedShard:
    pair = name.removeprefix(split).removesuffix(".tfrecord")
    if name != f"{split}{pair}.tfrecord" or pair not in _NUMBERS or not _MD5.fullmatch(md5):
        raise ValueError(f"{name!r:.60} with {md5!r:.60}")
    return PlannedShard(name, f"{split}{_NUMBERS[pair]:04}.tfrecord", md5)


def download(
    out: Path,
    level: Level,
    split: Split,
    part: Part,
    *,
    mirror: Mirror,
    progress: Progress,
    source: UrlTemplates = OFFICIAL_URLS,
) -> list[Path]:
    """Download the missing shards of a part of a split, and verify the existing ones.

    Args:
        out: folder of the shards.
        level: of frames, or one vector a video.
        split: which of the data.
        part: of the split.
        mirror: nearest to here.
        progress: displays the bytes.
        source: URL templates of plans and shards.

    Returns:
        The shards of the part, sorted.

    Raises:
        TransferError: a shard cannot be downloaded, or has a wrong MD5 twice.
        UsageError: the folder cannot be written, has no room, holds other shards of these names, or another process
            works in it.
    """
    shards = [shard for shard in read_plan(level, split, source) if shard in part]
    if not shards:
        raise UsageError(f"part: {part.number}/{part.parts} of {split} has no shards; give fewer parts")
    make_folder(out)
    with locked(out):
        missing = _missing(out, shards, progress)
        urls = [source.shard.format(mirror=mirror, level=level, split=split, name=shard.name) for shard in missing]
        remote = _side_by_side([partial(remote_files.stat, url) for url in urls])
        _check_room(out, missing, remote)
        with progress.task(f"fetch {counted(len(missing), 'shard')}", sum(f.size for f in remote), "bytes") as task:
            stop, lock = Event(), Lock()

            def advance(size: int) -> None:
                if stop.is_set():
                    raise _StoppedError
                with lock:
                    task.advance(size)

            jobs = [partial(_fetch, out, *each, advance) for each in zip(missing, remote, strict=True)]
            _side_by_side(jobs, stop)
    return [out / shard.file for shard in shards]


def _missing(out: Path, shards: Sequence[PlannedShard], progress: Progress) -> list[PlannedShard]:
    """Return the missing shards; an existing file with another MD5 is an error, as it may be the only copy."""
    here = [shard for shard in shards if (out / shard.file).exists()]
    sums = _side_by_side([partial(_md5, _pieces(out / shard.file)) for shard in here])
    if others := [str(out / shard.file) for shard, md5 in zip(here, sums, strict=True) if md5 != shard.md5]:
        what = "damaged, or of another --level" if len(others) == 1 else f"as have {len(others) - 1} more"
        raise UsageError(
            f"{others[0]}: exists, but its MD5 is not the plan's, {what}; remove such shards to download them "
            "again, or choose another --out"
        )
    if here:
        progress.say(f"  {counted(len(here), 'shard')} of {len(shards)} exist already, with the plan's MD5s")
    return [shard for shard in shards if shard not in here]


def _check_room(out: Path, shards: Sequence[PlannedShard], remote: Sequence[RemoteFile]) -> None:
    begun = sum((out / shard.unfinished).stat().st_size for shard in shards if (out / shard.unfinished).exists())
    needed, free = sum(file.size for file in remote) - begun, free_bytes(out)
    if needed > free:
        room = f"{megabytes(needed)} have to be downloaded, but only {megabytes(free)} are free"
        raise UsageError(f"{out}: {room}; make room, choose an --out on another disk, or fetch a smaller --part")


def _fetch(out: Path, shard: PlannedShard, remote: RemoteFile, advance: Callable[[int], None]) -> None:
    """Download a shard and give it its final name; try twice, as the leftover of a killed run may be damaged."""
    target = out / shard.unfinished
    for _ in range(2):
        remote_files.download(remote.url, target, remote.size, version=remote.version, advance=advance)
        try:
            if _md5(_pieces(target)) == shard.md5:
                target.replace(out / shard.file)
                return
            target.unlink()
        except OSError as error:
            raise UsageError(f"{out / shard.file}: cannot be written ({error.strerror or error})") from error
        advance(-remote.size)
    what = f"was downloaded twice with another MD5 than the plan's, {shard.md5}"
    raise TransferError(f"{remote.url}: {what}, and is not kept as {shard.file}; try another --mirror, or later")


def _side_by_side(jobs: Sequence[Callable[[], _T]], stop: Event | None = None) -> list[_T]:
    """Run jobs in parallel and return their results in order; after a failure or signal no more jobs start."""
    with ThreadPoolExecutor(CONCURRENT_DOWNLOADS) as pool:
        futures = [pool.submit(job) for job in jobs]
        try:
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
            for future in done:
                future.result()
            return [future.result() for future in futures]
        except BaseException:
            if stop is not None:
                stop.set()
            pool.shutdown(cancel_futures=True)
            raise


def _pieces(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            while piece := file.read(1 << 20):
                yield piece
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror or error})") from error


def _md5(pieces: Iterable[bytes]) -> str:
    found = hashlib.md5(usedforsecurity=False)  # the plan knows no other
    for piece in pieces:
        found.update(piece)
    return found.hexdigest()
