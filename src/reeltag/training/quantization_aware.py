"""Fine-tuning through the rounding: coded weights learn the float model's probabilities.

The forward pass computes with rounded weights, and gradients pass the rounding unchanged (straight-through estimator,
Bengio et al. 2013). The targets are the probabilities of the model before quantization, so no labels are needed.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.func import functional_call

from reeltag.artifact.quantization.coded import half_if_exact
from reeltag.artifact.quantization.encodings import LARGEST_CODE, CodedTensor, QuantizedTensor, State
from reeltag.core.interrupts import hold_signals
from reeltag.core.progress import Progress
from reeltag.data.loader import Batch
from reeltag.models.tagger import Tagger
from reeltag.training import checkpoint
from reeltag.training.losses import cross_entropy
from reeltag.training.replica import step_seed

LEARNING_RATE = (
    0.02  # steps of the codes, or units of the other tensors, an update; three times as much destroys a model
)


class RoundedWeights(nn.Module):
    """Weights of a tagger that are rounded whenever they are used.

    Args:
        state: encoded weights.
        units: by name of a tensor that is not coded, the change that costs as much as a step of the codes; tensors
            without a unit stay as they are.
    """

    def __init__(self, state: State, units: Mapping[str, float]) -> None:
        super().__init__()
        self.start, self.units = dict(state), units
        for name, value in state.items():
            if isinstance(value, CodedTensor):
                self.register_parameter(_key(name), nn.Parameter(value.codes.float()))
            elif name in units:
                self.register_parameter(_key(name), nn.Parameter(torch.zeros(_floats(value).shape)))

    def forward(self) -> dict[str, Tensor]:
        """Return the weights by name, in float32."""
        return {name: self._value(name, value) for name, value in self.start.items()}

    def _value(self, name: str, value: Tensor | QuantizedTensor) -> Tensor:
        if isinstance(value, CodedTensor):
            latent = self.get_parameter(_key(name))
            codes = latent + (_codes(latent) - latent).detach()
            return codes * value.steps.float()
        if name in self.units:
            return _floats(value) + self.get_parameter(_key(name)) * self.units[name]
        return _floats(value)

    @torch.no_grad()
    def encoded(self) -> dict[str, Tensor | QuantizedTensor]:
        """Return the weights as they are stored."""
        state = dict(self.start)
        for name, value in state.items():
            if isinstance(value, CodedTensor):
                state[name] = CodedTensor(_codes(self.get_parameter(_key(name))).to(torch.int8), value.steps)
            elif name in self.units:
                state[name] = half_if_exact(self._value(name, value))
        return state


def _key(name: str) -> str:
    return name.replace(".", "/")  # names of parameters have no dots


def _floats(value: Tensor | QuantizedTensor) -> Tensor:
    return value.dequantize() if isinstance(value, QuantizedTensor) else value


def _codes(latent: Tensor) -> Tensor:
    return latent.detach().round().clamp_(-LARGEST_CODE, LARGEST_CODE)


def fine_tune(
    tagger: Tagger,
    weights: RoundedWeights,
    batches: Callable[[range], Iterator[Batch]],
    *,
    steps: int,
    seed: int,
    path: Path,
    progress: Progress,
) -> None:
    """Fine-tune rounded weights to the probabilities of the model before quantization.

    Units drop out as in the model's training, since that is where most of the gain comes from; batch norm keeps its
    statistics.

    Args:
        tagger: the model before quantization, in evaluation mode.
        weights: the rounded weights, which change.
        batches: function from a range of steps to their batches.
        steps: number of updates of Adam; the learning rate falls to 0 along a cosine.
        seed: of dropout.
        path: the checkpoint; the tuning goes on from it if it exists.
        progress: reports each step.

    Raises:
        KeyboardInterrupt: Ctrl-C or SIGTERM; the current step was finished and saved first.
    """
    student = copy.deepcopy(tagger).to("meta")  # its weights come with each call
    for module in student.modules():
        if isinstance(module, nn.Dropout | nn.RNNBase):  # cuDNN has no gradients in evaluation mode
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
