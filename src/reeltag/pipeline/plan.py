"""Turn a recipe into its stages, in order.

Stages pass a model on as a `.reeltag` file, so the output of every stage can be inspected and evaluated like the
final artifact.
"""

from __future__ import annotations

from collections.abc import Sequence

from reeltag.core.errors import TransferError, UsageError
from reeltag.pipeline.executor import Stage
from reeltag.pipeline.stages.check import check_recipe
from reeltag.pipeline.stages.data import data_stages, with_imported, with_videos
from reeltag.pipeline.stages.ensemble import ensemble_stages
from reeltag.pipeline.stages.member import MemberStages
from reeltag.pipeline.stages.results import result_stages
from reeltag.pipeline.stages.students import DistillationStages
from reeltag.pipeline.stages.trained_model import decision_stages, recipe_model
from reeltag.recipe.schema import Recipe


def plan(recipe: Recipe, *, without_data: bool = False) -> list[Stage]:
    """Return the stages of a recipe, each after its inputs.

    Args:
        recipe: the recipe.
        without_data: allow missing shards; such a plan can be displayed, but not run.

    Raises:
        ArtifactError: as `check_recipe`.
        BudgetError: as `check_recipe`.
        UsageError: a file is missing, or does not fit the recipe.
    """
    recipe = with_videos(recipe)
    stages = data_stages(recipe, without_data)
    recipe = with_imported(recipe)
    checked = check_recipe(recipe, without_data=without_data)
    models = [recipe_model(recipe, name) for name in recipe.models]
    distilled = DistillationStages(recipe, recipe.distillation) if recipe.distillation else None
    members: list[MemberStages] = [*models, *checked.imported, *(distilled.students if distilled else ())]
    stages += [start.stage() for start in checked.starts]
    for member in (*models, *checked.imported):
        stages += member.stages()
    stages += distilled.stages if distilled else []
    stages += ensemble_stages(recipe, members, distilled.keepers if distilled else [], checked.beside)
    stages += result_stages(recipe, members, distilled.selections if distilled else {})
    return in_order([*stages, *decision_stages(recipe)])


def plan_without_test(recipe: Recipe) -> list[Stage]:
    """Return the stages of a recipe without looking for its test shards, which no training reads.

    The stages up to trained models and their predictions of the hold-out are those of `plan`; the others cannot be run.

    Raises:
        ReeltagError: as `plan`.
    """
    return plan(recipe.model_copy(update={"data": recipe.data.model_copy(update={"test": ()})}))


def missing_data(recipe: Recipe) -> str:
    """Return the reason why a run of the recipe would not find its data; empty if it would."""
    try:
        data_stages(recipe, without_data=False)
    except (TransferError, UsageError) as error:
        return str(error)
    return ""


def in_order(stages: Sequence[Stage]) -> list[Stage]:
    """Order stages so that each comes after its inputs; otherwise they keep their order."""
    by_name, ordered = {stage.name: stage for stage in stages}, dict[str, Stage]()

    def add(stage: Stage) -> None:
        for name in stage.inputs:
            if name not in ordered:
                add(by_name[name])
        ordered.setdefault(stage.name, stage)

    for stage in stages:
        add(stage)
    return list(ordered.values())
