"""One rank's copy of a model, on its device and with its optimizer: what a training step does.

A step is a function of the weights, Adam's moments, the batch and a seed, which drives all of its randomness.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from reeltag.core.distributed import process_group
from reeltag.core.distributed.collectives import gather_rows, global_mean, sample_global
from reeltag.core.distributed.process_group import world_size
from reeltag.core.errors import TrainingError
from reeltag.data.loader import Batch, count_sampled_frames, sample_frames, select_frames
from reeltag.models.frames import frame_mask
from reeltag.models.layers import dequantize
from reeltag.models.tagger import Tagger
from reeltag.training.losses import cross_entropy, distillation_targets
from reeltag.training.schedule import TrainingSettings

ADAM_EPSILON, ADAM_BETA2 = 1e-8, 0.999


class Replica:
    """A tagger on this rank's device, with Adam, ready for training steps.

    If several ranks share the training, each passes its rows of the global batch, and their gradients are averaged
    (DistributedDataParallel).

    Args:
        tagger: the model; it moves to the device, and its weights change.
        settings: device, precision, batch, frames, mixup and clipping.

    Attributes:
        device: the device that computes.
        tagger: the model.
        optimizer: Adam over its parameters.

    Raises:
        TrainingError: the ranks cannot share a batch of this size, or there is no GPU for each of them.
    """

    def __init__(self, tagger: Tagger, settings: TrainingSettings) -> None:
        if world_size() > 1:
            _join(settings)
        self.settings, self.device = settings, _device(settings)
        self.tagger = tagger.to(self.device).train()
        if settings.start is not None:
            for part in settings.start.frozen:
                getattr(tagger, part).requires_grad_(False).eval()  # statistics of batch norm stay, too
        self.optimizer = torch.optim.Adam(_groups(tagger, settings), betas=(0.9, ADAM_BETA2), fused=True)
        self._bf16 = _precision(settings, self.device) == "bf16-mixed"
        self._forward: nn.Module = tagger
        if world_size() > 1:
            ids = None if self.device.type == "cpu" else [self.device.index]
            self._forward = DistributedDataParallel(tagger, device_ids=ids)

    def set_learning_rate(self, learning_rate: float, step: int) -> None:
        """Set Adam's learning rate, and its ε, for a step."""
        for group in self.optimizer.param_groups:
            group.update(lr=learning_rate / group["divisor"], eps=adam_epsilon(step))

    def train_step(self, batch: Batch, seed: int, label_weight: float = 1.0) -> float:
        """Take one step of Adam.

        Args:
            batch: this rank's rows of the global batch.
            seed: seed of sampled frames, mixup and dropout.
            label_weight: λ, weight of the labels beside the teacher's probabilities in the batch's targets.

        Returns:
            The loss of the global batch.

        Raises:
            FloatingPointError: loss, gradient or a statistic of batch norm is not finite; the weights are unchanged.
        """
        generator = torch.manual_seed(seed)
        batch = batch.to(self.device)
        targets = _targets(batch, label_weight)
        batch, targets = self._augmented(batch, targets, seed, generator)
        with self._autocast():
            probabilities = self._forward(batch.frames, batch.lengths, batch.counts)
        loss = cross_entropy(probabilities.float(), targets, batch.rated) + self.tagger.penalty()
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        gradient = clip_gradients(self.tagger, self.settings.clip, self.settings.clip_norm)
        value = _finite(global_mean(loss.detach()), gradient, self.tagger)
        self.optimizer.step()
        return value

    def _augmented(self, batch: Batch, targets: Tensor, seed: int, generator: torch.Generator) -> tuple[Batch, Tensor]:
        """Sample frames with replacement, and mix videos, as the settings say."""
        frames, mixup = self.settings.frames, self.settings.mixup
        # Sampling from a single frame would change nothing.
        if frames != "all" and not self.tagger.pooling.ordered and batch.frames.shape[1] > 1:
            rows = sample_frames(batch.lengths, frames, generator)
            batch = select_frames(batch, rows) if mixup else count_sampled_frames(batch, rows)
        return mix_videos(batch, targets, mixup, seed) if mixup else (batch, targets)

    def _autocast(self) -> AbstractContextManager[object]:
        return torch.autocast(self.device.type, torch.bfloat16) if self._bf16 else nullcontext()


def _groups(tagger: Tagger, settings: TrainingSettings) -> list[dict[str, Any]]:
    """Return the parameters of the head and those before it, each with the divisor of their learning rate."""
    divisor = settings.start.learning_rate_divisor if settings.start else 1.0
    if divisor == 1:
        return [{"params": list(tagger.parameters()), "divisor": 1.0}]
    head = list(tagger.head.parameters())
    before = [each for name, each in tagger.named_parameters() if not name.startswith("head.")]
    return [{"params": head, "divisor": 1.0}, {"params": before, "divisor": divisor}]


def step_seed(seed: int, step: int) -> int:
    """Return the seed of everything random in a step of a training."""
    return int(np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)[0] >> 1)


