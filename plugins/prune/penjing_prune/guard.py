"""Trying removals out: what the edited network answers must be what the masked one answers."""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from penjing_prune.comparison import TOLERANCE, compare, difference, light_copy
from penjing_prune.groups import TOGETHER, Group, Structure, excluded, structure
from penjing_prune.guesses import Attributes, coupled, elsewhere, guesses, holders, sequences
from penjing_prune.heads import open_heads, openable
from penjing_prune.labels import Ids, varying
from penjing_prune.surgery import Edit, edit
from penjing_prune.trace import Cut, Traced, evaluating, trace

#: modules of PyTorch that take every size from their input
DYNAMIC = frozenset({"Linear", "Flatten"})
#: places of the same code that are each tried out; of more, two speak for all
FEW = 4


@dataclasses.dataclass
class Analysis:
    """A network, how its channels hang together, and what tells that it does."""

    module: nn.Module
    example: tuple[Any, ...]
    traced: Traced
    structure: Structure
    #: attributes that were found to hold a number of channels: (module, name) to their ids
    attributes: dict[tuple[str, str], Ids]
    #: layers that keep all channels, watched where the network chooses by what they answer
    watch: tuple[str, ...] = ()
    #: modules that have another form here than in the network that was given
    opened: tuple[str, ...] = ()

    def edit(self, removed: list[int]) -> Edit:
        """Return what removing these units means."""
        return edit(self.structure, removed, self.attributes, self.opened)

    def error(self, change: Edit) -> tuple[float, str]:
        """Return the largest relative difference from the masked network, and what was raised ("" where nothing)."""
        return compare(self.module, change, self.example, watch=self.watch)

    def error_of(self, module: nn.Module, change: Edit) -> tuple[float, str]:
        """Return the same for the module itself, whose weights are those that count."""
        return compare(module, change, self.example, watch=self.watch)


def analyse(
    module: nn.Module,
    example: tuple[Any, ...],
    exclude: Iterable[str] = (),
    whole_groups: Mapping[str, bool] | None = None,
) -> Analysis:
    """Trace a module, and try out every place in its code where a number of channels may be written down.

    Works on a copy. A place that does not follow the channels is left alone, with those channels, and so are the
    layers that `exclude` names. `whole_groups` is as for `trace`.
    """
    copied = copy.deepcopy(module)
    _enliven(copied)
    copied, opened = _open(copied, example)
    traced = _trace(copied, example, whole_groups)
    axes: dict[int, int] = {}
    fixed = excluded(traced, exclude)
    attributes: dict[tuple[str, str], Ids] = {}
    analysis = Analysis(
        copied, example, traced, structure(traced, axes, fixed), attributes, opened=tuple(opened)
    )
    if traced.chooses:
        parts = dict(copied.named_modules())
        whole = [one.layer for one in analysis.structure.alone if one.channels == one.of]
        analysis.watch = tuple(name for name in whole if name in parts)
    for places in _alike(traced).values():
        _settle(analysis, places, axes, fixed)
    _settle_rest(analysis, axes, fixed)
    return analysis


def _trace(module: nn.Module, example: tuple[Any, ...], whole_groups: Mapping[str, bool] | None) -> Traced:
    """Trace a module; convolutions with few groups lose whole ones too where nothing else lets a channel go."""
    traced = trace(module, example, whole_groups)
    stuck = {one.layer for one in structure(traced, {}, {}).alone if one.reason == TOGETHER}
    turned = {
        name: True
        for name, wholly in traced.whole_groups.items()
        if not wholly and name.rpartition(".")[0] in stuck and name not in (whole_groups or {})
    }
    if not turned:
        return traced
    other = trace(module, example, {**traced.whole_groups, **turned})

    def stay(one: Traced) -> int:
        return sum(layer.channels for layer in structure(one, {}, {}).alone)

    return other if stay(other) < stay(traced) else traced


def _open(module: nn.Module, example: tuple[Any, ...]) -> tuple[nn.Module, list[str]]:
    """Return a network whose attention can lose heads, and where: in modules that answer in that form as before."""
    names = [name for name, part in module.named_modules() if openable(part)]
    if not names:
        return module, []
    with torch.no_grad(), evaluating(module):
        wanted = module(*example)

    def opened(some: list[str]) -> nn.Module:
        other = light_copy(module)
        for name in some:
            open_heads(other.get_submodule(name))
        return other

    def same(some: list[str]) -> bool:
        other = opened(some)
        try:
            with torch.no_grad(), evaluating(other):
                return difference(other(*example), wanted) <= TOLERANCE
        except Exception:  # what that form does not do, such as one mask a head: it stays whole, and is named
            return False

    if not same(names):
        names = [name for name in names if same([name])]
    return (opened(names), names) if names else (module, [])


