"""The artifact: an ensemble in one safetensors file with a JSON header. Opening a file runs no code from it.

Tensors are named `MEMBER/NAME`. A quantized tensor is stored as several: its codes under that name, and the values of
the codes under `MEMBER/NAME#codebook` or similar. The PCA of a feature is stored as `#pca/FEATURE.mean` and so on,
thresholds and calibration as `#thresholds/values` and so on. The module `core.tensorfile` adds and verifies checksums,
and stores arrays of codes in fewer bytes, without loss.
"""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import Tensor

from reeltag.artifact import shipped
from reeltag.artifact.budget import explain_over_budget
from reeltag.artifact.hub_download import SHARED_FILE, download_from_hub, is_hub_name
from reeltag.artifact.quantization.encodings import QuantizedTensor, State, assemble, shape_of
from reeltag.artifact.quantization.quantize import dequantize_state, quantize_state
from reeltag.artifact.quantization.sizes import Encoding
from reeltag.artifact.tagging_rule import Calibration, Thresholds, arrays_of
from reeltag.core import tensorfile
from reeltag.core.download_cache import fetch
from reeltag.core.errors import ArtifactError, BudgetError, UsageError
from reeltag.core.remote_files import is_url
from reeltag.core.storage import atomic_path
from reeltag.core.tensorfile import TensorFile, meta_tensor, read_tensor
from reeltag.core.validation import describe_fault, sum_fault
from reeltag.data.pca import ARRAYS, Projection
from reeltag.data.schema import Schema
from reeltag.models.config import TaggerConfig
from reeltag.models.families import AnyTaggerConfig
from reeltag.models.tagger import Tagger, meta_tagger

FORMAT = 3  # format 2 had no entropy coding
_PCA = "#pca"  # never a member's name: those contain no #
_RULES = (Thresholds, Calibration)  # stored as `#thresholds/…` and `#calibration/…`
_Rule = TypeVar("_Rule", Thresholds, Calibration)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Member:
    """One model of the ensemble.

    Attributes:
        name: as in the recipe.
        config: its architecture.
        weight: its weight in the ensemble's mean.
        state: its parameters, quantized or not.
    """

    name: str
    config: TaggerConfig
    weight: float
    state: State

    def build(self, schema: Schema, weights: Callable[[State], Mapping[str, Tensor]] = dequantize_state) -> Tagger:
        """Build the model in evaluation mode.

        Args:
            schema: of the data that the model reads.
            weights: converts the stored state to the tensors that the model computes with; by default float32.

        Raises:
            ArtifactError: the weights do not fit the architecture.
        """
        return load_tagger(self.config, schema, weights(self.state), self.name)


@dataclass(frozen=True)
class Artifact:
    """Content of a `.reeltag` file.

    Attributes:
        schema: of the data that the members read.
        label_names: [C] names of the classes, or None.
        members: the models and their weights in the ensemble.
        provenance: recipe hash, versions, metrics; JSON.
        projections: by feature, the PCA that is applied to its extractor's output; the schema holds their hashes.
        thresholds: of the classes, or None; they are of this model's probabilities alone.
        calibration: of its probabilities, or None; likewise.
    """

    schema: Schema
    label_names: tuple[str, ...] | None
    members: tuple[Member, ...]
    provenance: Mapping[str, Any]
    projections: Mapping[str, Projection] = field(default_factory=dict)
    thresholds: Thresholds | None = None
    calibration: Calibration | None = None

    @property
    def rules(self) -> list[Thresholds | Calibration]:
        """Thresholds and calibration, as far as there are any."""
        return [rule for rule in (self.thresholds, self.calibration) if rule is not None]


