"""How weights follow gradients: optimiser, learning rate over time, running average."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from penjing_training.options import TrainingOptions

#: the learning rate begins at this share of the highest, as in torch's OneCycleLR
BEGINNING = 1 / 25


def make_optimiser(parameters: Iterable[nn.Parameter], options: TrainingOptions) -> torch.optim.Optimizer:
    """Return the optimiser over trainable parameters; those of one dimension (biases, norms) do not decay."""
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": options.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if options.optimiser == "adamw":
        return torch.optim.AdamW(groups, options.learning_rate)
    return torch.optim.SGD(groups, options.learning_rate, momentum=0.9, nesterov=True)


def rate_at(step: int, steps: int, options: TrainingOptions) -> float:
    """Return the learning rate of a step: a function of the step alone, so that nothing of it has to be kept.

    One cycle (Smith and Topin, Super-Convergence, 2018): up by a half cosine, and down to nothing by another.
    """
    if options.schedule == "constant":
        return options.learning_rate
    rising = options.warm_up * steps
    if step < rising:
        low = BEGINNING * options.learning_rate
        return low + (options.learning_rate - low) * (1 - math.cos(math.pi * (step + 1) / (rising + 1))) / 2
    return options.learning_rate * (1 + math.cos(math.pi * (step - rising) / max(1.0, steps - rising))) / 2


@torch.no_grad()
def follow(average: nn.Module, network: nn.Module, decay: float, step: int) -> None:
    """Move a running average of all parameters and buffers; the first steps weigh more, and the start is forgotten."""
    share = 1 - min(decay, (1 + step) / (10 + step))
    current = network.state_dict()
    for name, value in average.state_dict().items():
        if value.is_floating_point():
            value.lerp_(current[name], share)
        else:
            value.copy_(current[name])
