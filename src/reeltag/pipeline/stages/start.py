"""Stages of models that go on from a finished one: it is matched with the recipe, and becomes the initial weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from reeltag.artifact.file import Artifact, Member, resolve_artifact, save_artifact, stream_artifact
from reeltag.artifact.quantization.quantize import dequantize_state
from reeltag.artifact.quantization.sizes import tagger_bytes
from reeltag.core.errors import ArtifactError, TransferError, UsageError
from reeltag.core.storage import DataFile, file_hash, find_files, write_json
from reeltag.core.text import did_you_mean
from reeltag.data.class_match import ClassMatch, Names, match_classes
from reeltag.data.extractor_origin import describe_other_input
from reeltag.inference.evaluate import named_like_training
from reeltag.models.config import TaggerConfig
from reeltag.models.shapes import tagger_shapes
from reeltag.models.tagger import build_tagger, meta_tagger
from reeltag.pipeline.executor import Job, Stage
from reeltag.pipeline.run_folder import MARKER
from reeltag.pipeline.stages.architectures import Architecture, FixedArchitecture, model_seed, start_stage
from reeltag.pipeline.stages.files import MODEL, START
from reeltag.recipe.schema import Recipe
from reeltag.recipe.tables import leaves
from reeltag.training.schedule import StartSettings
from reeltag.training.start import take_over

HASH = "[0-9a-f]" * 12  # of a stage's folder
START_FORMAT = 1  # raise it when the same file and classes give other initial weights


@dataclass(frozen=True)
class ModelStart:
    """Finished model that the training of one of the recipe's models goes on from.

    Attributes:
        recipe: the recipe.
        name: of the recipe's model.
        architecture: of the recipe's model.
        settings: the key `start` of its training.
        file: the file on this machine.
        member: name of the model in the file.
        match: its classes and the recipe's.
        doubt: names of test shards that may have trained it; empty if none is known.
    """

    recipe: Recipe
    name: str
    architecture: Architecture
    settings: StartSettings
    file: Path
    member: str
    match: ClassMatch
    doubt: str = ""

    def stage(self) -> Stage:
        """Return the stage that writes the initial weights; it depends on the file's content, not on its path."""
        schema = self.recipe.data.record_schema
        parameters: dict[str, Any] = {
            "file": file_hash(self.file),
            "member": self.member,
            "classes": self.match.sources,
            "seed": self.recipe.seed,
        }
        if isinstance(self.architecture, FixedArchitecture):  # otherwise the hash of the selection covers it
            parameters["config"] = self.architecture.settings.config.model_dump()
        shapes = [tagger_shapes(each.config, schema.widths, schema.classes) for each in self.architecture.candidates]
        return Stage(
            name=start_stage(self.name),
            work=self._write,
            format=START_FORMAT,
            inputs=self.architecture.stages,
            parameters=parameters,
            note=str(self),
            bytes=max(tagger_bytes(each, "float32") for each in shapes),
        )

    def __str__(self) -> str:
        """Describe what is kept on one line."""
        frozen = f", frozen: {', '.join(self.settings.frozen)}" if self.settings.frozen else ""
        doubt = f"; of the test set {self.doubt}: test figures are then too good" if self.doubt else ""
        return f"{self.member} of {self.settings.file}: {self.match}{frozen}{doubt}"

    def _write(self, job: Job) -> None:
        own, schema = self.architecture.resolve(job), self.recipe.data.record_schema
        tagger = build_tagger(own.config, schema.widths, schema.classes, model_seed(self.recipe, self.name))
        _, members = stream_artifact(self.file)
        member = next(each for each in members if each.name == self.member)
        take_over(tagger, schema.widths, dequantize_state(member.state), self.match.sources)
        job.progress.say(f"  {self}; the hold-out may contain videos that it was trained on")
        provenance = {"start": {"file": self.settings.file, "member": self.member}}
        started = Member(self.name, own.config, 1.0, tagger.state_dict())
        save_artifact(job.folder / MODEL, Artifact(schema, None, (started,), provenance))
        write_json(job.folder / START, self.report())

    def report(self) -> dict[str, Any]:
        """Return what was kept, as JSON."""
        kept = {key: value for key, value in asdict(self.match).items() if key != "sources"}
        return {"file": self.settings.file, "member": self.member, "kept": self.match.kept, **kept}


