"""Edits: which channels of which parameters stay, as data that can be stored and replayed onto a fresh module."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from penjing.errors import InputError
from torch import nn
from torch.nn.utils import parametrizations

from penjing_prune.groups import Structure
from penjing_prune.heads import open_heads

VERSION = 1


@dataclasses.dataclass(frozen=True)
class Edit:
    """What changes in a module: indices kept of each dimension of tensors, and integers that attributes take."""

    #: (names of the tensor, dimension, indices that stay)
    tensors: tuple[tuple[tuple[str, ...], int, tuple[int, ...]], ...]
    #: (module, attribute, value)
    attributes: tuple[tuple[str, str, int], ...]
    #: modules of attention that first take a form that can lose heads
    opened: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the edit as JSON values."""
        return {
            "tensors": [{"names": n, "dim": d, "keep": k} for n, d, k in self.tensors],
            "attributes": [{"module": m, "name": a, "value": v} for m, a, v in self.attributes],
            "opened": list(self.opened),
        }

    @staticmethod
    def from_json(data: Any) -> Edit:
        """Return the edit that `to_json` wrote; InputError for anything else."""
        try:
            return Edit(
                tuple((_names(t["names"]), _number(t["dim"]), _kept(t["keep"])) for t in data["tensors"]),
                tuple(
                    (_text(a["module"]), _text(a["name"]), _number(a["value"])) for a in data["attributes"]
                ),
                tuple(map(_text, data.get("opened", ()))),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(
                f"The list of structural edits is damaged: {error!r}.", hint="Run the step again."
            ) from error


def edit(
    structure: Structure,
    removed: Iterable[int],
    attributes: Mapping[tuple[str, str], Any],
    opened: Iterable[str] = (),
) -> Edit:
    """Return what removing these units means for the module.

    `attributes` are those of modules that shrink with channels though no layer's definition says so: their ids.
    `opened` are the modules that were given another form to be traced; those that lose nothing keep theirs.
    """
    gone = list(removed)
    tensors = []
    for leaf in structure.traced.leaves:
        for dim, ids in enumerate(leaf.ids):
            mask = structure.kept(gone, ids)
            if not mask.all():
                tensors.append((leaf.names, dim, tuple(np.flatnonzero(mask).tolist())))
    values: dict[tuple[str, str], int] = {}
    counts = [((c.module, c.name), c.ids) for c in structure.traced.counts]
    for key, ids in [*counts, *attributes.items()]:
        left = int(structure.kept(gone, ids).sum())
        if left != len(ids):
            values[key] = left
    changed = {name.rpartition(".")[0] for names, _, _ in tensors for name in names}
    inside = {".".join(name.split(".")[:n]) for name in changed for n in range(1 + name.count(".") + 1)}
    return Edit(
        tuple(tensors),
        tuple((m, a, v) for (m, a), v in sorted(values.items())),
        tuple(name for name in opened if name in inside),
    )


def apply(module: nn.Module, change: Edit) -> None:
    """Carry an edit out on `module` itself; InputError where it does not fit."""
    for name in change.opened:
        open_heads(_part(module, name))
    with torch.no_grad():
        for names, dim, keep in change.tensors:
            old = _tensor(module, names[0])
            if not keep or not 0 <= dim < old.ndim or not 0 <= min(keep) <= max(keep) < old.shape[dim]:
                raise InputError(
                    f"The structural edit of {names[0]} does not fit its shape {list(old.shape)}.",
                    hint="It was made for another network.",
                )
            index = torch.tensor(keep, device=old.device)
            new: torch.Tensor = old.detach().index_select(dim, index).contiguous()
            if isinstance(old, nn.Parameter):
                new = nn.Parameter(new, requires_grad=old.requires_grad)
            _replace(module, names, new)
    for name, attribute, value in change.attributes:
        part = _part(module, name)
        if type(held(part, attribute)) is not int:
            raise InputError(f"{name or 'the network'} has no number called {attribute!r}.")
        key, _, place = attribute.partition(".")
        if place:
            before: Any = getattr(part, key)
            after = [value if number == int(place) else old for number, old in enumerate(before)]
            setattr(part, key, tuple(after) if isinstance(before, tuple) else after)
        else:
            setattr(part, attribute, value)


def held(part: nn.Module, attribute: str) -> Any:
    """Return an attribute, or for "splits.2" the third number of a list or tuple; None where there is none."""
    key, _, place = attribute.partition(".")
    value: Any = getattr(part, key, None)
    if not place:
        return value
    inside = isinstance(value, (list, tuple)) and place.isdecimal() and int(place) < len(value)
    return value[int(place)] if inside else None


def mask(module: nn.Module, change: Edit) -> None:
    """Replace by zeros, in `module` itself, every parameter that an edit removes: what the edited module must equal."""
    with torch.no_grad():
        for names, dim, keep in change.tensors:
            old = _tensor(module, names[0])
            if isinstance(old, nn.Parameter) and not _is_direction(module, names[0], dim):
                gone = np.setdiff1d(np.arange(old.shape[dim]), keep)
                new = old.detach().index_fill(dim, torch.from_numpy(gone).to(old.device), 0)
                _replace(module, names, nn.Parameter(new, requires_grad=old.requires_grad))


def _is_direction(module: nn.Module, name: str, dim: int) -> bool:
    """Tell whether a parameter only says which way weights point, whose length is another and becomes zero."""
    owner, _, own = name.rpartition(".")
    part = _part(module, owner)
    return own == "original1" and any(
        isinstance(one, parametrizations._WeightNorm) and one.dim == dim for one in part.children()
    )


def _replace(module: nn.Module, names: Iterable[str], new: torch.Tensor) -> None:
    for name in names:
        owner, _, attribute = name.rpartition(".")
        part = _part(module, owner)
        if isinstance(new, nn.Parameter):
            part._parameters[attribute] = new
        else:
            part._buffers[attribute] = new


def _part(module: nn.Module, name: str) -> nn.Module:
    try:
        return module.get_submodule(name)
    except AttributeError as error:
        raise InputError(f"The network has no part {name!r}.", hint="It is another network.") from error


def _tensor(module: nn.Module, name: str) -> torch.Tensor:
    owner, _, attribute = name.rpartition(".")
    part = _part(module, owner)
    found: torch.Tensor | None = part._parameters.get(attribute)
    found = part._buffers.get(attribute) if found is None else found
    if found is None:
        raise InputError(f"The network has no tensor {name!r}.", hint="It is another network.")
    return found


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def _names(values: Any) -> tuple[str, ...]:
    names = tuple(map(_text, values))
    if not names:
        raise ValueError("a tensor has no name")
    return names


def _kept(values: Any) -> tuple[int, ...]:
    kept = tuple(map(_number, values))
    if any(b <= a for a, b in pairwise(kept)):
        raise ValueError("indices that stay are not in order")
    return kept


def _number(value: Any) -> int:
    if type(value) is not int:
        raise TypeError(f"{value!r} is no integer")
    return value
