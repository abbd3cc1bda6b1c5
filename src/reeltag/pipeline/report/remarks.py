"""What a run's figures leave unsaid: where they mean little, where something went badly, and what to do about it."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import mean
from typing import Any

from reeltag.core.text import counted, first_lines, megabytes
from reeltag.pipeline.report.results import noun_of
from reeltag.training.schedule import FORGOTTEN

FEW = 20  # examples of which a figure means little
CLEARLY = 0.01  # GAP; more than two seeds of a recipe differ by


def remarks(results: Mapping[str, Any]) -> list[str]:
    """A sentence each, in no order of weight; none where all is as it should be."""
    return [text for find in (_short, _alone, _students, _few) if (text := find(results))]


def weights(results: Mapping[str, Any]) -> str:
    """How the weights of the members were found; empty where there is one member."""
    if len(results["shipped"]) == 1:
        return ""
    return (
        "The weights are those that did best where they were chosen, of three kinds: those of a search that adds the "
        "model that helps most, again and again, so that one weighs as often as it was added; equal ones; random ones."
    )


def gains(results: Mapping[str, Any]) -> list[float]:
    """Test GAP of each student with a teacher's architecture, minus that of the same trained on labels alone."""
    members = results["members"]
    pairs = [(member, members[member["like"]]) for member in members.values() if "like" in member]
    return [student["test"]["float32"]["gap"] - before["test"]["float32"]["gap"] for student, before in pairs]


def _short(results: Mapping[str, Any]) -> str:
    """Of models whose batch norm still averages over its first values."""
    kept = {name: member.get("first_statistics", 0.0) for name, member in results["members"].items()}
    short = [name for name, share in kept.items() if share > FORGOTTEN]
    if not short:
        return ""
    what = f"batch norm's statistics still keep up to {max(kept.values()):.0%} of their first values"
    models = ", ".join(first_lines(short))
    return f"{models}: {what}, so the training was too short for its bn_decay; lower that to 0.9 or 0.99"


def _alone(results: Mapping[str, Any]) -> str:
    """Of an ensemble that is none, though there were models for one."""
    if len(results["shipped"]) > 1 or len(results["members"]) - len(results["left_out"]) < 2:
        return ""
    what, best = f"the file is {results['shipped'][0]['name']} alone", results["frontier"][-1]
    if best["bytes"] > results["budget"]:
        size = megabytes(best["bytes"])
        return f"{what}: the best ensemble takes {size}; raise budget_mb, or offer smaller quantization.encodings"
    return (
        f"{what}: no ensemble within the budget was better on the hold-out; "
        "models of another family, or trained longer (training.epochs), may add to it"
    )


def _students(results: Mapping[str, Any]) -> str:
    """Of students that learned less than those that taught them."""
    found = gains(results)
    if not found or (gain := mean(found)) > -CLEARLY:
        return ""
    return (
        f"students are on average {-gain:.5f} test GAP below the models of their architecture that labels alone "
        "taught; train them longer (distillation.training.epochs) or with less dropout (distillation.dropout)"
    )


def _few(results: Mapping[str, Any]) -> str:
    """Of figures that come from a handful of videos."""
    noun, held, tested = noun_of(results), results["holdout_gap"]["videos"], results["test"]["file"]["videos"]
    kinds = (("hold-out", held, "hold out more (data.holdout)"), ("test", tested, "test on more (data.test)"))
    found = [(f"{kind} GAP of {counted(count, noun)}", cure) for kind, count, cure in kinds if count < FEW]
    if not found:
        return ""
    figures, cures = (" and ".join(each) for each in zip(*found, strict=True))
    return f"{figures} {'means' if len(found) == 1 else 'mean'} little; {cures}"
