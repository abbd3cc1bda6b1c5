"""Encode the weights of a model by rate and distortion, and choose how coarsely by GAP."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from reeltag.artifact.file import Artifact
from reeltag.artifact.quantization.calibration import calibrate
from reeltag.artifact.quantization.coded import Encoder, coarsest_step
from reeltag.data.loader import Batch
from reeltag.inference.ensemble import predict_batches
from reeltag.inference.metrics.evaluation import evaluate_predictions
from reeltag.inference.predictor import Predictor


class ArtifactEncoder:
    """Encoder of all members of a model.

    Args:
        artifact: the model; weights that are quantized already stay as they are.
        batches: function that returns the videos on which the cost of errors is measured.
        seed: of the calibration.

    Raises:
        UsageError: there are no videos, or the statistics of their products are not finite.
    """

    def __init__(self, artifact: Artifact, batches: Callable[[], Iterable[Batch]], seed: int) -> None:
        self.artifact = artifact
        self.encoders = [
            Encoder(member.state, calibrate(member.build(artifact.schema), batches(), seed))
            for member in artifact.members
        ]

    def encode(self, step: float) -> Artifact:
        """Return the model with weights that are encoded with a step."""
        pairs = zip(self.artifact.members, self.encoders, strict=True)
        return replace(
            self.artifact, members=tuple(replace(member, state=encoder.encode(step)) for member, encoder in pairs)
        )

    def smallest(self, batches: Callable[[], Iterable[Batch]], max_loss: float) -> tuple[float, Artifact]:
        """Encode with the largest step whose loss of GAP is allowed.

        Args:
            batches: function that returns the labelled videos on which the loss is measured.
            max_loss: largest loss that is allowed.

        Returns:
            The step, and the model.

        Raises:
            UsageError: not even the smallest step loses so little.
        """
        before = _gap(self.artifact, batches())
        found: dict[float, Artifact] = {}

        def loss(step: float) -> float:
            found[step] = self.encode(step)
            return before - _gap(found[step], batches())

        step = coarsest_step(loss, max_loss)
        return step, found[step]


def _gap(artifact: Artifact, batches: Iterable[Batch]) -> float:
    model = Predictor(artifact, artifact.members, device="cpu").model
    return evaluate_predictions(predict_batches(model, batches), classes=artifact.schema.segment_classes).gap()
