"""Units: sets of channels that can only go together, and groups of units that are ranked beside each other."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase

import numpy as np
import numpy.typing as npt
from penjing.errors import StepError, did_you_mean

from penjing_prune.labels import Ids, Union, varying
from penjing_prune.trace import Cut, Traced

#: a dimension of a parameter or buffer: the leaf's number and the dimension
Place = tuple[int, int]

#: why a layer stays of which one channel cannot go without the others
TOGETHER = "all its channels can only go together"


@dataclasses.dataclass(frozen=True)
class Group:
    """Units that touch the same dimensions of the same parameters: a layer's channels and what hangs on them."""

    #: name of the parameter that brings the channels forth
    name: str
    #: the root of each unit
    units: Ids
    #: for each dimension touched: the indices of each unit, [units, indices a unit]
    places: Mapping[Place, Ids]
    #: channels a unit takes from the layer that brings them forth, and how many that layer has
    width: int
    total: int

    def __len__(self) -> int:
        return len(self.units)


@dataclasses.dataclass(frozen=True)
class Alone:
    """A layer that keeps its channels, or some of them, and why."""

    layer: str
    channels: int
    of: int
    reason: str


@dataclasses.dataclass
class Structure:
    """How the channels of a network hang together."""

    traced: Traced
    union: Union
    roots: Ids
    groups: list[Group]
    alone: list[Alone]

    def kept(self, removed: Iterable[int], ids: Ids) -> npt.NDArray[np.bool_]:
        """Return which of `ids` stay when these units go: a mask."""
        return ~np.isin(self.roots[ids], np.fromiter(removed, np.int64))


def structure(traced: Traced, axes: Mapping[int, int], fixed: Mapping[int, str]) -> Structure:
    """Return the groups of a network.

    `axes` chooses the axis along which a grid of channels (a view as heads × depth, say) shrinks, by the number of
    its cut; without a choice it is the one that leaves most to choose from. `fixed` are ids that stay, and why.
    """
    union = traced.union.copy()
    for one, why in fixed.items():
        union.fix([one], why)
    for grid, vector in traced.shared:
        _share(union, grid, vector)
    done: set[tuple[int, bytes]] = set()
    for number, cut in enumerate(traced.cuts):
        if cut.grid is None or all(one in union.fixed for one in cut.ids.tolist()):
            continue
        key = (axes.get(number, 0), cut.grid.numpy().tobytes())
        if key not in done:
            _shrink_evenly(union, cut, key[0])
            done.add(key)
    roots = union.roots()
    reasons: dict[int, str] = {}
    for one, reason in union.fixed.items():
        reasons.setdefault(int(roots[one]), reason)
    groups, reasons = _groups(traced, roots, reasons)
    return Structure(traced, union, roots, groups, _alone(traced, roots, reasons))


def _share(union: Union, grid: Ids, vector: Ids) -> None:
    """Tie each index of a vector to all of the grid that it meets; let it stay where only that leaves a choice.

    Every head meets the same norm or rotation along its depth: a head can go without it.
    """
    joined = union.copy()
    joined.join(grid, vector)
    if _free(joined, grid) < 2 <= _free(union, grid):
        union.fix(np.unique(vector).tolist(), "every index of another axis meets them")
    else:
        union.join(grid, vector)


def _free(union: Union, ids: Ids) -> int:
    """Return how many sets that may go these ids are in."""
    fixed = union.roots(np.fromiter(union.fixed, np.int64, len(union.fixed)))
    return len(np.setdiff1d(union.roots(np.unique(ids)), fixed))


def _shrink_evenly(union: Union, cut: Cut, choice: int) -> None:
    """Tie channels so that what stays of a grid is a grid: along one axis all of an index go together."""
    grid = cut.grid
    assert grid is not None
    roots = union.roots(grid.numpy())
    options = []
    for axis in varying(grid):
        lines = np.moveaxis(roots, axis, 0).reshape(roots.shape[axis], -1)
        options.append((_components(lines), roots.shape[axis], axis))
    options.sort(reverse=True)
    axis = options[min(choice, len(options) - 1)][2]
    lines = np.moveaxis(roots, axis, 0).reshape(roots.shape[axis], -1)
    union.join(lines, np.broadcast_to(lines[:, :1], lines.shape))


def _components(lines: Ids) -> int:
    """Return how many sets remain when each row is tied."""
    small = Union()
    names, flat = np.unique(lines, return_inverse=True)
    small.fresh(len(names))
    flat = flat.reshape(lines.shape)
    small.join(flat, np.broadcast_to(flat[:, :1], flat.shape))
    return len(np.unique(small.roots()))


