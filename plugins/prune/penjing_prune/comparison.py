"""What a network answers with channels removed, and with the same channels set to zero."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import torch
from penjing.errors import InputError, StepError
from torch import nn

from penjing_prune.outputs import tensors_in
from penjing_prune.replay import Choices, run
from penjing_prune.surgery import Edit, apply, mask
from penjing_prune.trace import evaluating

#: largest difference between edited and masked network, by the largest value
TOLERANCE = 1e-4


def compare(
    module: nn.Module,
    change: Edit,
    example: tuple[Any, ...],
    *,
    once: bool = False,
    watch: tuple[str, ...] = (),
) -> tuple[float, str]:
    """Return the largest relative difference between edited and masked module, and the first line of an exception."""
    worst, raised = _compare(module, change, example, once, watch)
    if TOLERANCE < worst < float("inf"):  # rounding, or a fault? Twice the digits tell
        doubled = tuple(
            x.double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x for x in example
        )
        again, failed = _compare(copy.deepcopy(module).double(), change, doubled, once, watch)
        worst = worst if failed else again
    return worst, raised


def _compare(
    module: nn.Module, change: Edit, example: tuple[Any, ...], once: bool, watch: tuple[str, ...]
) -> tuple[float, str]:
    edited = light_copy(module)
    several = (example,) if once else (example, _shaken(example))
    worst = 0.0
    try:
        apply(edited, change)
        with torch.no_grad(), evaluating(edited):
            answers: list[Any] = [] if watch else [edited(*inputs) for inputs in several]
            masked = light_copy(module)  # not before: most of what cannot be had has been refused by now
            mask(masked, change)
            with evaluating(masked):
                for number, inputs in enumerate(several):
                    choices = Choices()
                    if watch:
                        wanted: Any = run(masked, inputs, watch, choices)
                        answers.append(run(edited, inputs, watch, Choices(choices.taken)))
                    else:
                        wanted = masked(*inputs)
                    worst = max(worst, difference(answers[number], wanted))
    except (InputError, StepError):
        raise
    except Exception as error:  # whatever somebody's network raises when shapes do not meet
        return float("inf"), str(error).strip().split("\n", 1)[0] or type(error).__name__
    return worst, ""


def light_copy(module: nn.Module) -> nn.Module:
    """Return a copy that shares all tensors, to replace some of them.

    Like `copy.deepcopy`, but without a look at what cannot change: many are made, and modules are many.
    """
    memo: dict[int, Any] = {id(t): t for t in itertools.chain(module.parameters(), module.buffers())}
    parts = list(module.modules())
    if not all(map(_plain, parts)):
        return copy.deepcopy(module, memo)
    for part in parts:
        memo[id(part)] = type(part).__new__(type(part))
    for part in parts:
        inside = memo[id(part)].__dict__
        for name, value in vars(part).items():
            if name == "_compiled_call_impl":
                continue
            if name in ("_parameters", "_buffers"):
                inside[name] = {key: memo.get(id(one), one) for key, one in value.items()}
            elif name == "_modules":
                inside[name] = {key: memo.get(id(one)) for key, one in value.items()}
            elif isinstance(value, _CONSTANT):
                inside[name] = value
            else:
                inside[name] = copy.deepcopy(value, memo)
    copied: nn.Module = memo[id(module)]
    return copied


_CONSTANT = (int, float, str, type(None))


def _plain(part: nn.Module) -> bool:
    """Tell whether a module leaves its copying to Python."""
    own = {"__deepcopy__", "__reduce_ex__", "__reduce__", "__getstate__"}
    return not any(own & vars(kind).keys() for kind in type(part).__mro__ if kind not in (nn.Module, object))


def difference(first: Any, second: Any) -> float:
    """Return the largest difference of two results, each tensor by its largest value; infinite where shapes differ."""
    worst = 0.0
    one, other = tensors_in(first), tensors_in(second)
    if len(one) != len(other):
        return float("inf")
    for a, b in zip(one, other, strict=True):
        if a.shape != b.shape or not bool(torch.isfinite(a).all() and torch.isfinite(b).all()):
            return float("inf")
        if a.numel():
            scale = max(float(b.double().abs().max()), 1e-12)
            worst = max(worst, float((a.double() - b.double()).abs().max()) / scale)
    return worst


def _shaken(example: tuple[Any, ...]) -> tuple[Any, ...]:
    generator = torch.Generator().manual_seed(1)
    return tuple(
        torch.randn(x.shape, generator=generator, dtype=x.dtype)
        if isinstance(x, torch.Tensor) and x.is_floating_point()
        else x
        for x in example
    )
