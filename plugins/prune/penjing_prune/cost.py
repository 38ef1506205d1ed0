"""What a network costs (multiply-accumulates, parameters, or time) as a function of the units removed."""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from penjing_prune.groups import Structure
from penjing_prune.labels import Ids


@dataclasses.dataclass(frozen=True)
class Term:
    """One summand: a function of how many ids of each side are left."""

    sides: tuple[Ids, ...]
    value: Callable[[Sequence[int]], float]


def macs(structure: Structure) -> list[Term]:
    """Return the multiply-accumulates of convolutions, linear layers and matrix products, for the example's batch."""
    return [_product(p.each, p.sides) for p in structure.traced.products]


def parameters(structure: Structure) -> list[Term]:
    """Return the number of elements of all parameters."""
    return [_product(1.0, leaf.ids) for leaf in structure.traced.leaves if leaf.parameter]


def _product(each: float, sides: tuple[Ids, ...]) -> Term:
    def value(counts: Sequence[int]) -> float:
        result = each
        for count in counts:
            result *= count
        return result

    return Term(sides, value)


class Cost:
    """The sum of terms, kept up to date as units go and come back."""

    def __init__(self, structure: Structure, terms: list[Term]) -> None:
        self._terms = terms
        self._counts: list[list[int]] = [[len(side) for side in term.sides] for term in terms]
        self._values = [term.value(counts) for term, counts in zip(terms, self._counts, strict=True)]
        seen: dict[int, list[tuple[int, int, int]]] = defaultdict(list)
        free = {int(unit) for group in structure.groups for unit in group.units}
        cache: dict[int, list[tuple[int, int]]] = {}
        for number, term in enumerate(terms):
            for side, ids in enumerate(term.sides):
                if id(ids) not in cache:
                    roots, times = np.unique(structure.roots[ids], return_counts=True)
                    cache[id(ids)] = [
                        (r, t) for r, t in zip(roots.tolist(), times.tolist(), strict=True) if r in free
                    ]
                for root, times_ in cache[id(ids)]:
                    seen[root].append((number, side, times_))
        #: the sides that units touch, and how often, and which of these a unit has: all of a group have the same
        self._patterns = list(dict.fromkeys(map(tuple, seen.values())))
        numbers = {pattern: number for number, pattern in enumerate(self._patterns)}
        self._pattern = {unit: numbers[tuple(found)] for unit, found in seen.items()}
        self.total = sum(self._values)

    def remove(self, units: Iterable[int]) -> None:
        """Take units away."""
        self._change(units, -1)

    def restore(self, units: Iterable[int]) -> None:
        """Put units back."""
        self._change(units, 1)

    def without(self, units: Sequence[int]) -> float:
        """Return what is left when these units go too."""
        self.remove(units)
        left = self.total
        self.restore(units)
        return left

    def _change(self, units: Iterable[int], sign: int) -> None:
        changed = set()
        for pattern, count in Counter(self._pattern[unit] for unit in units if unit in self._pattern).items():
            for number, side, times in self._patterns[pattern]:
                self._counts[number][side] += sign * times * count
                changed.add(number)
        for number in changed:
            before, after = self._values[number], self._terms[number].value(self._counts[number])
            self._values[number] = after
            self.total += after - before
