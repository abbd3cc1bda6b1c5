"""The choice of the fastest way to compute each member of a model whose cost in GAP is small."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError

from reeltag.artifact.file import Member, stored_bytes, stream_artifact
from reeltag.core.download_cache import cache_folder
from reeltag.core.environment import available_cpus, cpu_flags, cpuinfo_value, install_command
from reeltag.core.errors import UsageError
from reeltag.core.storage import content_hash, write_json_once
from reeltag.core.tensorfile import TensorFile
from reeltag.core.version import __version__
from reeltag.inference.engines.measure import Measured, measure
from reeltag.inference.engines.ways import Way, candidates, onnx_is_installed
from reeltag.models.tagger import meta_tagger

LARGEST_COST = 0.0005  # of GAP@20
SAME_TIME = 1.02  # of ways that are at most so much slower than the fastest, the most exact one is chosen
SMALL = 2_000_000  # weights; a smaller model takes less time than the engines take to start
TIMED = 128  # videos; what is fastest for a batch of so many is fastest for larger ones
FOLDER = "engines"
ASKED_FOR = "the mode that was asked for"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Choice:
    """Ways in which the members of a model are computed, and why.

    Attributes:
        ways: engine and mode of each member, by name.
        why: the reason.
        measured: the measurements that decided; of each architecture and encoding one member was measured.
    """

    ways: Mapping[str, Way] = field(hash=False)
    why: str
    measured: tuple[Measured, ...] = ()

    def dump(self) -> dict[str, Any]:
        """Return the choice as JSON."""
        return asdict(self)

    def __str__(self) -> str:
        by_way: dict[str, list[str]] = {}
        for name, way in self.ways.items():
            by_way.setdefault(way, []).append(name)
        return "; ".join(f"{way}: {', '.join(names)}" for way, names in by_way.items())


@dataclass(frozen=True)
class Circumstances:
    """Everything beside the model that the fastest way depends on.

    Attributes:
        processor: its name.
        features: hash of its instruction sets.
        limits: variables that keep libraries from using some of these.
        cpus: number of CPUs.
        threads: number of torch's threads.
        videos: number of videos of a call.
        versions: of reeltag and the engines; None for one that is not installed.
    """

    processor: str
    features: str
    limits: Mapping[str, str | None] = field(hash=False)
    cpus: int
    threads: int
    videos: int
    versions: Mapping[str, str | None] = field(hash=False)


@dataclass(frozen=True)
class KeptChoice:
    """A choice as it is kept in the cache folder.

    Attributes:
        model: name of the file.
        circumstances: those in which it was measured.
        choice: what was chosen.
    """

    model: str
    circumstances: Circumstances
    choice: Choice


_KEPT, _CHOICE = TypeAdapter(KeptChoice), TypeAdapter(Choice)


def choose(file: Path, device: str, videos: int) -> Choice:
    """Choose how to compute a model on this machine: as kept in the cache folder, or by measuring now.

    On CPUs the members of each architecture and encoding are computed in the fastest way that costs at most 0.0005 of
    GAP.
    The number of threads is torch's.

    Args:
        file: the `.reeltag` file.
        device: that computes.
        videos: that are usually tagged at once.

    Raises:
        ArtifactError: the file is missing or damaged.
    """
    head, _ = stream_artifact(file)
    members = [member for member in head.members if member.weight > 0]
    if device != "cpu":
        return everywhere("exact", members, "a GPU computes")
    taggers = (meta_tagger(member.config, head.schema.widths, head.schema.classes) for member in members)
    if sum(weight.numel() for tagger in taggers for weight in tagger.parameters()) < SMALL:
        return everywhere("exact", members, f"the model has fewer than {SMALL:,} weights")
    videos, digest = min(videos, TIMED), TensorFile(file).digest[:16]
    circumstances = _circumstances(videos)
    path = cache_folder() / FOLDER / f"{digest}-{content_hash(asdict(circumstances))[:16]}.json"
    existed = path.exists()  # asked first, since another process may write it now
    kept = _read(path, members)
    if kept is not None:
        return kept
    if existed:
        logger.warning("%s: the kept choice of engines is damaged; measuring again", path)
        with suppress(OSError):  # what cannot be written is remarked on below
            path.unlink()
    else:
        _remark_change(path, digest, circumstances)
    chosen = _measured(file, videos)
    _keep(path, KeptChoice(file.name, circumstances, chosen))
    return _read(path, members) or chosen  # the first, where several processes measured at the same time


def everywhere(way: Way, members: Iterable[Member], why: str) -> Choice:
    """Return the choice of one way for all members that have a weight in the mean."""
    return Choice({member.name: way for member in members if member.weight > 0}, why)


def parse_choice(content: object) -> Choice | None:
    """Restore a choice from what `Choice.dump` returned; None if it is none that this version knows."""
    try:
        return _CHOICE.validate_python(content)
    except ValidationError:
        return None


def kept_choices() -> dict[Path, KeptChoice | None]:
    """Return the choices in the cache folder by file; None for a file that cannot be read."""
    return {path: _parsed(path) for path in sorted((cache_folder() / FOLDER).glob("*.json"))}


def forget_choices() -> None:
    """Remove all choices from the cache folder, so that the next use of each model measures again.

    Raises:
        UsageError: the operating system refuses it.
    """
    for path in kept_choices():
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise UsageError(f"{path}: cannot be removed ({error.strerror or error})") from error


def _measured(file: Path, videos: int) -> Choice:
    """Measure the largest member of each architecture and encoding, and choose for all that are like it."""
    head, members = stream_artifact(file)
    if not onnx_is_installed():
        logger.warning("onnxruntime is often faster and not installed; %s", install_command("onnx"))
    sizes = stored_bytes(file)
    kinds = _kinds(file, head.members)
    largest = {kinds[name]: name for name in sorted(kinds, key=sizes.__getitem__)}
    measured: list[Measured] = []
    for member in members:
        if member.name in largest.values():
            measured += measure(member, head.schema, candidates(member), videos)
    best = {kind: fastest([row for row in measured if row.member == name]) for kind, name in largest.items()}
    ways = {name: best[kinds[name]] for name in sorted(kinds)}
    return Choice(ways, f"the fastest that costs at most {LARGEST_COST} GAP, as measured", tuple(measured))


def _kinds(file: Path, members: Iterable[Member]) -> dict[str, tuple[str, ...]]:
    """Return by name the architecture without sizes of each member in use, and the parts its weights are stored in."""
    parts: dict[str, set[str]] = {}
    for stored in TensorFile(file).names:
        name, _, tensor = stored.partition("/")
        parts.setdefault(name, set()).add(tensor.partition("#")[2])
    words = {each.name: filter(_is_word, each.config.architecture().values()) for each in members if each.weight > 0}
    return {name: (*each, *sorted(parts[name])) for name, each in words.items()}


def _is_word(value: object) -> bool:
    return isinstance(value, str)


def fastest(rows: Sequence[Measured]) -> Way:
    """Return the fastest way with a small cost; of ways that are about as fast, the most exact one."""
    allowed = [row for row in rows if row.gap_cost <= LARGEST_COST]
    limit = SAME_TIME * min(row.milliseconds for row in allowed)
    return min((row for row in allowed if row.milliseconds <= limit), key=lambda row: abs(row.gap_cost)).way


def _circumstances(videos: int) -> Circumstances:
    """Return those of this process."""
    return Circumstances(
        processor=cpuinfo_value("model name"),
        features=content_hash(sorted(cpu_flags() or ()))[:16],
        limits={name: os.environ.get(name) for name in ("ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY")},
        cpus=available_cpus(),
        threads=torch.get_num_threads(),
        videos=videos,
        versions={"reeltag": __version__} | {name: _version(name) for name in ("torch", "onnx", "onnxruntime")},
    )


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _read(path: Path, members: Sequence[Member]) -> Choice | None:
    """Return a kept choice for these members; None if there is none, or if it is damaged."""
    kept = _parsed(path)
    fits = kept is not None and set(kept.choice.ways) == {member.name for member in members}
    return kept.choice if kept is not None and fits else None


def _parsed(path: Path) -> KeptChoice | None:
    try:
        return _KEPT.validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None


def _remark_change(path: Path, digest: str, circumstances: Circumstances) -> None:
    """Remark once where the same model was measured before, on another processor or with other versions."""
    now = asdict(circumstances)
    for other in sorted(path.parent.glob(f"{digest}-*.json")):
        kept = _parsed(other)
        before = {} if kept is None else asdict(kept.circumstances)
        if all(before.get(key) == now[key] for key in ("videos", "threads", "cpus")):
            what = " and ".join(key for key, value in now.items() if before[key] != value)
            logger.warning("%s changed since engines were chosen for this model; measuring again", what)
            return


def _keep(path: Path, kept: KeptChoice) -> None:
    """Write a choice to the cache folder unless there is one; where that is impossible, one remark says so."""
    try:
        write_json_once(path, asdict(kept))
    except UsageError as error:
        logger.warning(
            "the choice of engines is not kept, so every start measures again (%s); set REELTAG_CACHE to a writable "
            "folder",
            error,
        )
