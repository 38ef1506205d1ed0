"""Small networks, each of a kind that pruning tools are known to break; and what tests do with them."""

from __future__ import annotations

import copy

import numpy as np
import torch
from penjing_prune.guard import Analysis, analyse
from penjing_prune.surgery import Edit, apply
from torch import Tensor, nn
from torch.nn import functional


class ConstantView(nn.Module):
    """A number of channels written down in a view."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.other = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 1)
        self.linear = nn.Linear(16 * 64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.adaptive_avg_pool2d(self.other(self.conv(x)), 8)
        return self.linear(x.view(x.shape[0], 16 * 64))


class AttributeView(nn.Module):
    """The same number, in an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.features = 16 * 16
        self.conv, self.linear = nn.Conv2d(3, 16, 3), nn.Linear(16 * 16, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(functional.adaptive_avg_pool2d(self.conv(x), 4).reshape(-1, self.features))


class C2f(nn.Module):
    """Two halves, one of them with a residual convolution, put together again."""

    def __init__(self, inside: int, outside: int, form: str) -> None:
        super().__init__()
        self.c, self.form = 8, form
        self.cv1, self.m = nn.Conv2d(inside, 16, 1), nn.Conv2d(8, 8, 3, padding=1)
        self.cv2 = nn.Conv2d(24, outside, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.cv1(x)
        if self.form == "chunk":
            parts = list(y.chunk(2, 1))
        elif self.form == "split":
            parts = list(y.split((self.c, self.c), 1))
        else:
            half = y.shape[1] // 2
            parts = [y[:, :half], y[:, half:]]
        parts.append(parts[-1] + self.m(parts[-1]))
        return self.cv2(torch.cat(parts, 1))


def c2f(form: str) -> nn.Module:
    return nn.Sequential(C2f(3, 16, form), nn.SiLU(), C2f(16, 16, form), nn.SiLU(), C2f(16, 8, form))


class Attention(nn.Module):
    """Self-attention with one matrix for q, k and v."""

    def __init__(self, form: str, width: int = 32, heads: int = 4) -> None:
        super().__init__()
        self.heads, self.depth, self.form = heads, width // heads, form
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        if self.form == "width":
            q = self.qkv(x).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        else:
            q = self.qkv(x).reshape(b, n, 3, self.heads, self.depth).permute(2, 0, 3, 1, 4)
        q, k, v = q[0], q[1], q[2]
        if self.form == "fused":
            y = functional.scaled_dot_product_attention(q, k, v)
        else:
            y = (q @ k.transpose(-2, -1) * self.depth**-0.5).softmax(-1) @ v
        y = y.transpose(1, 2)
        return self.proj(y.reshape(b, n, c) if self.form == "width" else y.flatten(2))


class Transformer(nn.Module):
    """Patches, a block of attention and perceptron with layer scale, and a head."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 32, 8, 8)
        self.position = nn.Parameter(torch.randn(1, 16, 32))
        self.norm, self.attention = nn.LayerNorm(32), Attention(form)
        self.scale = nn.Parameter(torch.rand(32))
        self.mlp = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32))
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2) + self.position
        x = x + self.attention(self.norm(x))
        x = x + self.scale * self.mlp(self.norm(x))
        return self.head(x.mean(1))


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(channels, 8, 1), nn.Conv2d(8, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.up(torch.relu(self.down(x.mean((2, 3), keepdim=True)))))


def grouped() -> nn.Module:
    """Return a grouped convolution, a squeeze-excite block and a depthwise convolution."""
    return nn.Sequential(
        nn.Conv2d(3, 32, 1), nn.Conv2d(32, 32, 3, groups=4), nn.BatchNorm2d(32), SqueezeExcite(32),
        nn.Conv2d(32, 32, 3, groups=32), nn.Hardswish(), nn.Conv2d(32, 8, 1),
    )  # fmt: skip


def transposed() -> nn.Module:
    """Return transposed convolutions: plain, depthwise and grouped."""
    return nn.Sequential(
        nn.Conv2d(3, 32, 1), nn.ConvTranspose2d(32, 16, 2, 2), nn.ReLU(),
        nn.ConvTranspose2d(16, 16, 2, 2, groups=16), nn.ConvTranspose2d(16, 16, 2, 2, groups=2), nn.Conv2d(16, 4, 1),
    )  # fmt: skip


class Shuffle(nn.Module):
    """Channel shuffle between grouped convolutions, and halves that go separate ways."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 32, 1), nn.Conv2d(16, 16, 3, padding=1)
        self.last = nn.Conv2d(32, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.first(x).chunk(2, 1)
        y = torch.cat([a, self.second(b)], 1)
        n, c, h, w = y.shape
        return self.last(y.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w))


class PadShortcut(nn.Module):
    """A shortcut without parameters: every second pixel, and zeros for the channels there are more."""

    def __init__(self, *, written: bool) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.second, self.last = nn.Conv2d(16, 32, 3, 2, 1), nn.Conv2d(32, 4, 1)
        self.pad, self.written = 8, written

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.first(x)))
        amounts = (0, 0, 0, 0, 8, 8) if self.written else (0, 0, 0, 0, self.pad, self.pad)
        return self.last(torch.relu(self.second(x) + functional.pad(x[:, :, ::2, ::2], amounts)))


