"""Check what the keys of a recipe do not show: the files that it names beside its shards, and its budget.

`reeltag recipe check` runs this alone, and a plan begins with it. Nothing here imports torch, unless the recipe imports
a model or starts from one, names a PCA, or has a family from outside.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from reeltag.artifact.budget import explain_over_budget
from reeltag.artifact.quantization.sizes import Encoding, least_bytes, tagger_bytes
from reeltag.core.download_cache import fetch
from reeltag.core.errors import BudgetError, UsageError
from reeltag.core.remote_files import is_url
from reeltag.core.storage import join_path
from reeltag.data.label_table import read_labels
from reeltag.data.vocabulary import read_vocabulary
from reeltag.models.shapes import TensorShapes, tagger_shapes
from reeltag.pipeline.stages.architectures import Architecture, member_architectures, start_of
from reeltag.recipe.schema import ModelSettings, Recipe
from reeltag.training.schedule import TrainingSettings

if TYPE_CHECKING:
    from reeltag.data.pca import Projection
    from reeltag.pipeline.stages.imported_model import ImportedModelStages
    from reeltag.pipeline.stages.start import ModelStart

# The header of the artifact reserves this room for what only the artifact has, beside the names and each PCA.
HEADER_ROOM, PCA_ROOM = 1024, 1024


@dataclass(frozen=True)
class Beside:
    """Content of the artifact beside the members.

    Attributes:
        label_names: names of the classes, or None.
        projections: the PCA of each feature, by name.
        remarks: on classes without a name.
    """

    label_names: tuple[str, ...] | None
    projections: Mapping[str, Projection]
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Checked:
    """Content of the files that a recipe names beside its shards.

    Attributes:
        beside: content of the artifact beside the members.
        imported: the imported models.
        starts: the finished models that trainings go on from.
    """

    beside: Beside
    imported: tuple[ImportedModelStages, ...]
    starts: tuple[ModelStart, ...]


def check_recipe(recipe: Recipe, *, without_data: bool = False) -> Checked:
    """Check the files that a recipe names beside its shards, and its budget.

    Args:
        recipe: the recipe.
        without_data: allow a missing file of label names or of a PCA.

    Raises:
        ArtifactError: an imported model, one that a training goes on from, or the PCA is missing or damaged.
        BudgetError: even after the best entropy coding, not even the smallest member fits the budget, or not all
            members that the recipe names.
        UsageError: a file is missing, or does not fit the recipe.
    """
    imported: list[ImportedModelStages] = []
    if recipe.imported:
        from reeltag.pipeline.stages.imported_model import ImportedModelStages  # imports torch

        imported = [ImportedModelStages(recipe, name) for name in recipe.imported]
    for name, path in (recipe.distillation.predictions if recipe.distillation else {}).items():
        if not path.is_file():
            raise UsageError(f"distillation.predictions.{name}: there is no file {path}")
    beside = beside_members(recipe, without_data)
    encodings = recipe.quantization.offered
    sizes = {
        name: min(
            least_bytes((*shapes.parameters, *shapes.statistics), encoding)
            for shapes in (candidate_shapes(recipe, each) for each in architecture.candidates)
            for encoding in encodings
        )
        for name, architecture in member_architectures(recipe).items()
    }
    sizes |= {member.name: min(map(member.least_size, encodings)) for member in imported}
    left = room(recipe, beside)
    if (smallest := min(sizes.values())) > left:
        header = recipe.budget - left
        raise _over_budget(recipe, header + smallest, header, sizes)
    fixed = {name: sizes[name] for name in recipe.ensemble.fixed}
    if (together := sum(fixed.values())) > left:
        header = recipe.budget - left
        raise _over_budget(recipe, header + together, header, fixed)
    return Checked(beside, tuple(imported), _starts(recipe, beside))


def _starts(recipe: Recipe, beside: Beside) -> tuple[ModelStart, ...]:
    """Return what each training that goes on from a finished model starts from."""
    students = recipe.distillation.training if recipe.distillation else TrainingSettings()
    starts: list[ModelStart] = []
    for name, architecture in member_architectures(recipe).items():
        overrides = TrainingSettings() if name in recipe.models else students
        if (settings := start_of(recipe, architecture, overrides)) is not None:
            from reeltag.pipeline.stages.start import model_start  # imports torch

            if recipe.distillation is not None and recipe.distillation.folds:
                raise UsageError(
                    f"{name}: training.start: the file may have been trained on the videos of every fold; leave out "
                    "training.start, or distillation.folds"
                )
            names = (beside if beside.label_names else beside_members(recipe)).label_names  # also without data
            starts.append(model_start(recipe, name, architecture, settings, names))
    return tuple(starts)


def _over_budget(recipe: Recipe, size: int, header: int, sizes: Mapping[str, int]) -> BudgetError:
    """Return the error; what entropy coding saves follows from the weights, so the sizes are the least possible."""
    explained = explain_over_budget(size, recipe.budget, header, sizes, list(sizes))
    return BudgetError(f"even after the best entropy coding, {explained}")


def candidate_shapes(recipe: Recipe, candidate: ModelSettings) -> TensorShapes:
    """Return the shapes of the tensors of a model that reads the recipe's data."""
    schema = recipe.data.record_schema
    return tagger_shapes(candidate.config, schema.widths, schema.classes)


