"""Pruning to a latency, on a backend whose time is known: so long for each weight."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from penjing.device import Device
from penjing.model import Model
from penjing.step import Backend, Context
from penjing.testing import small_context, torch_model
from penjing_prune.layer_times import FILE, Table
from penjing_prune.structured import Structured
from torch import nn

SECONDS = 2e-7


@dataclasses.dataclass(frozen=True)
class Clockwork(Backend):
    """Wait so long for each weight of the graph."""

    name = "clockwork"
    accepts = frozenset({"onnx"})
    produces = "onnx"

    def available(self, device: Device) -> str:
        return ""

    def apply(self, model: Model, context: Context) -> Model:
        return model

    def open(self, model: Model, device: Device) -> Any:
        import onnx

        graph = onnx.load(model.value).graph
        weights = sum(int(np.prod(w.dims)) for w in graph.initializer if len(w.dims) > 1)

        def session(batch: Any) -> list[Any]:
            end = time.perf_counter() + 5e-5 + SECONDS * weights
            while time.perf_counter() < end:
                pass
            return [batch]

        return session


@pytest.fixture
def context(tmp_path: Path) -> Context:
    return dataclasses.replace(small_context(tmp_path), backend=Clockwork())


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3, groups=32),
        nn.Conv2d(32, 16, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4),
    )  # fmt: skip


@pytest.mark.slow
def test_a_share_of_the_latency_is_met_within_five_percent(context: Context) -> None:
    step = Structured(latency=0.5, channel_multiple=1)
    step.check(context.device, context.backend)

    small = step.apply(torch_model(network()), context).value

    weights = [sum(p.numel() for p in m.parameters() if p.ndim > 1) for m in (small, network())]
    foretold = (5e-5 + SECONDS * weights[0]) / (5e-5 + SECONDS * weights[1])
    assert foretold == pytest.approx(0.5, abs=0.05)
    assert context.details["achieved"] == pytest.approx(foretold, abs=0.05)
    assert (context.folder / FILE).is_file()
    assert [path.suffix for path in context.folder.iterdir() if path.is_dir()] == []


def test_layers_that_were_timed_in_another_step_of_the_run_are_not_timed_again(context: Context) -> None:
    first = Table(context)
    first.seconds["a layer"] = 0.25
    first.save()
    place = context.folder.parent / "prune.structured-0"
    context.folder.rename(place)
    context.folder.mkdir()

    assert Table(context).seconds == {"a layer": 0.25}
    (place / FILE).write_text((place / FILE).read_text().replace(first.key, "0" * 64))
    assert Table(context).seconds == {}
    (place / FILE).write_text("{")
    assert Table(context).seconds == {}
