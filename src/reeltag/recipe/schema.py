"""Schema of recipes: the tables, their keys, and the rules between them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from operator import eq, not_
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    PrivateAttr,
    StringConstraints,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)

from reeltag.artifact.quantization.sizes import CALIBRATION, ENCODINGS, MAX_LOSS, Encoding
from reeltag.core.storage import content_hash
from reeltag.core.text import did_you_mean
from reeltag.core.validation import count_or, sum_fault
from reeltag.models.families import FAMILIES, AnyTaggerConfig
from reeltag.recipe.data import DataSettings, LimitSettings, RecipeTable
from reeltag.training.schedule import AveragingSettings, TrainingSettings

NAME = r"^[A-Za-z0-9][A-Za-z0-9_-]*$"
Name = Annotated[str, StringConstraints(pattern=NAME)]
STEPS = (2e-4, 4e-4, 8e-4)
ROUNDING = 1e-6  # of a number of steps


class QuantizationSettings(RecipeTable):
    """Encodings of large weights."""

    encodings: tuple[Encoding, ...] | Literal["auto"] = Field(
        ("uniform-8",),
        description="the ensemble chooses one of these for each member; auto: the smallest that loses little",
    )
    max_loss: float = Field(MAX_LOSS, ge=0, description="auto: largest loss of hold-out GAP that is allowed")
    # Not part of hashes unless set, so that runs that are older than these keys stay valid.
    steps: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        STEPS,
        min_length=1,
        exclude_if=partial(eq, STEPS),
        description="coded: relative steps; each member is offered in each of them, and larger ones take fewer bytes",
    )
    calibration: int = Field(
        CALIBRATION,
        gt=0,
        exclude_if=partial(eq, CALIBRATION),
        description="coded: number of training videos, at most, on which the cost of errors is measured",
    )
    fine_tune: int = Field(
        0,
        ge=0,
        exclude_if=not_,
        description="coded: steps of fine-tuning through the rounding; kept where it raises GAP on half the hold-out",
    )
    fine_tune_targets: Literal["own", "teachers"] = Field(
        "own",
        exclude_if=partial(eq, "own"),
        description="fine_tune: the member's own probabilities, or the mean of the teachers of [distillation]",
    )

    @field_validator("fine_tune_targets")
    @classmethod
    def _used(cls, value: str, info: ValidationInfo) -> str:
        if value != "own" and not info.data.get("fine_tune", 1):
            raise ValueError("are those of fine-tuning; give fine_tune too, such as 300")
        return value

    @field_validator("encodings", mode="before")
    @classmethod
    def _known(cls, value: Any) -> Any:
        listed = value if isinstance(value, list | tuple) else ()
        if value != "auto" and (not listed or any(listed.count(each) > 1 or each not in ENCODINGS for each in listed)):
            raise ValueError(
                f'give a list of different encodings out of {", ".join(ENCODINGS)}, or "auto", not {value!r}'
            )
        return value

    @property
    def offered(self) -> tuple[Encoding, ...]:
        """Encodings that the model file may use."""
        return ENCODINGS if self.encodings == "auto" else self.encodings

    @property
    def coded(self) -> dict[str, float | None]:
        """Names of the candidates in the encoding `coded`, with their steps; None where max_loss decides."""
        if "coded" not in self.offered:
            return {}
        return {"coded": None} if self.encodings == "auto" else {f"coded@{step:g}": step for step in self.steps}

    @property
    def candidates(self) -> tuple[str, ...]:
        """Encodings that the model file may use, `coded` once for each step."""
        return tuple(name for each in self.offered for name in (self.coded if each == "coded" else (each,)))

    @property
    def measured(self) -> tuple[str, ...]:
        """Encodings that every member is evaluated in on the hold-out, float32 first."""
        return ("float32", *(encoding for encoding in self.candidates if encoding != "float32"))

    @property
    def tested(self) -> tuple[str, ...]:
        """Encodings that every member is tested in: float32, and one other that the model file may use."""
        return ("float32", "uniform-8") if self.encodings == "auto" else self.measured[:2]


class EnsembleSettings(RecipeTable):
    """Search for the members of the ensemble and their weights; or the members, and their weights, themselves."""

    trials: int = Field(200, ge=0, description="number of random weightings that are tried for the selected members")
    # Not part of hashes unless set, so that ensembles that are older than these keys stay valid.
    members: tuple[str, ...] = Field(
        (), exclude_if=not_, description="names of the models that the file holds; by default the best are chosen"
    )
    weights: dict[str, Annotated[float, Field(gt=0, le=1)]] = Field(
        {}, exclude_if=not_, description="weights of the models that the file holds; they sum to 1"
    )

    @field_validator("weights")
    @classmethod
    def _sum_to_1(cls, value: dict[str, float], info: ValidationInfo) -> dict[str, float]:
        if value and (fault := sum_fault(value.values())):
            raise ValueError(fault)
        if value and info.data.get("members"):
            raise ValueError("name the members already; leave ensemble.members out")
        return value

    @property
    def fixed(self) -> tuple[str, ...]:
        """Names of the models that the file holds; empty if they are to be chosen."""
        return self.members or tuple(self.weights)


class RangeSettings(RecipeTable):
    """Values of a key that `reeltag tune` tries: numbers from `low` to `high`, or one of `choices`."""

    low: int | float | None = Field(None, description="least value")
    high: int | float | None = Field(None, description="largest value")
    log: bool = Field(False, description="sample the logarithm evenly, for values such as learning rates")
    step: int | float | None = Field(None, gt=0, description="distance of two neighbouring values")
    choices: tuple[bool | int | float | str, ...] = Field((), description="the values, instead of low and high")

    @model_validator(mode="after")
    def _agree(self) -> RangeSettings:
        low, high, step = self.low, self.high, self.step
        if self.choices:
            if self.model_fields_set != {"choices"}:
                raise ValueError("choices stand alone; leave the other keys out")
            if len(set(map(repr, self.choices))) < len(self.choices):
                raise ValueError("choices must differ from each other")
            return self
        if low is None or high is None or low >= high:
            raise ValueError("give low and high, with low < high; or choices, a list of values")
        if self.log and (low <= 0 or step is not None):
            raise ValueError("log needs low > 0, and no step")
        if step is not None and abs((high - low) / step - round((high - low) / step)) > ROUNDING:
            raise ValueError("high - low must be a multiple of step")
        return self


class TestSettings(RecipeTable):
    """Further metrics on the test set."""

    all_scores: bool = Field(
        False, description="also mAP over all scores, which takes 10 bytes of memory a video and class"
    )


class ModelSettings(RecipeTable):
    """Architecture of a model, and keys that override `[training]` for it; in TOML one table."""

    config: AnyTaggerConfig
    training: TrainingSettings = Field(TrainingSettings(), description="only the keys that are set override [training]")

    @model_validator(mode="before")
    @classmethod
    def _split(cls, table: Any) -> Any:
        if not isinstance(table, Mapping):
            return table
        own = set(cls.model_fields) - {"config"}
        config = {key: value for key, value in table.items() if key not in own}
        return {"config": config, **{key: table[key] for key in own & set(table)}}

    @model_serializer(mode="wrap")
    def _join(self, dump: Callable[[ModelSettings], dict[str, Any]]) -> dict[str, Any]:
        own, training = dump(self), self.training.model_dump(mode="json", exclude_unset=True)
        others = {key: value for key, value in own.items() if key not in ("config", "training")}
        return {**own["config"], **others, **({"training": training} if training else {})}

    def decisive(self) -> dict[str, Any]:
        """Return the table as JSON, without keys that change only the device and the speed of the training.

        It has no `start` either, which students do not take over.
        """
        table, training = self.model_dump(mode="json"), self.training.decisive(only_set=True)
        table.pop("training", None)
        training.pop("start", None)
        return table | ({"training": training} if training else {})


class StudentSettings(ModelSettings):
    """Student with an architecture of its own."""

    teachers: tuple[str, ...] = Field(
        (), description="families, or names of predictions, that teach it; by default its own family"
    )
    level: Literal[1, 2] = Field(1, description="2: taught by the first-level students of these families")
    label_weight: float | None = Field(
        None, ge=0, le=1, description="λ, weight of the labels in its loss; by default distillation.label_weight"
    )

    @property
    def taught_by(self) -> tuple[str, ...]:
        """Families and names of predictions that teach the student."""
        return self.teachers or (self.config.family,)


class DistillationSettings(RecipeTable):
    """Settings of teachers and students (paper sections 3.1 and 4.2)."""

    families: tuple[str, ...] | None = Field(None, description="families whose models are distilled; all by default")
    predictions: dict[Name, Path] = Field(
        {}, description="external teachers: files with their predictions of the training videos, .csv or .npz"
    )
    teachers: int = Field(3, gt=0, description="n: the best combination of n models of a family teaches")
    cross_family: bool = Field(False, description="students learn the mean of all families' targets")
    folds: int = Field(
        0,
        ge=0,
        le=20,
        description="F: each video's targets come from teachers that were trained without its fold; 0: in-sample",
    )
    top_k: Annotated[int | Literal["dense"], count_or("dense")] = Field(
        100, description="number of probabilities stored for each video, or dense for all"
    )
    label_weight: float = Field(
        0.5, ge=0, le=1, description="λ, weight of the labels in the loss of students without a weight of their own"
    )
    dropout: float | None = Field(
        None, ge=0, lt=1, description="of students with a teacher's architecture; by default the teacher's"
    )
    training: TrainingSettings = Field(
        TrainingSettings(), description="of students; only the keys that are set override [training]"
    )
    keep: int = Field(
        2, gt=0, description="second level: largest number of students that are kept, the smallest that hold the GAP"
    )
    tolerance: float = Field(
        0.001, ge=0, description="second level: largest hold-out GAP below the mean of the first level that still holds"
    )

    @field_validator("predictions")
    @classmethod
    def _other_names(cls, value: dict[str, Path]) -> dict[str, Path]:
        if twice := sorted(set(value) & set(FAMILIES)):
            raise ValueError(f"{', '.join(twice)}: is the name of a family; choose another name")
        return value

    @field_validator("folds")
    @classmethod
    def _at_least_two(cls, value: int) -> int:
        if value == 1:
            raise ValueError("one fold would leave nothing to train on; 2 or more, or 0 for in-sample targets")
        return value

    def distilled(self, trained: Iterable[str]) -> list[str]:
        """Return the trained families for which students with the teachers' architectures are added."""
        return [family for family in trained if self.families is None or family in self.families]

    @model_serializer(mode="wrap")
    def _given(self, dump: Callable[[DistillationSettings], dict[str, Any]]) -> dict[str, Any]:
        return {**dump(self), "training": self.training.model_dump(mode="json", exclude_unset=True)}


