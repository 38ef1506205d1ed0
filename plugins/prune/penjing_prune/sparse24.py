"""prune.sparse24: two of every four weights along the input channels set to zero, as sparse tensor cores want it."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from penjing.errors import PlanError, StepError
from penjing.exhibit import Table
from penjing.options import option
from penjing.step import Technique
from penjing_training import TrainingOptions

if TYPE_CHECKING:
    import torch
    from penjing.device import Device
    from penjing.model import Model
    from penjing.step import Backend, Context
    from torch import nn
    from typing_extensions import Self

#: the first compute capability with sparse tensor cores (NVIDIA A100 whitepaper, 2020)
LEAST_SM = (8, 0)


class _Needs:
    """Photographs to train on, unless it does not train."""

    def __get__(self, step: Sparse24 | None, owner: type | None = None) -> frozenset[str]:
        return frozenset() if step is None or not step.epochs else frozenset({"training"})


@dataclasses.dataclass(frozen=True)
class Sparse24(TrainingOptions, Technique):
    """Set two of every four weights to zero, for GPUs with sparse tensor cores, and train the others."""

    name = "prune.sparse24"
    accepts = frozenset({"torch"})
    produces = "torch"
    needs = _Needs()  # of the class nothing, of an object what its options ask

    epochs: int = option(5, "Times that all photographs are seen; 0 does not train.", between=(0, 10_000))

    def check(self, device: Device, backend: Backend) -> None:
        """Raise PlanError for a device without sparse tensor cores."""
        sm = tuple(int(part) for part in device.sm.split(".")) if device.sm else None
        if sm is None or sm < LEAST_SM:
            what = f"compute capability {device.sm}" if device.sm else "no NVIDIA GPU"
            raise PlanError(
                f"{device.name} has {what}; 2:4 sparsity is faster from compute capability 8.0 on.",
                hint="Leave prune.sparse24 out; prune.structured is faster everywhere.",
            )

    def explain(self, device: Device, backend: Backend) -> str:
        """Say what is set to zero, and what an engine must be built with to be faster for it."""
        return f"{super().explain(device, backend)} An engine uses them with tensorrt.sparse = true."

    def naive(self) -> Self:
        """Return the form without training."""
        return dataclasses.replace(self, epochs=0)

    def apply(self, model: Model, context: Context) -> Model:
        """Return a copy with 2:4 weights; its structure stays as it is."""
        import copy

        module: nn.Module = copy.deepcopy(model.value)
        masks = find_masks(module)
        if not masks:
            raise StepError(
                f"No layer of {model.source} has a multiple of four input channels.",
                hint="Leave prune.sparse24 out.",
            )
        put_on(module, masks)
        if self.epochs:
            from penjing_prune.recovery import recover

            module = recover(module, self, model, context, name="sparse24")  # training holds what is zero
        _tell(module, masks, context)
        return model.become("torch", module)


def find_masks(module: nn.Module) -> dict[str, torch.Tensor]:
    """Return by name which weights stay: the two largest of every four consecutive input channels.

    Convolutions without groups and linear layers have them, where their input channels are a multiple of four. Of a
    convolution's weight [K, C, R, S] each (k, r, s) counts by itself, as TensorRT wants it.
    """
    import torch
    from torch import nn

    masks = {}
    for name, part in module.named_modules():
        if (
            not isinstance(part, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)
            or getattr(part, "groups", 1) != 1
        ):
            continue
        weight = part.weight.detach()
        if weight.shape[1] % 4 or not isinstance(part._parameters.get("weight"), nn.Parameter):
            continue  # a weight that is computed, as weight norm does, has no zeros of its own
        if not weight.any():
            continue  # which weights of a layer that begins with zeros matter is not known before training
        last = weight.abs().movedim(1, -1)
        fours = last.reshape(*last.shape[:-1], -1, 4)
        kept = torch.zeros_like(fours, dtype=torch.bool).scatter_(-1, fours.topk(2, dim=-1).indices, True)
        masks[f"{name}.weight" if name else "weight"] = kept.flatten(-2).movedim(-1, 1).contiguous()
    return masks


def put_on(module: nn.Module, masks: dict[str, torch.Tensor]) -> None:
    """Set what is masked to zero, in `module` itself."""
    import torch

    with torch.no_grad():
        for name, mask in masks.items():
            weight = module.get_parameter(name)
            weight.mul_(mask.to(weight.device))


def _tell(module: nn.Module, masks: dict[str, Any], context: Context) -> None:
    weights = sum(p.numel() for p in module.parameters() if p.ndim > 1)
    covered = sum(mask.numel() for mask in masks.values())
    context.details["layers"] = sorted(name.rpartition(".")[0] for name in masks)
    context.details["share_of_weights_in_sparse_layers"] = covered / weights
    rows = [
        [name.rpartition(".")[0], str(mask.numel()), str(int(mask.sum()))] for name, mask in masks.items()
    ]
    context.show(Table("Layers with 2:4 weights", ["layer", "weights", "not zero"], rows))
