"""Pruning to a latency, on a backend whose time is known: so long for each weight."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from penjing import onnx_session
from penjing.device import Device
from penjing.model import Model
from penjing.ranks import Ranks
from penjing.step import Backend, Context
from penjing.testing import small_context, torch_model
from penjing_prune import latency
from penjing_prune.layer_times import FILE, Table, points
from penjing_prune.pruning import Pruning
from penjing_prune.structured import EDITS, Structured
from penjing_prune.trace import Product
from torch import nn
from torch.distributed import HashStore

SECONDS = 2e-7


@dataclasses.dataclass(frozen=True)
class Clockwork(Backend):
    """Wait so long for each weight of the graph, and for each channel at its ends."""

    ends: float = 0.0

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
        weights = [int(np.prod(w.dims)) for w in graph.initializer if len(w.dims) > 1]
        values = graph.initializer[0].dims[0] + graph.initializer[-1].dims[0]
        seconds = 5e-5 + SECONDS * sum(weights) + self.ends * values

        def session(batch: Any) -> list[Any]:
            end = time.perf_counter() + seconds
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


def foretold(small: nn.Module) -> float:
    """Return the share of the network's time that Clockwork takes for a smaller one."""
    weights = [sum(p.numel() for p in m.parameters() if p.ndim > 1) for m in (small, network())]
    return (5e-5 + SECONDS * weights[0]) / (5e-5 + SECONDS * weights[1])


@pytest.mark.slow
def test_a_share_of_the_latency_is_met_within_five_percent(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latency, "SECONDS", 0.5)
    step = Structured(latency=0.5, channel_multiple=1)
    step.check(context.device, context.backend)

    small = step.apply(torch_model(network()), context).value

    assert foretold(small) == pytest.approx(0.5, abs=0.05)
    assert context.details["achieved"] == pytest.approx(foretold(small), abs=0.05)
    assert context.warnings == []
    assert (context.folder / FILE).is_file()
    assert [path.suffix for path in context.folder.iterdir() if path.is_dir()] == []


@pytest.mark.slow
def test_a_share_that_the_floor_forbids_is_told_with_the_fastest_there_is(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latency, "SECONDS", 0.3)

    Structured(latency=0.2, channel_multiple=1, floor=0.8).apply(torch_model(network()), context)

    (warning,) = context.warnings
    assert "the fastest is" in warning
    assert "80.0% of their channels" in warning


@pytest.mark.slow
def test_of_several_processes_one_times_and_all_prune_alike(
    context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latency, "SECONDS", 0.3)
    monkeypatch.setattr(Pruning, "_recover", lambda self, number: None)
    step, store, edits = Structured(latency=0.5, channel_multiple=1, epochs=1), HashStore(), []
    # one after the other: what the first has told is there when the second asks
    for rank, backend in enumerate((Clockwork(), Idle())):
        folder = tmp_path / str(rank)
        folder.mkdir()
        ranks = Ranks(rank, 2, rank, store)
        here = dataclasses.replace(context, folder=folder, backend=backend, ranks=ranks)
        step.apply(torch_model(network()), here)
        edits.append((folder / EDITS).read_text())

    assert edits[0] == edits[1]
    assert '"rounds": []' not in edits[0]


@dataclasses.dataclass(frozen=True)
class Idle(Clockwork):
    """A backend that must not be asked."""

    def open(self, model: Model, device: Device) -> Any:
        raise AssertionError("this process has nothing to time")


def layer(rows: int, columns: int) -> dict[str, Any]:
    """Return a convolution of one pixel."""
    return {
        "kind": "convolution", "input": [1, columns, 8, 8], "output": [1, rows, 8, 8],
        "weight": [rows, columns, 1, 1], "stride": [1, 1], "padding": [0, 0], "dilation": [1, 1], "groups": 1,
        "whole_groups": False,
    }  # fmt: skip


def test_the_way_into_and_out_of_a_session_is_not_part_of_a_layer(context: Context) -> None:
    dear = dataclasses.replace(context, backend=Clockwork(ends=2e-5))

    times = [Table(one)._time(layer(24, 40)) for one in (context, dear)]

    assert times == pytest.approx([24 * 40 * SECONDS] * 2, rel=0.25)


def test_layers_are_timed_at_multiples_and_at_quarters_of_the_first() -> None:
    assert points(64, 16) == [4, 8, 12, 16, 32, 48, 64]
    assert points(24, 16) == [4, 8, 12, 16, 24]
    assert points(5, 1) == [1, 2, 4, 5]


@pytest.mark.parametrize(
    ("groups", "whole", "weight", "transposed", "rows"),
    [
        (10, False, [160, 16, 3, 3], False, [10, 30, 80, 130, 160]),  # each group loses as many
        (
            13,
            True,
            [104, 8, 3, 3],
            False,
            [8, 16, 32, 48, 80, 96, 104],
        ),  # whole groups go, eight channels each
        (64, True, [64, 1, 3, 3], False, [4, 8, 12, 16, 32, 48, 64]),
        (4, True, [16, 2, 2, 2], True, [4, 8, 12, 16]),
    ],
)
def test_layers_with_groups_are_timed_at_widths_that_they_can_have(
    context: Context, groups: int, whole: bool, weight: list[int], transposed: bool, rows: list[int]
) -> None:
    about = {
        "kind": "convolution", "weight": weight, "groups": groups, "transposed": transposed, "sides": (True, False),
        "whole_groups": whole,
        "input": [1, weight[0] if transposed else groups * weight[1], 8, 8], "stride": [1, 1], "padding": [1, 1],
        "dilation": [1, 1],
    }  # fmt: skip
    out = groups * weight[1] if transposed else weight[0]
    seen: list[int] = []
    table = Table(dataclasses.replace(context, backend=Seen(seen=seen)))

    table.term(Product(1.0, (np.arange(weight[0]), None), "w", (1, out, 8, 8), tuple(about.items())), 16)

    assert sorted(set(seen)) == rows


@dataclasses.dataclass(frozen=True)
class Seen(Clockwork):
    """Clockwork that has ONNX Runtime load each layer, and notes the width of its weight."""

    seen: list[int] = dataclasses.field(default_factory=list)

    def open(self, model: Model, device: Device) -> Any:
        import onnx

        weights = onnx.load(model.value).graph.initializer
        if len(weights) == 3:
            self.seen.append(weights[1].dims[0])
        return onnx_session.ImageSession(onnx_session.load(model.value), model)


@pytest.mark.slow
def test_what_was_chosen_before_a_kill_is_chosen_after_it(
    context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latency, "SECONDS", 0.3)
    context = dataclasses.replace(context, scratch=tmp_path / "scratch")
    step, model = Structured(latency=0.5, channel_multiple=1), torch_model(network())
    first = step.apply(model, context).value
    told = dict(context.details)

    again = dataclasses.replace(context, backend=Idle(), details={})
    second = step.apply(model, again).value

    assert [p.shape for p in first.parameters()] == [p.shape for p in second.parameters()]
    assert again.details == told


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
