"""Turn a recipe into its stages, in order.

Stages pass a model on as a `.reeltag` file, so the output of every stage can be inspected and evaluated like the
final artifact.
"""

from __future__ import annotations

from reeltag.artifact.file import explain_over_budget
from reeltag.core.errors import BudgetError
from reeltag.pipeline.executor import Stage
from reeltag.pipeline.stages.data import data_stages, with_videos
from reeltag.pipeline.stages.ensemble import beside_members, ensemble_stages, room
from reeltag.pipeline.stages.imported_model import ImportedModelStages
from reeltag.pipeline.stages.member import MemberStages
from reeltag.pipeline.stages.results import result_stages
from reeltag.pipeline.stages.students import DistillationStages
from reeltag.pipeline.stages.trained_model import recipe_model
from reeltag.recipe.schema import Recipe


def plan(recipe: Recipe, *, without_data: bool = False) -> list[Stage]:
    """Return the stages of a recipe, each after its inputs.

    Args:
        recipe: the recipe.
        without_data: allow missing shards; such a plan can be displayed, but not run.

    Raises:
        BudgetError: not even the smallest member fits the budget.
        UsageError: a file is missing.
    """
    recipe = with_videos(recipe)
    models = [recipe_model(recipe, name) for name in recipe.models]
    imported = [ImportedModelStages(recipe, name) for name in recipe.imported]
    distilled = DistillationStages(recipe, recipe.distillation) if recipe.distillation else None
    members: list[MemberStages] = [*models, *imported, *(distilled.students if distilled else ())]
    stages = data_stages(recipe, without_data)
    beside = beside_members(recipe, without_data)
    _check_budget(recipe, members, room(recipe, beside))
    for member in (*models, *imported):
        stages += member.stages()
    stages += distilled.stages if distilled else []
    stages += ensemble_stages(recipe, members, distilled.keepers if distilled else [], beside)
    return stages + result_stages(recipe, members)


def _check_budget(recipe: Recipe, members: list[MemberStages], left: int) -> None:
    """Refuse a budget that no member fits, before any data is opened; `left` bytes of the budget are for members."""
    encodings = recipe.quantization.offered
    sizes = {member.name: min(min(member.sizes(encoding)) for encoding in encodings) for member in members}
    smallest = min(sizes.values())
    if smallest > left:
        header = recipe.budget - left
        raise BudgetError(explain_over_budget(header + smallest, recipe.budget, header, sizes, list(sizes)))
