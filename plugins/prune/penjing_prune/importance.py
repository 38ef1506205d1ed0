"""How much the channels of a unit matter: one number for each unit of each group, larger for what matters more.

Sums run over all that goes with a unit, coupled layers and the columns that take its channels up included, as in
DepGraph (Fang et al., CVPR 2023, eq. 4).
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from penjing.errors import StepError, first_line
from torch import nn
from torch.nn import functional

from penjing_prune.groups import Group, Structure
from penjing_prune.outputs import tensors_in

Criterion = Literal["l1", "l2", "taylor", "batchnorm", "activation"]
#: how much of what a unit saves counts beside its importance (`allocate.choose`). Importances that are divided by their
#: group's mean know nothing of layers; Taylor's compare layers, and one that costs more may lose more. Chosen by the
#: answers of MobileNetV2 at half its multiply-accumulates, batch norms estimated anew and nothing trained
#: (one seed, and photographs that the network had been trained on: a choice, not a result). Of time as of MACs: at half
#: the table's time of ResNet-20 0.5 was better than 0 and 1, after one short epoch, on photographs it had not seen
THRIFT: Mapping[str, float] = {"taylor": 0.5}
Scores = npt.NDArray[np.float64]
Tensors = Mapping[str, torch.Tensor]


def rank(
    criterion: Criterion,
    module: nn.Module,
    structure: Structure,
    batches: Iterable[Any],
    loss: str = "answers",
) -> list[Scores]:
    """Return the importance of every unit of every group; `batches` of photographs are for taylor and activation.

    l1, l2: norm of the unit's parameters (`ln_structured` with n = 1, 2, over the whole group).
    batchnorm: mean |scale| of its batch norms (Liu et al. 2017); l2 where it has none.
    taylor: |sum of w * dL/dw| over each slice, added over slices (Molchanov et al. 2019, eq. 8, without the square).
    activation: mean |output| of the layers that bring it forth.
    All but taylor are divided by their group's mean, so that groups can be ranked beside each other.
    """
    tensors = dict(module.named_parameters(remove_duplicate=False))
    if criterion == "taylor":
        return _taylor(module, structure, batches)
    if criterion == "activation":
        means = _activations(module, batches)
        scores = [_activation(group, structure, tensors, means) for group in structure.groups]
    elif criterion == "batchnorm":
        scores = [_batch_norm(group, structure, tensors) for group in structure.groups]
    else:
        scores = [
            _norm(group, structure, tensors, 1 if criterion == "l1" else 2) for group in structure.groups
        ]
    return [one / max(float(one.mean()), 1e-30) for one in scores]


def _slices(
    group: Group, structure: Structure, tensors: Tensors
) -> Iterable[tuple[str, int, torch.Tensor, Any]]:
    """Yield each parameter's name, dimension and values, and the indices of each unit there."""
    for (number, dim), indices in group.places.items():
        leaf = structure.traced.leaves[number]
        if leaf.parameter:
            yield leaf.names[0], dim, tensors[leaf.names[0]].detach(), indices


def _along(values: torch.Tensor, dim: int) -> Scores:
    """Return the sums over all dimensions but one."""
    rest = [d for d in range(values.ndim) if d != dim]
    total: Scores = (values.double().sum(rest) if rest else values.double()).cpu().numpy()
    return total


def _norm(group: Group, structure: Structure, tensors: Tensors, n: int) -> Scores:
    total = np.zeros(len(group))
    for _, dim, values, indices in _slices(group, structure, tensors):
        total += _along(values.abs() if n == 1 else values.square(), dim)[indices].sum(1)
    return total if n == 1 else np.sqrt(total)


def _batch_norm(group: Group, structure: Structure, tensors: Tensors) -> Scores:
    found = [
        np.abs(_along(values, dim))[indices].mean(1)
        for name, dim, values, indices in _slices(group, structure, tensors)
        if name in structure.traced.scales
    ]
    return np.mean(found, axis=0) if found else _norm(group, structure, tensors, 2)


