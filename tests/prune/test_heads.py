"""Attention of PyTorch and torchvision in a form that can lose heads: it computes the same, and then loses them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from penjing.errors import InputError
from penjing.testing import small_context, torch_model
from penjing_prune.guard import TOLERANCE
from penjing_prune.heads import open_heads
from penjing_prune.pruning import replay
from penjing_prune.structured import EDITS, Structured
from penjing_prune.surgery import Edit, apply
from prune_networks import alone, analysed, pruned, some
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.maxvit import RelativePositionalMultiHeadAttention
from torchvision.models.swin_transformer import ShiftedWindowAttention, ShiftedWindowAttentionV2


class Tokens(nn.Module):
    """Attention of PyTorch over patches, called as the options say, and a perceptron."""

    def __init__(self, *, weights: bool = False, **options: bool) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 32, 8, 8)
        self.attention, self.weights = nn.MultiheadAttention(32, 4, **options), weights
        self.mlp = nn.Sequential(nn.LayerNorm(32), nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = x if self.attention.batch_first else x.transpose(0, 1)
        return self.mlp(x + self.attention(x, x, x, need_weights=self.weights)[0]).mean(1)


class Windows(nn.Module):
    """Attention of torchvision over windows of 4 x 4 pixels of an image of 8 x 8, of which it shifts two."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.patches, self.norm, self.kind = nn.Conv2d(3, 32, 4, 4), nn.LayerNorm(32), kind
        if kind == "maxvit":
            self.attention: nn.Module = RelativePositionalMultiHeadAttention(32, 8, 16)
        else:
            swin = {"swin": ShiftedWindowAttention, "swin v2": ShiftedWindowAttentionV2}[kind]
            self.attention = swin(32, [4, 4], [2, 2], 4)
        self.head = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.patches(x).movedim(1, -1))
        if self.kind == "maxvit":
            windows = x.reshape(x.shape[0], 2, 4, 2, 4, 32).transpose(2, 3).reshape(-1, 4, 16, 32)
            return self.head(self.attention(windows).mean((1, 2)))
        return self.head((x + self.attention(x)).mean((1, 2)))


