"""Networks whose weights are computed by hooks: masked ones, and those with norms of weights."""

from pathlib import Path

import pytest
import torch
from penjing.errors import InputError
from penjing.preprocess import Preprocess
from penjing_torch import penjing_open
from penjing_torch.fold import fold_weights, folded
from torch import nn
from torch.nn.utils import prune, spectral_norm, weight_norm

FILE = Path("w.pt")


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.ReLU(),
        nn.Conv2d(8, 6, 3),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 4),
    ).eval()


def masked():
    module = network()
    prune.ln_structured(module[0], "weight", amount=0.5, n=2, dim=0)
    prune.l1_unstructured(module[2], "weight", amount=0.3)
    prune.random_unstructured(module[5], "bias", amount=1)
    return module


def normed():
    module = network()
    with pytest.warns(FutureWarning):
        nn.utils.weight_norm(module[0])
    nn.utils.spectral_norm(module[5])
    return module.eval()


@pytest.mark.parametrize("make", [network, masked, normed])
def test_a_copy_computes_the_same_by_parameters_of_their_own_names_and_the_network_stays_as_it_is(make):
    module, images = make(), torch.randn(2, 3, 12, 12)
    with torch.no_grad():
        expected = module(images)
    names = list(module.state_dict())

    copied = folded(module)

    with torch.no_grad():
        torch.testing.assert_close(copied(images), expected)
        torch.testing.assert_close(module(images), expected)
    assert sorted(copied.state_dict()) == sorted(network().state_dict())
    assert all(parameter.is_leaf for parameter in copied.parameters())
    assert list(module.state_dict()) == names


def test_a_masked_network_opens_from_its_source(tmp_path):
    path = tmp_path / "model.py"
    path.write_text(
        "from torch import nn\nfrom torch.nn.utils import prune\ndef masked():\n"
        "    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))\n"
        '    prune.ln_structured(module[0], "weight", amount=0.5, n=2, dim=0)\n'
        "    return module\n"
    )
    model = penjing_open(f"{path}:masked", None, Preprocess(crop=8))

    assert sorted(model.value.state_dict()) == ["0.bias", "0.weight", "3.bias", "3.weight"]
    assert int((model.value[0].weight == 0).all((1, 2, 3)).sum()) == 4


def test_weights_that_were_saved_with_their_masks_fit_the_plain_network():
    module = masked()
    weights = fold_weights(module.state_dict(), FILE)
    plain = network()
    plain.load_state_dict(weights)

    images = torch.randn(2, 3, 12, 12)
    with torch.no_grad():
        assert torch.equal(plain(images), module(images))


def test_a_parameter_that_is_merely_called_so_stays():
    weights = {"a_orig": torch.ones(2), "b_mask": torch.ones(2)}
    assert fold_weights(weights, FILE) == weights


@pytest.mark.parametrize("shape", [(3, 3), (5, 7), (1, 3, 3, 3)])
def test_a_mask_of_another_shape_is_refused_even_where_it_could_be_broadcast(shape):
    weights = network().state_dict()
    weights["0.weight_orig"] = weights.pop("0.weight")
    weights["0.weight_mask"] = torch.ones(shape)

    with pytest.raises(InputError, match=r"w\.pt: 0\.weight_mask is .* and 0\.weight_orig is \[8, 3, 3, 3\]"):
        fold_weights(weights, FILE)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda: weight_norm(nn.Conv2d(3, 8, 3)),
        lambda: weight_norm(nn.Conv2d(3, 8, 3), dim=1),
        lambda: weight_norm(nn.Conv2d(3, 8, 3), dim=None),
        lambda: spectral_norm(nn.Conv2d(3, 8, 3)),
        lambda: spectral_norm(nn.ConvTranspose2d(3, 8, 3)),
    ],
)
@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
def test_weights_that_were_saved_with_a_norm_fit_the_network_without(wrap):
    module = nn.Sequential(wrap()).eval()
    images = torch.randn(2, 3, 12, 12)
    wanted = module(images)
    plain = folded(module)

    plain.load_state_dict(fold_weights(module.state_dict(), FILE))

    torch.testing.assert_close(plain(images), wanted)


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
def test_a_folded_norm_leaves_nothing_that_asks_for_its_parts():
    for wrap in (weight_norm, spectral_norm):
        plain = folded(nn.Sequential(wrap(nn.Conv2d(3, 8, 3))).eval())

        assert sorted(plain.state_dict()) == ["0.bias", "0.weight"]
        plain.load_state_dict(plain.state_dict())


def test_parts_that_the_network_has_by_these_names_stay():
    weights = {"a_g": torch.ones(1), "a_v": torch.ones(2)}
    assert fold_weights(weights, FILE, weights) == weights


def test_parts_of_a_norm_that_do_not_belong_together_are_refused():
    weights = {"a_g": torch.ones(3, 1), "a_v": torch.ones(2, 2)}
    with pytest.raises(InputError, match="do not belong together"):
        fold_weights(weights, FILE)
