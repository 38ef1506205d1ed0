"""How good a network is on *select*, and statistics of batch norms."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from penjing_training.objective import Objective, are_logits, as_tuple
from penjing_training.photographs import Batch

if TYPE_CHECKING:
    from penjing_training.photographs import Normalise, Pixels

#: photographs in a batch that is not trained on, and how many re-estimate batch norms: after an epoch, in the end
BATCH, SOME, ENOUGH = 64, 512, 2048


@dataclasses.dataclass(frozen=True)
class Score:
    """The objective's mean, and the share that is right where there are labels to tell."""

    loss: float
    accuracy: float | None = None

    def beats(self, other: Score | None) -> bool:
        """Tell whether this is better: more is right, or as much at a lower loss; anything is better than NaN."""
        if other is None or not math.isfinite(self.loss):
            return other is None
        if not math.isfinite(other.loss):
            return True
        return (self.accuracy or 0.0, -self.loss) > (other.accuracy or 0.0, -other.loss)

    def __str__(self) -> str:
        return f"loss {self.loss:.4g}" + (
            "" if self.accuracy is None else f", {100 * self.accuracy:.1f} % right"
        )


@torch.no_grad()
def score(network: nn.Module, objective: Objective, pixels: Pixels, normalise: Normalise) -> Score:
    """Return how good a network in eval mode is on photographs prepared as for use."""
    loss, right, known = 0.0, 0, min(pixels.labels) >= 0
    for start in range(0, len(pixels), BATCH):
        chosen = range(start, min(start + BATCH, len(pixels)))
        inputs = normalise(torch.stack([pixels[index] for index in chosen]))
        targets = torch.tensor(pixels.labels[start : chosen.stop], device=inputs.device) if known else None
        outputs = as_tuple(network(inputs))
        loss += float(objective(outputs, Batch(inputs, targets))) * len(chosen)
        known = known and are_logits(outputs[0])
        if known and targets is not None:
            right += int((outputs[0].argmax(1) == targets).sum())
    return Score(loss / len(pixels), right / len(pixels) if known else None)


def norms_of(network: nn.Module) -> list[_BatchNorm]:
    """Return the batch norms that keep statistics."""
    return [m for m in network.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]


@torch.no_grad()
def reestimate(
    network: nn.Module,
    pixels: Pixels,
    clean: Callable[[Tensor], Tensor],
    normalise: Normalise,
    most: int = ENOUGH,
) -> None:
    """Set the statistics of batch norms to the mean over photographs prepared as for use, `most` of them."""
    momenta = [norm.momentum for norm in norms_of(network)]
    for norm in norms_of(network):
        norm.reset_running_stats()
        norm.momentum = None  # every batch weighs the same
        norm.train()
    count = min(len(pixels), most)
    size = min(BATCH, count)
    step = max(1, len(pixels) // count)
    for start in range(0, count - size + 1, size):
        chosen = range(start * step, (start + size) * step, step)
        network(normalise(torch.stack([clean(pixels[index]) for index in chosen])))
    for norm, momentum in zip(norms_of(network), momenta, strict=True):
        norm.momentum = momentum
        norm.eval()