class Biased(nn.Module):
    """Attention in one operator, with a number for each head, query and key added to the scores."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = 4
        self.patches, self.norm = nn.Conv2d(3, 32, 8, 8), nn.LayerNorm(32)
        self.q, self.k, self.v, self.proj = (nn.Linear(32, 32) for _ in range(4))
        self.bias, self.head = nn.Parameter(torch.randn(4, 16, 16)), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.patches(x).flatten(2).transpose(1, 2))
        q, k, v = (f(x).unflatten(2, (self.heads, -1)).transpose(1, 2) for f in (self.q, self.k, self.v))
        y = functional.scaled_dot_product_attention(q, k, v, attn_mask=self.bias[None])
        return self.head(self.proj(y.transpose(1, 2).flatten(2)).mean(1))


@pytest.mark.parametrize("kind", ["swin", "swin v2", "maxvit"])
def test_windows_lose_whole_heads_with_their_bias(kind: str) -> None:
    module = Windows(kind).eval()
    analysis = analysed(module)
    edit = some(analysis)

    assert analysis.error_of(module, edit)[0] <= TOLERANCE
    small = pruned(module, edit)
    heads = small.attention.n_heads if kind == "maxvit" else small.attention.num_heads
    inside = small.attention.to_qkv if kind == "maxvit" else small.attention.qkv
    assert heads == 3
    assert inside.out_features == 3 * heads * 8
    small.train()(torch.rand(2, 3, 32, 32)).square().mean().backward()
    assert all(p.grad is not None for p in small.parameters())


@pytest.mark.parametrize("size", [(4, 4), (8, 8), (5, 11), (4, 12), (3, 9)])
@pytest.mark.parametrize("kind", [ShiftedWindowAttention, ShiftedWindowAttentionV2])
def test_windows_of_any_image_answer_as_torchvisions(
    kind: type[ShiftedWindowAttention], size: tuple[int, int]
) -> None:
    for shift in ([0, 0], [2, 2]):
        module = kind(32, [4, 4], shift, 4).eval()
        nn.init.normal_(next(module.parameters()))
        nn.init.normal_(module.qkv.bias)
        x = torch.randn(2, *size, 32)
        with torch.no_grad():
            wanted = module(x)
            open_heads(module)
            torch.testing.assert_close(module(x), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("weights", [True, False])
def test_attention_of_torch_answers_as_before_for_any_call(batch_first: bool, weights: bool) -> None:
    module = nn.MultiheadAttention(32, 4, batch_first=batch_first).eval()
    nn.init.normal_(module.in_proj_bias)
    shape = {True: (2, 5), False: (5, 2)}[batch_first]
    x, other = torch.randn(*shape, 32), torch.randn(*shape, 32)
    hidden = torch.eye(5).roll(1, 1).bool()
    padding = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    calls = [
        ((x, x, x), {}),
        ((x, other, other), {}),
        ((x, x, x), {"attn_mask": hidden}),
        ((x, x, x), {"attn_mask": torch.randn(5, 5)}),
        ((x, x, x), {"attn_mask": hidden, "key_padding_mask": padding}),
        ((x, x, x), {"average_attn_weights": False}),
        ((x[0], x[0], x[0]), {}),
    ]
    with torch.no_grad():
        wanted = [module(*inputs, need_weights=weights, **options) for inputs, options in calls]
        open_heads(module)
        for (inputs, options), (answer, shares) in zip(calls, wanted, strict=True):
            found = module(*inputs, need_weights=weights, **options)
            torch.testing.assert_close(found[0], answer, rtol=1e-4, atol=1e-5)
            assert (found[1] is None) == (shares is None)
            if shares is not None:
                torch.testing.assert_close(found[1], shares, rtol=1e-4, atol=1e-5)


class Masked(nn.Module):
    """Attention with one mask for each head, and then attention without."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.head = nn.Conv2d(3, 32, 8, 8), nn.Linear(32, 4)
        self.masked, self.plain = (nn.MultiheadAttention(32, 4, batch_first=True) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        mask = torch.zeros(4 * x.shape[0], x.shape[1], x.shape[1])
        x = x + self.masked(x, x, x, need_weights=False, attn_mask=mask)[0]
        return self.head(x + self.plain(x, x, x, need_weights=False)[0]).mean(1)


def test_attention_that_has_no_other_form_stays_whole_and_keeps_no_other_from_losing_heads() -> None:
    module = Masked()
    analysis = analysed(module)
    edit = some(analysis)

    small = pruned(module, edit)

    assert analysis.error_of(module, edit)[0] <= TOLERANCE
    assert (small.masked.num_heads, small.plain.num_heads) == (4, 3)
    assert (
        alone(analysis)["masked"]
        == "nn.MultiheadAttention is as wide inside as outside, and cannot lose a head"
    )


@pytest.mark.parametrize("batch_first", [True, False])
def test_attention_of_torch_loses_whole_heads(batch_first: bool) -> None:
    module = Tokens(batch_first=batch_first).eval()
    analysis = analysed(module)
    edit = some(analysis)

    small = pruned(module, edit)

    assert analysis.error_of(module, edit)[0] <= TOLERANCE
    assert small.attention.num_heads == 3
    assert small.attention.in_proj_weight.shape == (3 * 24, 32)
    assert type(module.attention) is nn.MultiheadAttention


def test_a_layer_of_a_transformer_loses_heads_and_still_runs_where_torch_would_fuse_it() -> None:
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    module = nn.Sequential(nn.Conv2d(3, 32, 8, 8), nn.Flatten(2), Turned(), layer, nn.Linear(32, 4)).eval()
    analysis = analysed(module)
    edit = some(analysis)

    small = pruned(module, edit)

    assert small[3].self_attn.num_heads == 3
    assert analysis.error_of(module, edit)[0] <= TOLERANCE
    with torch.inference_mode():
        assert small(torch.rand(2, 3, 32, 32)).shape == (2, 16, 4)


class Turned(nn.Module):
    """Patches last."""

    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2)


@pytest.mark.parametrize(
    ("options", "reason"),
    [({"add_bias_kv": True}, "nn.MultiheadAttention"), ({"weights": True}, "mean mixes all of them")],
)
def test_attention_of_torch_that_must_stay_whole_is_named(options: dict[str, bool], reason: str) -> None:
    module = Tokens(batch_first=True, **options).eval()
    analysis = analysed(module)
    edit = some(analysis)

    assert reason in alone(analysis)["attention"]
    assert analysis.error_of(module, edit)[0] <= TOLERANCE
    small = pruned(module, edit)
    assert small.mlp[1].out_features < 64
    assert type(small.attention) is nn.MultiheadAttention


