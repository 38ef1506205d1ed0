"""Run a network once and learn which channels belong together.

Execution is real, so that nothing can fail to be traced: a `TorchDispatchMode` sees every operator that PyTorch
carries out, after composite ones were taken apart, and `rules.py` says what each does to channel ids.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from penjing.errors import first_line
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from penjing_prune.heads import opened
from penjing_prune.labels import Ids, Layer, Layers, Union, along, broadcast, numbers, varying
from penjing_prune.outputs import tensors_in
from penjing_prune.replay import CHOOSING


@dataclasses.dataclass
class Leaf:
    """A parameter or buffer: every name it has, and the ids of each of its dimensions."""

    names: tuple[str, ...]
    shape: tuple[int, ...]
    parameter: bool
    ids: tuple[Ids, ...]


@dataclasses.dataclass(frozen=True)
class Site:
    """Where in the network something happened: the module at work and the line of its code."""

    module: str
    kind: str
    line: str

    def __str__(self) -> str:
        return (self.module or "the network") + (f" ({self.line})" if self.line else "")


@dataclasses.dataclass
class Cut:
    """An operator that gives a shape, split or slice to channels, which the code may have written down as a number."""

    site: Site
    op: str
    ids: Ids
    #: the labels of what comes of it
    after: Layer
    #: the ids of every piece, where it makes several
    parts: tuple[Ids, ...] = ()
    #: something meets these channels whose size may follow theirs, or not
    doubt: bool = False

    @property
    def grid(self) -> Layer | None:
        """Return the labels where they change along several dimensions: one of them has to shrink evenly."""
        return self.after if len(varying(self.after)) > 1 else None


@dataclasses.dataclass(frozen=True)
class Product:
    """Multiply-accumulates: `each` times the number of ids left in every one of `sides`."""

    each: float
    sides: tuple[Ids, ...]
    #: the parameter that is multiplied with, where there is one, and the shape of what it makes
    weight: str = ""
    output: tuple[int, ...] = ()
    details: tuple[tuple[str, Any], ...] = ()


@dataclasses.dataclass(frozen=True)
class Count:
    """An attribute of a module that holds the number of these ids."""

    module: str
    name: str
    ids: Ids


@dataclasses.dataclass
class Traced:
    """What a network does with its channels."""

    union: Union
    leaves: list[Leaf]
    cuts: list[Cut] = dataclasses.field(default_factory=list)
    products: list[Product] = dataclasses.field(default_factory=list)
    counts: list[Count] = dataclasses.field(default_factory=list)
    #: ids of a grid (heads × depth, say), and those of a vector along one axis of it that each of them meets
    shared: list[tuple[Ids, Ids]] = dataclasses.field(default_factory=list)
    #: parameters that scale the result of a batch norm
    scales: set[str] = dataclasses.field(default_factory=set)
    #: the network keeps some of what it computes and drops the rest, as detectors do
    chooses: bool = False
    #: by the name of its weight, whether a convolution with groups loses whole groups, rather than channels of each
    whole_groups: dict[str, bool] = dataclasses.field(default_factory=dict)


def trace(
    module: nn.Module, example: tuple[Any, ...], whole_groups: Mapping[str, bool] | None = None
) -> Traced:
    """Return what `module` does with its channels when it is called with `example`. The module is left as it was.

    `whole_groups` has what was decided when the network still had all its channels.
    """
    tracer = _Tracer(module)
    tracer.result.whole_groups.update(whole_groups or {})
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # one fused operator that no rule could look into
    try:
        with evaluating(module), tracer.watching(module), torch.no_grad():
            tracer.run(module, example)
        decided = tracer.decided
        if unseen := tracer.unseen(module):
            _trace_training(module, tracer, example, unseen)
        if decided and (unseen := tracer.unseen(module)):
            tracer.fix_all(f"the network looks at its own values in {decided} and may yet run {unseen[0]}")
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
    tracer.protect_attention(module)
    return tracer.result


def _trace_training(module: nn.Module, tracer: _Tracer, example: tuple[Any, ...], unseen: list[str]) -> None:
    """Look at what runs in training only, such as auxiliary heads, so that it keeps fitting the rest."""
    state = {name: value.clone() for name, value in module.state_dict().items()}
    twice = tuple(torch.cat([x, x]) if isinstance(x, torch.Tensor) else x for x in example)
    products = list(tracer.result.products)
    try:
        with evaluating(module, training=True), tracer.watching(module), torch.no_grad():
            tracer.run(module, twice)
    except Exception as error:  # whatever a network raises that needs more than an image to train
        why = first_line(error)
        tracer.result.union.fix(
            (one for leaf in tracer.result.leaves if leaf.names[0] in unseen for d in leaf.ids for one in d),
            f"it runs in training only, and could not be tried with this image: {why}",
        )
    finally:
        module.load_state_dict(state)
        tracer.result.products[:] = products  # costs are those of inference


@contextlib.contextmanager
def evaluating(module: nn.Module, *, training: bool = False) -> Iterator[None]:
    """Put every part of a module into eval mode (or training mode), and back as each was."""
    modes = {name: part.training for name, part in module.named_modules()}
    module.train(training)
    try:
        yield
    finally:
        for name, part in module.named_modules():
            part.training = modes[name]


class _Tracer(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it untyped
    """Sees every operator, keeps the labels of tensors, and collects what rules find."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self.union = Union()
        self.result = Traced(self.union, [])
        self.touched: set[int] = set()
        #: where the code read a value that was computed, on which it may decide what to run
        self.decided: Site | None = None
        self._labels = WeakTensorKeyDictionary()
        self._leaf: dict[int, Leaf] = {}
        #: by the first id of each of their dimensions
        self._starts: dict[int, Leaf] = {}
        self._modules = dict(module.named_modules(remove_duplicate=False))
        self._stack: list[str] = []
        self._alive: list[torch.Tensor] = []
        for tensor, names, is_parameter in _leaves(module):
            ids = tuple(self.union.fresh(size) for size in tensor.shape)
            leaf = Leaf(tuple(names), tuple(tensor.shape), is_parameter, ids)
            self.result.leaves.append(leaf)
            self._leaf[id(tensor)] = leaf
            self._alive.append(tensor)
            self._starts |= {int(one[0]): leaf for one in ids if len(one)}
            self._labels[tensor] = tuple(
                layer for d, one in enumerate(ids) for layer in along(one, d, tensor.ndim)
            )

    def run(self, module: nn.Module, example: tuple[Any, ...]) -> None:
        """Run the network; what comes out of it stays as it is."""
        with self:
            outputs = module(*example)
        found = tensors_in(outputs)
        for tensor in found:
            self.fix(tensor, "it is an output of the network")
        if not found:
            self.fix_all(f"the network returns a {type(outputs).__name__}, in which no tensor was found")

    @contextlib.contextmanager
    def watching(self, module: nn.Module) -> Iterator[None]:
        """Know which part of the network is at work."""

        def enter(name: str) -> Any:
            return lambda *_: self._stack.append(name)

        def leave(*_: Any) -> None:
            self._stack.pop()

        hooks = []
        for name, part in module.named_modules():
            hooks += [
                part.register_forward_pre_hook(enter(name), prepend=True),
                part.register_forward_hook(leave, always_call=True),
            ]
        try:
            yield
        finally:
            self._stack.clear()
            for hook in hooks:
                hook.remove()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        from penjing_prune.rules import learn

        kwargs = kwargs or {}
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        for tensor in tensors:
            if id(tensor) in self._leaf:
                self.touched.add(id(tensor))
        if func.overloadpacket.__name__ == "_local_scalar_dense":
            self.decided = self.decided or self.site()
        out = func(*args, **kwargs)
        self.result.chooses |= func.overloadpacket.__name__ in CHOOSING
        if any(self.layers(tensor) for tensor in tensors):
            try:
                learn(self, func, args, kwargs, tensors, out)
            except (
                RuntimeError,
                IndexError,
                ValueError,
                TypeError,
            ) as error:  # used in a way no rule foresaw
                why = f"{func.overloadpacket.__name__} could not be followed in {self.site()}: {error}"
                for tensor in tensors:
                    self.fix(tensor, why)
        return out

    def layers(self, tensor: torch.Tensor) -> Layers:
        """Return the labels of a tensor; none where it belongs to no channel."""
        found: Layers = self._labels.get(tensor, ())  # type: ignore[no-untyped-call]  # torch leaves it untyped
        return found

    def label(self, tensor: torch.Tensor, layers: Layers) -> None:
        """Say which channels a tensor belongs to."""
        kept = tuple(layer for layer in layers if layer.numel() > 1)
        if kept or tensor in self._labels:
            self._labels[tensor] = kept

    def leaf(self, tensor: torch.Tensor) -> Leaf | None:
        """Return the parameter or buffer that `tensor` is."""
        return self._leaf.get(id(tensor))

    def join(self, first: Ids, second: Ids) -> None:
        """Make channels go together."""
        self.union.join(first, second)

    def join_layers(self, first: Layer, second: Layer) -> None:
        """Make the channels of two layers of equal ndim go together; where one has axes that the other lacks, maybe."""
        both, (one, other) = broadcast(first, second), (set(varying(first)), set(varying(second)))
        if one > other:
            self.result.shared.append(both)
        elif one < other:
            self.result.shared.append((both[1], both[0]))
        else:
            self.join(*both)

    def tie(self, layer: Layer, dims: tuple[int, ...]) -> None:
        """Make all channels along `dims` go together."""
        one = layer
        for d in dims:
            one = one.narrow(d, 0, 1)
        self.join(*_pair(layer, one))

    def fix(self, what: torch.Tensor | Layers, reason: str) -> None:
        """Say that channels stay as they are, and why."""
        for layer in self.layers(what) if isinstance(what, torch.Tensor) else what:
            self.union.fix(numbers(layer).tolist(), reason)

    def doubt(self, layer: Layer, op: str) -> None:
        """Let it be tried out whether something without labels follows when channels go: its size may be theirs."""
        ids = numbers(layer)
        self.result.cuts.append(Cut(self.site(), op, ids, torch.from_numpy(ids), doubt=True))

    def fix_ids(self, ids: Ids, reason: str) -> None:
        """Say the same of ids."""
        self.union.fix(ids.ravel().tolist(), reason)

    def fix_all(self, reason: str) -> None:
        """Say it of every channel there is."""
        for leaf in self.result.leaves:
            for ids in leaf.ids:
                self.fix_ids(ids, reason)

    def unseen(self, module: nn.Module) -> list[str]:
        """Return the parameters that no operator has taken up."""
        return [name for name, p in module.named_parameters() if id(p) not in self.touched]

    def origin(self, weight: torch.Tensor) -> Leaf | None:
        """Return the parameter that `weight` is, or is computed from element by element, as normed weights are."""
        leaf = self.leaf(weight)
        return leaf or self._leaf_like(weight, tuple(weight.shape), range(weight.ndim))

    def weight_of(self, tensor: torch.Tensor) -> Leaf | None:
        """Return the matrix of which `tensor` is the transpose: what a linear layer multiplies with."""
        return self._leaf_like(tensor, tuple(reversed(tensor.shape)), range(tensor.ndim)[::-1])

    def _leaf_like(self, tensor: torch.Tensor, shape: tuple[int, ...], dims: Sequence[int]) -> Leaf | None:
        for layer in self.layers(tensor):
            if len(varying(layer)) != 1:
                continue
            ids, dim = layer.numpy().ravel(), dims[varying(layer)[0]]
            leaf = self._starts.get(int(ids[0]))
            if leaf and leaf.shape == shape and np.array_equal(leaf.ids[dim], ids):
                return leaf
        return None

    def part(self, name: str) -> nn.Module:
        """Return a module by name."""
        module: nn.Module = self._modules[name]
        return module

    def owners(self, leaf: Leaf | None) -> list[tuple[str, nn.Module]]:
        """Return the modules that hold a parameter, by name."""
        if leaf is None:
            return []
        names = [name.rpartition(".")[0] for name in leaf.names]
        if ".parametrizations." in f".{leaf.names[0]}":  # its number of channels is where the weight is used
            names = [self.site().module]
        return [(name, self._modules[name]) for name in names]

    def count(self, leaf: Leaf | None, name: str, ids: Ids, *, holds: int | None = None) -> bool:
        """Note that the owner of `leaf` keeps the number of `ids` in its attribute `name`; False where it does not."""
        found = False
        for owner, module in self.owners(leaf):
            if type(getattr(module, name, None)) is int and getattr(module, name) == (
                len(ids) if holds is None else holds
            ):
                self.result.counts.append(Count(owner, name, ids))
                found = True
        return found

    def site(self) -> Site:
        """Return where the network is."""
        name = self._stack[-1] if self._stack else ""
        return Site(name, type(self._modules[name]).__qualname__, _line())

    def protect_attention(self, module: nn.Module) -> None:
        """Leave nn.MultiheadAttention whole that has no other form: it is as wide inside as outside."""
        reason = "nn.MultiheadAttention is as wide inside as outside, and cannot lose a head"
        for name, part in module.named_modules():
            if isinstance(part, nn.MultiheadAttention) and not opened(part):
                for leaf in self.result.leaves:
                    if leaf.names[0].startswith(f"{name}." if name else ""):
                        for ids in leaf.ids:
                            self.fix_ids(ids, reason)


