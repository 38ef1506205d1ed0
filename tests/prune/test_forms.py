"""Forms in which networks write the same thing down: pieces, counts, shuffles, filters, computed weights."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable

import pytest
import torch
from penjing_prune.comparison import TOLERANCE, difference, light_copy
from penjing_prune.guard import analyse
from penjing_prune.surgery import Edit, mask
from prune_networks import alone, analysed, pruned, some
from torch import Tensor, nn
from torch.nn import functional


class Partial(nn.Module):
    """A convolution of some channels only, the rest passed by; both numbers in attributes, or in the code."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.few, self.rest, self.form = 8, 24, form
        self.first, self.part = nn.Conv2d(3, 32, 3), nn.Conv2d(8, 8, 3, padding=1)
        self.last = nn.Conv2d(32, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        if self.form == "sizes":
            a, b = x.split([self.few, self.rest], 1)
        elif self.form == "slices":
            a, b = x[:, : self.few], x[:, self.few :]
        else:
            a, b = x[:, :12][:, :8], x[:, 8:]
        return self.last(torch.cat([self.part(a), b], 1))


class Mixed(nn.Module):
    """Pieces of several kernels, their sizes in a tuple or a list."""

    def __init__(self, kind: Callable[[list[int]], object]) -> None:
        super().__init__()
        self.sizes = kind([14, 10, 10])
        self.first, self.last = nn.Conv2d(3, 34, 1), nn.Conv2d(34, 4, 1)
        self.convs = nn.ModuleList(
            nn.Conv2d(n, n, 2 * i + 1, padding=i, groups=n) for i, n in enumerate((14, 10, 10))
        )

    def forward(self, x: Tensor) -> Tensor:
        parts = torch.split(self.first(x), self.sizes, 1)
        return self.last(torch.cat([conv(part) for conv, part in zip(self.convs, parts, strict=True)], 1))


class EverySecond(nn.Module):
    """Channels in two sets, every second in each."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.even, self.last = nn.Conv2d(3, 24, 3), nn.Conv2d(12, 12, 1), nn.Conv2d(12, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        return self.last(self.even(x[:, ::2]) + x[:, 1::2])


class PadTo(nn.Module):
    """Zeros for the channels that there are more, counted in the forward pass."""

    def __init__(self, *, cat: bool) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 32, 1), nn.Conv2d(32, 4, 1)
        self.cat = cat

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        y = self.second(x)
        more = y.shape[1] - x.shape[1]
        if self.cat:
            x = torch.cat([x, x.new_zeros(x.shape[0], more, *x.shape[2:])], 1)
        else:
            x = functional.pad(x, (0, 0, 0, 0, more // 2, more - more // 2))
        return self.last(torch.relu(x + y))


class Blur(nn.Module):
    """A fixed filter for every channel, from an attribute or from the number of channels that come."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.channels, self.form = 16, form
        self.register_buffer("filter", torch.full((1 if form == "expanded" else 16, 1, 3, 3), 1 / 9))
        self.first, self.last = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        filters = self.filter.expand(x.shape[1], -1, -1, -1) if self.form == "expanded" else self.filter
        groups = self.channels if self.form == "attribute" else x.shape[1]
        return self.last(functional.conv2d(x, filters, stride=2, groups=groups))


class Nonlocal(nn.Module):
    """Attention of one head between three layers whose width one attribute holds."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = 12
        self.first, self.last = nn.Conv2d(3, 24, 4, 4), nn.Conv2d(24, 4, 1)
        self.g, self.theta, self.phi = (nn.Conv2d(24, 12, 1) for _ in range(3))
        self.back = nn.Conv2d(12, 24, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        g, theta, phi = (m(x).view(x.shape[0], self.inner, -1) for m in (self.g, self.theta, self.phi))
        y = (theta.transpose(1, 2) @ phi).softmax(-1) @ g.transpose(1, 2)
        y = y.transpose(1, 2).contiguous().view(x.shape[0], self.inner, *x.shape[2:])
        return self.last(x + self.back(y))


class Heads(nn.Module):
    """As many heads as there are matrices, and their width in an attribute; across tokens or across channels."""

    def __init__(self, *, across: str) -> None:
        super().__init__()
        self.heads, self.depth, self.dim, self.across = 3, 8, 24, across
        self.patches, self.last = nn.Conv2d(3, 20, 8, 8), nn.Linear(20, 4)
        self.qkv, self.proj = nn.Linear(20, 72), nn.Linear(24, 20)
        if across == "channels":
            self.temperature = nn.Parameter(torch.ones(3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        b, n, _ = x.shape
        qkv = self.qkv(x).reshape(b, n, 3, self.heads, self.depth)
        if self.across == "tokens":
            q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
            y = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        elif self.across == "channels":
            q, k, v = qkv.permute(2, 0, 3, 4, 1).unbind(0)
            q, k = functional.normalize(q, dim=-1), functional.normalize(k, dim=-1)
            y = ((q @ k.transpose(-2, -1) * self.temperature).softmax(-1) @ v).permute(0, 3, 1, 2)
        else:  # linear attention: a row of ones under the values adds up the weights
            q, k, v = qkv.permute(2, 0, 3, 4, 1).unbind(0)
            y = functional.pad(v, (0, 0, 0, 1), value=1.0) @ k.relu().transpose(-1, -2) @ q.relu()
            y = (y[:, :, :-1] / (y[:, :, -1:] + 1e-3)).permute(0, 3, 1, 2)
        return self.last(self.proj(y.reshape(b, n, self.dim)).mean(1))


class Patches(nn.Module):
    """Involution: filters that are computed, on patches of all channels."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.filters, self.last = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 9, 1), nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        b, c, h, w = x.shape
        patches = functional.unfold(x, 3, padding=1).view(b, c, 9, h, w)
        return self.last((patches * self.filters(x).unsqueeze(1)).sum(2))


class Standardised(nn.Conv2d):
    """A convolution whose weight is centred and scaled."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        weight = weight / (weight.std((1, 2, 3), keepdim=True) + 1e-5)
        return functional.conv2d(x, weight, self.bias)


class TwoNames(nn.Module):
    """One block under two names, of which the second is used."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.block = nn.Conv2d(3, 16, 3), nn.Sequential(nn.Conv2d(16, 12, 1), nn.BatchNorm2d(12))
        self.same, self.last = self.block, nn.Conv2d(12, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.same(self.first(x)).flatten(2).unflatten(2, (30, 30)))


class Normalised(nn.Module):
    """Features divided by their length over all channels, to which zeros add nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3), nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.second(functional.normalize(self.first(x), dim=1)))


class Scaled(nn.Module):
    """A number of channels in a scale, where no operator shows it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3), nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.last(self.second(x / math.sqrt(x.shape[1])))


