"""Attributes of modules that may hold a number of channels, guessed for the guard to try out."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from itertools import combinations

import numpy as np
from torch import nn

from penjing_prune.groups import Structure
from penjing_prune.labels import Ids, Union, varying
from penjing_prune.surgery import held
from penjing_prune.trace import Cut, Traced

#: attributes of modules, (module, name), and the ids they hold the number of
Attributes = dict[tuple[str, str], Ids]
#: sets of ids of that number that one attribute is tried for
MOST = 4
#: names of which all combinations are tried, not only each by itself, two, and all together
FEW = 4
#: names of which no two are tried any more
MANY = 9


def holders(
    module: nn.Module, traced: Traced, found: Structure, removed: list[int], cuts: list[Cut]
) -> dict[tuple[str, str], list[Ids]]:
    """Return attributes of the modules at work that may hold a number of channels, and of which.

    Several axes may be of that length, as three heads beside q, k and v: each that has lost channels counts.
    """
    modules = dict(module.named_modules(remove_duplicate=False))
    known = {(count.module, count.name) for count in traced.counts}
    kept: dict[tuple[str, str], dict[bytes, Ids]] = defaultdict(dict)
    for cut in cuts:
        sizes = [ids for ids in _sizes(cut) if len(ids) > 1 and not found.kept(removed, ids).all()]
        for name, value in _numbers(modules[cut.site.module]):
            key = (cut.site.module, name)
            if key not in known:
                for ids in sizes:
                    if len(ids) == value and len(kept[key]) < MOST:
                        kept[key].setdefault(np.sort(found.roots[ids]).tobytes(), ids)
    return {key: list(ids.values()) for key, ids in kept.items() if ids}


def _numbers(part: nn.Module) -> Iterator[tuple[str, int]]:
    """Yield the integers that a module holds, those in tuples and lists as "name.place"."""
    for name, value in vars(part).items():
        if type(value) is int:
            yield name, value
        elif isinstance(value, (tuple, list)):
            yield from ((f"{name}.{place}", one) for place, one in enumerate(value) if type(one) is int)


def guesses(held: Mapping[tuple[str, str], list[Ids]], listed: Attributes) -> Iterator[Attributes]:
    """Yield what may have to change: nothing, each name by itself wherever it is, several, and all together."""
    yield {}
    if listed:
        yield listed
    names = list(dict.fromkeys(name for _, name in held))
    few = range(1, len(names)) if len(names) <= FEW else (1, 2) if len(names) < MANY else (1,)
    for chosen in (*(some for n in few for some in combinations(names, n)), names):
        here = {key: ids for key, ids in held.items() if key[1] in chosen}
        for number in range(max(map(len, here.values()), default=0)):
            guess = {key: ids[min(number, len(ids) - 1)] for key, ids in here.items()}
            yield guess
            if listed:
                yield {**listed, **guess}


def coupled(union: Union, held: Mapping[tuple[str, str], list[Ids]]) -> Union | None:
    """Return a forest in which all that one attribute counts goes together; None where each counts one thing."""
    if all(len(ids) < 2 for ids in held.values()):
        return None
    joined = union.copy()
    for first, *others in held.values():
        for ids in others:
            joined.join(first, ids)
    return joined


def sequences(module: nn.Module, cuts: list[Cut]) -> Attributes:
    """Return the elements of lists and tuples that hold the sizes of all pieces, in their order."""
    modules = dict(module.named_modules(remove_duplicate=False))
    found: Attributes = {}
    for cut in cuts:
        sizes = [len(part) for part in cut.parts]
        for name, value in vars(modules[cut.site.module]).items() if sizes else ():
            if isinstance(value, (list, tuple)) and list(value) == sizes:
                found |= {(cut.site.module, f"{name}.{i}"): ids for i, ids in enumerate(cut.parts)}
    return found


def elsewhere(module: nn.Module, traced: Traced, extra: Attributes, affected: list[Cut]) -> Attributes:
    """Return the attributes of the same names wherever the same code is at work."""
    modules = dict(module.named_modules(remove_duplicate=False))
    places = {
        (cut.site.kind, cut.site.line, cut.op, place, name)
        for cut in affected
        for place, ids in enumerate(_sizes(cut))
        for (part, name), found in extra.items()
        if part == cut.site.module and np.array_equal(ids, found)
    }
    names = {name for _, name in extra}
    more: Attributes = {}
    for cut in traced.cuts if places else ():
        for place, ids in enumerate(_sizes(cut)):
            for name in names:
                here = (cut.site.kind, cut.site.line, cut.op, place, name) in places
                if here and len(ids) == held(modules[cut.site.module], name):
                    more.setdefault((cut.site.module, name), ids)
    return more


def _sizes(cut: Cut) -> Iterator[Ids]:
    """Yield the ids along each dimension that the code may count: axes of a grid, pairs of them, and all."""
    if cut.grid is not None:
        grid, dims = cut.grid.numpy(), varying(cut.grid)
        for axis in dims:
            yield np.moveaxis(grid, axis, 0).reshape(grid.shape[axis], -1)[:, 0]
        for skipped in dims:
            yield np.moveaxis(grid, skipped, 0)[0].ravel()
    yield cut.after.numpy().ravel()
    yield cut.ids
