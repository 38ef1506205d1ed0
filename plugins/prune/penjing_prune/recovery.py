"""Winning accuracy back: training a pruned network to answer as the original does, and as the labels say."""

from __future__ import annotations

from typing import TYPE_CHECKING

from penjing_training.loop import train
from penjing_training.objective import Distil
from torch import nn

if TYPE_CHECKING:
    from penjing.model import Model
    from penjing.step import Context
    from penjing_training import TrainingOptions


def recover(
    module: nn.Module,
    options: TrainingOptions,
    model: Model,
    context: Context,
    *,
    name: str,
) -> nn.Module:
    """Return a trained copy of `module`; the teacher is the original model, or what the step was given."""
    objective = Distil(context.original or model, label_smoothing=options.label_smoothing)
    return train(module, options, model, context, objective=objective, name=name)
