"""The step prune.sparse24."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from penjing import Host
from penjing.errors import PlanError, StepError
from penjing.testing import check_step, small_context, torch_model
from penjing_prune.sparse24 import Sparse24, find_masks
from torch import nn
from torch.nn.utils.parametrizations import weight_norm


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3, groups=16), nn.Conv2d(16, 16, 3),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 2),
    )  # fmt: skip


def is_sparse(weight: torch.Tensor) -> bool:
    fours = weight.movedim(1, -1).reshape(-1, 4)
    return bool(((fours != 0).sum(1) <= 2).all())


def test_the_two_largest_of_four_input_channels_stay() -> None:
    layer = nn.Linear(8, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, -4.0, 2.0, 3.0, -1.0, 0.5, 0.0, 0.2]]))

    mask = find_masks(nn.Sequential(layer))["0.weight"]

    assert mask.tolist() == [[False, True, False, True, True, True, False, False]]


@pytest.mark.parametrize("epochs", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_weights_are_sparse_before_and_after_training(epochs: int, tmp_path: Path) -> None:
    module = network()
    step = Sparse24(epochs=epochs, batch_size=8)

    result = check_step(step, torch_model(module), small_context(tmp_path)).value

    assert is_sparse(result[3].weight)
    assert is_sparse(result[6].weight)
    assert bool((result[2].weight != 0).all())  # depthwise
    assert bool((result[0].weight != 0).all())  # three channels
    assert torch.equal(result[0].weight, module[0].weight) or epochs


def test_weights_that_are_computed_are_passed_over() -> None:
    module = nn.Sequential(weight_norm(nn.Linear(8, 4)), nn.Linear(4, 4))

    assert find_masks(module).keys() == {"1.weight"}


def test_layers_that_begin_with_zeros_are_passed_over() -> None:
    module = nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 4))
    nn.init.zeros_(module[1].weight)

    assert find_masks(module).keys() == {"0.weight"}


@pytest.mark.parametrize(
    ("device", "fits"), [("jetson-orin-nano", True), ("t4", False), ("raspberry-pi-5", False)]
)
def test_a_device_without_sparse_tensor_cores_is_refused(device: str, fits: bool) -> None:
    host = Host()
    target = host.device(device)
    backend = host.backend("onnxrt")

    if fits:
        Sparse24().check(target, backend)
    else:
        with pytest.raises(PlanError, match=r"2:4"):
            Sparse24().check(target, backend)


def test_a_network_without_a_layer_of_four_channels_is_an_error(tmp_path: Path) -> None:
    model = torch_model(nn.Sequential(nn.Conv2d(3, 2, 1), nn.Flatten()))

    with pytest.raises(StepError, match="multiple of four"):
        Sparse24(epochs=0).apply(model, small_context(tmp_path))


def test_photographs_are_needed_for_training_only() -> None:
    assert Sparse24().needs == {"training"}
    assert dataclasses.replace(Sparse24(), epochs=0).needs == Sparse24().naive().needs == frozenset()