@dataclasses.dataclass
class Answer:
    """What a network of somebody's own returns."""

    scores: Tensor
    boxes: dict[str, list[Tensor]]


class Objects(nn.Module):
    """Outputs in an object that PyTorch knows nothing of."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.scores, self.boxes = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 6, 1), nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Answer:
        x = torch.relu(self.first(x))
        return Answer(self.scores(x), {"all": [self.boxes(x)]})


def normed(kind: Callable[[nn.Module], nn.Module]) -> nn.Module:
    """Return convolutions whose weight is a parametrisation."""
    return nn.Sequential(
        kind(nn.Conv2d(3, 16, 3)), nn.ReLU(), kind(nn.Conv2d(16, 16, 3)), nn.ReLU(), nn.Conv2d(16, 4, 1)
    )


def shuffled() -> nn.Module:
    """Return channels that become pixels, and pixels that become channels."""
    return nn.Sequential(
        nn.Conv2d(3, 32, 1), nn.PixelShuffle(2), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.PixelUnshuffle(2),
        nn.Conv2d(32, 16, 1), nn.PixelShuffle(2), nn.MaxPool2d(2), nn.Conv2d(4, 4, 1),
    )  # fmt: skip


FORMS: dict[str, Callable[[], nn.Module]] = {
    "sizes in attributes": lambda: Partial("sizes"),
    "slices by an attribute": lambda: Partial("slices"),
    "slices by numbers": lambda: Partial("numbers"),
    "sizes in a tuple": lambda: Mixed(tuple),
    "sizes in a list": lambda: Mixed(list),
    "every second channel": EverySecond,
    "padded as far as needed": lambda: PadTo(cat=False),
    "zeros beside as needed": lambda: PadTo(cat=True),
    "filters by an attribute": lambda: Blur("attribute"),
    "filters by a shape": lambda: Blur("shape"),
    "one filter expanded": lambda: Blur("expanded"),
    "one number for three layers": Nonlocal,
    "three heads": lambda: Heads(across="tokens"),
    "attention across channels": lambda: Heads(across="channels"),
    "linear attention": lambda: Heads(across="sums"),
    "patches": Patches,
    "weight norm": lambda: normed(nn.utils.parametrizations.weight_norm),
    "spectral norm": lambda: normed(nn.utils.parametrizations.spectral_norm),
    "standardised weights": lambda: nn.Sequential(Standardised(3, 16, 3), nn.Conv2d(16, 4, 1)),
    "two names": TwoNames,
    "normalised features": Normalised,
    "pixels and channels": shuffled,
    "a number in a scale": Scaled,
}


@pytest.mark.parametrize("form", FORMS)
def test_a_form_is_pruned_exactly_by_unequal_numbers_and_trains(form: str) -> None:
    module = FORMS[form]().eval()
    analysis = analysed(module)
    for seed, share in enumerate((0.2, 0.7)):
        edit = some(analysis, share, seed)
        small, masked = pruned(module, Edit.from_json(edit.to_json())), copy.deepcopy(module)
        mask(masked, edit)
        x = torch.randn(2, 3, 32, 32)

        assert edit.tensors
        with torch.no_grad():
            torch.testing.assert_close(small(x), masked(x), rtol=1e-4, atol=1e-5)

    small.train()(torch.randn(2, 3, 32, 32)).square().sum().backward()
    assert all(p.grad is not None for p in small.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    ("form", "layers"),
    [
        ("sizes in attributes", {"first", "part"}),
        ("sizes in a tuple", {"first"}),
        ("every second channel", {"first"}),
        ("padded as far as needed", {"first", "second"}),
        ("zeros beside as needed", {"first", "second"}),
        ("filters by an attribute", {"first"}),
        ("one filter expanded", {"first"}),
        ("one number for three layers", {"g", "theta", "phi", "first"}),
        ("three heads", {"qkv"}),
        ("attention across channels", {"qkv"}),
        ("linear attention", {"qkv"}),
        ("normalised features", {"first", "second"}),
        ("pixels and channels", {"0", "3", "6"}),
        ("two names", {"first", "block.0"}),
    ],
)
def test_a_form_leaves_no_layer_alone_that_can_follow(form: str, layers: set[str]) -> None:
    assert not layers & set(alone(analysed(FORMS[form]())))


def test_numbers_in_lists_and_tuples_change_in_a_list_of_edits_too() -> None:
    for kind in (tuple, list):
        module = Mixed(kind)
        shared = module.sizes
        small = pruned(module, Edit.from_json(some(analysed(module)).to_json()))

        assert type(small.sizes) is kind
        assert sum(small.sizes) == small.first.out_channels < 34
        assert list(shared) == [14, 10, 10]


def test_of_pieces_cut_at_a_number_only_those_stay_that_are_counted_over() -> None:
    module = Partial("numbers")
    analysis = analysed(module)
    one = next(one for one in analysis.structure.alone if one.layer == "first")

    assert one.channels < one.of
    assert "slice" in one.reason


def test_a_scale_by_the_number_of_channels_keeps_its_layer_and_is_told() -> None:
    analysis = analysed(Scaled())

    assert "does not follow a change of their number" in alone(analysis)["first"]
    assert "second" not in alone(analysis)


def test_outputs_are_found_in_any_object() -> None:
    module = Objects()
    small = pruned(module, some(analysed(module)))

    answer = small(torch.randn(1, 3, 32, 32))

    assert small.first.out_channels < 16
    assert (answer.scores.shape[1], answer.boxes["all"][0].shape[1]) == (6, 4)


def test_a_network_whose_output_holds_no_tensor_stays_whole() -> None:
    class Silent(nn.Sequential):
        def forward(self, x: Tensor) -> str:
            return str(super().forward(x).shape)

    analysis = analysed(Silent(nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3)))

    assert not analysis.structure.groups
    assert "no tensor was found" in alone(analysis)["0"]


def test_an_operator_used_in_a_way_no_rule_foresaw_leaves_its_channels_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from penjing_prune import rules

    def fails(*_: object) -> None:
        raise IndexError("tuple index out of range")

    monkeypatch.setitem(rules._RULES, "glu", fails)
    module = nn.Sequential(nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3), nn.GLU(1), nn.Conv2d(8, 4, 1))

    analysis = analysed(module)

    assert "glu could not be followed" in alone(analysis)["1"]
    assert "0" not in alone(analysis)


def test_rounding_of_half_the_digits_is_not_taken_for_a_fault() -> None:
    widths = ((3, 48), (48, 48), (48, 48), (48, 48), (48, 4))
    layers = [nn.Conv2d(i, o, 3, bias=False) for i, o in widths]
    module = nn.Sequential(*layers).half().eval()
    example = (torch.randn(1, 3, 16, 16).half(),)
    analysis = analyse(module, example)
    edit = some(analysis)
    small, masked = pruned(module, edit), copy.deepcopy(module)
    mask(masked, edit)

    with torch.no_grad():
        assert difference(small(*example), masked(*example)) > TOLERANCE
    assert analysis.error_of(module, edit)[0] <= TOLERANCE
    assert small[0].weight.dtype == torch.float16


def test_a_reference_that_is_not_a_number_proves_nothing() -> None:
    assert difference(torch.ones(2), torch.tensor([1.0, math.nan])) == math.inf


def test_a_light_copy_shares_tensors_and_nothing_else() -> None:
    class Bound(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inside, self.widths = nn.Conv2d(3, 4, 1), [4]
            self.again, self.call = [self.inside], self.inside.forward
            self.inside.register_forward_hook(lambda part, x, y: y * len(part.weight))

        def forward(self, x: Tensor) -> Tensor:
            return self.call(x) + self.again[0](x)

    for module in (nn.Sequential(Bound()), normed(nn.utils.parametrizations.weight_norm)):
        copied, x = light_copy(module), torch.randn(1, 3, 8, 8)

        assert all(a is b for a, b in zip(copied.parameters(), module.parameters(), strict=True))
        assert not {*map(id, copied.modules())} & {*map(id, module.modules())}
        assert torch.equal(copied(x), module(x))
    bound, original = light_copy(nn.Sequential(Bound()))[0], Bound()
    bound.inside.weight = nn.Parameter(torch.zeros(4, 3, 1, 1))
    bound.widths.append(1)
    assert original.widths == [4]
    assert bound.again[0] is bound.inside is bound.call.__self__
