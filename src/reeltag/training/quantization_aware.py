"""Fine-tuning through the rounding: coded weights learn the probabilities of the float model, or of teachers.

The forward pass computes with rounded weights, and gradients pass the rounding unchanged (straight-through estimator,
Bengio et al. 2013). No labels are needed; without dropout they lower test GAP.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.func import functional_call

from reeltag.core.interrupts import hold_signals
from reeltag.core.progress import Progress
from reeltag.data.loader import Batch
from reeltag.models.tagger import Tagger
from reeltag.training import checkpoint
from reeltag.training.losses import cross_entropy
from reeltag.training.replica import step_seed

LARGEST = torch.iinfo(torch.int8).max
LEARNING_RATE = 0.02  # steps of the codes, or units of other tensors, an update; twice as much loses GAP


class RoundedWeights(nn.Module):
    """Weights of a tagger, of which the coded ones are rounded whenever they are used.

    Args:
        coded: codes (`int8`) and steps by name; a value is their product.
        others: all other tensors of the state by name, float32.
        units: by name of a tensor of `others` that is tuned too, the change that costs as much as a step of a code.
    """

    def __init__(
        self, coded: Mapping[str, tuple[Tensor, Tensor]], others: Mapping[str, Tensor], units: Mapping[str, float]
    ) -> None:
        super().__init__()
        self.steps = {name: steps.float() for name, (_, steps) in coded.items()}
        self.others, self.units = others, units
        for name, (codes, _) in coded.items():
            self.register_parameter(_key(name), nn.Parameter(codes.float()))
        for name in units:
            self.register_parameter(_key(name), nn.Parameter(torch.zeros_like(others[name])))

    def forward(self) -> dict[str, Tensor]:
        """Return all weights by name, in float32."""
        rounded = {name: _straight_through(self._latent(name)) * step for name, step in self.steps.items()}
        return {**self.others, **rounded, **self._tuned()}

    @torch.no_grad()
    def codes(self) -> dict[str, Tensor]:
        """Return the codes by name, int8."""
        return {name: _rounded(self._latent(name)).to(torch.int8) for name in self.steps}

    @torch.no_grad()
    def tuned(self) -> dict[str, Tensor]:
        """Return the tensors that are tuned without codes, by name."""
        return self._tuned()

    def _tuned(self) -> dict[str, Tensor]:
        return {name: self.others[name] + self._latent(name) * unit for name, unit in self.units.items()}

    def _latent(self, name: str) -> Tensor:
        return self.get_parameter(_key(name))


def _straight_through(latent: Tensor) -> Tensor:
    """Round to codes, with the gradient of the identity."""
    return latent + (_rounded(latent.detach()) - latent.detach())


def _rounded(latent: Tensor) -> Tensor:
    return latent.round().clamp_(-LARGEST, LARGEST)


def _key(name: str) -> str:
    return name.replace(".", "/")  # names of parameters have no dots


def fine_tune(
    tagger: Tagger,
    weights: RoundedWeights,
    batches: Callable[[range], Iterator[Batch]],
    *,
    steps: int,
    dropout: float,
    seed: int,
    path: Path,
    progress: Progress,
) -> None:
    """Fine-tune rounded weights to the soft targets of the batches, or else to the model before quantization.

    Batch norm keeps its statistics.

    Args:
        tagger: the model before quantization, in evaluation mode.
        weights: the rounded weights, which change.
        batches: function from a range of steps to their batches.
        steps: number of updates of Adam; the learning rate falls to 0 along a cosine.
        dropout: probability with which the model's dropout layers drop a unit; docs/bytes.md has what it gains.
        seed: of dropout.
        path: the checkpoint; the tuning goes on from it if it exists.
        progress: reports each step.

    Raises:
        KeyboardInterrupt: Ctrl-C or SIGTERM; the current step was finished and saved first.
    """
    student = copy.deepcopy(tagger).to("meta")  # its weights come with each call
    for module in student.modules():
        if isinstance(module, nn.RNNBase):
            module.train()  # so that cuDNN has gradients
        if isinstance(module, nn.Dropout):
            module.p = dropout
            module.train()
    optimizer, first = torch.optim.Adam(weights.parameters()), 0
    if path.exists():
        saved = checkpoint.load(path)
        checkpoint.restore(saved, weights, optimizer)
        first = saved.step
    rest = range(first, steps)
    with torch.random.fork_rng(), progress.task("fine-tune", steps, "steps") as task, hold_signals() as interrupt:
        task.resume_at(first)
        for step, batch in zip(rest, batches(rest), strict=True):
            torch.manual_seed(step_seed(seed, step))
            optimizer.param_groups[0]["lr"] = LEARNING_RATE * (1 + math.cos(math.pi * step / steps)) / 2
            targets = batch.targets
            if targets is None:
                with torch.no_grad():
                    targets = tagger(batch.frames, batch.lengths)
            probabilities = functional_call(student, weights(), (batch.frames, batch.lengths))
            optimizer.zero_grad()
            cross_entropy(probabilities, targets).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            task.advance(1)
            if interrupt.number or step == rest[-1]:
                checkpoint.save(path, checkpoint.capture(step + 1, weights, optimizer, None, best={}, log={}))
            if interrupt.number:
                interrupt.release(interrupt.number)
