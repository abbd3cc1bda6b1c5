"""Remarks on a run: numbers that mean little, results that are worse than they should be, and what to change."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import mean
from typing import Any

from reeltag.core.text import counted, first_lines, megabytes
from reeltag.pipeline.report.results import noun_of
from reeltag.training.schedule import FORGOTTEN

FEW = 20  # metrics of fewer examples, and a hold-out of fewer videos, mean little
CLEARLY = 0.01  # GAP; more than two runs of a recipe with different seeds differ by


def remarks(results: Mapping[str, Any]) -> list[str]:
    """Return one sentence for each remark; an empty list if there is nothing to remark."""
    checks = (_few_examples, _seen_holdout, _unsettled_batch_norm, _single_member, _worse_students)
    return [text for check in checks if (text := check(results))]


def weights_note(results: Mapping[str, Any]) -> str:
    """Explain how the weights of the members were chosen; empty if the file has one member."""
    if len(results["shipped"]) == 1:
        return ""
    return (
        "Three kinds of weights were compared where the ensemble was chosen, and the best were kept: those of a greedy "
        "search, which adds the model that helps most again and again and weighs each model by how often it was added; "
        "equal weights; and random weights."
    )


def gains(results: Mapping[str, Any]) -> list[float]:
    """Return the test GAP of each student, minus that of the model of its architecture that learned labels only."""
    members = results["members"]
    pairs = [(member, members[member["like"]]) for member in members.values() if "like" in member]
    return [student["test"]["float32"]["gap"] - teacher["test"]["float32"]["gap"] for student, teacher in pairs]


def _seen_holdout(results: Mapping[str, Any]) -> str:
    """Remark on models that went on from a finished one, for which the hold-out may be no hold-out."""
    names = [name for name, member in results["members"].items() if "start" in member]
    if not names:
        return ""
    return (
        f"{', '.join(first_lines(names))} went on from a finished model, which may have been trained on videos of the "
        "hold-out, so hold-out GAP may be too high; compare on the test set"
    )


def _unsettled_batch_norm(results: Mapping[str, Any]) -> str:
    """Remark on models whose batch-norm averages still contain much of their initial values."""
    initial = {name: member.get("first_statistics", 0.0) for name, member in results["members"].items()}
    unsettled = [name for name, share in initial.items() if share > FORGOTTEN]
    if not unsettled:
        return ""
    return (
        f"up to {max(initial.values()):.0%} of the batch-norm averages is still their initial value "
        f"({', '.join(first_lines(unsettled))}): the training was too short for bn_decay; "
        "lower bn_decay, or train longer"
    )


def _single_member(results: Mapping[str, Any]) -> str:
    """Remark on a file with one member although there were several models to choose from."""
    if len(results["shipped"]) > 1 or len(results["members"]) - len(results["left_out"]) < 2:
        return ""
    fact, best = f"the file holds only {results['shipped'][0]['name']}", results["frontier"][-1]
    if (evidence := results["evidence"]) is not None:
        return (
            f"{fact}: an ensemble of {evidence['members']} gained {evidence['gain']:.5f} GAP where it was chosen, and "
            f"chance alone makes a difference of {evidence['spread']:.5f}; hold out more videos (data.holdout) to tell "
            "them apart, or name the members in [ensemble]"
        )
    if best["bytes"] > results["budget"]:
        size = megabytes(best["bytes"])
        return f"{fact}: the best ensemble needs {size}; raise budget_mb or add smaller quantization.encodings"
    return (
        f"{fact}: no ensemble within the budget was better on the hold-out; "
        "models of another family, or longer training (training.epochs), may help"
    )


def _worse_students(results: Mapping[str, Any]) -> str:
    """Remark on students that are worse than the models that taught them."""
    found = gains(results)
    if not found or (gain := mean(found)) > -CLEARLY:
        return ""
    return (
        f"students are on average {-gain:.5f} test GAP below models of the same architecture trained on labels alone; "
        "train them longer (distillation.training.epochs) or with less dropout (distillation.dropout)"
    )


def _few_examples(results: Mapping[str, Any]) -> str:
    """Remark on metrics that were measured on a handful of examples."""
    noun, held, tested = noun_of(results), results["holdout_gap"]["videos"], results["test"]["file"]["videos"]
    kinds = (("hold-out", held, "hold out more (data.holdout)"), ("test", tested, "test on more (data.test)"))
    found = [(f"{kind} GAP of {counted(count, noun)}", remedy) for kind, count, remedy in kinds if count < FEW]
    if not found:
        return ""
    metrics, remedies = (" and ".join(each) for each in zip(*found, strict=True))
    return f"{metrics} {'means' if len(found) == 1 else 'mean'} little; {remedies}"
