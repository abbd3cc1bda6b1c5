"""Schema of `results.json`, and reading the folder of a finished run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any, TypeAlias

from pydantic import TypeAdapter, ValidationError
from typing_extensions import NotRequired, TypedDict

from reeltag.core.errors import UsageError
from reeltag.core.validation import describe_fault
from reeltag.data.bad_records import BadRecord

FORMAT = 3
METRICS = {
    "gap": "test GAP@20",
    "hit_at_1": "Hit@1",
    "perr": "PERR",
    "map": "mAP",
    "map_all": "mAP, all scores",
    "map_at_k": "MAP@K of segments",
}
DIVERSITY_COLUMNS = ("group", "models", "mean correlation of errors")
DIVERSITY = (
    "Mean over the pairs of a group's models of the correlation of their errors, label minus probability, on the "
    "hold-out, in float32. The lower it is, the more the models differ."
)
RESULTS, RECIPE, TIMINGS, CLASSES = "results.json", "recipe.json", "timings.json", "classes.json"

Number: TypeAlias = int | float  # validation keeps an int an int


class Shipped(TypedDict):
    """Member of the file; `bytes` is its share of the file's size."""

    name: str
    encoding: str
    weight: float
    bytes: int


class HoldoutGap(TypedDict):
    """GAP@20 on the half of the hold-out on which the ensemble was not chosen; `file_where_chosen` is on the other."""

    videos: int
    chosen_on: int
    file: float
    file_where_chosen: float
    equal_weights: float
    random_search: float
    members: dict[str, float]
    prior: float


class Evidence(TypedDict):
    """Comparison of the best mixture with the best single option; see `ensemble_search.Evidence`."""

    member: str
    encoding: str
    members: int
    gain: float
    spread: float


class Combination(TypedDict):
    """Models of a family, and the hold-out GAP of their equal-weight mean."""

    models: list[str]
    gap: float


class FrontierPoint(TypedDict):
    """Best ensemble of a size: GAP on the half of the hold-out where it was chosen, and on the other half."""

    bytes: int
    chosen: float
    checked: float


class GroupDiversity(TypedDict):
    """Mean correlation of the errors of a group's models on the hold-out; see `diversity.mean_error_correlation`."""

    group: str
    models: list[str]
    correlation: float


class Test(TypedDict):
    """Metrics on the test set, of the file and of the class prior, and average precision by class."""

    file: dict[str, Number]
    prior: dict[str, Number]
    class_ap: list[tuple[str, float]]


class GatedPair(TypedDict):
    """Pair of classes whose log-lift a gate changed; see `gating.gating_gain`."""

    classes: tuple[int, int]
    videos: int
    labels: float
    without: float
    gated: float


class Gating(TypedDict):
    """Effect of a gate on the log-lift of pairs of classes; see `gating.gating_gain`."""

    pairs: int
    error_without: float
    error_gated: float
    changed: list[GatedPair]


class Start(TypedDict):
    """Finished model that a training went on from, and its classes: how many were kept, and which were not."""

    file: str
    member: str
    kept: int
    by: str
    new: list[str]
    dropped: list[str]


class MemberResults(TypedDict):
    """Metrics of a model by encoding, and its origin.

    `like` names the model of a student's architecture that learned labels only. `first_statistics` is the weight that
    the initial values still have in its batch-norm averages. `averaged` says if the averaged weights were kept.
    """

    test: dict[str, dict[str, Number]]
    holdout: dict[str, dict[str, Number]]
    family: str
    taught_by: list[str]
    averaging: NotRequired[dict[str, float]]
    averaged: NotRequired[bool]
    like: NotRequired[str]
    first_statistics: NotRequired[float]
    start: NotRequired[Start]
    gating: NotRequired[Gating]


class Curve(TypedDict):
    """Columns of a training log, thinned."""

    epoch: list[float]
    loss: list[float]
    holdout_gap: list[float | None]


class ReliabilityBin(TypedDict):
    """Tags in a range of probabilities: their number, mean probability, and the share that is correct."""

    count: int
    score: float
    share: float