class Twice(nn.Module):
    """A layer that is used twice, and a weight that two layers share."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.again = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 16, 3, padding=1)
        self.one, self.other = nn.Conv2d(16, 12, 1), nn.Conv2d(16, 12, 1)
        self.other.weight = self.one.weight
        self.last = nn.Conv2d(12, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.again(torch.relu(self.again(self.first(x))))
        return self.last(self.one(x) * torch.sigmoid(self.other(x)))


class Auxiliary(nn.Module):
    """A head that runs in training only."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3)
        self.norm = nn.BatchNorm2d(16)
        self.head, self.aux = nn.Linear(16, 4), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = self.norm(self.stem(x))
        y = self.head(torch.relu(self.body(x)).mean((2, 3)))
        return (y, self.aux(x.mean((2, 3)))) if self.training else y


class Gated(nn.Module):
    """Half the channels gate the other half, and slopes are learnt: one for each channel, and one for all."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.slopes, self.slope = nn.Conv2d(3, 16, 3), nn.PReLU(16), nn.PReLU()
        self.second, self.last = nn.Conv2d(16, 32, 3), nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(functional.glu(self.second(self.slope(self.slopes(self.first(x)))), dim=1))


class Deciding(nn.Module):
    """One of two layers runs, as the values have it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 4, 1)
        self.bright, self.dark = nn.Conv2d(16, 16, 1), nn.Conv2d(16, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        branch = self.bright if x.square().mean() > 0 else self.dark
        return self.head(branch(self.first(x)))


class Unfollowed(nn.Module):
    """An operator that mixes channels in a way nobody wrote a rule for."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 16, 1), nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.fft.fft(self.second(self.first(x)), dim=1).real)


def group_norm() -> nn.Module:
    """Return group norms of several channels, of one each, and of all."""
    return nn.Sequential(
        nn.Conv2d(3, 32, 3), nn.GroupNorm(8, 32), nn.ReLU(), nn.Conv2d(32, 16, 3), nn.GroupNorm(16, 16),
        nn.Conv2d(16, 16, 3), nn.GroupNorm(1, 16), nn.Conv2d(16, 4, 1),
    )  # fmt: skip


def dense() -> nn.Module:
    """Return a batch norm after a concatenation."""

    class Dense(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Conv2d(3, 12, 1), nn.Conv2d(12, 8, 1)
            self.norm, self.last = nn.BatchNorm2d(23), nn.Conv2d(23, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            a = self.one(x)
            return self.last(torch.sigmoid(self.norm(torch.cat([a, x, self.two(a)], 1))))

    return Dense()


def analysed(module: nn.Module, size: int = 32) -> Analysis:
    """Return the analysis of a module in eval mode for an image of `size`."""
    return analyse(module.eval(), (torch.randn(1, 3, size, size),))


def some(analysis: Analysis, share: float = 0.4, seed: int = 0) -> Edit:
    """Return the edit that removes a random share of every group, one unit at least, and never all."""
    generator = np.random.default_rng(seed)
    removed: list[int] = []
    for group in analysis.structure.groups:
        count = min(len(group) - 1, max(1, int(share * len(group))))
        removed += generator.permutation(group.units)[:count].tolist()
    return analysis.edit(removed)


def pruned(module: nn.Module, edit: Edit) -> nn.Module:
    """Return a copy of the module with the edit carried out."""
    copied = copy.deepcopy(module)
    apply(copied, edit)
    return copied


def alone(analysis: Analysis) -> dict[str, str]:
    """Return why layers keep channels, by name."""
    return {one.layer: one.reason for one in analysis.structure.alone}