def model_start(
    recipe: Recipe, name: str, architecture: Architecture, settings: StartSettings, names: Names
) -> ModelStart:
    """Read the file that a model's training goes on from, and match it with the recipe.

    Args:
        recipe: the recipe.
        name: of the recipe's model.
        architecture: of the recipe's model.
        settings: the key `start` of its training.
        names: [C] names of the recipe's classes, or None.

    Raises:
        ArtifactError: the file is missing or damaged.
        UsageError: the file has no such member, another architecture, was made for other features, or its classes
            cannot be matched.
    """
    place = f"{name}: training.start"
    try:
        file, found = _find(name, settings)
        member = _member(found, name, settings)
        _refuse_other(found, member, recipe, architecture, settings)
        schema, theirs = recipe.data.record_schema, found.schema
        match = match_classes(names, schema.classes, found.label_names, theirs.classes)
    except ArtifactError as error:
        raise ArtifactError(f"{place}: {error}") from error
    except UsageError as error:
        raise UsageError(f"{place}: {settings.file}: {error}") from error
    doubt = named_like_training(found, _test_files(recipe))
    return ModelStart(recipe, name, architecture, settings, file, member.name, match, doubt)


def _test_files(recipe: Recipe) -> list[DataFile]:
    """Return the files of the test set; none if they are generated, or not there yet."""
    try:
        return find_files(recipe.data.test, recipe.data.root)
    except (TransferError, UsageError):
        return []


def _find(name: str, settings: StartSettings) -> tuple[Path, Artifact]:
    """Return the file that `start` names, or that of a model in the folder of a run, and its content."""
    run = Path(settings.file)
    if not (run / "stages").is_dir():
        file = resolve_artifact(settings.file)
        return file, _checked(file)
    wanted = settings.member or name
    kinds = [sorted(run.glob(f"stages/{kind}.{wanted}-{HASH}/{MARKER}")) for kind in ("weights", "average", "train")]
    found = next(filter(None, kinds), [])
    if not found:
        raise UsageError(f"the run has no finished model {wanted}; name another one with start.member, or give a file")
    if len(found) > 1:
        raise UsageError(
            f"{len(found)} recipes trained {wanted} there; give a file, such as {found[-1].parent / MODEL}"
        )
    file = found[0].parent / MODEL
    content, complete = _checked(file), [run / MODEL, run / f"{wanted}.reeltag"]  # stages write no names of classes
    names = next((stream_artifact(each)[0].label_names for each in complete if each.is_file()), None)
    (member,) = content.members
    return file, replace(content, label_names=names, members=(replace(member, name=wanted),))


def _checked(file: Path) -> Artifact:
    """Check a whole file, and return its content without weights; cached, as all models may go on from one."""
    state = (file.stat().st_mtime_ns, file.stat().st_size) if file.is_file() else None
    return _checked_in_state(file, state)


@lru_cache(maxsize=8)
def _checked_in_state(file: Path, state: object) -> Artifact:
    head, members = stream_artifact(file)
    for _ in members:  # reads and checks the weights, one member at a time
        pass
    return head


def _member(found: Artifact, name: str, settings: StartSettings) -> Member:
    members: Mapping[str, Member] = {member.name: member for member in found.members}
    wanted = settings.member or (next(iter(members)) if len(members) == 1 else name)
    if wanted not in members:
        hint = did_you_mean(wanted, members)
        there = f"{hint and hint + ' '}there are {', '.join(members)}"
        how = f'training.start = {{ file = "{settings.file}", member = "NAME" }}'
        raise UsageError(
            f"has no member {wanted}; {there}; name one of the same architecture, {how}, or give a run's folder"
        )
    return members[wanted]


def _refuse_other(
    found: Artifact, member: Member, recipe: Recipe, architecture: Architecture, settings: StartSettings
) -> None:
    """Refuse a model whose weights would mean something else in the recipe's model."""
    if other := describe_other_input(found.schema, recipe.data.record_schema):
        raise UsageError(f"was made for other data than data.schema says, {other}; start from a model of such data")
    for candidate in architecture.candidates:
        if keys := _differences(member.config, candidate.config):
            raise UsageError(
                f"{member.name} has another architecture: {'; '.join(keys)}; give the recipe's model these keys, or "
                "start from another one"
            )
        whole = meta_tagger(candidate.config, recipe.data.record_schema.widths, 1)
        for part in settings.frozen:
            if (module := getattr(whole, part)) is None or not list(module.parameters()):
                raise UsageError(f"start.frozen: the model has no {part} with weights; leave it out")


def _differences(theirs: TaggerConfig, ours: TaggerConfig) -> list[str]:
    """Return the keys in which the architectures differ, with both values."""
    before, after = (dict(leaves(config.architecture())) for config in (theirs, ours))
    if before["family"] != after["family"]:
        return [f"family = {before['family']} and not {after['family']}"]
    return [f"{key} = {before.get(key)} and not {after[key]}" for key in after if before.get(key) != after[key]]
