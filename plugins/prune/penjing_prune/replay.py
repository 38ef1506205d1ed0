"""Networks that choose (detectors keep the best boxes): the same choices in two runs, so that they can be compared.

Rounding may turn a close choice round, after which two networks that compute the same answer differently. What one
run chose is therefore replayed in the other, and the layers that choices are made from are compared too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from penjing_prune.outputs import tensors_in

#: operators whose result jumps
CHOOSING = frozenset({"nms", "topk", "sort", "nonzero", "argmax", "argmin", "_unique2"})
COMPARING = frozenset(
    {"gt", "ge", "lt", "le", "eq", "ne", "isin", "logical_and", "logical_or", "bitwise_and"}
)


class Choices(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it untyped
    """Records what a run chooses, or makes a run choose what was recorded."""

    def __init__(self, taken: Sequence[tuple[str, Any]] | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self.taken: list[tuple[str, Any]] = [] if taken is None else list(taken)
        self._replaying = taken is not None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        out = func(*args, **(kwargs or {}))
        if name not in CHOOSING and name not in COMPARING:
            return out
        if not self._replaying:
            self.taken.append((name, out))
            return out
        if not self.taken or self.taken[0][0] != name:
            return out  # another path through the code: the results will tell
        _, before = self.taken.pop(0)
        if name in ("topk", "sort"):
            dim = (args[2] if len(args) > 2 else -1) if name == "topk" else (args[1] if len(args) > 1 else -1)
            return args[0].gather(dim, before[1]), before[1]
        return before


def run(
    module: nn.Module, inputs: tuple[Any, ...], watch: Sequence[str], choices: Choices
) -> list[torch.Tensor]:
    """Return the outputs of a network, and those of the parts that `watch` names, under the choices given."""
    seen: list[torch.Tensor] = []

    def hook(part: nn.Module, given: Any, output: Any) -> None:
        seen.extend(tensors_in(output))

    handles = [module.get_submodule(name).register_forward_hook(hook) for name in watch]
    try:
        with choices:
            outputs = module(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    return seen + tensors_in(outputs)