class _MemberHeader(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str = Field(pattern=r"^[^/#]+$")
    config: AnyTaggerConfig
    weight: float = Field(ge=0, le=1)


class _Header(BaseModel):
    model_config = ConfigDict(extra="forbid")

    format: Literal[2, 3]
    data: Schema
    label_names: tuple[str, ...] | None
    members: tuple[_MemberHeader, ...] = Field(min_length=1)
    provenance: dict[str, Any]
    thresholds: dict[str, Any] | None = None
    calibration: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _consistent(self) -> _Header:
        if self.label_names is not None and len(self.label_names) != self.data.classes:
            raise ValueError(f"{len(self.label_names)} label names for {self.data.classes} classes")
        if sum_fault(member.weight for member in self.members):
            raise ValueError("the members' weights do not sum to 1")
        if len({member.name for member in self.members}) < len(self.members):
            raise ValueError("two members have the same name")
        return self


HEADERS = (_MemberHeader, _Header)  # pydantic models that are rebuilt when a family is registered


def save_artifact(path: Path, artifact: Artifact, budget: int | None = None) -> int:
    """Write an artifact atomically.

    Args:
        path: of the new file; an existing one is replaced.
        artifact: its content.
        budget: largest allowed size in bytes.

    Returns:
        Size of the file in bytes.

    Raises:
        BudgetError: the file would exceed the budget; the message says by how much and which members would fit.
        UsageError: a member has no weights, as in `Predictor.artifact`.
    """
    if empty := [member.name for member in artifact.members if not member.state]:
        raise UsageError(f"{path}: {', '.join(empty)} has no weights; save what `load_artifact` returned")
    tensors: dict[str, Tensor] = {}
    for member in artifact.members:
        tensors |= {f"{member.name}/{name}": tensor for name, tensor in _stored_tensors(member.state).items()}
    for feature, projection in artifact.projections.items():
        tensors |= {f"{_PCA}/{feature}.{name}": torch.from_numpy(getattr(projection, name)) for name in ARRAYS}
    for rule in artifact.rules:
        tensors |= {f"#{rule.KEY}/{name}": torch.from_numpy(getattr(rule, name)) for name in arrays_of(type(rule))}
    with atomic_path(path) as temporary:
        tensorfile.save_tensors(temporary, tensors, artifact_header(artifact), compress=True)
        size = temporary.stat().st_size
        if budget is not None and size > budget:
            sizes = stored_bytes(temporary)
            overhead = size - sum(sizes.values())
            by_weight = sorted(artifact.members, key=lambda member: -member.weight)
            raise BudgetError(explain_over_budget(size, budget, overhead, sizes, [member.name for member in by_weight]))
    return size


def artifact_header(artifact: Artifact) -> dict[str, Any]:
    """Return everything but the tensors, as JSON."""
    return {
        "format": FORMAT,
        "data": artifact.schema.model_dump(mode="json"),
        "label_names": artifact.label_names,
        "members": [
            {"name": member.name, "config": member.config.model_dump(), "weight": member.weight}
            for member in artifact.members
        ],
        "provenance": dict(artifact.provenance),
        **{rule.KEY: dict(rule.about) for rule in artifact.rules},
    }


def load_artifact(path: Path) -> Artifact:
    """Read a file that `save_artifact` wrote. Nothing in it is executed.

    Raises:
        ArtifactError: the file is missing, damaged, altered, or from a newer reeltag.
    """
    head, members = stream_artifact(path)
    return replace(head, members=tuple(members))


def stream_artifact(path: Path) -> tuple[Artifact, Iterator[Member]]:
    """Read a file member by member, so that all weights need not be in memory together.

    Returns:
        The artifact without weights, and an iterator over its members with their weights.

    Raises:
        ArtifactError: the file is missing, damaged, altered, or from a newer reeltag; raised by the iterator too.
    """
    file = TensorFile(path)
    content = file.content
    if "format" not in content:
        raise ArtifactError(f"{path}: is a reeltag file but not a model; give the path of a .reeltag file")
    try:
        schema = Schema.model_validate(content.get("data"))
        parsed = _Header.model_validate(content, context={"widths": schema.widths})
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {describe_fault(fault)}" for fault in error.errors())
        raise ArtifactError(f"{path}: needs another version of reeltag ({faults})") from error
    plain = tuple(Member(member.name, member.config, member.weight, {}) for member in parsed.members)
    beside = [_PCA, *(f"#{kind.KEY}" for kind in _RULES if content.get(kind.KEY) is not None)]
    stored: dict[str, list[str]] = {name: [] for name in [*beside, *(member.name for member in plain)]}
    for name in file.names:
        member, slash, rest = name.partition("/")
        if not slash or member not in stored:
            raise ArtifactError(f"{path}: tensor {name!r} belongs to no member; copy the file again")
        stored[member].append(rest)
    members = (replace(member, state=_read_state(file, member, parsed.data, stored[member.name])) for member in plain)
    projections = _read_projections(file, parsed.data, stored[_PCA])
    thresholds = _read_rule(file, Thresholds, parsed.thresholds, stored, schema.classes)
    calibration = _read_rule(file, Calibration, parsed.calibration, stored, schema.classes)
    head = Artifact(parsed.data, parsed.label_names, plain, parsed.provenance, projections, thresholds, calibration)
    return head, members


def _read_rule(
    file: TensorFile, kind: type[_Rule], about: Mapping[str, Any] | None, stored: Mapping[str, list[str]], classes: int
) -> _Rule | None:
    """Read thresholds or a calibration of so many classes; None if the header has none."""
    if about is None:
        return None
    place, types = f"#{kind.KEY}", arrays_of(kind)
    found = {name: (file.dtype(f"{place}/{name}"), file.shape(f"{place}/{name}")) for name in stored[place]}
    if found != {name: (dtype, (classes,)) for name, dtype in types.items()}:
        raise ArtifactError(f"{file.path}: its {kind.KEY} are not those of {classes} classes; copy the file again")
    rule = kind(**{name: file.read(f"{place}/{name}").copy() for name in types}, about=about)
    if fault := rule.fault():
        raise ArtifactError(f"{file.path}: its {kind.KEY} cannot be right, {fault}; choose them again")
    return rule


def _read_projections(file: TensorFile, schema: Schema, names: Sequence[str]) -> dict[str, Projection]:
    path = file.path
    origins = {feature.name: feature.extractor for feature in schema.features if feature.extractor}
    features = sorted({name.rpartition(".")[0] for name in names})
    if sorted(names) != sorted(f"{feature}.{array}" for feature in features for array in ARRAYS):
        raise ArtifactError(f"{path}: holds an incomplete PCA, {', '.join(sorted(names))}; copy the file again")

    if coded := [name for name in names if file.is_coded(f"{_PCA}/{name}")]:
        raise ArtifactError(f"{path}: its PCA, {', '.join(coded)}, is not in float32; copy the file again")
    projections = {
        name: Projection(*(read_tensor(file, f"{_PCA}/{name}.{array}").numpy() for array in ARRAYS))
        for name in features
    }
    for name, projection in projections.items():
        if name not in origins or projection.hash != origins[name].projection:
            raise ArtifactError(
                f"{path}: its PCA of {name!r} is not the one that its schema names; copy the file again"
            )
    return projections


def _read_state(file: TensorFile, member: Member, schema: Schema, names: Sequence[str]) -> State:
    path = file.path
    _refuse_misfit(path, member, schema, _state(_described(file, member, names), path))
    stored = {name: read_tensor(file, f"{member.name}/{name}") for name in names}
    for name, tensor in stored.items():
        if tensor.is_floating_point() and not tensorfile.all_finite(tensor):
            raise ArtifactError(f"{path}: tensor {member.name}/{name} is not finite; take another copy of the model")
    return _state(stored, path)


def _described(file: TensorFile, member: Member, names: Sequence[str]) -> dict[str, Tensor]:
    """Return a member's tensors as the header has them, without memory; only shapes of tensors are read."""
    paths = {name: f"{member.name}/{name}" for name in names}
    return {
        name: (read_tensor if name.endswith("#shape") and not file.is_coded(stored) else meta_tensor)(file, stored)
        for name, stored in paths.items()
    }


def _refuse_misfit(path: Path, member: Member, schema: Schema, state: State) -> None:
    """Refuse tensors that do not fit the architecture before they are read.

    A stored tensor is at most `tensorfile.MOST_EXPANSION` times as large as its bytes in the file, so that no header
    can make a model larger than that; and nothing is decoded that the model does not need.
    """
    shapes = {name: _shape(value) for name, value in state.items()}
    try:
        tagger = meta_tagger(member.config, schema.widths, schema.classes)
    except UsageError as error:
        raise ArtifactError(f"{path}: {error}") from error
    needed = {name: _shape(value) for name, value in tagger.state_dict().items() if value.is_floating_point()}
    for name in sorted({*needed, *shapes}):
        if shapes.get(name) != needed.get(name):
            what = f"{name} is {shapes.get(name, 'missing')} and should be {needed.get(name, 'missing')}"
            raise ArtifactError(f"{path}: the weights of {member.name!r} do not fit its architecture: {what}")


def _shape(value: Tensor | QuantizedTensor) -> tuple[int, ...]:
    return tuple(shape_of(value))


def resolve_artifact(model: str | Path) -> Path:
    """Return the local path of a model, downloading it if it is given as a URL or by its name on the Hub.

    A file or folder in the current folder takes precedence over a model of the same name.

    Args:
        model: a `.reeltag` file, a folder that `reeltag share` wrote, a URL, the name of a model that comes with
            reeltag, or user/name on the Hugging Face Hub.

    Raises:
        ArtifactError: the folder holds no model, the URL leads to no valid one, or one that comes with reeltag was
            changed.
        UsageError: the argument is none of these, or the Hub cannot be reached.
    """
    if not isinstance(model, str | Path):
        raise UsageError(f"{model!r}: is not a model; give the path of a .reeltag file, a shared folder, or a URL")
    if is_url(str(model)):
        return fetch(str(model), load_artifact)
    if shipped.is_name(model):
        return shipped.path_of(str(model))
    if model in shipped.MODELS:
        logger.warning("%s: the file or folder here is used, not the model of this name that comes with reeltag", model)
    if is_hub_name(model):
        model = download_from_hub(str(model))
    path = Path(model)
    if not path.is_dir():
        return path
    if not (path / SHARED_FILE).is_file():
        what = f"{path}: is a folder without {SHARED_FILE}"
        if (path / "model.reeltag").is_file():
            raise ArtifactError(f"{what}; did you mean {path / 'model.reeltag'}?")
        raise ArtifactError(f"{what}; give a .reeltag file, or a folder that `reeltag share` wrote")
    return path / SHARED_FILE


def quantize_artifact(artifact: Artifact, encoding: Encoding = "uniform-8") -> Artifact:
    """Quantize every large tensor of an artifact; tensors that are quantized already stay as they are.

    Raises:
        UsageError: a tensor cannot be stored in the encoding, or the encoding needs calibration videos.
    """
    members = (replace(member, state=quantize_state(member.state, encoding)) for member in artifact.members)
    return replace(artifact, members=tuple(members))


def without_rules(artifact: Artifact, name: str) -> Artifact:
    """Return a model without thresholds and calibration, with a remark: they were chosen for other probabilities.

    Args:
        artifact: the model whose probabilities change.
        name: of its file, for the remark.
    """
    if rules := [rule.KEY for rule in artifact.rules]:
        logger.warning(
            "%s: its %s hold for its own probabilities and are left out; choose them for the new file with "
            "`reeltag thresholds`",
            name,
            " and ".join(rules),
        )
    return replace(artifact, thresholds=None, calibration=None)


def average_artifacts(artifacts: Mapping[str, Artifact]) -> Artifact:
    """Average the weights of models of one architecture.

    Args:
        artifacts: with one member each, by the name to use in errors.

    Raises:
        UsageError: there are fewer than two artifacts, or they differ in architecture or data, or have several members.
    """
    if len(artifacts) < 2:
        raise UsageError("give two or more models to average")
    artifacts = {name: without_rules(artifact, name) for name, artifact in artifacts.items()}
    first, *_ = artifacts.values()
    for name, other in artifacts.items():
        if len(other.members) != 1:
            raise UsageError(f"{name}: is an ensemble of {len(other.members)} members; only single models are averaged")
        if (other.schema, other.members[0].config) != (first.schema, first.members[0].config):
            raise UsageError(f"{name}: has another architecture or other data than {next(iter(artifacts))}")
    states = [dequantize_state(other.members[0].state) for other in artifacts.values()]
    member = replace(first.members[0], state=mean_weights(states))
    return replace(first, members=(member,), provenance={"average_of": list(artifacts)})


def combine_artifacts(artifacts: Mapping[str, Artifact], weights: Sequence[float] | None = None) -> Artifact:
    """Combine models into one ensemble, the weighted mean of their probabilities.

    The members of an ensemble share its weight. A member's name that occurs again gets a number.

    Args:
        artifacts: by the name to use in errors.
        weights: of each artifact; they sum to 1. Equal by default.

    Raises:
        UsageError: there are fewer than two artifacts, they were made for other data or name other classes, or the
            weights are not one positive number for each, with the sum 1.
    """
    if len(artifacts) < 2:
        raise UsageError("give two or more models to combine")
    shares = [1 / len(artifacts)] * len(artifacts) if weights is None else list(weights)
    _check_weights(shares, len(artifacts))
    artifacts = {name: without_rules(artifact, name) for name, artifact in artifacts.items()}
    first_name, first = next(iter(artifacts.items()))
    named: tuple[str, tuple[str, ...]] | None = None
    members: list[Member] = []
    taken: set[str] = set()
    for (name, artifact), share in zip(artifacts.items(), shares, strict=True):
        ours, theirs = (each.schema.model_dump(exclude={"ids", "labels"}) for each in (first, artifact))
        if other := [key for key in ours if ours[key] != theirs[key]]:
            raise UsageError(
                f"{name}: was made for other data than {first_name}: another {', '.join(other)} in its schema "
                "(`reeltag inspect` shows them); combine models of the same data"
            )
        if artifact.label_names is not None:
            named = named or (name, artifact.label_names)
            if artifact.label_names != named[1]:
                raise UsageError(
                    f"{name}: names its classes differently than {named[0]}; combine models of the same data"
                )
        for member in artifact.members:
            unique = next(each for each in _numbered(member.name) if each not in taken)
            taken.add(unique)
            members.append(replace(member, name=unique, weight=member.weight * share / sum(shares)))
    provenance = {"combined": [{"file": name, "weight": share} for name, share in zip(artifacts, shares, strict=True)]}
    return replace(first, label_names=named and named[1], members=tuple(members), provenance=provenance)


def _check_weights(weights: Sequence[float], models: int) -> None:
    if len(weights) != models:
        raise UsageError(f"{len(weights)} weights for {models} models; give one weight for each model, in their order")
    if wrong := [f"{weight:g}" for weight in weights if not 0 < weight <= 1]:
        raise UsageError(f"weight {', '.join(wrong)}: must be above 0 and at most 1; leave out models without a weight")
    if fault := sum_fault(weights):
        raise UsageError(f"the weights {fault}")


def _numbered(name: str) -> Iterator[str]:
    yield name
    yield from (f"{name}-{number}" for number in count(2))


def load_tagger(config: TaggerConfig, schema: Schema, state: Mapping[str, Tensor], name: str) -> Tagger:
    """Build a tagger with these weights, in evaluation mode.

    Raises:
        ArtifactError: the weights do not fit the architecture.
    """
    tagger = meta_tagger(config, schema.widths, schema.classes)
    try:
        tagger.load_state_dict(dict(state), assign=True)
    except RuntimeError as error:
        raise ArtifactError(f"the weights of {name!r} do not fit its architecture: {error}") from error
    return tagger.eval()


def stored_bytes(path: Path) -> dict[str, int]:
    """Return the bytes that the tensors of each member take in a file.

    Raises:
        ArtifactError: the file is missing or damaged.
    """
    return {member: sum(sizes.values()) for member, sizes in tensor_bytes(path).items()}


def tensor_bytes(path: Path) -> dict[str, Counter[str]]:
    """Return by member and name the bytes that each tensor takes in a file, in all its parts.

    Raises:
        ArtifactError: the file is missing or damaged.
    """
    file, sizes = TensorFile(path), defaultdict[str, Counter[str]](Counter)
    for stored in file.names:
        member, _, name = stored.partition("/")
        sizes[member][name.partition("#")[0]] += file.stored_bytes(stored)
    beside = [_PCA, *(f"#{kind.KEY}" for kind in _RULES)]
    return {member: counts for member, counts in sizes.items() if member not in beside}


def decoded_bytes(state: State) -> int:
    """Return the bytes that a member's tensors take before entropy coding."""
    return sum(tensor.nbytes for tensor in _stored_tensors(state).values())


def _stored_tensors(state: State) -> dict[str, Tensor]:
    stored: dict[str, Tensor] = {}
    for name, value in state.items():
        if isinstance(value, QuantizedTensor):
            stored |= {name + (part and f"#{part}"): tensor for part, tensor in value.parts().items()}
        elif value.is_floating_point():  # batch norm's counters are not stored
            stored[name] = value
    return stored


def _state(stored: Mapping[str, Tensor], path: Path) -> State:
    parts: dict[str, dict[str, Tensor]] = {}
    for key, tensor in stored.items():
        name, _, part = key.partition("#")
        parts.setdefault(name, {})[part] = tensor
    return {name: _value(name, each, path) for name, each in parts.items()}


def _value(name: str, parts: Mapping[str, Tensor], path: Path) -> Tensor | QuantizedTensor:
    value = assemble(parts)
    if value is None:
        kinds = ", ".join(f"{part or name} {tensor.dtype} {list(tensor.shape)}" for part, tensor in parts.items())
        raise ArtifactError(f"{path}: tensor {name!r} is stored as {kinds}, which this reeltag does not know")
    return value


def mean_weights(states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Average several checkpoints of one architecture, including batch-norm statistics."""
    return {name: torch.stack([state[name].double() for state in states]).mean(0).float() for name in states[0]}