def _groups(traced: Traced, roots: Ids, reasons: dict[int, str]) -> tuple[list[Group], dict[int, str]]:
    """Return the groups, and why every other root stays."""
    stays = np.zeros(len(roots), bool)
    stays[list(reasons)] = True
    touched = list(_touched(traced, roots, stays))
    made = _brought_forth(traced)
    groups = []
    for units, places in _alike(touched, len(roots)):
        source = next((place for place in places if place in made), None)
        if source is None or len(units) == 1:
            why = (
                "no layer brings them forth: the weight is computed, or not used"
                if source is None
                else TOGETHER
            )
            reasons |= dict.fromkeys(units.tolist(), why)
            continue
        leaf, width = traced.leaves[source[0]], places[source].shape[1]
        groups.append(Group(leaf.names[0], units, places, width, leaf.shape[source[1]]))
    return groups, reasons


def excluded(traced: Traced, patterns: Iterable[str]) -> dict[int, str]:
    """Return the ids of the output channels of layers that `patterns` name, with the reason that they stay.

    Raises StepError for a pattern (a name, maybe with * and ?) that names no layer.
    """
    layers: dict[str, list[Ids]] = defaultdict(list)
    for number, dim in sorted(_brought_forth(traced)):
        leaf = traced.leaves[number]
        for name in leaf.names:
            layers[name.rpartition(".")[0] or name].append(leaf.ids[dim])
    found: dict[int, str] = {}
    for pattern in patterns:
        matches = [name for name in layers if fnmatchcase(name, pattern)]
        if not matches:
            raise StepError(
                f"exclude: {pattern!r} names no layer with weights.",
                hint=did_you_mean(pattern, sorted(layers)),
            )
        for ids in (ids for name in matches for ids in layers[name]):
            found |= dict.fromkeys(ids.tolist(), f"exclude names {pattern}")
    return found


def _touched(traced: Traced, roots: Ids, stays: npt.NDArray[np.bool_]) -> Iterator[tuple[Place, Ids, Ids]]:
    """Yield each dimension with free channels: the roots of those, in order, and their indices."""
    for number, leaf in enumerate(traced.leaves):
        for dim, ids in enumerate(leaf.ids):
            own = roots[ids]
            free = np.flatnonzero(~stays[own])
            if len(free):
                order = free[np.argsort(own[free], kind="stable")]
                yield (number, dim), own[order], order


def _alike(touched: list[tuple[Place, Ids, Ids]], count: int) -> Iterator[tuple[Ids, dict[Place, Ids]]]:
    """Yield units that touch the same dimensions equally often, with the indices of each."""
    generator = np.random.default_rng(0)
    signature = np.zeros(count, np.uint64)
    for _, own, _ in touched:
        units, times = np.unique(own, return_counts=True)
        signature[units] += times.astype(np.uint64) * generator.integers(1, 2**63, dtype=np.uint64)
    everything = (
        np.unique(np.concatenate([own for _, own, _ in touched])) if touched else np.zeros(0, np.int64)
    )
    _, kind = np.unique(signature[everything], return_inverse=True)
    kinds = np.full(count, -1)
    kinds[everything] = kind
    places: dict[int, dict[Place, Ids]] = defaultdict(dict)
    for place, own, indices in touched:
        here = kinds[own]
        for one in np.unique(here).tolist():
            inside = here == one
            places[one][place] = indices[inside].reshape(len(np.unique(own[inside])), -1)
    for one in sorted(places, key=lambda k: int(everything[kind == k][0])):
        yield everything[kind == one], places[one]


def _brought_forth(traced: Traced) -> set[Place]:
    """Return the dimensions of weights along which a product's output channels lie."""
    found = set()
    number = {leaf.names[0]: i for i, leaf in enumerate(traced.leaves)}
    for product in traced.products:
        if product.weight:
            about = dict(product.details)
            found.add((number[product.weight], 1 if about.get("transposed") else 0))
    return found


def _computed(traced: Traced, made: set[Place]) -> set[Place]:
    """Return the rows of weights that no product takes as they are: another is computed from them, or none at all."""
    used = {number for number, _ in made}
    return {
        (number, 0)
        for number, leaf in enumerate(traced.leaves)
        if number not in used
        and leaf.parameter
        and len(leaf.shape) > 1
        and leaf.names[0].rpartition(".")[2] in ("weight", "original1", "original")
    }


def _alone(traced: Traced, roots: Ids, reasons: Mapping[int, str]) -> list[Alone]:
    """Return the layers whose output channels stay, with the reason that most of them have."""
    alone = []
    made = _brought_forth(traced)
    for number, dim in sorted(made | _computed(traced, made)):
        leaf = traced.leaves[number]
        if len(leaf.ids[dim]) < 2:
            continue
        why = [reasons[root] for root in roots[leaf.ids[dim]].tolist() if root in reasons]
        if why:
            reason = max(sorted(set(why)), key=why.count)
            name = leaf.names[0].rpartition(".")[0] or leaf.names[0]  # a parameter of the network itself
            alone.append(Alone(name, len(why), leaf.shape[dim], reason))
    return alone
