"""The contract tests for authors find each broken promise."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from penjing import Context, Model, Technique, option
from penjing.testing import check_step, small_context, small_model


@dataclass(frozen=True)
class Halve(Technique):
    """Halve the weights, and do one deed more."""

    name = "test.halve"
    accepts = frozenset({"torch"})
    produces = "torch"

    factor: float = option(0.5, "What weights are multiplied by.", between=(0, 1))

    def apply(self, model: Model, context: Context) -> Model:
        network = copy.deepcopy(model.value)
        network[0].weight.data.mul_(self.factor)
        self.misbehave(model, context, network)
        return model.become("torch", network)

    def misbehave(self, model: Model, context: Context, network: Any) -> None:
        """Break a promise; here, none."""


def _noise(model: Model, context: Context, network: Any) -> None:
    import torch

    network[0].bias.data += torch.rand(16)


def _train_original(model: Model, context: Context, network: Any) -> None:
    import torch

    model.value(torch.ones(1, 3, 32, 32)).sum().backward()


def _look(model: Model, context: Context, network: Any) -> None:
    network[0].bias.data += len(context.data.calibrate) if context.data else 0


def _new_activation(model: Model, context: Context, network: Any) -> None:
    from torch import nn

    network[1] = nn.ReLU6().eval()


BAD = {
    "changes weights": (lambda m, c, n: m.value[0].weight.data.zero_(), "changed the model"),
    "trains the original": (_train_original, "changed the model"),
    "switches to training": (lambda m, c, n: m.value.train(), "changed the model"),
    "freezes": (lambda m, c, n: m.value.requires_grad_(False), "changed the model"),
    "leaves a hook": (lambda m, c, n: m.value[0].register_forward_hook(print), "changed the model"),
    "writes beside its folder": (lambda m, c, n: (c.folder.parent / "log").write_text(""), "wrote outside"),
    "spoils a photograph": (
        lambda m, c, n: (c.data.root / "class0" / "0.png").write_text(""),
        "wrote outside",
    ),
    "returns training": (lambda m, c, n: n.train(), "when it is stored"),
    "changes an activation": (_new_activation, "when it is stored"),
    "draws from torch": (_noise, "the same twice"),
    "uses photographs in silence": (_look, "the same twice"),
    "tells an object": (lambda m, c, n: c.details.update(network=n), "no JSON"),
    "tells no number": (lambda m, c, n: c.details.update(loss=float("nan")), "no JSON"),
}


def test_a_step_that_keeps_its_promises_passes(tmp_path: Path) -> None:
    model = small_model(tmp_path)

    result = check_step(Halve(0.25), model, small_context(tmp_path))

    assert bool((result.value[0].weight == model.value[0].weight * 0.25).all())


@pytest.mark.parametrize("deed", BAD)
def test_a_broken_promise_is_found(deed: str, tmp_path: Path) -> None:
    what, message = BAD[deed]

    @dataclass(frozen=True)
    class Bad(Halve):
        """Do wrong."""

        def misbehave(self, model: Model, context: Context, network: Any) -> None:
            what(model, context, network)

    with pytest.raises(AssertionError, match=message):
        check_step(Bad(), small_model(tmp_path), small_context(tmp_path))
