"""What all heads share, products written in other ways, and numbers that stand beside others of the same value."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from penjing.step import Context
from penjing.testing import small_context, torch_model
from penjing_prune.structured import Structured
from penjing_prune.surgery import Edit, mask
from prune_networks import alone, analysed, pruned, some
from torch import Tensor, nn
from torch.nn import functional

DEPTH = 8


class Tokens(nn.Module):
    """Attention of `heads` heads 8 wide over patches, all keys and values of which are `keys` heads."""

    def __init__(self, form: str, heads: int = 4, keys: int = 4) -> None:
        super().__init__()
        self.form, self.heads, self.keys, self.depth, self.each = form, heads, keys, DEPTH, heads // keys
        self.patches, self.last = nn.Conv2d(3, 24, 8, 8), nn.Linear(24, 4)
        self.q, self.proj = nn.Linear(24, heads * DEPTH), nn.Linear(heads * DEPTH, 24)
        self.k, self.v = nn.Linear(24, keys * DEPTH), nn.Linear(24, keys * DEPTH)
        self.norm = (nn.RMSNorm if form == "root" else nn.LayerNorm)(DEPTH)
        self.register_buffer("turn", torch.rand(16, DEPTH))

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        b, n, _ = x.shape
        q = self.q(x).view(b, n, self.heads, self.depth).transpose(1, 2)
        k, v = (m(x).view(b, n, self.keys, self.depth).transpose(1, 2) for m in (self.k, self.v))
        if self.form in ("norm", "root"):
            q, k = self.norm(q), self.norm(k)
        elif self.form == "rotated":
            q, k = (t * self.turn + torch.cat((-t.chunk(2, -1)[1], t.chunk(2, -1)[0]), -1) for t in (q, k))
        elif self.form == "expanded":
            k, v = (
                t[:, :, None].expand(b, self.keys, self.each, n, self.depth).flatten(1, 2) for t in (k, v)
            )
        if self.form == "product":
            y = (q @ k.transpose(-2, -1) * self.depth**-0.5).softmax(-1) @ v
        else:
            y = functional.scaled_dot_product_attention(q, k, v, enable_gqa=self.form == "groups")
        return self.last(self.proj(y.transpose(1, 2).reshape(b, n, self.heads * self.depth)).mean(1))


class Unflat(nn.Module):
    """Channels in two sets of a width that a tuple of nn.Unflatten holds."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.sets = nn.Conv2d(3, 24, 3), nn.Unflatten(1, (2, 12))
        self.one, self.other, self.last = nn.Conv2d(12, 8, 1), nn.Conv2d(12, 8, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.sets(self.first(x))
        return self.last(self.one(x[:, 0]) + self.other(x[:, 1]))


class Unpooled(nn.Module):
    """Values put back to where a pooling of other channels found them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 1), nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        pooled, places = functional.max_pool2d(self.first(x), 2, return_indices=True)
        return self.last(functional.max_unpool2d(self.second(pooled), places, 2))


class Written(nn.Module):
    """A linear layer over the channels of an image, whose weight is [24, 16], or [16, 24] where it stands right."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.first, self.last, self.form = nn.Conv2d(3, 16, 3, 2), nn.Linear(24, 4), form
        self.matrix = nn.Parameter(torch.randn((16, 24) if form == "x @ w" else (24, 16)))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x)).flatten(2)
        if self.form == "w @ x":
            y = self.matrix @ x
        elif self.form == "x @ w":
            y = (x.transpose(1, 2) @ self.matrix).transpose(1, 2)
        else:
            y = torch.einsum(
                self.form, *((x, self.matrix) if self.form.startswith("b") else (self.matrix, x))
            )
        return self.last(torch.relu(y).mean(2))


PRODUCTS = ("w @ x", "x @ w", "bcn,oc->bon", "oc,bcn->bon")
FORMS: dict[str, tuple[Callable[[], nn.Module], set[str]]] = {
    "a norm over each head": (lambda: Tokens("norm"), {"q", "k", "v"}),
    "a root mean square norm over each head": (lambda: Tokens("root"), {"q", "k", "v"}),
    "rotary positions": (lambda: Tokens("rotated"), {"q", "k", "v"}),
    "one head of keys, by products": (lambda: Tokens("product", keys=1), {"q"}),
    "one head of keys, in one operator": (lambda: Tokens("groups", keys=1), {"q"}),
    "keys for two heads each, expanded": (lambda: Tokens("expanded", 8, 4), {"q", "k", "v"}),
    "keys for two heads each, in one operator": (lambda: Tokens("groups", 8, 4), {"q", "k", "v"}),
    "sets in a tuple": (Unflat, {"first", "one", "other"}),
    "unpooled": (Unpooled, {"first", "second"}),
    "lengths along the inputs": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 16, 3),
            nn.utils.parametrizations.weight_norm(nn.ConvTranspose2d(16, 16, 3), dim=1),
            nn.Conv2d(16, 4, 1),
        ),
        {"0"},
    ),
    **{form: (lambda form=form: Written(form), {"first", "matrix"}) for form in PRODUCTS},  # type: ignore[misc]
}


@pytest.mark.parametrize("form", FORMS)
def test_it_is_pruned_exactly_by_unequal_numbers_trains_and_leaves_no_layer_alone_that_can_follow(
    form: str,
) -> None:
    build, free = FORMS[form]
    module = build().eval()
    analysis = analysed(module)
    assert not free & set(alone(analysis))
    for seed, share in enumerate((0.2, 0.7)):
        edit = some(analysis, share, seed)
        small, masked = pruned(module, Edit.from_json(edit.to_json())), copy.deepcopy(module)
        mask(masked, edit)
        x = torch.randn(2, 3, 32, 32)

        assert {names[0].partition(".")[0] for names, _, _ in edit.tensors} >= free
        with torch.no_grad():
            torch.testing.assert_close(small(x), masked(x), rtol=1e-4, atol=1e-5)

    small.train()(torch.randn(2, 3, 32, 32)).square().sum().backward()


@pytest.mark.parametrize("form", PRODUCTS)
def test_a_product_counts_however_it_is_written(form: str, tmp_path: Path) -> None:
    context: Context = small_context(tmp_path)

    Structured(macs=0.6, channel_multiple=1).apply(torch_model(Written(form)), context)

    assert context.details["achieved"] == pytest.approx(0.6, abs=0.03)


def test_what_is_the_same_for_every_head_stays_and_is_told() -> None:
    reasons = alone(analysed(Tokens("groups", keys=1)))

    assert "the same for every head" in reasons["k"]
    assert "the same for every head" in reasons["v"]


def test_a_parameter_of_the_network_itself_is_left_alone_by_its_name() -> None:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.classes = nn.Conv2d(3, 16, 3), nn.Parameter(torch.randn(5, 16))

        def forward(self, x: Tensor) -> Tensor:
            return functional.linear(self.first(x).mean((2, 3)), self.classes)

    assert alone(analysed(Last())) == {"classes": "it is an output of the network"}
