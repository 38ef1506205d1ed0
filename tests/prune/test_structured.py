"""The step prune.structured: what it asks for, what it achieves, and how its result is had again."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import prune_networks as networks
import pytest
import torch
from penjing import Host
from penjing.errors import InputError, PlanError, StepError
from penjing.options import build
from penjing.step import Context
from penjing.store import Store
from penjing.testing import check_step, small_context, small_model, torch_model
from penjing_prune.pruning import replay
from penjing_prune.structured import EDITS, Structured
from torch import nn


def plain(*widths: int, classes: int = 4) -> nn.Module:
    """Return convolutions of these widths, a pool and a linear layer."""
    layers: list[nn.Module] = []
    for inside, outside in zip((3, *widths), widths, strict=False):
        layers += [nn.Conv2d(inside, outside, 3, padding=1), nn.BatchNorm2d(outside), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], classes))


def damaged(**edits: object) -> str:
    """Return a list of edits with these entries."""
    return json.dumps(
        {"version": 1, "rounds": [{"tensors": [], "attributes": []} | {k: [v] for k, v in edits.items()}]}
    )


@pytest.fixture
def context(tmp_path: Path) -> Context:
    return small_context(tmp_path)


@pytest.mark.parametrize("target", ["macs", "parameters"])
@pytest.mark.parametrize("ranking", ["global", "uniform"])
def test_the_target_is_met_and_reported_next_to_what_was_asked(
    target: str, ranking: str, context: Context
) -> None:
    step = Structured(**{target: 0.5}, ranking=ranking, channel_multiple=1)  # type: ignore[arg-type]
    module = plain(32, 48, 64)

    small = step.apply(torch_model(module), context).value

    details = context.details
    assert (details["target"], details["asked"]) == (target, 0.5)
    assert details["achieved"] == pytest.approx(0.5, abs=0.02)
    if target == "parameters":
        count = [sum(p.numel() for p in m.parameters()) for m in (small, module)]
        assert count[0] / count[1] == pytest.approx(details["achieved"])
    assert details["difference_from_masked"] <= 1e-4
    assert details["channels"]["0"] == [32, small[0].out_channels]
    assert {exhibit.kind for exhibit in context.exhibits} == {"bars", "table"}


def test_multiply_accumulates_are_those_of_the_formula(context: Context) -> None:
    module = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 1, 1, groups=8), nn.Flatten(), nn.Linear(2048, 4)
    )

    Structured(macs=0.9, channel_multiple=1).apply(torch_model(module), context)

    assert context.details["macs_before"] == 256 * (8 * 3 * 9 + 8 * 9) + 2048 * 4


def test_multiples_are_kept_where_they_can_be_and_no_layer_loses_more_than_asked(context: Context) -> None:
    step = Structured(parameters=0.5, ranking="uniform", channel_multiple=8)

    small = step.apply(torch_model(nn.Sequential(plain(12, 20, 64))), context).value[0]

    assert [small[0].out_channels, small[3].out_channels] == [8, 16]
    assert small[6].out_channels % 8 == 0
    assert context.details["achieved"] > 0.4


def test_the_multiple_is_the_devices_unless_another_is_set(context: Context) -> None:
    assert context.device.channel_multiple == 16

    for multiple in (0, 4):
        small = (
            Structured(macs=0.4, channel_multiple=multiple).apply(torch_model(plain(64, 64)), context).value
        )
        widths = [part.out_channels for part in small if isinstance(part, nn.Conv2d)]
        assert all(width % (multiple or 16) == 0 for width in widths)
        assert sum(widths) < 128


def test_no_layer_goes_below_its_floor(context: Context) -> None:
    module = plain(64, 64)
    with torch.no_grad():
        module[0].weight.mul_(1e-6)
        module[3].weight.mul_(1e-6)

    small = Structured(macs=0.05, floor=0.25, channel_multiple=1).apply(torch_model(module), context).value

    assert min(small[0].out_channels, small[3].out_channels) >= 16
    assert "25.0% of every layer kept" in context.warnings[-1]


@pytest.mark.parametrize("importance", ["l1", "l2", "batchnorm"])
def test_what_is_small_goes_first(importance: str, context: Context) -> None:
    module = plain(16)
    with torch.no_grad():
        nn.init.ones_(module[0].weight)
        nn.init.ones_(module[5].weight)
        for part in (module[0], module[1]):
            part.weight[::2] *= 0.01
        module[0].weight[:, :, 0, 0] = 100 * torch.arange(16.0)[:, None]  # grows, but for batch norms

    step = Structured(macs=0.5, importance=importance, channel_multiple=1)  # type: ignore[arg-type]
    step.apply(torch_model(module), context)

    (edit,) = json.loads((context.folder / EDITS).read_text())["rounds"]
    kept = next(t["keep"] for t in edit["tensors"] if t["names"] == ["1.weight"])
    assert set(kept) == ({*range(1, 16, 2)} if importance == "batchnorm" else {*range(8, 16)})


@pytest.mark.parametrize("importance", ["taylor", "activation"])
def test_photographs_tell_which_channels_do_nothing(importance: str, context: Context) -> None:
    module = plain(16)
    with torch.no_grad():
        module[1].weight[:8] = 0
        module[1].bias[:8] = -1.0  # ReLU then puts out nothing, whatever the weights
        module[0].weight[:8] *= 1e-3 if importance == "activation" else 100
        module[0].bias[:8] = 0

    step = Structured(macs=0.5, importance=importance, channel_multiple=1)  # type: ignore[arg-type]
    assert "calibration" in step.needs
    step.apply(torch_model(module), context)

    (edit,) = json.loads((context.folder / EDITS).read_text())["rounds"]
    assert next(t["keep"] for t in edit["tensors"] if t["names"] == ["1.weight"]) == list(range(8, 16))


@pytest.mark.parametrize("importance", ["l2", "taylor"])
def test_frozen_parameters_are_pruned_and_stay_frozen(importance: str, context: Context) -> None:
    module = plain(32)
    for parameter in module.parameters():
        parameter.requires_grad_(False)

    with torch.no_grad():
        step = Structured(macs=0.5, importance=importance)  # type: ignore[arg-type]
        small = step.apply(torch_model(module), context).value

    assert small[0].out_channels == 16
    assert context.details["macs_after"] < context.details["macs_before"]
    assert not any(p.requires_grad for p in small.parameters())


def test_a_network_built_without_gradients_is_pruned(context: Context) -> None:
    with torch.inference_mode(False), torch.no_grad():
        module = plain(32)
        small = Structured(macs=0.5).apply(torch_model(module), context).value

    assert small[0].out_channels == 16


def test_a_network_in_which_nothing_can_go_is_an_error_that_says_why(context: Context) -> None:
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())

    with pytest.raises(StepError, match="output of the network"):
        Structured().apply(torch_model(module), context)


def test_layers_left_alone_are_in_the_report_with_the_reason(context: Context) -> None:
    Structured(macs=0.9, channel_multiple=1).apply(torch_model(networks.ConstantView()), context)

    alone = {one["layer"]: one["reason"] for one in context.details["left_alone"]}
    assert "view" in alone["other"]
    assert "output" in alone["linear"]


def test_a_narrow_network_gets_a_smaller_multiple_and_a_warning(context: Context) -> None:
    small = Structured(macs=0.5, channel_multiple=64).apply(torch_model(plain(64, 64)), context).value

    assert small[0].out_channels == 32 or small[3].out_channels == 32
    assert "multiples of 32" in context.warnings[0]


@pytest.mark.parametrize(
    "options",
    [{}, {"steps": 3, "macs": 0.3}, {"importance": "taylor"}, {"ranking": "uniform", "importance": "l1"}],
)
def test_the_step_keeps_its_promises(options: dict[str, object], tmp_path: Path) -> None:
    step = build(Structured, "prune.structured", {**options, "channel_multiple": 1})

    small = check_step(step, small_model(tmp_path), small_context(tmp_path)).value

    assert small[0].out_channels < 16


@pytest.mark.slow
def test_it_is_pruned_and_recovers_in_turn(tmp_path: Path) -> None:
    step = Structured(macs=0.4, steps=2, epochs=1, channel_multiple=1, batch_size=8)
    assert step.needs == {"training"}

    small = check_step(step, torch_model(plain(16, 16, classes=2)), small_context(tmp_path)).value

    assert small[0].out_channels + small[3].out_channels < 32


def test_a_pruned_network_is_had_again_in_another_process_to_the_bit(tmp_path: Path) -> None:
    model, context = torch_model(networks.c2f("split")), small_context(tmp_path)
    source = tmp_path / "source.py"
    source.write_text(Path(networks.__file__).read_text())
    step = Structured(macs=0.6, channel_multiple=1)
    store = Store(tmp_path / "run")
    with store.room() as folder:
        inner = dataclasses.replace(context, folder=folder)
        facts = {"options": {}, "key": "", "seconds": 0, "broken": []}
        kept = store.keep(step, "0" * 64, model, step.apply(model, inner), inner, facts)
    x = torch.randn(1, 3, 32, 32)
    torch.save({"x": x, "y": kept.model.value(x).detach()}, tmp_path / "wanted.pt")
    (place,) = (tmp_path / "run" / "steps").iterdir()
    code = f"""