def _taylor(module: nn.Module, structure: Structure, batches: Iterable[Any]) -> list[Scores]:
    totals = [np.zeros(len(group)) for group in structure.groups]
    count = 0
    for products in _gradients(module, batches):
        count += 1
        for group, total in zip(structure.groups, totals, strict=True):
            for _, dim, values, indices in _slices(group, structure, products):
                total += np.abs(_along(values, dim)[indices].sum(1))
    return [total / max(count, 1) for total in totals]


def _gradients(module: nn.Module, batches: Iterable[Any]) -> Iterator[dict[str, torch.Tensor]]:
    """Yield weight times gradient of every parameter for each batch, whatever is frozen or switched off outside."""
    copied = copy.deepcopy(module)
    for parameter in copied.parameters():
        parameter.requires_grad_(True)
    for batch in batches:
        copied.zero_grad(set_to_none=True)
        try:
            with torch.enable_grad():
                objective(copied(torch.from_numpy(batch.inputs)), batch.labels).backward()  # type: ignore[no-untyped-call]  # torch's own
        except RuntimeError as error:  # of the network's own code
            raise StepError(
                f"Importance taylor finds no gradients of {len(batch.inputs)} photographs: {first_line(error)}",
                hint="Another importance needs none: l2, batchnorm.",
            ) from error
        yield {
            name: p.detach() * (torch.zeros_like(p) if p.grad is None else p.grad)
            for name, p in copied.named_parameters(remove_duplicate=False)
        }


def objective(outputs: Any, labels: npt.NDArray[np.int64] | None) -> torch.Tensor:
    """Return what a removal should not change: the loss on labels, else on the network's own answers.

    For outputs that are no scores of classes, half the power of all of them.
    """
    tensors = [t for t in tensors_in(outputs) if t.is_floating_point()]
    if len(tensors) == 1 and tensors[0].ndim == 2 and tensors[0].shape[1] > 1:
        answers = tensors[0].detach().argmax(1) if labels is None else torch.from_numpy(labels)
        return functional.cross_entropy(tensors[0].float(), answers)
    return torch.stack([t.float().square().mean() / 2 for t in tensors]).sum()


def _activations(module: nn.Module, batches: Iterable[Any]) -> dict[str, Scores]:
    """Return the mean |output| of each output channel of every convolution and linear layer."""
    sums: dict[str, Scores] = {}
    count = 0

    def watch(name: str, dim: int) -> Any:
        def hook(part: nn.Module, inputs: Any, output: torch.Tensor) -> None:
            rest = [d for d in range(output.ndim) if d != dim % output.ndim]
            mean: Scores = output.detach().abs().double().mean(rest).cpu().numpy()
            sums[name] = sums.get(name, np.zeros(1)) + mean * len(inputs[0])

        return hook

    copied = copy.deepcopy(module)
    for name, part in copied.named_modules():
        if isinstance(part, nn.Linear):
            part.register_forward_hook(watch(f"{name}.weight", -1))
        elif isinstance(part, nn.modules.conv._ConvNd):
            part.register_forward_hook(watch(f"{name}.weight", 1))
    with torch.no_grad():
        for batch in batches:
            copied(torch.from_numpy(batch.inputs))
            count += len(batch.inputs)
    return {name.lstrip("."): total / max(count, 1) for name, total in sums.items()}


def _activation(group: Group, structure: Structure, tensors: Tensors, means: Mapping[str, Scores]) -> Scores:
    found = []
    for (number, dim), indices in group.places.items():
        name = structure.traced.leaves[number].names[0]
        if name in means and len(means[name]) == structure.traced.leaves[number].shape[dim]:
            found.append(means[name][indices].mean(1))
    return np.sum(found, axis=0) if found else _norm(group, structure, tensors, 2)
