"""From a recipe to its stages, in order. A model on its way through them is always a `.reeltag` file.

So every stage's output can be inspected and evaluated like the file that is shipped in the end.
"""

from __future__ import annotations

from reeltag.artifact.file import explain_over_budget
from reeltag.core.errors import BudgetError
from reeltag.pipeline.executor import Stage
from reeltag.pipeline.stages.candidate import candidate
from reeltag.pipeline.stages.data import data_stages, with_videos
from reeltag.pipeline.stages.ensemble import beside_members, ensemble_stages, room
from reeltag.pipeline.stages.imported import ImportedStages
from reeltag.pipeline.stages.member import MemberStages
from reeltag.pipeline.stages.results import result_stages
from reeltag.pipeline.stages.students import Distillation
from reeltag.recipe.schema import Recipe


def plan(recipe: Recipe, *, without_data: bool = False) -> list[Stage]:
    """The stages of a recipe, each after its inputs.

    Args:
        recipe: the recipe.
        without_data: shards may be missing; such a plan can be looked at, but not run.

    Raises:
        BudgetError: not even the smallest member fits the budget.
        UsageError: a file is missing.
    """
    recipe = with_videos(recipe)
    candidates = [candidate(recipe, name) for name in recipe.models]
    imported = [ImportedStages(recipe, name) for name in recipe.imported]
    distilled = Distillation(recipe, recipe.distillation) if recipe.distillation else None
    members: list[MemberStages] = [*candidates, *imported, *(distilled.students if distilled else ())]
    stages = data_stages(recipe, without_data)
    beside = beside_members(recipe, without_data)
    _check_budget(recipe, members, room(recipe, beside))
    for member in (*candidates, *imported):
        stages += member.stages()
    stages += distilled.stages if distilled else []
    stages += ensemble_stages(recipe, members, distilled.keepers if distilled else [], beside)
    return stages + result_stages(recipe, members)


def _check_budget(recipe: Recipe, members: list[MemberStages], left: int) -> None:
    """Refuse a budget that nothing can meet before any data is opened; `left` of it is for members."""
    encodings = recipe.quantization.offered
    sizes = {member.name: min(min(member.sizes(encoding)) for encoding in encodings) for member in members}
    smallest = min(sizes.values())
    if smallest > left:
        header = recipe.budget - left
        raise BudgetError(explain_over_budget(header + smallest, recipe.budget, header, sizes, list(sizes)))