import sys, torch, importlib.util
spec = importlib.util.spec_from_file_location("source", {str(source)!r})
source = importlib.util.module_from_spec(spec); sys.modules["source"] = source; spec.loader.exec_module(source)
from pathlib import Path
from penjing_prune.pruning import replay
from safetensors.torch import load_file
torch.manual_seed(5)
network = replay(source.c2f("split").eval(), Path({str(place)!r}))
network.load_state_dict(load_file({str(place / "weights.safetensors")!r}))
wanted = torch.load({str(tmp_path / "wanted.pt")!r}, weights_only=True)
assert torch.equal(network(wanted["x"]), wanted["y"])
assert network[0].c < 8
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("no JSON", "{"),
        ("another version", '{"version": 99, "rounds": []}'),
        ("no list", '{"version": 1, "rounds": 3}'),
        ("no part of that name", damaged(attributes={"module": "x", "name": "a", "value": 1})),
        ("no number", damaged(attributes={"module": "0", "name": "forward", "value": 1})),
        ("too large", damaged(tensors={"names": ["0.weight"], "dim": 0, "keep": [999]})),
        ("no name", damaged(tensors={"names": [], "dim": 0, "keep": [1]})),
        ("another name unknown", damaged(tensors={"names": ["0.weight", "9.weight"], "dim": 0, "keep": [1]})),
        ("one channel twice", damaged(tensors={"names": ["0.weight"], "dim": 0, "keep": [0, 0]})),
        ("a text", damaged(tensors={"names": ["0.weight"], "dim": "0", "keep": [1]})),
    ],
)  # fmt: skip
def test_damaged_edits_are_refused(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / EDITS).write_text(text)

    with pytest.raises(InputError):
        replay(small_model(tmp_path).value, tmp_path)


