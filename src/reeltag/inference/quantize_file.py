"""Store the weights of a model file in fewer bits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from torch import Tensor

from reeltag.artifact.file import Artifact, load_artifact, quantize_artifact, save_artifact, without_rules
from reeltag.artifact.quantization import calibration
from reeltag.artifact.quantization.coded import Encoder, coarsest_step
from reeltag.artifact.quantization.quantize import is_large, stored_as
from reeltag.artifact.quantization.sizes import CALIBRATION, MAX_LOSS, Encoding
from reeltag.core.errors import UsageError
from reeltag.core.progress import Progress, Task
from reeltag.core.storage import Patterns, find_files, refuse_existing, remove_partials_of
from reeltag.core.text import counted
from reeltag.data.loader import Batch, sequential_batches
from reeltag.data.shards import Shards, scan
from reeltag.inference.ensemble import BATCH_SIZE
from reeltag.inference.evaluate import artifact_gap
from reeltag.inference.predictor import Predictor, resolve_model

LEAST_VIDEOS = 500
SEED = 1


def quantize_file(
    model: str | Path | Predictor,
    out: str | Path,
    encoding: Encoding = "uniform-8",
    *,
    calibrate: Patterns = (),
    max_loss: float | None = None,
    progress: Progress | None = None,
) -> int:
    """Store the large weights of a model in fewer bits, as `reeltag quantize` does.

    Args:
        model: a `.reeltag` file, a folder that `reeltag share` wrote, a URL, or a loaded `Predictor`.
        out: a new file.
        encoding: of the large weights; weights that are quantized already keep theirs.
        calibrate: for `coded`, labelled shards of videos like those that the model will tag, such as its training
            videos; paths, URLs or glob patterns. Nine tenths measure what errors of weights cost, the others the loss.
        max_loss: for `coded`, largest loss of GAP that is allowed; 0.0005 by default.
        progress: for `coded`, reports progress.

    Returns:
        Size of the new file in bytes.

    Raises:
        ArtifactError: the model is missing or damaged.
        DataError: a record of the shards is damaged, has no labels, or does not follow the model's schema.
        UsageError: `out` exists, all large weights are quantized already, shards are missing, too few, or given for
            another encoding than `coded`, `max_loss` is below 0, or no step of the codes loses so little.
    """
    refuse_existing(Path(out))
    remove_partials_of(Path(out))
    if encoding != "coded" and (calibrate or max_loss is not None):
        raise UsageError(f"{encoding} needs neither calibration videos nor a largest loss; these are for coded")
    if encoding == "coded" and not calibrate:
        raise UsageError(
            "coded needs videos that show what errors of weights cost; give shards of the training data to calibrate"
        )
    if max_loss is not None and not max_loss >= 0:
        raise UsageError(f"max_loss {max_loss:g}: must be 0 or more, in units of GAP")
    file = resolve_model(model)
    before = load_artifact(file)
    stored = [stored_as(member.state) for member in before.members]
    plain = [value for member in before.members for value in member.state.values() if isinstance(value, Tensor)]
    if not any(map(is_large, plain)) and (already := sorted({*stored} - {"float32"})):
        raise UsageError(
            f"{file}: its large weights are stored in {' and '.join(already)} already, so nothing would change; give a "
            "float32 file: model.reeltag in stages/train.NAME-… of its run (stages/average.NAME-… where weights were "
            "averaged), or what `reeltag train` wrote; an ensemble takes the encodings of its recipe's [quantization]"
        )
    if encoding == "coded":
        after = _coded(before, calibrate, MAX_LOSS if max_loss is None else max_loss, progress or Progress())
    else:
        after = quantize_artifact(before, encoding)
    if [stored_as(member.state) for member in after.members] != stored:
        # Marks that the metrics in the header are of the file before.
        after = replace(without_rules(after, str(file)), provenance={**after.provenance, "quantized": encoding})
    return save_artifact(Path(out), after)


def _coded(artifact: Artifact, patterns: Patterns, max_loss: float, progress: Progress) -> Artifact:
    """Encode all members with the largest step whose loss of GAP, measured on a tenth of the videos, is allowed."""
    manifest = scan(find_files(patterns), artifact.schema, labelled=True)
    least = max(LEAST_VIDEOS, artifact.schema.width)
    if len(manifest) < least:
        examples = counted(len(manifest), f"calibration {artifact.schema.example}")
        raise UsageError(f"{examples}: coded needs {least} or more for these features; give more shards")
    order = np.random.default_rng(SEED).permutation(len(manifest))
    measured, others = np.sort(order[: len(order) // 10]), np.sort(order[len(order) // 10 :][:CALIBRATION])
    batches = partial(sequential_batches, Shards(manifest), batch_size=BATCH_SIZE)

    def reported(task: Task) -> Iterator[Batch]:
        for batch in batches(others):
            yield batch
            task.advance(len(batch))

    encoders = []
    for member in artifact.members:
        with progress.task(f"calibrate {member.name}", len(others), "videos") as task:
            costs = calibration.calibrate(member.build(artifact.schema), reported(task), SEED)
        encoders.append(Encoder(member.state, costs))

    def coded(step: float) -> Artifact:
        members = []
        with progress.task(f"encode with step {step:.1e}", len(encoders), "members") as task:
            for member, encoder in zip(artifact.members, encoders, strict=True):
                members.append(replace(member, state=encoder.encode(step)))
                task.advance(1, note=member.name)
        return replace(artifact, members=tuple(members))

    before = artifact_gap(artifact, batches(measured))
    after, lost = artifact, 0.0

    def loss(step: float) -> float:
        nonlocal after, lost
        after = coded(step)
        lost = before - artifact_gap(after, batches(measured))
        progress.say(f"  step {step:.1e}: GAP on {counted(len(measured), 'video')} {-lost:+.5f}")
        return lost

    coarsest_step(loss, max_loss)
    if lost > max_loss:
        raise UsageError(
            f"coded: with its finest step it loses {lost:.5f} GAP on {len(measured)} of the videos; allow "
            f"more than {max_loss:g}, give more shards, or choose uniform-8"
        )
    return after
