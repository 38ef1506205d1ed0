"""Which layers of two networks are compared, and how."""

from __future__ import annotations

import pytest
import torch
import torchvision
from penjing.errors import StepError
from penjing_distill.inside import Watch, attention_distance, pairs, shapes_of
from torch import Size, nn


def shapes(**named):
    return {name.replace("_", "."): Size(shape) for name, shape in named.items()}


def test_the_last_layer_of_each_size_is_compared():
    mine = shapes(stem=(2, 8, 16, 16), a=(2, 8, 16, 16), b=(2, 6, 8, 8), pool=(2, 6, 1, 1), head=(2, 3))
    its = shapes(stem=(2, 8, 16, 16), a=(2, 16, 16, 16), b=(2, 16, 8, 8), pool=(2, 16, 1, 1), head=(2, 3))
    assert pairs(mine, its) == [("a", "a"), ("b", "b")]


def test_networks_without_names_in_common_are_paired_by_size():
    mine = shapes(x=(2, 8, 16, 16), y=(2, 8, 8, 8), z=(2, 8, 4, 4))
    its = shapes(p=(2, 9, 32, 32), q=(2, 9, 16, 16), r=(2, 9, 8, 8))
    assert pairs(mine, its) == [("x", "q"), ("y", "r")]


def test_tokens_of_transformers_are_paired_too():
    assert pairs(shapes(block=(2, 50, 32)), shapes(layer=(2, 50, 64))) == [("block", "layer")]


def test_layers_that_are_named_are_the_ones():
    both = shapes(stem=(2, 8, 16, 16), a=(2, 8, 16, 16))
    assert pairs(both, both, ("stem",)) == [("stem", "stem")]
    with pytest.raises(StepError, match="no layer 'b'") as error:
        pairs(both, both, ("b",))
    assert "stem" in error.value.hint


def test_networks_that_have_no_size_in_common_are_refused_with_what_to_use_instead():
    with pytest.raises(StepError, match="same height and width") as error:
        pairs(shapes(a=(2, 8, 16, 16)), shapes(a=(2, 8, 15, 15)))
    assert "distill.logits" in error.value.hint


def test_attention_looks_at_places_not_at_channels_or_scale():
    mine = torch.randn(4, 6, 5, 5)
    its = torch.cat([mine, mine], dim=1) * 3

    assert float(attention_distance(mine, its)) < 1e-10
    assert float(attention_distance(mine, mine.flip(3))) > 0.01


def test_what_layers_put_out_is_seen_in_the_order_they_finish():
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(nn.ReLU(inplace=True), nn.MaxPool2d(2)))
    found, _ = shapes_of(network, lambda: network(torch.zeros(2, 3, 4, 4)), 2)

    assert list(found) == ["0", "1.0", "1.1", "1"]
    assert found["1"] == (2, 4, 2, 2)
    assert not any(module._forward_hooks for module in network.modules())


def test_layers_with_channels_last_are_seen_with_channels_first():
    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.norm = nn.Conv2d(3, 6, 1), nn.LayerNorm(6)
            self.wide, self.back = nn.Sequential(nn.Linear(6, 12), nn.GELU()), nn.Conv2d(12, 6, 1)

        def forward(self, x):
            return self.back(self.wide(self.norm(self.stem(x).movedim(1, -1))).movedim(-1, 1))

    network = Last()
    shapes, moves = shapes_of(network, lambda: network(torch.zeros(2, 3, 4, 5)), 2)

    assert moves == dict.fromkeys(("norm", "wide", "wide.0", "wide.1"), (-1, 1))
    assert shapes["stem"] == shapes["norm"] == (2, 6, 4, 5)
    assert shapes["wide"] == (2, 12, 4, 5)
    watch = Watch(network, ["wide", "back"], moves)
    network(torch.zeros(2, 3, 4, 5))
    assert watch["wide"].shape == (2, 12, 4, 5)
    assert watch["back"].shape == (2, 6, 4, 5)


def test_tokens_are_seen_with_channels_last_wherever_a_network_has_them():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.mix = nn.Sequential(nn.Conv1d(3, 8, 1), nn.BatchNorm1d(8), nn.ReLU())
            self.sequence, self.batch = nn.TransformerEncoderLayer(8, 2, 16), nn.Linear(8, 4)

        def forward(self, x):
            tokens = self.mix(x.flatten(2)).permute(2, 0, 1)  # [T, N, C], as PyTorch's encoder takes them
            return self.batch(self.sequence(tokens).transpose(0, 1)).mean(1)

    network = Tokens().eval()
    shapes, moves = shapes_of(network, lambda: network(torch.zeros(2, 3, 5, 5)), 2)

    assert {name: shapes[name] for name in ("mix", "mix.2", "sequence", "sequence.norm2")} == dict.fromkeys(
        ("mix", "mix.2", "sequence", "sequence.norm2"), (2, 25, 8)
    )
    assert shapes["batch"] == (2, 25, 4)
    watch = Watch(network, ["mix", "sequence"], moves)
    network(torch.zeros(3, 3, 5, 5))
    assert watch["mix"].shape == watch["sequence"].shape == (3, 25, 8)


@pytest.mark.parametrize("name", ["swin_t", "convnext_tiny"])
def test_stages_of_transformers_meet_by_height_and_width(name):
    network = torchvision.models.get_model(name, weights=None).eval()
    shapes, _ = shapes_of(network, lambda: network(torch.zeros(1, 3, 64, 64)), 1)
    sizes = {tuple(shape[2:]) for shape in shapes.values() if len(shape) == 4}

    assert sizes <= {(n, n) for n in (1, 2, 4, 8, 16)}


def test_a_watch_keeps_what_was_put_out_last():
    network = nn.Sequential(nn.Identity())
    watch = Watch(network, ["0"])
    for value in (1.0, 2.0):
        network(torch.full((1,), value))
    assert watch["0"] == 2
    watch.close()


def test_a_watch_forgets_layers_that_did_not_run_again():
    network = nn.Sequential(nn.Identity(), nn.Identity())
    watch = Watch(network, ["0", "1"])
    network(torch.zeros(1))
    network.forward = lambda x: network[0](x)
    network(torch.ones(1))
    assert "0" in watch
    assert "1" not in watch
