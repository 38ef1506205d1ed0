"""What training makes small."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from penjing.errors import StepError
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._pytree import tree_leaves

from penjing_training.options import TEMPERATURE, WEIGHT
from penjing_training.photographs import Batch, lay_out

if TYPE_CHECKING:
    from penjing.model import Model
    from penjing.preprocess import Preprocess

Outputs = tuple[Tensor, ...]


class Objective:
    """A number to make small, computed from what a network puts out for a batch.

    `begin` and `end` surround a training; what `begin` returns, such as adapters, is trained too and then forgotten.
    """

    def begin(self, network: nn.Module, model: Model, example: Tensor) -> nn.Module | None:
        """Get ready to train `network`, which takes inputs such as `example`, on its device."""
        return None

    def __call__(self, outputs: Outputs, batch: Batch) -> Tensor:
        """Return the mean over the photographs of a batch, a scalar."""
        raise NotImplementedError

    def end(self) -> None:
        """Leave no trace on the network."""


class CrossEntropy(Objective):
    """The cross-entropy of the first output, logits [N, classes], with the labels."""

    def __init__(self, label_smoothing: float = 0.0) -> None:
        self.label_smoothing = label_smoothing

    def __call__(self, outputs: Outputs, batch: Batch) -> Tensor:
        """Return the mean cross-entropy; StepError where there is nothing to compare."""
        if batch.targets is None:
            raise StepError(
                "Training on labels needs labels; these photographs have none.",
                hint="Sort them into class folders, or learn from a teacher: distill.logits needs none.",
            )
        if not are_logits(outputs[0]):
            raise StepError(
                f"The network puts out {list(outputs[0].shape)}, not a score for each class.",
                hint="Learn from a teacher instead: distill.logits takes any output.",
            )
        return functional.cross_entropy(
            outputs[0].float(), batch.targets, label_smoothing=self.label_smoothing
        )


class Whole(nn.Module):
    """Network, objective and what is trained for it alone, in one module for DistributedDataParallel."""

    def __init__(self, network: nn.Module, extra: nn.Module | None, objective: Objective) -> None:
        super().__init__()
        self.network, self.extra = network, extra
        self._objective = objective

    def forward(self, inputs: Tensor, targets: Tensor | None) -> Tensor:
        """Return the objective for a batch."""
        result: Tensor = self._objective(as_tuple(self.network(inputs)), Batch(inputs, targets))
        return result


class Distil(Objective):
    """What a teacher puts out for the same photographs, and their labels where there are any.

    Scores of classes are compared by the Kullback-Leibler divergence of their softmax at `temperature`, times
    its square (Hinton, Vinyals and Dean, Distilling the Knowledge in a Neural Network, 2015); other outputs by
    their squared distance over the variance of the teacher's. `weight` is the teacher's share, the labels have
    the rest; without labels it is the teacher alone.
    """

    def __init__(
        self,
        teacher: Model | None,
        *,
        temperature: float = TEMPERATURE,
        weight: float = WEIGHT,
        label_smoothing: float = 0.0,
    ) -> None:
        self.teacher = Teacher(teacher)
        self.temperature, self.weight = temperature, weight
        self.labels = CrossEntropy(label_smoothing)

    def begin(self, network: nn.Module, model: Model, example: Tensor) -> nn.Module | None:
        """Move the teacher to the network's device, and compare their outputs; StepError where they do not match."""
        self.teacher.begin(model, example)
        with torch.no_grad():
            mine, wanted = as_tuple(network(example)), self.teacher(example)
        if any(bool(output.isnan().any()) for output in wanted):
            raise StepError(
                f"The teacher, {self.teacher.model.source}, puts out NaN.",
                hint="Its weights are damaged, or lie in a precision that it overflows.",
            )
        if not any(output.is_floating_point() for output in wanted):
            raise StepError(
                f"The teacher, {self.teacher.model.source}, puts out no floating-point numbers to learn from.",
                hint="Give a network that puts out scores rather than classes.",
            )
        shapes = [[list(output.shape[1:]) for output in found] for found in (mine, wanted)]
        if shapes[0][: len(wanted)] != shapes[1]:
            raise StepError(
                f"The teacher puts out {_by_image(shapes[1])} for a photograph, the network {_by_image(shapes[0])}.",
                hint="Both need the same classes: torchvision:NAME?num_classes=N with weights for them.",
            )
        return None

    def __call__(self, outputs: Outputs, batch: Batch) -> Tensor:
        """Return the weighted mean."""
        taught = self.taught(outputs, self.teacher(batch.inputs))
        if batch.targets is None or not are_logits(outputs[0]) or self.weight == 1:
            return taught
        return self.weight * taught + (1 - self.weight) * self.labels(outputs, batch)

    def taught(self, outputs: Outputs, wanted: Outputs) -> Tensor:
        """Return the mean distance of the outputs from the teacher's."""
        # in training some networks put out more than in use; the loop sees to it that those in use come first
        pairs = [(mine, its) for mine, its in zip(outputs, wanted, strict=False) if its.is_floating_point()]
        return torch.stack([self._distance(mine, its) for mine, its in pairs]).mean()

    def _distance(self, mine: Tensor, wanted: Tensor) -> Tensor:
        if are_logits(wanted):
            return divergence(mine, wanted, self.temperature)
        return relative_error(mine, wanted)

    def end(self) -> None:
        """Let the teacher go."""
        self.teacher.end()