class Calibration(TypedDict):
    """Reliability bins and expected calibration error; see `calibration.calibration`."""

    bins: list[ReliabilityBin]
    ece: float


class VideoTag(TypedDict):
    """Class of a video with its probability, in the whole video and in each segment."""

    name: str
    score: float
    label: bool
    segments: list[float]


class TaggedVideo(TypedDict):
    """Test video; `margin`: probability of its least probable label minus that of the most probable other class."""

    id: str
    frames: int
    margin: float
    tags: list[VideoTag]


class Videos(TypedDict):
    """Test videos with the highest and with the lowest margin."""

    best: list[TaggedVideo]
    worst: list[TaggedVideo]


class ClassCounts(TypedDict):
    """Number of videos of each class."""

    train: list[int]
    test: list[int]


class Mistake(TypedDict):
    """Video that has a class wrongly, or that has it and is missed.

    Attributes:
        id: of the video.
        score: probability of the class.
        labels: classes of the video.
        tags: the most probable classes of the video with their probabilities.
        frames: of the video.
        strip: probability of the class over time, in equal stretches of the video; empty for a single frame.
    """

    id: str
    score: float
    labels: list[int]
    tags: list[tuple[int, float]]
    frames: int
    strip: list[float]


class ClassResults(TypedDict):
    """Metrics of a class on the test set, and the videos on which the file is most wrong about it.

    Attributes:
        interval: ends of the 95 % interval of the average precision; None where there is none.
        precision, recall, f1: at the threshold.
        calibration_error: of its tags; None if it has none.
        curve: precision at recalls of 1/20, 2/20, …, 1.
        false_positives: the most confident first.
        missed: the least probable first.
    """

    interval: tuple[float, float] | None
    precision: float
    recall: float
    f1: float
    calibration_error: float | None
    curve: list[float]
    false_positives: list[Mistake]
    missed: list[Mistake]


class Confusion(TypedDict):
    """Pair of confused classes; see `outcomes.ConfusedPair`."""

    label: int
    predicted: int
    videos: int
    expected: float


class Judged(TypedDict):
    """Content of `classes.json`.

    Attributes:
        at_threshold: threshold, and micro- and macro-averaged precision, recall and F1.
        intervals: ends of the 95 % intervals of `gap` and `map`.
        classes: [C].
        confused: the pairs that are confused most.
    """

    at_threshold: dict[str, Number]
    intervals: dict[str, tuple[float, float] | None]
    classes: list[ClassResults]
    confused: list[Confusion]


class Results(TypedDict):
    """Content of `results.json`."""

    format: int
    recipe: str
    budget: int
    bytes: int
    shipped: list[Shipped]
    holdout_gap: HoldoutGap
    frontier: list[FrontierPoint]
    frontier_uncoded: list[FrontierPoint]
    left_out: list[str]
    evidence: Evidence | None
    teachers: dict[str, list[Combination]]
    diversity: list[GroupDiversity]
    test: Test
    class_counts: ClassCounts
    members: dict[str, MemberResults]
    examples: list[dict[str, Any]]
    bad_records: dict[str, list[BadRecord]]
    calibration: Calibration
    videos: Videos
    curves: dict[str, Curve]
    environment: dict[str, dict[str, str]]


class Timing(TypedDict):
    """Duration of a stage."""

    stage: str
    seconds: float


@dataclass(frozen=True)
class Run:
    """Finished run.

    Attributes:
        name: name of its folder.
        results: content of `results.json`.
        recipe: the recipe with all defaults, as JSON.
        timings: durations of its stages, in the order of the plan.
        judged: content of `classes.json`.
    """

    name: str
    results: Results
    recipe: dict[str, Any]
    timings: list[Timing]
    judged: Judged


def rounded(value: float) -> float:
    """Round to five decimals, which do not depend on the number of threads that computed a sum."""
    return round(float(value), 5)