def adam_epsilon(step: int) -> float:
    """Return the ε with which torch's Adam computes what TensorFlow's does with 1e-8.

    TensorFlow adds ε to √v before the bias correction, torch after it. On gradients near zero, of which a normalised
    pooling has many, this matters.
    """
    return float(ADAM_EPSILON / math.sqrt(1 - ADAM_BETA2 ** (step + 1)))


@torch.no_grad()
def clip_gradients(model: nn.Module, clip: Literal["tensor", "global", "none"], norm: float) -> Tensor:
    """Scale down gradients longer than `norm`: each tensor by itself, as published, or all as one vector.

    Returns:
        The norm of all gradients as one vector, before clipping; finite only if every gradient and its square is.
    """
    if clip == "global":
        return nn.utils.clip_grad_norm_(model.parameters(), norm)
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    norms = [torch.linalg.vector_norm(gradient) for gradient in gradients]
    if clip == "tensor":
        for gradient, length in zip(gradients, norms, strict=True):
            gradient.mul_(norm / length.clamp_min(norm))
    whole: Tensor = torch.linalg.vector_norm(torch.stack(norms))
    return whole


def mix_videos(batch: Batch, targets: Tensor, alpha: float, seed: int) -> tuple[Batch, Tensor]:
    """Mix each video with another one of the global batch, by one weight sampled from Beta(alpha, alpha).

    Zhang et al. 2018, "mixup: Beyond Empirical Risk Minimization". The longer of two videos decides the length.

    Args:
        batch: this rank's videos.
        targets: [B, C].
        alpha: a of Beta(a, a).
        seed: seed of the weight and of the pairs.

    Returns:
        The batch with mixed float32 frames, and mixed targets.
    """
    rng = np.random.default_rng([seed, 0x313])
    sample = rng.beta(alpha, alpha)
    weight = max(sample, 1 - sample)
    others = sample_global(lambda videos: torch.from_numpy(rng.permutation(videos)), len(batch))
    others = others.to(batch.lengths.device)
    other_frames, other_lengths, other_targets = (
        gather_rows(each)[others] for each in (batch.frames, batch.lengths, targets)
    )
    frames = torch.lerp(_values(other_frames, other_lengths), _values(batch.frames, batch.lengths), weight)
    mixed = replace(batch, frames=frames, lengths=torch.maximum(batch.lengths, other_lengths))
    return mixed, torch.lerp(other_targets, targets, weight)


def _values(frames: Tensor, lengths: Tensor) -> Tensor:
    """Return frames as float32, with 0 for padding."""
    values = dequantize(frames) if frames.dtype == torch.uint8 else frames
    return values * frame_mask(lengths, frames.shape[1])[..., None]


def _targets(batch: Batch, label_weight: float) -> Tensor:
    """Return the targets of the loss: the labels, or the labels mixed with a teacher's probabilities."""
    if batch.labels is None:
        raise TrainingError(f"a video without labels cannot be trained on; it is in the batch of {batch.ids[0]!r}")
    if batch.targets is None:
        return batch.labels.float()
    return distillation_targets(batch.labels, batch.targets, label_weight)


def _finite(loss: Tensor, gradient: Tensor, module: nn.Module) -> float:
    """Return the loss, once it, the gradient's norm and the statistics of batch norm are known to be finite."""
    statistics = {name: buffer for name, buffer in module.named_buffers() if buffer.is_floating_point()}
    largest = [torch.linalg.vector_norm(buffer, math.inf) for buffer in statistics.values()]
    names = ["the loss", "the gradient's norm", *(f"batch norm's {name}" for name in statistics)]
    values: list[float] = torch.stack([loss, gradient, *largest]).tolist()  # together: one wait for a GPU
    for name, value in zip(names, values, strict=True):
        if not math.isfinite(value):
            raise FloatingPointError(f"{name} is {value}")
    return values[0]


def _join(settings: TrainingSettings) -> None:
    """Enter the process group, if its ranks can share this training."""
    if fault := settings.cannot_share(world_size()):
        raise TrainingError(f"training.{fault}")
    here, gpus = process_group.local_world_size(), torch.cuda.device_count()
    if settings.device != "cpu" and 0 < gpus < here:
        raise TrainingError(f"training.devices: this machine has {gpus} GPUs for {here} processes; each needs its own")
    process_group.initialize()


def _device(settings: TrainingSettings) -> torch.device:
    """Return the device of this rank; "auto" prefers a CUDA GPU, then, in a single process, Apple's GPU."""
    kind = settings.device
    if kind == "auto":
        mps = world_size() == 1 and torch.backends.mps.is_available()
        kind = "cuda" if torch.cuda.is_available() else "mps" if mps else "cpu"
    if kind != "cuda":
        return torch.device(kind)
    device = torch.device("cuda", process_group.local_rank())
    torch.cuda.set_device(device)
    return device


def _precision(settings: TrainingSettings, device: torch.device) -> Literal["32-true", "bf16-mixed"]:
    if settings.precision != "auto":
        return settings.precision
    return "bf16-mixed" if device.type == "cuda" else "32-true"