def divergence(mine: Tensor, wanted: Tensor, temperature: float) -> Tensor:
    """Return T² · KL(softmax(wanted / T) ‖ softmax(mine / T)), the mean over [N, classes].

    Everything is in logarithms and in float32, so that value and gradient are finite however small T is. A score
    of minus infinity, for a class that cannot be, counts as a very small one; NaN stays NaN, and ends the training.
    """
    mine, wanted = (
        functional.log_softmax(scores.float().clamp(-1e30, 1e30) / temperature, dim=1)
        for scores in (mine, wanted)
    )
    return functional.kl_div(mine, wanted, log_target=True, reduction="batchmean") * temperature**2


def relative_error(mine: Tensor, wanted: Tensor) -> Tensor:
    """Return the mean squared distance over the variance of `wanted`: outputs of any scale weigh the same.

    The variance counts for a thousandth of the mean square at least, so that an output that hardly varies is measured
    by its size.
    """
    mine, wanted = mine.float(), wanted.float()
    power = wanted.square().mean()
    spread = torch.maximum(wanted.var(correction=0), 1e-3 * power)
    return functional.mse_loss(mine, wanted) / (spread + 1e-12)


class Teacher:
    """A model that is asked and not trained, with images as it wants them."""

    def __init__(self, model: Model | None) -> None:
        if model is None:
            raise StepError("There is no original model to learn from.", hint="Name a teacher.")
        if model.form != "torch":
            raise StepError(
                f"The teacher {model.source} is of form {model.form}; only a PyTorch network can teach.",
                hint="Name its source in PyTorch as the teacher.",
            )
        self.model = model
        self.network: nn.Module | None = None
        self._convert = _Converter(None, None)

    def begin(self, student: Model, example: Tensor) -> None:
        """Copy the network to where `example` is."""
        self.network = lay_out(copy.deepcopy(self.model.value).to(example.device)).eval()
        self.network.requires_grad_(False)
        self._convert = _Converter(student.preprocess, self.model.preprocess)

    def __call__(self, inputs: Tensor) -> Outputs:
        """Return what it puts out for the student's inputs."""
        assert self.network is not None, "Objective.begin comes first"
        with torch.no_grad():
            return as_tuple(self.network(self._convert(inputs)))

    def end(self) -> None:
        """Forget the copy."""
        self.network = None


class _Converter:
    """From the inputs of one preprocessing to those of another, as far as they differ in size and normalisation."""

    def __init__(self, old: Preprocess | None, new: Preprocess | None) -> None:
        self._old, self._new = old, new
        self._same = old is None or new is None or _normal(old) == _normal(new)

    def __call__(self, inputs: Tensor) -> Tensor:
        if self._old is None or self._new is None or (self._same and self._new.size == self._old.size):
            return inputs
        if not self._same:
            inputs = self._renormalised(inputs)
        size = self._new.size
        if size is not None and tuple(inputs.shape[2:]) != size:
            inputs = functional.interpolate(inputs, size, mode="bilinear", antialias=True)
        return inputs.contiguous(memory_format=torch.channels_last)

    def _renormalised(self, inputs: Tensor) -> Tensor:
        assert self._old is not None
        assert self._new is not None

        def per_channel(values: Sequence[float]) -> Tensor:
            return torch.tensor(values, device=inputs.device).view(-1, 1, 1)

        pixels = (inputs * per_channel(self._old.std) + per_channel(self._old.mean)) / self._old.scale
        if self._old.channels != self._new.channels:
            pixels = _recoloured(pixels, self._old.channels, self._new.channels)
        return (pixels * self._new.scale - per_channel(self._new.mean)) / per_channel(self._new.std)


def _recoloured(pixels: Tensor, old: str, new: str) -> Tensor:
    if old == "L":
        return pixels.expand(-1, 3, -1, -1)
    if new == "L":
        raise StepError(
            "The teacher takes grey images and the network colours.", hint="Name another teacher."
        )
    return pixels.flip(1)


def _normal(preprocess: Preprocess) -> tuple[Any, ...]:
    return preprocess.scale, preprocess.mean, preprocess.std, preprocess.channels


def as_tuple(outputs: Any) -> Outputs:
    """Return the tensors that a network put out, alone or in tuples, lists and mappings."""
    return tuple(output for output in tree_leaves(outputs) if isinstance(output, Tensor))


def are_logits(output: Tensor) -> bool:
    """Tell whether an output is a score for each of several classes, [N, classes]."""
    return output.ndim == 2 and output.shape[1] > 1


def _by_image(shapes: list[list[int]]) -> str:
    return " and ".join("×".join(map(str, shape)) for shape in shapes)