def noun_of(results: Mapping[str, Any]) -> str:
    """Return the word for an example: "segment" if segments were tagged, else "video"."""
    return "segment" if "map_at_k" in results["test"]["file"] else "video"


def best_single(results: Mapping[str, Any]) -> tuple[str, float]:
    """Return the name and hold-out GAP of the best single model."""
    gaps: dict[str, float] = results["holdout_gap"]["members"]
    return max(gaps.items(), key=itemgetter(1))


def best_single_tested(results: Mapping[str, Any]) -> tuple[str, float]:
    """Return the name and float32 test GAP of the single model that is best on the test set."""
    gaps = {name: member["test"]["float32"]["gap"] for name, member in results["members"].items()}
    return max(gaps.items(), key=itemgetter(1))


def seconds_by_kind(timings: Sequence[Timing]) -> list[tuple[str, int, float]]:
    """Return kind (such as `train`), number and total seconds of the stages, ordered by each kind's first stage."""
    kinds: dict[str, list[float]] = {}
    for timing in timings:
        kinds.setdefault(timing["stage"].partition(".")[0], []).append(timing["seconds"])
    return [(kind, len(seconds), sum(seconds)) for kind, seconds in kinds.items()]


_RESULTS, _TIMINGS, _OBJECT = TypeAdapter(Results), TypeAdapter(list[Timing]), TypeAdapter(dict[str, Any])
_JUDGED = TypeAdapter(Judged)


def read_run(folder: Path) -> Run:
    """Read what a report needs from the folder of a run; neither data nor stages are needed.

    Raises:
        UsageError: the folder holds no run, the run is not finished, or its files are damaged or of another format.
    """
    if not (folder / "stages").is_dir() and not (folder / RESULTS).is_file():
        raise UsageError(f"{folder}: not the folder of a run; give the --out of `reeltag run`, such as runs/quickstart")
    _require(folder, RESULTS, RECIPE, TIMINGS)
    if _checked(_OBJECT, folder / RESULTS).get("format") != FORMAT:
        raise UsageError(f"{folder / RESULTS}: {_advice('was written by another version of reeltag', folder)}")
    _require(folder, CLASSES)
    results, timings = _checked(_RESULTS, folder / RESULTS), _checked(_TIMINGS, folder / TIMINGS)
    if fault := _contradiction(results):
        raise UsageError(f"{folder / RESULTS}: {_advice(f'is damaged ({fault})', folder)}")
    judged = _checked(_JUDGED, folder / CLASSES)
    if len(judged["classes"]) != len(results["test"]["class_ap"]):
        fault = f"is damaged (not the {len(results['test']['class_ap']):,} classes of {RESULTS})"
        raise UsageError(f"{folder / CLASSES}: {_advice(fault, folder)}")
    return Run(folder.resolve().name, results, _checked(_OBJECT, folder / RECIPE), timings, judged)


def _require(folder: Path, *names: str) -> None:
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise UsageError(
            f"{folder}: the run is not finished ({', '.join(missing)} missing); "
            f"resume it: `reeltag run` with its recipe and --out {folder}"
        )


def _checked(adapter: TypeAdapter[Any], path: Path) -> Any:
    try:
        return adapter.validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        fault = f"is damaged ({'.'.join(map(str, first['loc']))}: {describe_fault(first)})"
        raise UsageError(f"{path}: {_advice(fault, path.parent)}") from error


def _contradiction(results: Results) -> str:
    """Return the first inconsistency between parts of the results; empty if they are consistent."""
    classes = len(results["test"]["class_ap"])
    if not classes == len(results["class_counts"]["train"]) == len(results["class_counts"]["test"]):
        return "class_counts and test.class_ap have different numbers of classes"
    for name, curve in results["curves"].items():
        if not len(curve["epoch"]) == len(curve["loss"]) == len(curve["holdout_gap"]):
            return f"curves.{name}: columns have different lengths"
    return ""


def _advice(fault: str, folder: Path) -> str:
    return f"{fault}; write it anew: `reeltag run` with its recipe and --out {folder}"
