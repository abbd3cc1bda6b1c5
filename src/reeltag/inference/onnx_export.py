"""Convert model files: fewer bits, and ONNX that is checked against the model before it is kept."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from reeltag.artifact.file import Artifact, load_artifact
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

LARGEST = 2**31 - 1  # bytes that a protobuf may have
ROOM = 1 << 24  # for all that is no weight
TOLERANCE = 1e-4

CHECKED = 512  # videos on which an exported model is compared


def export_onnx(
    model: str | Path | Predictor, out: str | Path, *, top: int | None = None, check: Patterns = ()
) -> tuple[int, float]:
    """Write a model as ONNX, as `reeltag export` does, once it was seen to say the same.

    Args:
        model: a `.reeltag` file, a folder that `share` wrote, a URL, or what `load` gave.
        out: a new .onnx file.
        top: give the so many most probable classes instead of all probabilities.
        check: shards on whose first 512 videos both are compared; random frames by default.

    Returns:
        The file's bytes, and the largest difference of a probability.

    Raises:
        ReeltagError: bad input, onnx is missing, or the two differ; see `reeltag.core.errors`.
    """
    out = Path(out)
    if out.suffix != ".onnx":
        raise UsageError(f"{out}: should end in .onnx")
    refuse_existing(out)
    remove_partials_of(out)
    shards = find_files(check)
    shipped = load_artifact(resolve_model(model))
    batches = generated_batches(shipped.schema)
    if shards:
        videos = islice(read_examples(shards, shipped.schema), CHECKED)
        batches = stream_batches(videos, shipped.schema, BATCH_SIZE)
    return save_onnx(out, shipped, batches, top)


def save_onnx(path: Path, shipped: Artifact, batches: Iterable[Batch], top: int | None = None) -> tuple[int, float]:
    """Write the ONNX file, once it was seen to give what the artefact gives; whole or not at all.

    Args:
        path: where.
        shipped: what a `.reeltag` file holds.
        batches: videos on which both are compared.
        top: give the most probable classes only.

    Returns:
        The file's size in bytes, and the largest difference of a probability.

    Raises:
        BudgetError: the file would exceed the budget that the artefact was packed for.
        ArtifactError: the probabilities differ by more than 1e-4.
        UsageError: `top` is no number of classes, a family has no ONNX form, or onnx or onnxruntime is missing.
    """
    try:
        from reeltag.artifact.onnx.model import build_onnx
    except ModuleNotFoundError as error:
        raise UsageError(f"{error.name} is not installed; pip install 'reeltag[onnx]'") from error
    model = build_onnx(shipped, top)
    size, budget = _size(model), min(shipped.provenance.get("budget", LARGEST), LARGEST)
    if size > budget:
        raise BudgetError(f"{path}: would have {megabytes(size)}, {megabytes(size - budget)} over {megabytes(budget)}")
    with atomic_path(path) as temporary:
        temporary.write_bytes(model.SerializeToString(deterministic=True))
        del model
        difference = largest_difference(temporary, shipped, batches, top)
        if not difference <= TOLERANCE:
            raise ArtifactError(
                f"{path}: not kept, since its probabilities differ by {difference:.1e} from the model's, which is more "
                f"than {TOLERANCE:.0e}; please report this with the versions that `reeltag doctor` prints"
            )
    return size, difference


def _size(model: onnx.ModelProto) -> int:
    """Bytes of the file; of one beyond the largest, those of its weights, since protobuf counts no further."""
    weights = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    return model.ByteSize() if weights < LARGEST - ROOM else weights + ROOM


def generated_batches(schema: Schema, videos: int = 64) -> Iterator[Batch]:
    """Videos of random frames and lengths, for where no others are at hand."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, schema.max_frames + 1, videos)
    lengths[0] = schema.max_frames
    for some in np.array_split(lengths, max(1, videos // 16)):
        shape = (len(some), int(some.max()), schema.width)
        frames = rng.integers(0, 256, shape, np.uint8) if schema.dtype == "uint8" else rng.normal(size=shape)
        tensor = torch.from_numpy(frames.astype(schema.dtype))
        yield Batch(("",) * len(some), tensor, torch.from_numpy(some), None)


def largest_difference(path: Path, shipped: Artifact, batches: Iterable[Batch], top: int | None) -> float:
    """The largest difference between what the two files say, |Δp|; with `top`, of the classes that ONNX names."""
    session, ours = open_onnx(path), Predictor(shipped, shipped.members, device="cpu")
    largest = 0.0
    for batch, expected in ((batch, predict_batches(ours.model, [batch])) for batch in batches):
        (probabilities,) = (part.probabilities.numpy() for part in expected)
        found = session.run(None, {"frames": batch.frames.numpy(), "lengths": batch.lengths.numpy()})
        if top is not None:
            probabilities, found = np.take_along_axis(probabilities, found[0], 1), found[1:]
        largest = float(np.maximum(largest, np.abs(found[0] - probabilities).max()))  # NaN stays NaN
    return largest