def test_two_targets_are_refused_before_anything_runs(context: Context) -> None:
    with pytest.raises(PlanError, match="one target"):
        Structured(macs=0.5, latency=0.5).check(context.device, context.backend)


def test_a_latency_cannot_be_asked_for_where_the_device_is_not(context: Context) -> None:
    device = dataclasses.replace(context.device, here=False)

    with pytest.raises(PlanError, match="latency needs the device"):
        Structured(latency=0.5).check(device, context.backend)


def test_the_plan_says_what_is_asked(context: Context) -> None:
    line = Structured(macs=0.4, importance="taylor", steps=3).explain(context.device, context.backend)

    assert "40%" in line
    assert "taylor" in line
    assert "3 steps" in line


def test_a_network_without_gradients_to_rank_by_is_told_of_other_importances(context: Context) -> None:
    class Classes(nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x).argmax(1)

    with pytest.raises(StepError, match="finds no gradients") as error:
        Structured(importance="taylor").apply(torch_model(Classes(*plain(16))), context)
    assert "batchnorm" in error.value.hint


def test_groups_lose_channels_in_later_steps_as_in_the_first(context: Context) -> None:
    module = nn.Sequential(
        nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3, groups=4), nn.ReLU(), nn.ChannelShuffle(4),
        nn.Conv2d(32, 48, 1, groups=4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(48, 4),
    )  # fmt: skip

    Structured(macs=0.3, channel_multiple=1, steps=10).apply(torch_model(module), context)

    assert context.details["achieved"] < 0.38  # a shuffle of groups that go whole would stop at 0.46
    assert [one["layer"] for one in context.details["left_alone"]] == ["8"]


def test_layers_that_are_excluded_keep_their_channels_and_the_plan_says_so(context: Context) -> None:
    module = plain(16, 16)
    step = Structured(macs=0.5, channel_multiple=1, exclude=("0",))

    small = step.apply(torch_model(module), context).value

    assert small[0].out_channels == 16
    assert small[3].out_channels < module[3].out_channels
    assert ("0", "exclude names 0") in step.stays(torch_model(module))
    assert step.explain(context.device, context.backend).endswith(" 0 stay whole.")


def test_a_pattern_that_excludes_every_layer_is_refused_with_what_to_change(context: Context) -> None:
    with pytest.raises(StepError, match=r"exclude names \*") as error:
        Structured(exclude=("*",)).apply(torch_model(plain(16)), context)
    assert error.value.hint == "Exclude fewer layers."


def test_a_pattern_that_excludes_nothing_is_refused_with_the_nearest_name(context: Context) -> None:
    with pytest.raises(StepError, match="'00' names no layer") as error:
        Structured(exclude=("00",)).apply(torch_model(plain(16)), context)
    assert "0" in error.value.hint


def test_the_plan_says_which_layers_stay_and_why() -> None:
    stays = dict(Structured().stays(torch_model(networks.ConstantView())))

    assert set(stays) == {"other", "linear"}
    assert "view" in stays["other"]
    assert "prune_networks.py:" in stays["other"]
    assert stays["linear"] == "it is an output of the network"


def test_a_plan_for_a_network_that_cannot_be_run_says_so() -> None:
    model = torch_model(nn.Sequential(nn.Flatten(), nn.Linear(7, 2)))

    with pytest.raises(PlanError, match="cannot be run"):
        Structured().stays(model)


def test_the_naive_form_is_one_shot_uniform_and_untrained() -> None:
    naive = Structured(macs=0.4, importance="taylor", steps=3, epochs=2).naive()

    assert (naive.macs, naive.steps, naive.epochs, naive.importance, naive.ranking) == (
        0.4,
        1,
        0,
        "l2",
        "uniform",
    )
    assert naive.needs == frozenset()


def test_the_host_knows_the_steps() -> None:
    assert {"prune.structured", "prune.sparse24"} <= set(Host().steps)
