"""Networks that put out something else while they are trained."""

from __future__ import annotations

import copy

import pytest
import torch
from penjing_training import TrainingOptions
from penjing_training.loop import train
from penjing_training.modes import other_in_training, train_layers_only
from penjing_training.objective import Distil
from torch import nn
from torch.nn import functional

QUICK = TrainingOptions(epochs=2, batch_size=16, learning_rate=1e-2, checkpoint_every=0, workers=0)


class Body(nn.Module):
    """A trunk with a head and an auxiliary one."""

    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.1)
        )
        self.head, self.aux = nn.Linear(8, 3), nn.Linear(8, 3)

    def both(self, x):
        x = self.trunk(x).mean((2, 3))
        return self.head(x), self.aux(x)

    def forward(self, x):
        return self.both(x)[0]


class AuxiliaryLast(Body):
    def forward(self, x):
        return self.both(x) if self.training else self.both(x)[0]


class AuxiliaryFirst(Body):
    def forward(self, x):
        return self.both(x)[::-1] if self.training else self.both(x)[0]


class Undecoded(Body):
    """A detector's way: boxes in pixels in use, raw numbers while it is trained."""

    def forward(self, x):
        y = self.both(x)[0]
        return [y] if self.training else (y.sigmoid().unsqueeze(1), y)


class FunctionalDropout(Body):
    def forward(self, x):
        return functional.dropout(self.both(x)[0], 0.5, self.training)


class Demanding(Body):
    def forward(self, x, targets=None):
        if self.training and targets is None:
            raise ValueError("targets should not be none when in training mode")
        return self.both(x)[0]


@pytest.mark.parametrize(
    ("kind", "other"),
    [
        (Body, ""),
        (AuxiliaryLast, ""),
        (FunctionalDropout, ""),
        (AuxiliaryFirst, "its outputs come in another order"),
        (Undecoded, "its outputs have other shapes"),
        (Demanding, "it fails (ValueError: targets should not be none when in training mode)"),
    ],
)
def test_it_is_seen_whether_a_network_puts_out_something_else_in_training(kind, other):
    torch.manual_seed(0)
    network = kind()
    network.eval()
    before, drawn = {k: v.clone() for k, v in network.state_dict().items()}, torch.get_rng_state()

    assert other_in_training(network, torch.zeros(2, 3, 16, 16)) == other
    assert not any(module.training for module in network.modules())
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    assert torch.equal(drawn, torch.get_rng_state())


def test_layers_are_trained_while_the_code_around_them_runs_as_in_use():
    network = AuxiliaryFirst()

    train_layers_only(network)

    assert [name for name, part in network.named_modules() if part.training] == [
        "trunk.0", "trunk.1", "trunk.2", "trunk.3", "head", "aux",
    ]  # fmt: skip
    assert network(torch.zeros(2, 3, 16, 16)).shape == (2, 3)


@pytest.mark.parametrize("kind", [AuxiliaryFirst, Undecoded, Demanding])
@pytest.mark.parametrize("labels", [True, False])
def test_a_network_that_other_in_training_learns_what_it_puts_out_in_use(kind, labels, kit, make_context):
    if labels and kind is Undecoded:
        pytest.skip("its first output is no score of classes")
    torch.manual_seed(0)
    network = kind().eval()
    teacher = copy.deepcopy(network)
    with torch.no_grad():
        teacher.head.weight.mul_(3)
    context = make_context()
    objective = None if labels else Distil(kit.as_model(teacher), weight=1.0)

    trained = train(network, QUICK, kit.as_model(network), context, objective=objective)

    assert not torch.equal(trained.head.weight, network.head.weight)
    assert context.details["training"]["mode"].startswith("layers only")