def _enliven(module: nn.Module) -> None:
    """Give a module weights with which every channel matters, so that a wrong removal shows.

    Networks as they are initialised, or pruned by masks, may answer the same whatever is removed.
    """
    generator = torch.Generator().manual_seed(0)

    def normal(tensor: torch.Tensor, scale: float) -> torch.Tensor:
        return torch.randn(tensor.shape, generator=generator).to(tensor) * scale

    with torch.no_grad():
        for name, tensor in itertools.chain(module.named_parameters(), module.named_buffers()):
            if not tensor.is_floating_point() or not tensor.numel():
                continue
            if name.endswith("running_var") or (tensor.ndim == 1 and name.endswith("weight")):
                tensor.copy_(1 + 0.2 * normal(tensor, 1.0).clamp(-2, 2))
            elif isinstance(tensor, nn.Parameter) or name.endswith("running_mean"):
                fan_in = tensor[0].numel() if tensor.ndim > 1 else 100
                tensor.copy_(normal(tensor, (1 / fan_in) ** 0.5))


def _alike(traced: Traced) -> dict[tuple[str, str], list[list[int]]]:
    """Return the numbers of cuts made by the same line of code in modules of the same kind, module by module."""
    found: dict[tuple[str, str], dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for number, cut in enumerate(traced.cuts):
        if cut.doubt or cut.site.kind not in DYNAMIC:
            found[cut.site.kind, cut.site.line][cut.site.module].append(number)
    # what is at work in few places comes first: the rest may stumble over it
    return {key: list(places.values()) for key, places in sorted(found.items(), key=lambda one: len(one[1]))}


def _settle(analysis: Analysis, places: list[list[int]], axes: dict[int, int], fixed: dict[int, str]) -> None:
    """Find out what makes cuts follow a change of channels; fix the channels of those where nothing does.

    The code is the same in all `places`: what works in the first works in the others, unless their surroundings
    differ, which is why failure is believed only after two.
    """
    everywhere = [number for place in places for number in place]
    first = _try(analysis, everywhere, axes, fixed)
    if first == "":
        return
    failed = 0
    tried = places if len(places) <= FEW else places[:2]
    for place in tried:
        failed += _settle_one(analysis, place, axes, fixed)
    if len(places) > FEW:
        rest = [number for place in places[2:] for number in place]
        if failed == len(tried):
            _fix(analysis, np.concatenate([analysis.traced.cuts[n].ids for n in rest]), first, fixed)
        else:
            _settle_one(analysis, rest, axes, fixed)
    analysis.structure = structure(analysis.traced, axes, fixed)


def _settle_one(analysis: Analysis, place: list[int], axes: dict[int, int], fixed: dict[int, str]) -> bool:
    """Settle some cuts, group by group where they do not follow together; tell whether none does."""
    why = _try(analysis, place, axes, fixed)
    if not why:
        return False
    found = structure(analysis.traced, axes, fixed)
    ids = np.concatenate([analysis.traced.cuts[n].ids for n in place])
    seen = [g for g in found.groups if np.isin(g.units, found.roots[ids]).any()]
    faults = [g for g in seen if len(seen) > 1 and _try(analysis, place, axes, fixed, only=g.units)]
    for group in faults:
        _fix(analysis, np.flatnonzero(np.isin(found.roots, group.units)), why, fixed)
    if not faults:
        _fix(analysis, ids, why, fixed)
    analysis.structure = structure(analysis.traced, axes, fixed)
    return len(faults) in (0, len(seen))


def _fix(analysis: Analysis, ids: Ids, why: str, fixed: dict[int, str]) -> None:
    """Say that channels stay."""
    for one in ids.tolist():
        fixed.setdefault(one, why)


def _try(
    analysis: Analysis,
    numbers: list[int],
    axes: dict[int, int],
    fixed: dict[int, str],
    *,
    only: Ids | None = None,
) -> str:
    """Remove units that these cuts see, one of each group, in every way there is; return why none works, else ""."""
    cuts = analysis.traced.cuts
    why, seen = "", False
    most = max((len(varying(c.grid)) for n in numbers if (c := cuts[n]).grid is not None), default=1)
    for choice in range(most):
        trial = {**axes, **dict.fromkeys(numbers, choice)}
        found = structure(analysis.traced, trial, fixed)
        removed = _units(found, [cuts[n] for n in numbers], only)
        if not removed:
            continue
        seen = True
        affected = [cut for cut in cuts if np.isin(found.roots[cut.ids], removed).any()]
        held = holders(analysis.module, analysis.traced, found, removed, affected)
        listed = sequences(analysis.module, affected)
        for extra in guesses(held, listed):
            error, raised = _error(analysis, found, removed, extra)
            if error <= TOLERANCE:
                axes.update(trial)
                _accept(analysis, found, extra, affected)
                return ""
            why = why or raised
        if _couple(analysis, trial, fixed, removed, held, listed):
            axes.update(trial)
            return ""
    if not seen:
        return ""
    first = cuts[numbers[0]]
    return f"{first.op} in {first.site} does not follow a change of channels" + (f": {why}" if why else "")


def _accept(analysis: Analysis, found: Structure, extra: Attributes, affected: list[Cut]) -> None:
    """Take over a structure that was tried out, and what attributes were found to hold."""
    analysis.structure = found
    more = elsewhere(analysis.module, analysis.traced, extra, affected)
    analysis.attributes.update({**more, **analysis.attributes, **extra})


def _couple(
    analysis: Analysis,
    axes: dict[int, int],
    fixed: dict[int, str],
    removed: list[int],
    held: dict[tuple[str, str], list[Ids]],
    listed: Attributes,
) -> bool:
    """Let layers whose number one attribute holds lose the same number: channel by channel, where that goes through."""
    union = coupled(analysis.traced.union, held)
    if union is None:
        return False
    traced = dataclasses.replace(analysis.traced, union=union)
    found = structure(traced, axes, fixed)
    roots = np.unique(union.roots(np.array(removed, np.int64)))
    units = [g.units for g in found.groups if np.isin(found.roots[roots], g.units).any()]
    some = [int(one[len(one) // 2]) for one in units]
    extra = {**listed, **{key: ids[0] for key, ids in held.items()}}
    if not some or _error(analysis, found, some, extra)[0] > TOLERANCE:
        return False
    analysis.traced.union = union
    _accept(analysis, found, extra, [])
    return True


def _settle_rest(analysis: Analysis, axes: dict[int, int], fixed: dict[int, str]) -> None:
    """Fix groups on whose number something depends that no operator shows: a scale, an assertion, another view."""
    groups = analysis.structure.groups
    if analysis.error(analysis.edit(_several(groups)))[0] <= TOLERANCE:
        return
    for group in groups:
        error, raised = analysis.error(analysis.edit(_several([group])))
        if error > TOLERANCE:
            why = f"the network does not follow a change of their number: {raised or f'{error:.1e} off'}"
            _fix(analysis, group.units, why, fixed)
    analysis.structure = structure(analysis.traced, axes, fixed)


def _several(groups: Sequence[Group]) -> list[int]:
    """Return some units of each group, of each another number."""
    generator = np.random.default_rng(0)
    several: list[int] = []
    for group in groups:
        count = int(generator.integers(1, max(2, len(group) // 2 + 1)))
        several += generator.permutation(group.units)[:count].tolist()
    return several


def _error(
    analysis: Analysis, found: Structure, removed: list[int], extra: dict[tuple[str, str], Ids]
) -> tuple[float, str]:
    """Compare after removing one unit of each group, and then several, of each group another number.

    One of each may fit by chance, where a number of one layer's channels was taken for that of another.
    """
    attributes = {**analysis.attributes, **extra}
    worst, raised = compare(
        analysis.module, edit(found, removed, attributes), analysis.example, once=True, watch=analysis.watch
    )
    if worst > TOLERANCE:
        return worst, raised
    several = _several([group for group in found.groups if np.isin(group.units, removed).any()])
    return compare(
        analysis.module, edit(found, several, attributes), analysis.example, once=True, watch=analysis.watch
    )


def _units(found: Structure, cuts: list[Cut], only: Ids | None) -> list[int]:
    """Return one unit from the middle of each group that any of these cuts sees, or of the group with `only`."""
    seen = np.unique(found.roots[np.concatenate([cut.ids for cut in cuts])])
    units = []
    for group in found.groups:
        inside = group.units[np.isin(group.units, seen)]
        if len(inside) and (only is None or np.isin(found.roots[only], group.units).any()):
            units.append(int(inside[len(inside) // 2]))
    return units
