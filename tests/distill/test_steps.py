"""Networks that learn from others."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from penjing.errors import PlanError, StepError
from penjing_distill.steps import Attention, Features, Logits, Student
from torch import nn
from torch.nn import functional

QUICK = {"epochs": 15, "learning_rate": 2e-2, "batch_size": 8}
TAUGHT = [Logits, Features, Attention]


def without_labels(data):
    def bare(split):
        photos = tuple(dataclasses.replace(photo, label=None) for photo in split.photos)
        return dataclasses.replace(split, photos=photos, labelled=False)

    return dataclasses.replace(data, train=bare(data.train), select=bare(data.select))


@pytest.mark.parametrize("kind", TAUGHT)
@pytest.mark.parametrize("labels", [True, False])
def test_a_network_learns_from_the_original_with_and_without_labels(
    kit, context, taught, right, kind, labels
):
    context = dataclasses.replace(
        context, original=taught, data=context.data if labels else without_labels(context.data)
    )
    untrained = kit.as_model(kit.network(5), ("a", "b", "c"))
    before = right(untrained.value)
    result = kind(**QUICK).apply(untrained, context)

    assert right(taught.value) > 0.9, "else there is nothing to learn"
    assert before < 0.6
    assert right(result.value) > 0.85
    assert result.labels == untrained.labels
    assert result.preprocess == untrained.preprocess


@pytest.mark.parametrize("kind", [Features, Attention])
def test_the_layers_inside_come_nearer_to_the_teachers_only_where_the_hint_counts(kit, context, taught, kind):
    context = dataclasses.replace(context, original=taught)
    start = kit.as_model(kit.network(5), ("a", "b", "c"))
    images = torch.rand(8, *taught.inputs[0].shape[1:])

    def apart(network):
        maps = [part(images) for part in (network[:2], taught.value[:2])]
        if kind is Attention:
            maps = [one.square().mean(1) for one in maps]
        mine, its = (functional.normalize(one.flatten(1)) for one in maps)
        return float((mine - its).square().mean())

    with torch.no_grad():
        options = {**QUICK, "weight": 1.0, "layers": ("1",)}
        without = apart(kind(hint=0.0, **options).apply(start, context).value)
        with_it = apart(kind(hint=100.0, **options).apply(start, context).value)

    assert with_it < without / 2


@pytest.mark.parametrize("kind", TAUGHT)
@pytest.mark.parametrize("teacher", ["", "wide", "narrow"])
def test_any_step_takes_any_teacher_of_the_same_classes_and_leaves_both_networks_alone(
    kit, context, kind, teacher
):
    model = kit.as_model(kit.network())
    wise = context.open(kind(teacher=teacher).sources()[0]) if teacher else context.original
    before = [tensor.clone() for m in (model, wise) for tensor in m.value.state_dict().values()]
    result = kind(teacher=teacher, epochs=1, batch_size=16).apply(model, context)

    after = [tensor for m in (model, wise) for tensor in m.value.state_dict().values()]
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    for m in (model, wise, result):
        assert not any(module._forward_hooks for module in m.value.modules())
    assert result.value.state_dict().keys() == model.value.state_dict().keys(), "adapters are thrown away"


class LeavesBlocksOut(nn.Module):
    """Stochastic depth as Huang et al. have it: in training a block does not run at times."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem, self.block = nn.Conv2d(3, width, 4, 4), nn.Conv2d(width, width, 3, padding=1)
        self.head, self.runs = nn.Linear(width, 3), 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.runs += self.training
        x = self.stem(x)
        if not self.training or self.runs % 2:
            x = x + self.block(x)
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize("kind", [Features, Attention])
def test_layers_are_compared_in_the_steps_they_run_in(kit, context, kind):
    context = dataclasses.replace(context, original=kit.as_model(LeavesBlocksOut(12)))
    student = LeavesBlocksOut(8)

    result = kind(epochs=1, batch_size=16, weight=1.0).apply(kit.as_model(student), context).value

    assert not torch.equal(result.block.weight, student.block.weight)


@pytest.mark.parametrize("kind", TAUGHT)
def test_a_teacher_of_other_classes_is_refused(kit, context, kind):
    with pytest.raises(StepError, match="puts out 5 for a photograph, the network 3"):
        kind(teacher="other").apply(kit.as_model(kit.network()), context)


def test_another_network_takes_the_place_of_the_one_given(kit, context, taught, right):
    step = Student(student="narrow", **{**QUICK, "epochs": 30})
    model = dataclasses.replace(taught, labels=("a", "b", "c"))
    context = dataclasses.replace(context, original=taught)
    result = step.apply(model, context)

    assert result.value[0][0].out_channels == 4
    assert right(result.value) > 0.85
    assert (result.labels, result.preprocess) == (model.labels, model.preprocess)
    assert context.details["student"]["parameters"] < context.details["student"]["parameters_before"]


def test_a_student_of_other_classes_is_refused(context, taught):
    with pytest.raises(StepError, match="puts out 3 for a photograph, the network 5"):
        Student(student="other").apply(taught, dataclasses.replace(context, original=taught))


def test_a_student_that_is_not_named_is_refused_in_the_plan():
    with pytest.raises(PlanError, match="needs a network to train") as error:
        Student().check(None, None)
    assert "mobilenet" in error.value.hint


def test_weights_without_a_teacher_are_refused_in_the_plan():
    with pytest.raises(PlanError, match="no teacher"):
        Logits(teacher_weights="w.pt").check(None, None)


@pytest.mark.parametrize("kind", [*TAUGHT, Student])
def test_the_direct_column_has_no_recovery(kind):
    assert kind().naive() is None


def test_the_sources_of_a_step_are_what_it_opens():
    assert Logits().sources() == ()
    (teacher,) = Features(teacher="a", teacher_weights="w.pt").sources()
    assert (teacher.name, str(teacher.weights), teacher.alike) == ("a", "w.pt", False)
    student, teacher = Student(student="s", teacher="t").sources()
    assert (student.name, student.alike, teacher.name) == ("s", True, "t")