def test_what_is_added_to_the_scores_of_a_head_goes_with_it() -> None:
    module = Biased().eval()
    analysis = analysed(module)
    edit = some(analysis)

    assert analysis.error_of(module, edit)[0] <= TOLERANCE
    small = pruned(module, edit)
    assert small.bias.shape == (small.heads, 16, 16)
    assert small.heads == 3


def test_a_network_without_heads_is_had_again_from_its_list_of_edits(tmp_path: Path) -> None:
    module, context = Tokens(batch_first=True), small_context(tmp_path)
    small = Structured(macs=0.6, channel_multiple=1).apply(torch_model(module), context).value
    (edits,) = json.loads((context.folder / EDITS).read_text())["rounds"]
    assert edits["opened"] == ["attention"]

    again = replay(module, context.folder)

    x = torch.rand(1, 3, 32, 32)
    assert torch.equal(again(x), small(x))
    assert again.attention.num_heads == small.attention.num_heads < 4


def test_a_module_without_such_a_form_is_refused_by_name() -> None:
    with pytest.raises(InputError, match="Linear has no form"):
        apply(nn.Sequential(nn.Linear(4, 4)), Edit((), (), ("0",)))


class Flat(nn.Module):
    """A linear layer whose norm takes all tokens of all images for one batch, as LeViT has it."""

    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(inside, outside, bias=False), nn.BatchNorm1d(outside)

    def forward(self, x: Tensor) -> Tensor:
        x = self.linear(x)
        return self.norm(x.flatten(0, 1)).reshape_as(x)


class Numbers(nn.Module):
    """Attention that writes down six numbers, two of which count its heads, and keeps its bias while it is in use."""

    def __init__(self, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.heads, self.depth, self.values, self.resolution = heads, depth, 2 * depth, (4, 4)
        self.all_depths, self.all_values = heads * depth, heads * 2 * depth
        self.qkv, self.proj = Flat(width, 4 * heads * depth), Flat(heads * 2 * depth, width)
        self.bias = nn.Parameter(torch.randn(heads, 16, 16))
        self.kept: dict[str, Tensor] = {}

    def train(self, mode: bool = True) -> Numbers:
        self.kept = {}
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = self.qkv(x).view(b, n, self.heads, -1).split([self.depth, self.depth, self.values], 3)
        bias = self.bias if self.training else self.kept.setdefault("bias", self.bias + 0)
        scores = q.transpose(1, 2) @ k.permute(0, 2, 3, 1) + bias
        y = scores.softmax(-1) @ v.transpose(1, 2)
        return x + self.proj(self.join(y, x))

    def join(self, y: Tensor, x: Tensor) -> Tensor:
        return y.transpose(1, 2).reshape(*x.shape[:2], self.all_values)


class Levit(nn.Module):
    """Two such attentions and what follows each."""

    def __init__(self, attention: type[Numbers] = Numbers) -> None:
        super().__init__()
        self.patches, self.last = nn.Conv2d(3, 64, 8, 8), nn.Linear(64, 4)
        blocks = (
            nn.Sequential(attention(64, 8, 4), Flat(64, 32), nn.Hardswish(), Flat(32, 64)) for _ in range(2)
        )
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.blocks(self.patches(x).flatten(2).transpose(1, 2)).mean(1))


class Wide(Numbers):
    """The same, where all heads together have to be as wide as the input."""

    def join(self, y: Tensor, x: Tensor) -> Tensor:
        return y.transpose(1, 2).reshape(x.shape)


def test_heads_go_where_many_numbers_may_count_them_and_other_code_follows_only_then() -> None:
    module = Levit().eval()
    analysis = analysed(module)
    edit = some(analysis)

    assert analysis.error(edit)[0] <= TOLERANCE
    assert alone(analysis).keys() == {"last"}
    assert {name for _, name in analysis.attributes} == {"heads", "all_values"}
    small = pruned(module, edit).train()
    assert small.blocks[0][0].bias.shape[0] < 4
    small(torch.rand(2, 3, 32, 32)).square().mean().backward()


def test_attention_that_does_not_follow_keeps_no_layer_that_only_shares_other_code_with_it() -> None:
    analysis = analysed(Levit(Wide))

    assert analysis.error(some(analysis))[0] <= TOLERANCE
    assert not alone(analysis).keys() & {"blocks.0.1.linear", "blocks.1.1.linear"}