def _pair(layer: Layer, one: Layer) -> tuple[Ids, Ids]:
    return layer.numpy(), one.expand_as(layer).numpy()


def _leaves(module: nn.Module) -> Iterator[tuple[torch.Tensor, list[str], bool]]:
    """Yield every floating-point parameter and buffer once, with all its names."""
    names: dict[int, list[str]] = {}
    found: dict[int, tuple[torch.Tensor, bool]] = {}
    for kind, entries in (
        (True, module.named_parameters(remove_duplicate=False)),
        (False, module.named_buffers(remove_duplicate=False)),
    ):
        for name, tensor in entries:
            if tensor.is_floating_point() and tensor.ndim:
                names.setdefault(id(tensor), []).append(name)
                found.setdefault(id(tensor), (tensor, kind))
    for key, (tensor, is_parameter) in found.items():
        yield tensor, names[key], is_parameter


_TORCH = f"{Path(torch.__file__).parent}{os.sep}"
_HERE = f"{Path(__file__).parent}{os.sep}"


def _line() -> str:
    """Return the innermost line of the network's own code, as file:line; "" where all of it is PyTorch's."""
    frame, inside = sys._getframe(1), False
    while frame is not None:
        name = frame.f_code.co_filename
        if name.startswith(_HERE):
            if inside:  # out of the network again: this is who called it
                return ""
        elif name.startswith("<"):
            return f"line {frame.f_lineno} of its program"
        elif not name.startswith(_TORCH):
            return f"{Path(name).name}:{frame.f_lineno}"
        else:
            inside = True
        if frame.f_back is None:
            break
        frame = frame.f_back
    return ""