class Recipe(RecipeTable):
    """A recipe: everything from the shards to one model file."""

    name: Name
    seed: int = Field(0, ge=0)
    budget_mb: float = Field(gt=0, description="largest size of the model file in megabytes (10⁶ bytes)")
    data: DataSettings
    training: TrainingSettings = TrainingSettings()
    averaging: AveragingSettings | None = None
    quantization: QuantizationSettings = QuantizationSettings()
    test: TestSettings = TestSettings()
    models: dict[Name, ModelSettings] = Field({})
    distillation: DistillationSettings | None = None
    students: dict[Name, StudentSettings] = Field({})
    imported: dict[Name, Path] = Field({}, description="finished .reeltag files that may become members")
    ensemble: EnsembleSettings = EnsembleSettings()
    tune: dict[str, RangeSettings] = Field(
        {}, exclude_if=not_, description="dotted keys that `reeltag tune` searches, with their values; a run ignores it"
    )
    _source: str | Path | None = PrivateAttr(None)

    @field_validator("training", "models", "distillation", "students")
    @classmethod
    def _agree(cls, value: Any, info: ValidationInfo) -> Any:
        """Check the keys of each training against each other; a student's keys from its teacher are not known yet."""
        base = value if info.field_name == "training" else info.data.get("training")
        if base is None:
            return value
        tables: dict[str, tuple[TrainingSettings, ...]] = {"": ()}
        if info.field_name == "distillation":
            tables = {"training.": (value.training,)} if value else {}
        elif info.field_name != "training":
            distillation = info.data.get("distillation")
            before = (distillation.training,) if distillation is not None else ()
            tables = {f"{name}.training.": (*before, model.training) for name, model in value.items()}
        found = {place: _merged(base, *settings) for place, settings in tables.items()}
        faults = [f"{place}{fault}" for place, each in found.items() if (fault := each.fault())]
        if _of_segments(info):
            mixed = [f"{place}mixup" for place, each in found.items() if each.mixup]
            faults += [
                f"{place} mixes labels of all classes, but segments are rated for only some; leave it out"
                for place in mixed
            ]
        if faults:
            raise ValueError("; ".join(faults))
        return value

    @field_validator("tune", mode="before")
    @classmethod
    def _dotted(cls, value: Any) -> Any:
        """Take dotted keys with and without quotes; TOML makes inner tables of the latter."""
        return dict(_ranges(value)) if isinstance(value, Mapping) else value

    @field_validator("imported")
    @classmethod
    def _members(cls, value: dict[str, Path], info: ValidationInfo) -> dict[str, Path]:
        models = info.data.get("models")
        if models is not None and not models and not value and not info.data.get("students"):
            raise ValueError("no members; give at least one [models.NAME], or an imported file")
        faults = [
            f"{', '.join(twice)} has a table under {table} already; choose another name"
            for table in ("models", "students")
            if (twice := sorted(set(info.data.get(table) or ()) & set(value)))
        ]
        names = {*(models or ()), *(info.data.get("students") or ()), *value}
        if twice := sorted(set(_added_students(info)) & names):
            faults.append(f"{', '.join(twice)}: is the name of a student that [distillation] adds; choose another name")
        if faults:
            raise ValueError("; ".join(faults))
        return value

    @field_validator("ensemble")
    @classmethod
    def _known_members(cls, value: EnsembleSettings, info: ValidationInfo) -> EnsembleSettings:
        tables = [info.data.get(table) for table in ("models", "students", "imported")]
        if any(table is None for table in tables) or "distillation" not in info.data:
            return value  # these have faults themselves
        names = [*(name for table in tables for name in table or ()), *_added_students(info)]
        key = "members" if value.members else "weights"
        if twice := sorted({name for name in value.fixed if value.fixed.count(name) > 1}):
            raise ValueError(f"members: {', '.join(twice)} is named twice; name each model once")
        if unknown := [name for name in value.fixed if name not in names]:
            meant = " ".join(filter(None, (did_you_mean(name, names) for name in unknown)))
            raise ValueError(
                f"{key}: the recipe has no model {', '.join(unknown)}; {meant and meant + ' '}there are "
                f"{', '.join(names)}"
            )
        return value

    @field_validator("distillation")
    @classmethod
    def _known_families(cls, value: DistillationSettings | None, info: ValidationInfo) -> DistillationSettings | None:
        trained = _families(info.data.get("models"))
        if value and _of_segments(info):
            raise ValueError("works with whole videos only; leave it out, or data.schema.segments")
        if value and trained is not None and (unknown := sorted(set(value.families or ()) - set(trained))):
            raise ValueError(f"families: no model of {', '.join(unknown)}; the recipe trains {', '.join(trained)}")
        quantization, taught = info.data.get("quantization"), value.distilled(trained or ()) if value else []
        if trained is not None and not taught and quantization and quantization.fine_tune_targets == "teachers":
            raise ValueError('has no teachers for quantization.fine_tune_targets = "teachers"; add some, or take "own"')
        return value

    @field_validator("students")
    @classmethod
    def _taught(cls, value: dict[str, StudentSettings], info: ValidationInfo) -> dict[str, StudentSettings]:
        trained = _families(info.data.get("models"))
        faults = []
        if value and "distillation" in info.data and info.data["distillation"] is None:
            faults.append("need a table [distillation], which says how they are taught")
        if trained is not None and (settings := info.data.get("distillation")) is not None:
            taught = set(trained if settings.families is None else settings.families)
            taught |= {s.config.family for s in value.values() if s.level == 1 and s.taught_by == (s.config.family,)}
            for name, student in value.items():
                able = [family for family in trained if student.level == 1 or family in taught]
                able += settings.predictions if student.level == 1 else ()
                if unknown := sorted(set(student.taught_by) - set(able)):
                    of = "model" if student.level == 1 else "first-level student"
                    may = ", ".join(able) or "none; give [models.NAME], or distillation.predictions"
                    faults.append(f"{name}: no {of} of {', '.join(unknown)} to teach it; teachers may be {may}")
        if twice := sorted(set(info.data.get("models") or ()) & set(value)):
            faults.append(f"{', '.join(twice)} has a table under models already; choose another name")
        if faults:
            raise ValueError("; ".join(faults))
        return value

    @property
    def source(self) -> str | Path | None:
        """Path or name that the recipe was loaded from; None for a recipe that was built without a file."""
        return self._source

    @property
    def budget(self) -> int:
        """Largest size of the model file in bytes."""
        return round(self.budget_mb * 1e6)

    @property
    def families(self) -> dict[str, list[str]]:
        """Names of the trained models by family, in the recipe's order."""
        return _families(self.models) or {}

    @property
    def trained(self) -> list[str]:
        """Names of all models that a run trains, students included."""
        added = _students_of(self.families, self.distillation)
        return [*self.models, *added, *self.students]

    @property
    def distilled_families(self) -> list[str]:
        """Families for which students with the teachers' architectures are added."""
        assert self.distillation is not None
        return self.distillation.distilled(self.families)

    @property
    def tuning_targets(self) -> tuple[str, ...]:
        """Stages whose soft targets fine-tuning through the rounding learns; none if it learns a member's own."""
        if self.quantization.fine_tune_targets == "own":
            return ()
        return tuple(f"targets.{family}" for family in self.distilled_families)

    def label_weight(self, student: str) -> float:
        """Return λ, the weight of the labels in a student's loss: its own, or that of `[distillation]`."""
        assert self.distillation is not None
        own = self.students[student].label_weight if student in self.students else None
        return self.distillation.label_weight if own is None else own

    def training_with(self, *overrides: TrainingSettings) -> TrainingSettings:
        """Return `[training]` with the keys that other tables set; later tables win."""
        return _merged(self.training, *overrides)

    @property
    def devices(self) -> set[str]:
        """Devices of all trainings."""
        tables: list[tuple[TrainingSettings, ...]] = [(model.training,) for model in self.models.values()]
        if (settings := self.distillation) is not None:
            tables += [(settings.training,), *((settings.training, each.training) for each in self.students.values())]
        return {self.training_with(*overrides).device for overrides in tables}

    def dump(self) -> dict[str, Any]:
        """Return the recipe as JSON, including defaults."""
        return self.model_dump(mode="json", by_alias=True)

    @property
    def fingerprint(self) -> str:
        """Hash of everything that decides the result; the location of the data and the devices do not."""
        content = self.dump()
        del content["imported"], content["test"]
        content.pop("tune", None)
        if content["distillation"] is not None:
            del content["distillation"]["predictions"]
        for key in ("root", "videos", "max_bad_records", "order", "shuffle_window", "cache_gb"):
            del content["data"][key]
        if self.data.limit == LimitSettings():  # so recipes that are older than this key keep their hash
            del content["data"]["limit"]
        if self.data.pca is None:
            del content["data"]["pca"]
        if self.data.mixed_shards is not None:
            content["data"]["shuffle_window"] = self.data.mixed_shards
        for student in content["students"].values():
            if student["label_weight"] is None:
                del student["label_weight"]
        content["training"] = self.training.decisive()
        for table, settings in self._with_training(content):
            table["training"] = settings.training.decisive(only_set=True)
        return content_hash(content)

    def _with_training(
        self, content: Mapping[str, Any]
    ) -> Iterator[tuple[dict[str, Any], ModelSettings | DistillationSettings]]:
        """Yield the tables of the recipe as JSON that have keys of `[training]`, each with its settings."""
        if self.distillation is not None:
            yield content["distillation"], self.distillation
        for section, tables in (("models", self.models), ("students", self.students)):
            yield from ((content[section][name], settings) for name, settings in tables.items())


