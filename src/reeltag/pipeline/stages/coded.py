"""Encode a member by rate and distortion: calibrated on training videos, as coarse as the hold-out allows."""

from __future__ import annotations

from functools import partial

import numpy as np

from reeltag.artifact.file import Artifact
from reeltag.data.holdout import split_halves
from reeltag.data.loader import sequential_batches
from reeltag.data.shards import Manifest, Shards
from reeltag.inference.encode import ArtifactEncoder
from reeltag.inference.ensemble import BATCH_SIZE
from reeltag.pipeline.stages.files import split
from reeltag.recipe.schema import Recipe


def encode_member(recipe: Recipe, source: Artifact, manifest: Manifest) -> dict[str, tuple[float, Artifact]]:
    """Encode a member with each step of the recipe, or with the largest that the loss of GAP allows.

    Args:
        recipe: the recipe.
        source: the member.
        manifest: of the training set.

    Returns:
        Step and model, by the candidate's name.
    """
    settings = recipe.quantization
    train, holdout = split(recipe, manifest)
    few = np.random.default_rng([recipe.seed, 0xCA1]).permutation(train)[: settings.calibration]
    choosing = holdout[split_halves(manifest.videos[holdout], recipe.seed)[0]]
    batches = partial(sequential_batches, Shards(manifest), batch_size=BATCH_SIZE)
    encoder = ArtifactEncoder(source, partial(batches, np.sort(few)), recipe.seed)
    return {
        name: encoder.smallest(partial(batches, choosing), settings.max_loss)
        if step is None
        else (step, encoder.encode(step))
        for name, step in settings.coded.items()
    }
