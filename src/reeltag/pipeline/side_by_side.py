"""Decide how many stages of a run compute at a time on this machine's CPUs if the command does not say."""

from __future__ import annotations

import os
from collections.abc import Sequence

from reeltag.core.environment import available_cpus, total_memory
from reeltag.pipeline.executor import Stage, critical_paths
from reeltag.pipeline.stages.gpu_hours import FLOPS_A_SECOND
from reeltag.recipe.schema import Recipe

LEAST_WORK = 1e13  # floating-point operations, some minutes of a CPU; less is not worth starting processes


def side_by_side(recipe: Recipe, stages: Sequence[Stage]) -> str:
    """Return the devices of a run on CPUs, such as "cpu,cpu"; "" to run one stage after the other in this process.

    Two trainings with a thread each take less time than one after the other with two, because part of each step has one
    thread. The answer depends on the recipe and the machine, and neither on what is done already nor on memory that is
    free now: the number of threads changes the last bits of sums, and a run that is resumed has to end with the same
    bytes. With OMP_NUM_THREADS the user has chosen the threads of one process.

    Args:
        recipe: the recipe.
        stages: its plan.
    """
    hours = {stage.name: stage.gpu_hours for stage in stages}
    whole, longest = sum(hours.values()), max(critical_paths(stages, hours).values(), default=0.0)
    shared = any(stage.processes > 1 for stage in stages)
    if shared or whole * 3600 * FLOPS_A_SECOND < LEAST_WORK or "OMP_NUM_THREADS" in os.environ or _on_gpu(recipe):
        return ""
    memory = max(stage.needs.memory for stage in stages)
    count = min(available_cpus(), int(whole / longest), total_memory() // memory)
    return ",".join(["cpu"] * count) if count > 1 else ""


def _on_gpu(recipe: Recipe) -> bool:
    import torch

    gpu = torch.cuda.is_available() or torch.backends.mps.is_available()
    return any(device != "cpu" and (gpu or device != "auto") for device in recipe.devices)
