"""What `results.json` says, and how a report reads a run's folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from pydantic import TypeAdapter, ValidationError
from typing_extensions import NotRequired, TypedDict

from reeltag.core.errors import UsageError
from reeltag.core.validation import describe_fault
from reeltag.data.bad_records import BadRecord

FORMAT = 1
METRICS = {
    "gap": "test GAP@20",
    "hit_at_1": "Hit@1",
    "perr": "PERR",
    "map": "mAP",
    "map_all": "mAP, all scores",
    "map_at_k": "MAP@K of segments",
}
RESULTS, RECIPE, TIMINGS = "results.json", "recipe.json", "timings.json"

Number: TypeAlias = int | float  # whole numbers stay whole when they are checked


class Shipped(TypedDict):
    """A member of the file."""

    name: str
    encoding: str
    weight: float
    bytes: int


class HoldoutGap(TypedDict):
    """GAP@20 on the half of the hold-out that the ensemble was not chosen on, unless the name says otherwise."""

    videos: int
    chosen_on: int
    file: float
    file_where_chosen: float
    equal_weights: float
    random_search: float
    members: dict[str, float]
    prior: float


class FrontierPoint(TypedDict):
    """The best ensemble of a size: GAP where it was chosen, and on the other half."""

    bytes: int
    chosen: float
    checked: float


class Test(TypedDict):
    """Metrics on the test set."""

    file: dict[str, Number]
    prior: dict[str, Number]
    class_ap: list[tuple[str, float]]


class GatedPair(TypedDict):
    """A pair of classes whose log-lift a gate changed; see `measures.gating_gain`."""

    classes: tuple[int, int]
    videos: int
    labels: float
    without: float
    gated: float


class Gating(TypedDict):
    """What a gate on the probabilities does to pairs of classes; see `measures.gating_gain`."""

    pairs: int
    error_without: float
    error_gated: float
    changed: list[GatedPair]


class MemberResults(TypedDict):
    """What is known of a model; of its first batch-norm statistics the share that it still has."""

    test: dict[str, dict[str, Number]]
    holdout: dict[str, dict[str, Number]]
    family: str
    taught_by: list[str]
    averaging: NotRequired[dict[str, float]]
    like: NotRequired[str]
    first_statistics: NotRequired[float]
    gating: NotRequired[Gating]


class Curve(TypedDict):
    """The log of a training, thinned: a list a column."""

    epoch: list[float]
    loss: list[float]
    holdout_gap: list[float | None]


class ReliabilityBin(TypedDict):
    """Scores of about one height."""

    count: int
    score: float
    share: float


class Calibration(TypedDict):
    """See `measures.calibration`."""

    bins: list[ReliabilityBin]
    ece: float


class VideoTag(TypedDict):
    """A class of a video: its probability, and that in each segment of the video."""

    name: str
    score: float
    label: bool
    segments: list[float]


class TaggedVideo(TypedDict):
    """A test video; `margin` is how far its least probable label is above the most probable other class."""

    id: str
    frames: int
    margin: float
    tags: list[VideoTag]


class Videos(TypedDict):
    """The test videos of the highest and of the lowest margin."""

    best: list[TaggedVideo]
    worst: list[TaggedVideo]


class ClassCounts(TypedDict):
    """Videos of each class."""

    train: list[int]
    test: list[int]


class Results(TypedDict):
    """All that is measured of a run."""

    format: int
    recipe: str
    budget: int
    bytes: int
    shipped: list[Shipped]
    holdout_gap: HoldoutGap
    frontier: list[FrontierPoint]
    left_out: list[str]
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
    """How long a stage took."""

    stage: str
    seconds: float


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        name: of its folder.
        results: what was measured.
        recipe: what it was made by, as JSON.
        timings: of its stages, in order.
    """

    name: str
    results: Results
    recipe: dict[str, Any]
    timings: list[Timing]


def noun_of(results: Mapping[str, Any]) -> str:
    """What was tagged, for people: a video, or a segment of one."""
    return "segment" if "map_at_k" in results["test"]["file"] else "video"


def best_single(results: Mapping[str, Any]) -> tuple[str, float]:
    """Name and hold-out GAP of the best single model."""
    found: dict[str, float] = results["holdout_gap"]["members"]
    return max(found.items(), key=lambda item: item[1])


def best_single_tested(results: Mapping[str, Any]) -> tuple[str, float]:
    """Name and test GAP of the best single model in float32."""
    tested = {name: member["test"]["float32"]["gap"] for name, member in results["members"].items()}
    return max(tested.items(), key=lambda item: item[1])


def seconds_by_kind(timings: Sequence[Timing]) -> list[tuple[str, int, float]]:
    """Kind, such as `train`, number and seconds of the stages, each kind where it comes first."""
    kinds: dict[str, list[float]] = {}
    for timing in timings:
        kinds.setdefault(timing["stage"].partition(".")[0], []).append(timing["seconds"])
    return [(kind, len(seconds), sum(seconds)) for kind, seconds in kinds.items()]


_RESULTS, _TIMINGS, _OBJECT = TypeAdapter(Results), TypeAdapter(list[Timing]), TypeAdapter(dict[str, Any])


def read_run(folder: Path) -> Run:
    """What a report needs of a run's folder, wherever it was moved; no data and no stage.

    Raises:
        UsageError: it is no folder of a run, the run is not finished, or its results are damaged or of another version.
    """
    if not (folder / "stages").is_dir() and not (folder / RESULTS).is_file():
        raise UsageError(f"{folder}: is no folder of a run; give the --out of `reeltag run`, such as runs/quickstart")
    if missing := [name for name in (RESULTS, RECIPE, TIMINGS) if not (folder / name).is_file()]:
        what = f"the run is not finished: it lacks {' and '.join(missing)}"
        raise UsageError(f"{folder}: {what}; `reeltag run` with its recipe and --out {folder} goes on")
    if _checked(_OBJECT, folder / RESULTS).get("format") != FORMAT:
        raise UsageError(f"{folder / RESULTS}: {_again('was written by another version of reeltag', folder)}")
    results, timings = _checked(_RESULTS, folder / RESULTS), _checked(_TIMINGS, folder / TIMINGS)
    if fault := _contradiction(results):
        raise UsageError(f"{folder / RESULTS}: {_again(f'is damaged ({fault})', folder)}")
    return Run(folder.resolve().name, results, _checked(_OBJECT, folder / RECIPE), timings)


def _checked(adapter: TypeAdapter[Any], path: Path) -> Any:
    try:
        return adapter.validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        fault = f"is damaged ({'.'.join(map(str, first['loc']))}: {describe_fault(first)})"
        raise UsageError(f"{path}: {_again(fault, path.parent)}") from error


def _contradiction(results: Results) -> str:
    """What parts of the results disagree on, each of its type; empty where they agree."""
    classes = len(results["test"]["class_ap"])
    if not classes == len(results["class_counts"]["train"]) == len(results["class_counts"]["test"]):
        return "class_counts: of another number of classes than test.class_ap"
    for name, curve in results["curves"].items():
        if not len(curve["epoch"]) == len(curve["loss"]) == len(curve["holdout_gap"]):
            return f"curves.{name}: columns of several lengths"
    return ""


def _again(fault: str, folder: Path) -> str:
    return f"{fault}; `reeltag run` with its recipe and --out {folder} writes it again"
