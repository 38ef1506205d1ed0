"""What is found to belong together, and what is left alone, on networks of the kinds that break other tools."""

from __future__ import annotations

import copy
from collections.abc import Callable

import prune_networks as networks
import pytest
import torch
from penjing_prune.guard import TOLERANCE, analyse
from penjing_prune.surgery import apply, mask
from prune_networks import alone, analysed, pruned, some
from torch import Tensor, nn

KINDS: dict[str, Callable[[], nn.Module]] = {
    "view by an attribute": networks.AttributeView,
    "halves by chunk": lambda: networks.c2f("chunk"),
    "halves by split": lambda: networks.c2f("split"),
    "halves by slices": lambda: networks.c2f("slice"),
    "attention by products": lambda: networks.Transformer("product"),
    "attention in one operator": lambda: networks.Transformer("fused"),
    "attention as wide as its input": lambda: networks.Transformer("width"),
    "groups and squeeze-excite": networks.grouped,
    "transposed": networks.transposed,
    "channel shuffle": networks.Shuffle,
    "padded shortcut": lambda: networks.PadShortcut(written=False),
    "padded shortcut by numbers": lambda: networks.PadShortcut(written=True),
    "used twice": networks.Twice,
    "auxiliary head": networks.Auxiliary,
    "group norm": networks.group_norm,
    "dense": networks.dense,
    "gated": networks.Gated,
    "no rule": networks.Unfollowed,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(3))
def test_a_pruned_network_answers_as_the_masked_one(kind: str, seed: int) -> None:
    module = KINDS[kind]().eval()
    analysis = analysed(module)
    edit = some(analysis, seed=seed)
    small, masked = pruned(module, edit), copy.deepcopy(module)
    mask(masked, edit)
    x = torch.randn(2, 3, 32, 32)

    assert edit.tensors
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in module.parameters())
    with torch.no_grad():
        torch.testing.assert_close(small(x), masked(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_pruned_network_trains(kind: str) -> None:
    module = KINDS[kind]()
    small = pruned(module, some(analysed(module))).train()

    outputs = small(torch.randn(2, 3, 32, 32))
    sum(o.square().sum() for o in (outputs if isinstance(outputs, tuple) else (outputs,))).backward()

    assert all(p.grad is not None and p.grad.shape == p.shape for p in small.parameters())


@pytest.mark.parametrize(
    "tail",
    [
        lambda: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10)),
        lambda: nn.Sequential(nn.Conv2d(16, 10, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        lambda: nn.Sequential(nn.Conv2d(16, 10, 1), nn.Sigmoid(), nn.Flatten(2), nn.Softmax(1)),
    ],
)
def test_what_feeds_an_output_keeps_its_channels(tail: Callable[[], nn.Module]) -> None:
    module = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), tail()).eval()
    before = module(torch.zeros(1, 3, 32, 32)).shape

    small = pruned(module, some(analysed(module)))

    assert small(torch.zeros(1, 3, 32, 32)).shape == before
    assert small[0].out_channels == 10


def test_channels_that_a_view_writes_down_stay_and_are_named_with_the_line() -> None:
    module = networks.ConstantView()
    analysis = analysed(module)

    small = pruned(module, some(analysis))

    assert small.other.out_channels == 16
    assert small.conv.out_channels < 16
    assert "prune_networks.py:" in alone(analysis)["other"]


def test_a_number_of_channels_in_an_attribute_follows() -> None:
    module = networks.AttributeView()

    small = pruned(module, some(analysed(module)))

    assert small.features == small.linear.in_features == 16 * small.conv.out_channels < 256


@pytest.mark.parametrize("form", ["product", "fused"])
def test_attention_loses_whole_heads(form: str) -> None:
    module = networks.Transformer(form)

    small = pruned(module, some(analysed(module))).attention

    assert small.heads == 3
    assert (small.qkv.out_features, small.proj.in_features) == (3 * 3 * 8, 3 * 8)


def test_attention_that_is_as_wide_as_its_input_stays_whole_and_is_named() -> None:
    module = networks.Transformer("width")
    analysis = analysed(module)

    small = pruned(module, some(analysis))

    assert small.attention.qkv.out_features == 96
    assert "does not follow" in alone(analysis)["attention.qkv"]
    assert small.mlp[0].out_features < 64


def test_groups_keep_the_same_number_of_channels_each() -> None:
    module = networks.grouped()

    small = pruned(module, some(analysed(module), 0.3))

    assert small[1].groups == 4
    assert small[1].out_channels % 4 == small[1].in_channels % 4 == 0
    assert small[1].weight.shape[1] * 4 == small[1].in_channels < 32
    assert small[4].groups == small[4].in_channels == small[3].up.out_channels == small[1].out_channels


