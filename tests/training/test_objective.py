"""Objectives: formulas, numbers at the edges, teachers that want other images."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from penjing import Preprocess
from penjing.errors import StepError
from penjing.photos import read_photo
from penjing_training.objective import CrossEntropy, Distil, divergence, relative_error
from penjing_training.photographs import Batch
from torch import nn


@pytest.mark.parametrize("kind", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("temperature", [0.05, 1.0, 20.0])
def test_distance_and_gradient_are_finite_at_any_temperature(kind, temperature):
    """Fault R25: KL with probabilities rather than their logarithms is NaN here, or has a gradient that is."""
    mine = torch.tensor([[8.0, -8.0, 0.0]], dtype=kind, requires_grad=True)
    loss = divergence(mine, torch.tensor([[-8.0, 8.0, 0.0]], dtype=kind), temperature)
    loss.backward()

    assert torch.isfinite(loss)
    assert torch.isfinite(mine.grad).all()
    assert mine.grad.abs().max() > 0


@pytest.mark.parametrize("temperature", [0.01, 1.0, 100.0])
@pytest.mark.parametrize("score", [float("-inf"), float("inf"), 3e38, -3e38])
def test_classes_that_cannot_be_and_scores_at_the_end_of_the_range_leave_distance_and_gradient_finite(
    score, temperature
):
    mine = torch.tensor([[1.0, 2.0, 3.0], [-3e38, 3e38, 0.0]], requires_grad=True)
    loss = divergence(mine, torch.tensor([[score, 0.5, 0.0], [0.0, score, 1.0]]), temperature)
    loss.backward()

    assert torch.isfinite(loss)
    assert torch.isfinite(mine.grad).all()


def test_distance_is_that_of_the_paper():
    random = np.random.default_rng(0)
    mine, wanted = random.normal(size=(2, 5, 7))

    def softmax(scores):
        return np.exp(scores / 3) / np.exp(scores / 3).sum(1, keepdims=True)

    p, q = softmax(wanted), softmax(mine)
    expected = 9 * (p * np.log(p / q)).sum(1).mean()
    found = divergence(torch.from_numpy(mine), torch.from_numpy(wanted), 3.0)
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_its_gradient_hardly_depends_on_a_high_temperature():
    """The factor T² is there for that (Hinton et al., section 2)."""
    norms = []
    for temperature in (20.0, 40.0):
        mine = torch.tensor([[1.0, 2.0, -1.0]], requires_grad=True)
        divergence(mine, torch.tensor([[0.0, 1.0, 0.5]]), temperature).backward()
        norms.append(float(mine.grad.norm()))
    assert norms[0] == pytest.approx(norms[1], rel=0.05)


def test_other_outputs_weigh_the_same_at_any_scale():
    random = torch.Generator().manual_seed(0)
    mine, wanted = torch.randn(2, 4, 5, 6, 6, generator=random)

    assert float(relative_error(mine, wanted)) == pytest.approx(
        float(relative_error(1000 * mine, 1000 * wanted)), rel=1e-4
    )


def test_an_output_that_is_always_the_same_is_measured_by_its_size():
    assert float(relative_error(torch.full((4, 2), 5.5), torch.full((4, 2), 5.0))) == pytest.approx(
        10, rel=1e-3
    )


def test_outputs_that_are_no_numbers_to_learn_do_not_count(kit):
    objective = Distil(kit.as_model(kit.network(1)))
    scores, classes = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])

    alone = objective.taught((scores,), (scores + 1,))
    beside = objective.taught((scores, classes), (scores + 1, classes + 1))

    assert float(alone) == float(beside)


def outputs(*values):
    return tuple(torch.tensor(value) for value in values)


def test_labels_and_teacher_share_and_without_labels_the_teacher_has_all(kit):
    teacher = kit.as_model(kit.network(1))
    objective = Distil(teacher, temperature=2.0, weight=0.25)
    images = torch.randn(4, 3, 16, 16)
    network = kit.network().requires_grad_(False)
    objective.begin(network, kit.as_model(network), images)
    mine = (network(images),)
    with torch.no_grad():
        taught = divergence(mine[0], teacher.value(images), 2.0)
    labels = torch.tensor([0, 1, 2, 0])

    assert float(objective(mine, Batch(images, None))) == pytest.approx(float(taught), rel=1e-4)
    expected = 0.25 * taught + 0.75 * nn.functional.cross_entropy(mine[0], labels)
    assert float(objective(mine, Batch(images, labels))) == pytest.approx(float(expected), rel=1e-4)


def test_a_network_that_is_no_classifier_can_be_distilled(kit):
    teacher = kit.as_model(kit.network(1)[:4])
    network = kit.network()[:4].requires_grad_(False)
    images = torch.randn(4, 3, 16, 16)
    objective = Distil(teacher)
    objective.begin(network, kit.as_model(network), images)
    loss = objective((network(images),), Batch(images, None))
    with torch.no_grad():
        wanted = teacher.value(images)

    assert float(loss) == pytest.approx(
        float((network(images) - wanted).square().mean() / wanted.var(correction=0)), rel=1e-4
    )
    assert float(objective((wanted,), Batch(images, None))) < 1e-10


def test_a_teacher_of_other_classes_is_refused_with_both_shapes(kit):
    network = kit.network()
    objective = Distil(kit.as_model(kit.network(classes=5)))
    with pytest.raises(StepError, match="puts out 5 for a photograph, the network 3"):
        objective.begin(network, kit.as_model(network), torch.zeros(2, 3, 16, 16))


@pytest.mark.parametrize("changes", [
    {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.5, 1.0)},
    {"mean": (127.0,) * 3, "std": (128.0,) * 3, "scale": 1.0},
    {"channels": "BGR"},
])  # fmt: skip
def test_a_teacher_gets_images_normalised_as_it_wants_them(kit, data, changes):
    wanted = dataclasses.replace(kit.preprocess, **({"mean": (), "std": ()} | changes))
    seen = []

    class Looks(nn.Module):
        def forward(self, images):
            seen.append(images)
            return images.mean((2, 3))

    objective = Distil(kit.as_model(Looks(), wanted))
    image = read_photo(data.train.photos[0].path)
    mine = torch.from_numpy(kit.preprocess(image))[None]
    objective.begin(kit.network(), kit.as_model(kit.network()), mine)
    torch.testing.assert_close(seen[-1][0], torch.from_numpy(wanted(image)), rtol=1e-4, atol=1e-4)


def test_a_teacher_of_larger_images_gets_them_enlarged(kit):
    larger = Preprocess(resize=(40, 40), crop=32)
    seen = []

    class Looks(nn.Module):
        def forward(self, images):
            seen.append(images.shape)
            return images.mean((2, 3))

    objective = Distil(kit.as_model(Looks(), larger))
    objective.begin(kit.network(), kit.as_model(kit.network()), torch.zeros(2, 3, 16, 16))
    assert seen[-1] == (2, 3, 32, 32)


def test_labels_for_an_output_that_is_no_score_of_classes_are_refused():
    with pytest.raises(StepError, match="not a score for each class"):
        CrossEntropy()((torch.zeros(2, 3, 4, 4),), Batch(torch.zeros(2, 3, 4, 4), torch.tensor([0, 1])))


def test_a_teacher_that_is_an_onnx_file_is_refused(kit):
    with pytest.raises(StepError, match="only a PyTorch network can teach"):
        Distil(dataclasses.replace(kit.as_model(kit.network()), form="onnx"))


def test_a_teacher_that_is_broken_is_told_before_training(kit):
    teacher, network = kit.network(1), kit.network()
    with torch.no_grad():
        next(teacher.parameters()).fill_(float("nan"))

    with pytest.raises(StepError, match=r"teacher, .* puts out NaN"):
        Distil(kit.as_model(teacher)).begin(network, kit.as_model(network), torch.zeros(2, 3, 16, 16))
