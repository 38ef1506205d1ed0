"""Modules that a quantiser made or prepared are refused when they are opened, with a word on what to pass instead."""

import warnings

import pytest
import torch
from penjing.errors import InputError
from penjing.preprocess import Preprocess
from penjing_torch.module import as_model
from torch import nn


class Stored(nn.Module):
    """A layer of weights that somebody stored as bytes."""

    def __init__(self):
        super().__init__()
        self.register_buffer("weight", torch.zeros(4, 192, dtype=torch.int8))
        self.register_buffer("scale", torch.ones(4))

    def forward(self, x):
        return x.flatten(1) @ (self.weight.float() * self.scale[:, None]).T


def body():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 4))


def prepared_for_training():
    net = body().train()
    net.qconfig = torch.ao.quantization.get_default_qat_qconfig("fbgemm")
    return torch.ao.quantization.prepare_qat(net)


def observed():
    net = body().eval()
    net.qconfig = torch.ao.quantization.get_default_qconfig("fbgemm")
    return torch.ao.quantization.prepare(net)


def converted():
    net = observed()
    net(torch.zeros(1, 3, 8, 8))
    return torch.ao.quantization.convert(net)


def dynamic():
    return torch.ao.quantization.quantize_dynamic(body())


def traced():
    from torch.ao.quantization import get_default_qconfig_mapping
    from torch.ao.quantization.quantize_fx import prepare_fx

    return prepare_fx(body().eval(), get_default_qconfig_mapping("fbgemm"), (torch.zeros(1, 3, 8, 8),))


def calls_an_operator():
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    y = graph.call_function(torch.fake_quantize_per_tensor_affine, (x, 0.1, 0, -128, 127))
    graph.output(graph.call_method("mean", (y, (2, 3))))
    return torch.fx.GraphModule(nn.Module(), graph)


@pytest.mark.parametrize(
    "make", [prepared_for_training, observed, converted, dynamic, traced, calls_an_operator, Stored]
)
def test_a_quantised_module_is_refused_with_a_word_on_what_to_pass(make):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch deprecates its own quantisers
        module = make()

    with pytest.raises(InputError, match="is quantised already, or prepared for it") as caught:
        as_model(module, "net", Preprocess(resize=(8, 8)))

    assert "Pass the float network as it was before it was quantised" in caught.value.hint


def test_integers_that_are_no_weights_are_nobodys_business():
    class Indexed(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("mask", torch.ones(8, 8, dtype=torch.uint8))

        def forward(self, x):
            return (x * self.mask).mean((2, 3))

    assert as_model(Indexed(), "net", Preprocess(resize=(8, 8))).form == "torch"
