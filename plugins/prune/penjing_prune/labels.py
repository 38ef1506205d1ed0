"""Which channels the elements of a tensor belong to: layers of channel ids.

Every dimension of every parameter gets one id for each index. A *layer* is an int64 tensor with as many dimensions
as the tensor it labels, of size 1 where the label does not change along a dimension: an activation [1, 64, 56, 56]
has one layer [1, 64, 1, 1], a weight has one for each dimension. An element goes when any of its ids goes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
import torch

Layer = torch.Tensor
Layers = tuple[Layer, ...]
Ids = npt.NDArray[np.int64]


class Union:
    """Ids that must go together: a disjoint-set forest (Tarjan 1975), which also remembers what may never go."""

    def __init__(self) -> None:
        self._parent: list[int] = []
        #: id of a channel that must stay, and why
        self.fixed: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self._parent)

    def fresh(self, count: int) -> Ids:
        """Return `count` new ids."""
        start = len(self._parent)
        self._parent.extend(range(start, start + count))
        return np.arange(start, start + count, dtype=np.int64)

    def find(self, one: int) -> int:
        """Return the id that stands for all that go together with `one`."""
        parent = self._parent
        root = one
        while parent[root] != root:
            root = parent[root]
        while parent[one] != root:
            parent[one], one = root, parent[one]
        return root

    def join(self, first: Ids, second: Ids) -> None:
        """Make ids go together pair by pair."""
        if first is second or np.array_equal(first, second):
            return
        for a, b in np.unique(np.stack([first.ravel(), second.ravel()]), axis=1).T.tolist():
            one, other = self.find(a), self.find(b)
            if one != other:
                self._parent[max(one, other)] = min(one, other)

    def fix(self, ids: Iterable[int], reason: str) -> None:
        """Say that these channels stay; the first reason counts."""
        for one in ids:
            self.fixed.setdefault(int(one), reason)

    def roots(self, ids: Ids | None = None) -> Ids:
        """Return what stands for each of `ids`, by default of all."""
        if ids is not None:
            few, inverse = np.unique(ids, return_inverse=True)
            found = np.array([self.find(one) for one in few.tolist()], np.int64)
            return found[inverse].reshape(ids.shape)
        parent = np.array(self._parent, np.int64)
        while not np.array_equal(parent, further := parent[parent] if len(parent) else parent):
            parent = further
        return parent

    def copy(self) -> Union:
        """Return a forest that can grow on its own."""
        other = Union()
        other._parent, other.fixed = list(self._parent), dict(self.fixed)
        return other


def varying(layer: Layer) -> tuple[int, ...]:
    """Return the dimensions along which the label changes."""
    return tuple(d for d, size in enumerate(layer.shape) if size > 1)


def collapse(full: torch.Tensor) -> Layer:
    """Return `full`, with a label for every element, in its smallest form."""
    for d in range(full.ndim):
        if full.shape[d] > 1:
            one = full.narrow(d, 0, 1)
            if full.stride(d) == 0 or bool((full == one).all()):
                full = one
    return full


def along(ids: Ids, dim: int, ndim: int) -> Layers:
    """Return the layers of a tensor whose dimension `dim` has these ids: none where a single id cannot be told."""
    if len(ids) < 2:
        return ()
    shape = [1] * ndim
    shape[dim] = len(ids)
    return (torch.from_numpy(ids.copy()).reshape(shape),)


def aligned(layer: Layer, ndim: int) -> Layer:
    """Return the layer of a tensor that broadcasts to `ndim` dimensions."""
    return layer.reshape((1,) * (ndim - layer.ndim) + tuple(layer.shape))


def numbers(layer: Layer) -> Ids:
    """Return the ids of a layer, one after another."""
    return np.unique(layer.numpy())


def broadcast(first: Layer, second: Layer) -> tuple[Ids, Ids]:
    """Return two layers of equal ndim element by element."""
    one, other = torch.broadcast_tensors(first, second)  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return one.numpy(), other.numpy()


def overlapping(layers: Sequence[Layer], dims: Sequence[int]) -> Layer | None:
    """Return the first of `layers` that changes along any of `dims`."""
    return next((layer for layer in layers if set(varying(layer)) & set(dims)), None)
