"""The options that every step which trains has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from penjing.options import option

#: of distillation: what scores are divided by before they are compared, and the teacher's share where there are labels
TEMPERATURE, WEIGHT = 2.0, 0.7


@dataclass(frozen=True)
class TrainingOptions:
    """Options of training; the defaults suit fine-tuning on some thousand photographs.

    A step inherits them: `class Recover(TrainingOptions, Technique)`.
    """

    epochs: int = option(5, "Times that all photographs are seen.", between=(0, 10_000))
    learning_rate: float = option(1e-3, "Highest learning rate.", between=(0, 100))
    optimiser: Literal["adamw", "sgd"] = option(
        "adamw", "How weights follow gradients; sgd has momentum 0.9."
    )
    schedule: Literal["one-cycle", "constant"] = option(
        "one-cycle", "Learning rate over time: up, then down to nothing by a cosine; or as it is."
    )
    warm_up: float = option(0.1, "Share of the steps in which the learning rate rises.", between=(0, 1))
    weight_decay: float = option(0.01, "Decay of weights; biases and norms have none.", between=(0, 1))
    batch_size: int = option(32, "Photographs in a step, in all processes together.", between=(1, 65_536))
    accumulate: int = option(
        1, "Parts in which a batch is computed one after another, where memory is short.", between=(1, 4096)
    )
    label_smoothing: float = option(0.0, "Share of a label that all classes divide.", between=(0, 0.9))
    mixup: float = option(
        0.0, "Mix pairs of photographs, in shares drawn from Beta(mixup, mixup); 0 does not.", between=(0, 10)
    )
    crop: float = option(
        0.5, "Smallest share of a photograph that a random crop has; 1 crops as for use.", between=(0.01, 1)
    )
    flip: bool = option(True, "Mirror half of the photographs; not for text or traffic signs.")
    ema: float = option(
        0.0,
        "Decay of a running average of the weights, which is the result; 0 has none.",
        between=(0, 0.99999),
    )
    batch_norm: bool = option(
        True, "Estimate statistics of batch norms anew before each epoch is scored, and at the end."
    )
    patience: int = option(
        0, "Epochs without a better score on select after which it stops; 0 goes on.", between=(0, 10_000)
    )
    amp: bool = option(True, "Mixed precision, on a GPU only.")
    workers: int = option(0, "Processes that decode photographs besides this one.", between=(0, 256))
    checkpoint_every: int = option(
        100,
        "Steps after which all is saved, to be taken up again after a kill; 0 never.",
        between=(0, 1_000_000),
    )
    tensorboard: bool = option(False, "Write curves for TensorBoard into the step's folder.")


@dataclass(frozen=True)
class TeacherOptions:
    """The options of steps that learn from another network's scores."""

    temperature: float = option(
        TEMPERATURE, "What scores are divided by before they are compared.", between=(0.01, 100)
    )
    weight: float = option(
        WEIGHT, "The teacher's share where there are labels, which have the rest.", between=(0, 1)
    )