def test_many_narrow_groups_go_as_a_whole() -> None:
    module = nn.Sequential(nn.Conv2d(3, 32, 1), nn.Conv2d(32, 32, 3, groups=16), nn.Conv2d(32, 4, 1))

    small = pruned(module, some(analysed(module), 0.5))

    assert (small[1].groups, small[1].in_channels, small[1].weight.shape[1]) == (8, 16, 2)


def test_an_operator_without_a_rule_leaves_its_layer_alone_by_name() -> None:
    analysis = analysed(networks.Unfollowed())

    assert "no rule" in alone(analysis)["second"]
    assert [group.name for group in analysis.structure.groups] == ["first.weight"]


def test_slopes_are_counted_anew() -> None:
    module = networks.Gated()
    small = pruned(module, some(analysed(module)))

    assert small.slopes.num_parameters == small.slopes.weight.numel() < 16
    assert small.slope.num_parameters == 1
    assert small.second.out_channels == 2 * small.last.in_channels < 32


def test_a_network_that_may_run_layers_nobody_saw_stays_whole_and_is_told_where_it_decides() -> None:
    analysis = analysed(networks.Deciding())

    assert not analysis.structure.groups
    assert "may yet run dark.weight" in alone(analysis)["first"]
    assert "prune_networks.py" in alone(analysis)["first"]


def test_a_layer_whose_weight_is_computed_is_named() -> None:
    class Product(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.weight = nn.Parameter(torch.randn(16, 2)), nn.Parameter(torch.randn(2, 3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.conv2d(x, (self.left @ self.weight)[..., None, None])

    analysis = analysed(nn.Sequential(Product(), nn.Conv2d(16, 16, 1), nn.Conv2d(16, 4, 1)))

    assert "0" in alone(analysis)
    assert [group.name for group in analysis.structure.groups][-1] == "1.weight"


def test_layer_norm_keeps_its_channels_and_says_so() -> None:
    assert "layer norm" in alone(analysed(networks.Transformer("product")))["patches"]


def test_zeros_of_written_number_stay_and_those_of_an_attribute_follow() -> None:
    fixed, free = (analysed(networks.PadShortcut(written=w)) for w in (True, False))

    assert "does not follow" in alone(fixed)["second"] or "fixed number" in alone(fixed)["second"]
    assert "second" not in alone(free)


def test_analysis_leaves_no_trace_on_a_module() -> None:
    module = networks.grouped().train()
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    before = {name: value.clone() for name, value in module.state_dict().items()}

    analysed_module = copy.deepcopy(module)
    analyse(analysed_module, (torch.randn(1, 3, 32, 32),))

    assert all(part.training for part in analysed_module.modules())
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in analysed_module.modules())
    assert all(torch.equal(before[name], value) for name, value in analysed_module.state_dict().items())


def test_a_shared_weight_stays_shared() -> None:
    module = networks.Twice().eval()

    small = pruned(module, some(analysed(module)))

    assert small.one.weight is small.other.weight
    assert small.one.weight.shape[1] == small.again.out_channels < 16


def test_one_edit_does_not_touch_the_module_it_was_found_on() -> None:
    module = networks.c2f("chunk").eval()
    shapes = [tuple(p.shape) for p in module.parameters()]

    apply(copy.deepcopy(module), some(analysed(module)))

    assert [tuple(p.shape) for p in module.parameters()] == shapes


class Scales(nn.Module):
    """Linear attention over q, k and v at two scales, as EfficientViT has it: a grouped convolution each head."""

    def __init__(self, depth: int, heads: int) -> None:
        super().__init__()
        self.depth, width = depth, 3 * depth * heads
        self.qkv = nn.Conv2d(16, width, 1)
        self.wider = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, groups=width),
            nn.Conv2d(width, width, 1, groups=3 * heads),
        )
        self.last = nn.Conv2d(2 * depth * heads, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        b, _, h, w = x.shape
        x = self.qkv(x)
        x = torch.cat([x, self.wider(x)], 1).reshape(b, -1, 3 * self.depth, h * w).transpose(2, 3)
        q, k, v = x.chunk(3, -1)
        y = q.relu() @ (k.relu().transpose(2, 3) @ v)
        return self.last(y.transpose(2, 3).reshape(b, -1, h, w))


@pytest.mark.parametrize("depth", [4, 16])
def test_a_grouped_convolution_loses_whole_groups_where_nothing_else_lets_any_channel_go(depth: int) -> None:
    module = nn.Sequential(nn.Conv2d(3, 16, 4, 4), Scales(depth, 4))
    analysis = analysed(module)

    assert analysis.error(some(analysis))[0] <= TOLERANCE
    assert alone(analysis).keys() == {"1.last"}
