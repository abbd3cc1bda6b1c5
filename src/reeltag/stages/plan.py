"""From a recipe to its stages, in order. A model on its way through them is always a `.reeltag` file.

So every stage's output can be inspected and evaluated like the file that is shipped in the end.
"""

from __future__ import annotations

from reeltag.artifact import over_budget
from reeltag.errors import BudgetError
from reeltag.executors import Stage
from reeltag.recipe import Recipe
from reeltag.stages.data import data_stages
from reeltag.stages.ensemble import ensemble_stages
from reeltag.stages.imported import ImportedStages
from reeltag.stages.member import MemberStages
from reeltag.stages.model import ModelStages
from reeltag.stages.results import result_stages


def plan(recipe: Recipe) -> list[Stage]:
    """The stages of a recipe, each after its inputs.

    Raises:
        BudgetError: the members' weights alone exceed the budget.
        UsageError: a file is missing.
    """
    members = _members(recipe)
    _check_budget(recipe, members)
    stages = data_stages(recipe)
    for member in members:
        stages += member.stages()
    return stages + ensemble_stages(recipe, members) + result_stages(recipe, members)


def _members(recipe: Recipe) -> list[MemberStages]:
    trained = [ModelStages(recipe, name) for name in recipe.models]
    return [*trained, *(ImportedStages(recipe, name) for name in recipe.imported)]


def finished_stage(recipe: Recipe, model: str) -> str:
    """Name of the stage that ends with a model's float file."""
    return ModelStages(recipe, model).finished


def _check_budget(recipe: Recipe, members: list[MemberStages]) -> None:
    sizes = {member.name: member.quantized_bytes for member in members}
    total = sum(sizes.values())
    if total > recipe.budget:
        raise BudgetError(over_budget(total, recipe.budget, 0, sizes, sorted(sizes, key=sizes.__getitem__)))
