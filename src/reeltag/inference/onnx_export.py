"""Export models as ONNX; a file is kept only if its probabilities equal those of the model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from reeltag.artifact.file import Artifact, load_artifact
from reeltag.core.environment import install_command
from reeltag.core.errors import ArtifactError, BudgetError, UsageError
from reeltag.core.storage import Patterns, atomic_path, find_files, refuse_existing, remove_partials_of
from reeltag.core.text import megabytes
from reeltag.data.loader import Batch, stream_batches
from reeltag.data.schema import Schema
from reeltag.data.shards import read_examples
from reeltag.inference.ensemble import BATCH_SIZE, predict_batches
from reeltag.inference.onnx_session import open_onnx
from reeltag.inference.predictor import Predictor, resolve_model

if TYPE_CHECKING:
    import onnx

LARGEST = 2**31 - 1  # bytes, the limit of protobuf
ROOM = 1 << 24  # bytes for everything but the weights
TOLERANCE = 1e-4

CHECKED = 512  # videos of `check` on which both are compared


def export_onnx(
    model: str | Path | Predictor,
    out: str | Path,
    *,
    top: int | None = None,
    check: Patterns = (),
    calibrated: bool = False,
    thresholds: bool = False,
) -> tuple[int, float]:
    """Export a model as ONNX, as `reeltag export` does, and compare both.

    Args:
        model: a `.reeltag` file, a folder that `reeltag share` wrote, a URL, or a loaded `Predictor`.
        out: a new .onnx file.
        top: output only this many most probable classes; all probabilities by default.
        check: shards; both are compared on their first 512 videos. Random frames by default.
        calibrated: apply the model's calibration.
        thresholds: also output which classes reach the model's thresholds.

    Returns:
        Size of the file in bytes, and the largest difference of a probability.

    Raises:
        ReeltagError: bad input, onnx is missing, or the two differ; see `reeltag.core.errors`.
    """
    out = Path(out)
    if out.suffix != ".onnx":
        raise UsageError(f"{out}: should end in .onnx")
    refuse_existing(out)
    remove_partials_of(out)
    shards = find_files(check)
    artifact = load_artifact(resolve_model(model))
    batches = generated_batches(artifact.schema)
    if shards:
        videos = islice(read_examples(shards, artifact.schema), CHECKED)
        batches = stream_batches(videos, artifact.schema, BATCH_SIZE)
    return save_onnx(out, artifact, batches, top, calibrated=calibrated, thresholds=thresholds)


def save_onnx(
    path: Path,
    artifact: Artifact,
    batches: Iterable[Batch],
    top: int | None = None,
    *,
    calibrated: bool = False,
    thresholds: bool = False,
) -> tuple[int, float]:
    """Write an ONNX file atomically, and only if its probabilities equal those of the artifact.

    Args:
        path: of the new file.
        artifact: the model.
        batches: videos on which both are compared.
        top: output only this many most probable classes; all probabilities by default.
        calibrated: apply the model's calibration.
        thresholds: also output which classes reach the model's thresholds.

    Returns:
        Size of the file in bytes, and the largest difference of a probability.

    Raises:
        BudgetError: the file would exceed 2 GiB, the limit of ONNX.
        ArtifactError: the probabilities differ by more than 1e-4.
        UsageError: `top` is not from 1 to C, a family has no ONNX form, onnx or onnxruntime is missing, or the model
            has no calibration or no thresholds.
    """
    try:
        from reeltag.artifact.onnx.model import build_onnx
    except ModuleNotFoundError as error:
        raise UsageError(f"{error.name} is not installed; {install_command('onnx')}") from error
    model = build_onnx(artifact, top, calibrated=calibrated, thresholds=thresholds)
    if (size := _size(model)) > LARGEST:
        raise BudgetError(
            f"{path}: would have {megabytes(size)}, {megabytes(size - LARGEST)} over {megabytes(LARGEST)}, the limit "
            "of ONNX; export fewer members"
        )
    with atomic_path(path) as temporary:
        temporary.write_bytes(model.SerializeToString(deterministic=True))
        del model
        difference = largest_difference(temporary, artifact, batches, top, calibrated=calibrated)
        if not difference <= TOLERANCE:
            raise ArtifactError(
                f"{path}: not kept, since its probabilities differ by {difference:.1e} from the model's, which is more "
                f"than {TOLERANCE:.0e}; please report this with the versions that `reeltag doctor` prints"
            )
    return size, difference


def _size(model: onnx.ModelProto) -> int:
    """Return the bytes of the file; beyond protobuf's limit an estimate from its weights."""
    weights = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    return model.ByteSize() if weights < LARGEST - ROOM else weights + ROOM


def generated_batches(schema: Schema, videos: int = 64) -> Iterator[Batch]:
    """Generate batches of videos with random frames and lengths."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, schema.max_frames + 1, videos)
    lengths[0] = schema.max_frames
    for some in np.array_split(lengths, max(1, videos // 16)):
        shape = (len(some), int(some.max()), schema.width)
        frames = rng.integers(0, 256, shape, np.uint8) if schema.dtype == "uint8" else rng.normal(size=shape)
        tensor = torch.from_numpy(frames.astype(schema.dtype))
        yield Batch(("",) * len(some), tensor, torch.from_numpy(some), None)


def largest_difference(
    path: Path, artifact: Artifact, batches: Iterable[Batch], top: int | None, *, calibrated: bool = False
) -> float:
    """Return the largest |Δp| between an ONNX file and its artifact; with `top`, of the classes in the ONNX output."""
    session = open_onnx(path)
    predictor = Predictor(artifact, artifact.members, device="cpu", calibrated=calibrated)
    largest = 0.0
    for batch, expected in ((batch, predict_batches(predictor.model, [batch])) for batch in batches):
        (probabilities,) = (part.probabilities.numpy() for part in expected)
        outputs = session.run(None, {"frames": batch.frames.numpy(), "lengths": batch.lengths.numpy()})
        if top is not None:
            probabilities, outputs = np.take_along_axis(probabilities, outputs[0], 1), outputs[1:]
        largest = float(np.maximum(largest, np.abs(outputs[0] - probabilities).max()))  # keeps NaN
    return largest
