"""Comparing layers inside two networks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from penjing.errors import StepError
from penjing_training.objective import Distil, Outputs, relative_error
from torch import Tensor, nn
from torch.nn import functional

if TYPE_CHECKING:
    from penjing.model import Model
    from penjing_training.photographs import Batch

#: the mean over a batch of how far layers are apart
Distance = Callable[[Tensor, Tensor], Tensor]
#: a dimension, and where it goes
Move = tuple[int, int]
#: layers that put out channels before places
_FIRST = (nn.modules.conv._ConvNd, nn.BatchNorm1d, nn.BatchNorm2d, nn.GroupNorm)


class Inside(Distil):
    """What a teacher puts out, and what it computes on the way there.

    Where the layers of a pair differ in channels and `distance` minds, the network's pass through a 1×1 convolution
    that is trained too and thrown away afterwards (Romero et al., FitNets, 2015).
    """

    def __init__(
        self,
        teacher: Model | None,
        *,
        distance: Distance,
        hint: float = 1.0,
        layers: tuple[str, ...] = (),
        **options: Any,
    ) -> None:
        super().__init__(teacher, **options)
        self.distance, self.hint, self.layers = distance, hint, layers
        self.pairs: list[tuple[str, str]] = []
        self.adapters = nn.ModuleList()
        self._mine: Watch | None = None
        self._its: Watch | None = None

    def begin(self, network: nn.Module, model: Model, example: Tensor) -> nn.Module | None:
        """Find the pairs of layers and watch them; return the adapters."""
        super().begin(network, model, example)
        teacher = self.teacher.network
        assert teacher is not None
        mine, my_moves = shapes_of(network, lambda: network(example), len(example))
        its, its_moves = shapes_of(teacher, lambda: self.teacher(example), len(example))
        self.pairs = pairs(mine, its, self.layers)
        for name, other in self.pairs:
            self.adapters.append(self._adapter(mine[name], its[other]))
        self._mine = Watch(network, [name for name, _ in self.pairs], my_moves)
        self._its = Watch(teacher, [other for _, other in self.pairs], its_moves)
        return self.adapters

    def _adapter(self, mine: torch.Size, its: torch.Size) -> nn.Module:
        if self.distance is attention_distance or channels(mine) == channels(its):
            return nn.Identity()
        if len(mine) == 3:
            return nn.Linear(mine[2], its[2], bias=False)
        return nn.Conv2d(mine[1], its[1], 1, bias=False)

    def __call__(self, outputs: Outputs, batch: Batch) -> Tensor:
        """Return the distance of the outputs plus that of the layers inside."""
        assert self._mine is not None
        assert self._its is not None
        total = super().__call__(outputs, batch)
        apart = [
            self.distance(adapter(self._mine[name].float()), self._its[other].float())
            for adapter, (name, other) in zip(self.adapters, self.pairs, strict=True)
            if name in self._mine  # in training some networks leave layers out at random
        ]
        return total + self.hint * torch.stack(apart).mean() if apart else total

    def end(self) -> None:
        """Stop watching."""
        super().end()
        for watch in (self._mine, self._its):
            if watch is not None:
                watch.close()


def attention_distance(mine: Tensor, its: Tensor) -> Tensor:
    """Return the squared distance of two layers' maps of attention, the mean over [N, …].

    A map is the sum of squares over the channels, brought to length 1
    (Zagoruyko and Komodakis, Paying More Attention to Attention, 2017).
    """

    def attention(values: Tensor) -> Tensor:
        energy = values.square().mean(dim=1 if values.ndim == 4 else 2)
        return functional.normalize(energy.flatten(1), dim=1)

    return (attention(mine) - attention(its)).square().sum(dim=1).mean()


DISTANCES: dict[str, Distance] = {"features": relative_error, "attention": attention_distance}


class Watch:
    """Keeps what some layers of a network put out the last time it ran, by name, their dimensions moved by `moves`."""

    def __init__(self, network: nn.Module, names: list[str], moves: Mapping[str, Move] | None = None) -> None:
        self._found: dict[str, Tensor] = {}
        self._moves = moves or {}
        modules = dict(network.named_modules())
        self._hooks = [modules[name].register_forward_hook(self._keep(name)) for name in names]
        self._hooks.append(network.register_forward_pre_hook(lambda *_: self._found.clear()))

    def _keep(self, name: str) -> Callable[..., None]:
        def keep(module: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                self._found[name] = output.movedim(*self._moves[name]) if name in self._moves else output

        return keep

    def __getitem__(self, name: str) -> Tensor:
        return self._found[name]

    def __contains__(self, name: str) -> bool:
        return name in self._found

    def close(self) -> None:
        """Stop, and forget."""
        for hook in self._hooks:
            hook.remove()
        self._found.clear()


def shapes_of(
    network: nn.Module, run: Callable[[], object], batch: int
) -> tuple[dict[str, torch.Size], dict[str, Move]]:
    """Return the shapes of what the layers of a network put out, in the order they are finished in `run`.

    Those of images are [N, C, H, W] and those of tokens [N, T, C]; also returns which dimension of which layer has to
    be moved for that. `run` runs the network on a batch of `batch` images.
    """
    watch = Watch(network, [name for name, _ in network.named_modules() if name])
    try:
        with torch.no_grad():
            run()
        found = {name: value for name, value in watch._found.items() if value.is_floating_point()}
    finally:
        watch.close()
    moves = _moves(network, {name: value.shape for name, value in found.items()}, batch)
    return {
        name: (value.movedim(*moves[name]) if name in moves else value).shape for name, value in found.items()
    }, moves


def _moves(network: nn.Module, shapes: dict[str, torch.Size], batch: int) -> dict[str, Move]:
    """Return the moves of layers that put out [N, H, W, C], as Swin's do, [N, C, T] or [T, N, C].

    Linear layers and layer norms tell by their width that channels are last, convolutions and their norms that they
    are first; it holds for all layers of a shape that only such layers have.
    """
    first, last = set(), set()
    for name, shape in shapes.items():
        part = network.get_submodule(name)
        if len(shape) not in (3, 4):
            continue
        if isinstance(part, _FIRST):
            first.add(shape)
        width = part.normalized_shape[-1] if isinstance(part, nn.LayerNorm) else None
        if isinstance(part, nn.Linear) or (width == shape[-1] and width != shape[1]):
            last.add(shape)
    moves = {}
    for name, shape in shapes.items():
        if len(shape) == 4 and shape in last - first:
            moves[name] = (-1, 1)
        elif len(shape) == 3 and shape in first - last:
            moves[name] = (1, 2)
        elif len(shape) == 3 and shape[0] != batch == shape[1]:
            moves[name] = (0, 1)
    return moves


def pairs(
    mine: dict[str, torch.Size], its: dict[str, torch.Size], layers: tuple[str, ...] = ()
) -> list[tuple[str, str]]:
    """Return pairs of layers of the same size: those named, else the last of each size.

    Layers of one name are preferred, as a pruned network and its original have them.
    """
    for name in layers:
        if name not in mine or name not in its or places(mine[name]) != places(its[name]):
            raise StepError(
                f"There is no layer {name!r} of the same size in both networks.",
                hint=f"The network has: {', '.join(list(mine)[:20])} …",
            )
    if layers:
        return [(name, name) for name in layers]
    found: dict[tuple[int, ...], tuple[str, str]] = {}
    shared = [name for name in mine if name in its and places(mine[name]) == places(its[name])]
    for names, others in ((list(mine), list(its)), (shared, shared)):
        last, its_last = _last(names, mine), _last(others, its)
        found |= {place: (last[place], its_last[place]) for place in last if place in its_last}
    if not found:
        raise StepError(
            "No layers inside the two networks have the same height and width.",
            hint="Use distill.logits, which compares their outputs only.",
        )
    return list(found.values())


def _last(names: list[str], shapes: dict[str, torch.Size]) -> dict[tuple[int, ...], str]:
    """Return the last layer of each size that has places to compare."""
    return {place: name for name in names if (place := places(shapes[name])) and max(place) > 1}


def places(shape: torch.Size) -> tuple[int, ...]:
    """Return height and width of a layer's output [N, C, H, W], or the tokens of [N, T, C]; () for another."""
    return {4: tuple(shape[2:]), 3: tuple(shape[1:2])}.get(len(shape), ())


def channels(shape: torch.Size) -> int:
    """Return the channels of a layer's output."""
    return shape[1] if len(shape) == 4 else shape[2]
