"""Families of torchvision, small: what is removed is removed exactly. benchmarks/prune_coverage.py has them all."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torchvision
from penjing_prune.comparison import TOLERANCE
from penjing_prune.guard import analyse
from prune_networks import alone, pruned, some
from torch import nn
from torchvision.models.maxvit import MaxVit
from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformer, SwinTransformerBlockV2
from torchvision.models.vision_transformer import VisionTransformer

pytestmark = pytest.mark.slow
SIZES = {
    "mobilenet_v3_small": 32, "shufflenet_v2_x0_5": 32, "squeezenet1_1": 64, "regnet_y_400mf": 32, "mnasnet0_5": 32,
    "resnet18": 32, "efficientnet_b0": 32,
}  # fmt: skip


@pytest.mark.parametrize("name", SIZES)
def test_a_family_is_pruned_exactly_and_trains(name: str) -> None:
    module = torchvision.models.get_model(name, weights=None).eval()
    analysis = analyse(module, (torch.rand(1, 3, SIZES[name], SIZES[name]),))
    edit = some(analysis, 0.3)

    assert analysis.error(edit)[0] <= TOLERANCE
    assert analysis.error_of(module, edit)[0] <= TOLERANCE
    last = [layer for layer, reason in alone(analysis).items() if "output" in reason]
    assert len(last) == 1
    small = pruned(module, edit).train()
    small(torch.rand(4, 3, 64, 64)).square().mean().backward()
    assert all(p.grad is not None for p in small.parameters())


TRANSFORMERS: dict[str, Callable[[], nn.Module]] = {
    "vit": lambda: VisionTransformer(32, 8, 2, 4, 32, 64, num_classes=5),
    "swin": lambda: SwinTransformer([4, 4], 32, [2, 2], [2, 4], [4, 4], num_classes=5),
    "swin v2": lambda: SwinTransformer(
        [4, 4], 32, [2, 2], [2, 4], [4, 4], num_classes=5, block=SwinTransformerBlockV2, downsample_layer=PatchMergingV2
    ),
    "maxvit": lambda: MaxVit((64, 64), 16, 4, [16, 32], [1, 1], 8, num_classes=5, stochastic_depth_prob=0.0),
}  # fmt: skip


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_a_transformer_loses_heads_exactly_and_trains(name: str) -> None:
    module, size = TRANSFORMERS[name]().eval(), 32 if name == "vit" else 64
    analysis = analyse(module, (torch.rand(1, 3, size, size),))
    edit = some(analysis, 0.3)

    assert analysis.error(edit)[0] <= TOLERANCE
    assert analysis.error_of(module, edit)[0] <= TOLERANCE
    # every attention loses heads, and what stays is the stream that layer norm mixes, and the last layer
    assert len(edit.opened) == (2 if name == "vit" else 4)
    assert all(why.startswith(("layer norm", "it is an output")) for why in alone(analysis).values())
    small = pruned(module, edit).train()
    small(torch.rand(2, 3, size, size)).square().mean().backward()
    assert all(p.grad is not None for p in small.parameters())


class Detector(nn.Module):
    """A detector as the host calls it."""

    def __init__(self) -> None:
        super().__init__()
        self.network = torchvision.models.detection.ssdlite320_mobilenet_v3_large(
            weights=None, weights_backbone=None, num_classes=4
        )

    def forward(self, images: torch.Tensor) -> list[dict[str, torch.Tensor]]:
        found: list[dict[str, torch.Tensor]] = self.network(list(images))
        return found


def test_a_detector_is_pruned_exactly_and_its_heads_stay() -> None:
    module = Detector().eval()
    analysis = analyse(module, (torch.rand(1, 3, 320, 320),))
    edit = some(analysis, 0.3)

    assert analysis.traced.chooses
    assert analysis.error(edit)[0] <= TOLERANCE
    heads = {name for name in alone(analysis) if "head" in name}
    assert len(heads) == 12
    before = [
        p.shape[0] for n, p in module.named_parameters() if n.rpartition(".")[0] in heads and p.ndim > 1
    ]
    after = [
        p.shape[0]
        for n, p in pruned(module, edit).named_parameters()
        if n.rpartition(".")[0] in heads and p.ndim > 1
    ]
    assert before == after