def architecture_bytes(recipe: Recipe, architecture: Architecture, encoding: Encoding) -> list[int]:
    """Return the most bytes of the tensors in an encoding, for each possible architecture of a model."""
    return [tagger_bytes(candidate_shapes(recipe, each), encoding) for each in architecture.candidates]


def beside_members(recipe: Recipe, without_data: bool = False) -> Beside:
    """Read the label names, or else those of a file of labels, and the PCA, so that a fault is reported at once.

    Raises:
        ArtifactError: the PCA is missing, unless `without_data`, or damaged.
        UsageError: a file is missing, unless `without_data`, names other classes, or has another PCA.
    """
    data = recipe.data

    def readable(name: str | None) -> bool:
        return bool(name) and not (without_data and not Path(join_path(data.root, name or "")).exists())

    projections = _projections(recipe) if readable(data.pca) else {}
    if not data.label_names and readable(data.labels):
        labels = Path(join_path(data.root, data.labels or ""))
        table = read_labels(labels, encoding=data.label_encoding, classes=data.record_schema.classes)
        return Beside(table.names, projections)
    if not readable(data.label_names):
        return Beside(None, projections)
    known = read_vocabulary(join_path(data.root, data.label_names or ""), data.record_schema.classes)
    return Beside(known.names, projections, known.remarks)


def _projections(recipe: Recipe) -> dict[str, Projection]:
    from reeltag.data.pca import read_projections  # imports torch

    location = join_path(recipe.data.root, recipe.data.pca or "")
    projections, _ = read_projections(fetch(location, read_projections) if is_url(location) else Path(location))
    features = recipe.data.record_schema.features
    named = {each.name: each.extractor.projection for each in features if each.extractor and each.extractor.projection}
    if named != {feature: projection.hash for feature, projection in projections.items()}:
        what = "is not the PCA that data.schema names for its features"
        raise UsageError(f"data.pca: {location} {what}; give the one beside the shards, with their schema")
    return projections


def room(recipe: Recipe, beside: Beside) -> int:
    """Return the bytes of the budget that are left to the members; names are stored as JSON inside a JSON string."""
    content = json.dumps(json.dumps([beside.label_names, shard_names(recipe)], ensure_ascii=False), ensure_ascii=False)
    projections = sum(projection.bytes + PCA_ROOM for projection in beside.projections.values())
    return recipe.budget - HEADER_ROOM - len(content.encode()) - projections


def shard_names(recipe: Recipe) -> list[str]:
    """Return the names of the training shards, without their folders."""
    return [Path(pattern).name for pattern in recipe.data.train]