def _added_students(info: ValidationInfo) -> list[str]:
    """Return the names that students with the teachers' architectures have; none if their tables have faults."""
    return _students_of(_families(info.data.get("models")), info.data.get("distillation"))


def _students_of(trained: Mapping[str, Sequence[str]] | None, settings: DistillationSettings | None) -> list[str]:
    """Return the names that students with the teachers' architectures have."""
    if not trained or settings is None:
        return []
    return [
        f"{family}-student-{number}"
        for family in settings.distilled(trained)
        for number in range(1, min(settings.teachers, len(trained[family])) + 1)
    ]


def _ranges(table: Mapping[str, Any], place: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted key and the table of each range."""
    for key, value in table.items():
        if isinstance(value, Mapping) and not set(value) & set(RangeSettings.model_fields):
            yield from _ranges(value, f"{place}{key}.")
        else:
            yield f"{place}{key}", value


def _of_segments(info: ValidationInfo) -> bool:
    """Return True if the recipe's data are segments; False if the data have faults themselves."""
    data = info.data.get("data")
    return data is not None and data.record_schema.segments is not None


def _merged(settings: TrainingSettings, *overrides: TrainingSettings) -> TrainingSettings:
    """Return settings with the keys that other tables set; later tables win."""
    return settings.model_copy(update={key: getattr(each, key) for each in overrides for key in each.model_fields_set})


def _families(models: Mapping[str, ModelSettings] | None) -> dict[str, list[str]] | None:
    """Return the names of the models by family; None if the models have faults themselves."""
    if models is None:
        return None
    names: dict[str, list[str]] = {}
    for name, settings in models.items():
        names.setdefault(settings.config.family, []).append(name)
    return names
