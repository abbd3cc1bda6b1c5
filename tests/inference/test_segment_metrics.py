"""MAP@K of segments, compared with its formula and with the challenge's own scoring of the submission file."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reeltag.core.errors import DataError, UsageError
from reeltag.data.schema import Feature, Schema
from reeltag.inference.ensemble import Predictions
from reeltag.inference.formats.submission import Submission
from reeltag.inference.formats.table import output_format
from reeltag.inference.metrics.evaluation import evaluate_predictions
from reeltag.inference.metrics.segment_metrics import SegmentRanking
from reeltag.inference.metrics.video_metrics import Metrics
from starter_code import as_the_starter_code_does

CLASSES = 5
SCHEMA = Schema(features=(Feature(name="rgb", width=4),), classes=CLASSES, segments=5)


@st.composite
def rated_scores(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Generate scores [N, C] with ties, labels and ratings."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    count, levels = draw(st.integers(1, 60)), draw(st.sampled_from([2, 7, 10**6]))
    scores = rng.integers(0, levels, (count, CLASSES)).astype(np.float32) / levels
    rated = rng.random((count, CLASSES)) < draw(st.sampled_from([0.1, 0.5, 1.0]))
    return scores, rated & (rng.random((count, CLASSES)) < 0.4), rated


def by_formula(scores: np.ndarray, labels: np.ndarray, rated: np.ndarray, top: int) -> list[float | None]:
    """Compute Σ_k P(k)·rel(k) / N_c of each class, segment by segment; None if N_c is 0."""
    precisions: list[float | None] = []
    for label in range(scores.shape[1]):
        ranked = sorted(range(len(scores)), key=lambda n: (-scores[n, label], n))[:top]
        k = hits = 0
        total = 0.0
        for n in ranked:
            if rated[n, label]:
                k += 1
                hits += labels[n, label]
                total += hits / k * labels[n, label]
        positives = int(labels[:, label].sum())
        precisions.append(total / positives if positives else None)
    return precisions


def predictions(
    scores: np.ndarray, labels: np.ndarray, rated: np.ndarray, sizes: Sequence[int] = ()
) -> list[Predictions]:
    """Return predictions in batches; the ids are those of videos with three segments each."""
    ids = [f"v{n // 3}:{5 * (n % 3)}" for n in range(len(scores))]
    ends = [*np.cumsum(sizes).tolist(), len(scores)]
    parts = []
    for begin, end in zip([0, *ends], ends, strict=False):
        tensors = (torch.from_numpy(each[begin:end]) for each in (scores, labels, rated))
        parts.append(Predictions(tuple(ids[begin:end]), *tensors))
    return [part for part in parts if part.ids]


@settings(max_examples=150)
@given(data=rated_scores(), top=st.integers(1, 70), step=st.integers(1, 20))
def test_class_ap_equals_the_formula_for_every_split_into_batches(
    data: tuple[np.ndarray, np.ndarray, np.ndarray], top: int, step: int
) -> None:
    ranking = SegmentRanking(CLASSES, top=top)
    for begin in range(0, len(data[0]), step):
        ranking.add(*(torch.from_numpy(each[begin : begin + step]) for each in data))
        assert len(pickle.dumps(ranking)) < 5 * CLASSES * (2 * top + step) + 4000  # memory is bounded by K
    expected = [np.nan if each is None else each for each in by_formula(*data, top)]
    np.testing.assert_allclose(ranking.class_ap(), expected, rtol=1e-12)


@pytest.mark.parametrize("top", [4, 30, 100_000])
def test_map_at_k_equals_the_challenges_score_of_the_submission_file(tmp_path: Path, top: int) -> None:
    rng = np.random.default_rng(top)
    scores = rng.integers(0, 40, (90, CLASSES)).astype(np.float32) / 40
    rated = rng.random((90, CLASSES)) < 0.3
    labels = rated & (rng.random((90, CLASSES)) < scores)
    submission, parts = Submission(SCHEMA, top), []
    for number, part in enumerate(predictions(scores, labels, rated, (20, 0, 33))):
        parts.append(tmp_path / f"part-{number}.csv")
        submission.write(parts[-1], [part], [])
    submission.join(tmp_path / "out.csv", parts)
    lines = (tmp_path / "out.csv").read_text().splitlines()
    assert lines[0] == "Class,Segments"
    assert [line.partition(",")[0] for line in lines[1:]] == list("01234")
    assert {len(line.split(" ")) for line in lines[1:]} == {min(top, 90)}
    ids = [name for part in predictions(scores, labels, rated) for name in part.ids]
    truth = {(ids[n], int(c)): float(labels[n, c]) for n, c in np.argwhere(rated)}
    ranking = SegmentRanking(CLASSES, top=top)
    ranking.add(*map(torch.from_numpy, (scores, labels, rated)))
    expected = as_the_starter_code_does(lines, truth, top)
    assert np.nanmean(ranking.class_ap()) == pytest.approx(expected, abs=1e-12)
    assert 0.1 < expected < 0.99


def test_evaluation_of_segments_is_map_at_k_and_the_metrics_of_rated_pairs() -> None:
    rng = np.random.default_rng(4)
    scores = rng.random((80, CLASSES)).astype(np.float32)
    rated = rng.random((80, CLASSES)) < 0.3
    rated[:, 3] = False
    labels = rated & (rng.random((80, CLASSES)) < scores)
    metrics = evaluate_predictions(predictions(scores, labels, rated, (30,)), all_scores=True).compute()
    aps = by_formula(scores, labels, rated, 100_000)
    assert aps[3] is None
    known = [each for each in aps if each is not None]
    assert metrics.map_at_k == pytest.approx(np.mean(known))
    assert metrics.map_all == pytest.approx(np.mean(known))  # all segments, because there are fewer than K
    np.testing.assert_allclose(metrics.class_ap, [each or 0 for each in aps])
    assert metrics.videos == int(rated.any(1).sum()) < 80
    # GAP: all rated pairs in one list.
    order = np.argsort(-scores[rated], kind="stable")
    hits = labels[rated][order]
    precisions = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    assert metrics.gap == pytest.approx(precisions[hits].sum() / labels.sum())
    # Scores of unrated pairs change only the list of K, which is not full here.
    noise = np.where(rated, scores, rng.random(scores.shape).astype(np.float32))
    assert evaluate_predictions(predictions(noise, labels, rated)).compute().summary() == {
        name: value for name, value in metrics.summary().items() if name != "map_all"
    }


def test_only_the_classes_of_the_schema_are_ranked_and_listed(tmp_path: Path) -> None:
    scores = np.random.default_rng(1).random((6, CLASSES)).astype(np.float32)
    rated = np.ones_like(scores, bool)
    metrics = evaluate_predictions(predictions(scores, rated, rated), classes=[1, 4])
    assert np.isnan(metrics.segment_ap).tolist() == [True, False, True, True, False]
    chosen = Schema(**SCHEMA.model_dump() | {"segment_classes": [4, 1]})
    output = output_format(tmp_path / "out.csv", chosen)
    output.write(tmp_path / "part.csv", predictions(scores, rated, rated), [])
    output.join(tmp_path / "out.csv", [tmp_path / "part.csv"])
    ids = predictions(scores, rated, rated)[0].ids
    ranked = {c: " ".join(ids[n] for n in np.argsort(-scores[:, c])) for c in (1, 4)}
    assert (tmp_path / "out.csv").read_text() == f"Class,Segments\n1,{ranked[1]}\n4,{ranked[4]}\n"


def test_a_class_without_positives_does_not_count_and_nothing_rated_is_an_error() -> None:
    scores = np.full((4, CLASSES), 0.5, np.float32)
    rated = np.ones_like(scores, bool)
    with pytest.raises(DataError, match="none of 4 videos has a label, so GAP and all other metrics mean nothing"):
        evaluate_predictions(predictions(scores, ~rated, rated))
    labels, told = ~rated, scores.copy()
    labels[0, 1], told[0, 1] = True, 0.9
    assert evaluate_predictions(predictions(told, labels, rated)).compute().map_at_k == 1.0
    with pytest.raises(DataError, match="no videos to evaluate"):
        evaluate_predictions(predictions(scores, ~rated, ~rated))
    videos = [Predictions(("a",), torch.full((1, CLASSES), 0.5), torch.ones(1, CLASSES, dtype=torch.bool))]
    assert evaluate_predictions(videos).compute().map_at_k is None
    assert "map_at_k" not in evaluate_predictions(videos).compute().summary()
    assert isinstance(evaluate_predictions(videos), Metrics)


def test_an_id_with_a_separator_is_refused_without_writing(tmp_path: Path) -> None:
    part = Predictions(("a b:0",), torch.zeros(1, CLASSES), None)
    with pytest.raises(UsageError, match=r"'a b:0' contains a separator of this CSV of segments; use \.jsonl"):
        Submission(SCHEMA).write(tmp_path / "part.csv", [part], [])
    assert not list(tmp_path.iterdir())
