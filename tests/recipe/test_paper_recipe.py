"""The recipe of the paper: what it publishes, read from its tables and from the authors' settings."""

import math

import pytest

from reeltag.artifact.quantization.sizes import tagger_bytes
from reeltag.models.shapes import tagger_shapes
from reeltag.pipeline.plan import plan
from reeltag.recipe.load import load_recipe

# Table 4: megabytes, and weight in the final ensemble.
TABLE_4 = {
    "RNN1": (54, 0.0063),
    "RNN2": (19, 0.0442),
    "RNN3": (19, 0.1244),
    "FVNet1": (369, 0.202),
    "DBoF1": (59, 0.0956),
    "DBoF2": (37, 0.1088),
    "DBoF3": (33, 0.0951),
    "NetVLAD1": (242, 0.1685),
    "NetVLAD2": (220, 0.1551),
}


def size(recipe, model):
    schema = recipe.data.record_schema
    return tagger_bytes(tagger_shapes(model.config, schema.widths, schema.classes), "uniform-8") / 1e6


@pytest.fixture(scope="module")
def recipe():
    return load_recipe("yt8m-2018")


@pytest.mark.parametrize(("name", "table"), [("yt8m-2018", "students"), ("yt8m-nine-smoke", "models")])
def test_the_file_holds_the_members_of_table_4_with_their_weights(name, table):
    loaded = load_recipe(name)
    models = getattr(loaded, table)
    assert loaded.ensemble.weights == {member: weight for member, (_, weight) in TABLE_4.items()}
    sizes = {member: size(loaded, models[member]) for member in TABLE_4}
    for member, (published, _) in TABLE_4.items():
        assert abs(sizes[member] - published) <= max(0.5, 0.01 * published), member
    assert sum(sizes.values()) == pytest.approx(1053, abs=10)


def test_fifteen_students_of_which_two_have_a_teacher_of_another_family(recipe):
    assert len(recipe.students) == 15
    crossed = [name for name, student in recipe.students.items() if student.taught_by != (student.config.family,)]
    assert len(crossed) == 2
    second = [name for name, student in recipe.students.items() if student.level == 2]
    assert second == ["NetVLAD1", "NetVLAD2"]
    stages = {stage.name: stage for stage in plan(recipe, without_data=True)}
    taught_by = [name for name in stages["targets.netvlad-students"].inputs if name.startswith("weights.")]
    assert len(taught_by) == 6
    assert "3 of 6" in stages["select.netvlad"].note


def test_every_student_has_a_model_of_its_architecture_on_labels_alone(recipe):
    models = [model.config for model in recipe.models.values()]
    assert all(student.config in models for student in recipe.students.values())


def test_trainings_are_the_published_ones(recipe):
    def trained(name):
        settings = recipe.training_with(recipe.students[name].training)
        return settings.batch_size, settings.learning_rate, settings.epochs

    assert {trained("RNN2"), trained("RNN3")} == {(256, 8e-5, 2), (256, 2e-4, 20)}
    assert all(trained(name) == (80, 2e-4, 10) for name in ("FVNet1", "DBoF1", "DBoF2", "DBoF3"))
    assert all(trained(name) == (160, 2e-4, 10) for name in ("NetVLAD1", "NetVLAD2"))
    training = recipe.training
    assert (training.learning_rate_decay, training.learning_rate_decay_examples) == (0.8, 4_000_000)
    assert recipe.averaging.learning_rate_divisor == 5
    assert recipe.averaging.decide == "family"
    assert (recipe.distillation.teachers, recipe.distillation.label_weight) == (3, 0.5)
    assert {model.config.head.l2 for model in recipe.models.values()} == {1e-6, 1e-8}


def test_the_hold_out_is_800_files_of_the_validation_set(recipe):
    holdout = recipe.data.holdout
    assert holdout.shards == 800
    assert set(holdout.patterns) == {pattern for pattern in recipe.data.train if pattern.startswith("validate")}
    assert math.isclose(recipe.budget_mb, 2**30 / 1e6, rel_tol=1e-3)
