"""Training: what it returns, what it leaves alone, and when it refuses."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from penjing.errors import StepError
from penjing.step import Silent
from penjing_training import TrainingOptions
from penjing_training.loop import train
from penjing_training.objective import CrossEntropy, Distil, Objective
from penjing_training.photographs import Normalise, Pixels
from penjing_training.score import Score, reestimate
from torch import nn
from torchvision.transforms.v2.functional import center_crop

QUICK = TrainingOptions(epochs=6, learning_rate=2e-2, batch_size=16)


def same(one: nn.Module, other: nn.Module) -> bool:
    mine, its = one.state_dict(), other.state_dict()
    return mine.keys() == its.keys() and all(torch.equal(mine[name], its[name]) for name in mine)


def test_it_learns_and_the_given_network_stays_as_it_was(kit, context):
    module = kit.network()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    model = kit.as_model(module)

    trained = train(module, QUICK, model, context)

    told = context.details["training"]
    assert told["select"]["right"] > 0.9
    assert told["steps"] == told["of"] == 6 * (told["photographs"] // 16)
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert all(parameter.grad is None for parameter in module.parameters())
    assert not any(part.training for part in [*module.modules(), *trained.modules()])
    assert [exhibit.title for exhibit in context.exhibits] == ["training: loss", "training: right on select"]


def test_the_same_seed_gives_the_same_to_the_bit_and_another_seed_does_not(kit, make_context):
    model = kit.as_model(kit.network())
    options = dataclasses.replace(QUICK, epochs=2, mixup=0.2, ema=0.9)
    one, two, other = (train(model.value, options, model, make_context(seed=seed)) for seed in (0, 0, 1))

    assert same(one, two)
    assert not same(one, other)


def test_random_numbers_of_the_caller_are_not_touched(kit, context):
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    train(kit.network(), dataclasses.replace(QUICK, epochs=1), kit.as_model(kit.network()), context)

    assert torch.equal(torch.rand(3), expected)


def test_frozen_parameters_are_trained_unless_told_otherwise_and_keep_their_flags(kit, make_context):
    module = kit.network().requires_grad_(False)
    module[8].requires_grad_(True)
    model = kit.as_model(module)
    free = train(module, QUICK, model, make_context())
    kept = train(module, QUICK, model, make_context(), keep_frozen=True)

    assert not torch.equal(free[0].weight, module[0].weight)
    assert torch.equal(kept[0].weight, module[0].weight)
    assert not torch.equal(kept[8].weight, module[8].weight)
    for trained in (free, kept):
        flags = [p.requires_grad for p in trained.parameters()]
        assert flags == [p.requires_grad for p in module.parameters()]


def test_a_network_with_nothing_to_train_is_refused(kit, context):
    class Mean(nn.Module):
        def forward(self, images):
            return images.mean((2, 3))

    with pytest.raises(StepError, match="no parameters"):
        train(Mean(), QUICK, kit.as_model(Mean()), context)


def test_a_network_of_one_image_at_a_time_is_refused_with_what_to_do(kit, context):
    class Single(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, images):
            return self.layer(images.mean((2, 3)).reshape(1, 3))

    with pytest.raises(StepError, match="two images at a time") as error:
        train(Single(), QUICK, kit.as_model(Single()), context)
    assert "from its Python source" in error.value.hint


def test_the_best_seen_is_returned_even_if_that_is_the_start(kit, make_context):
    """A learning rate far too high does harm in every step."""
    good = train(kit.network(), QUICK, kit.as_model(kit.network()), make_context())
    harmful = dataclasses.replace(QUICK, epochs=1, learning_rate=30.0, batch_norm=False, optimiser="sgd")

    assert same(train(good, harmful, kit.as_model(good), make_context()), good)


def test_the_user_is_told_when_training_was_for_nothing(kit, make_context):
    good = train(kit.network(), QUICK, kit.as_model(kit.network()), make_context())
    harmful = dataclasses.replace(QUICK, epochs=2, learning_rate=100.0, batch_norm=False)
    context = make_context()
    trained = train(good, harmful, kit.as_model(good), context)

    assert same(trained, good)
    assert context.details["training"]["best"] == 0
    assert context.warnings == [
        "training: nothing scored better on select than the network it began with, which is kept."
    ]
    drawn = [y for exhibit in context.exhibits for curve in exhibit.series.values() for _, y in curve]
    assert max(drawn) < 1e9


def test_no_warning_where_training_helped(kit, make_context):
    context = make_context()
    train(kit.network(), QUICK, kit.as_model(kit.network()), context)

    assert context.warnings == []
    assert context.details["training"]["best"] > 0


def test_statistics_of_another_network_do_not_hide_that_training_helps(kit, make_context):
    """After few steps the running statistics are still those that the network came with."""
    module = kit.network()
    module[1].running_mean += 50
    context = make_context()
    train(module, dataclasses.replace(QUICK, epochs=3), kit.as_model(module), context)

    curve = next(e for e in context.exhibits if "right" in e.title).series["select"]
    assert min(share for _, share in curve[1:]) > 60


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_an_answer_that_is_no_number_beats_nothing(loss):
    assert not Score(loss, 0.9).beats(Score(2.0, 0.3))
    assert Score(2.0, 0.3).beats(Score(loss, 0.9))
    assert Score(loss, 0.9).beats(None)


def test_it_stops_when_nothing_gets_better(kit, context):
    good = train(kit.network(), QUICK, kit.as_model(kit.network()), context)
    harmful = dataclasses.replace(
        QUICK, epochs=50, learning_rate=30.0, patience=2, batch_norm=False, optimiser="sgd"
    )
    train(good, harmful, kit.as_model(good), context)

    told = context.details["training"]
    assert told["steps"] == 2 * told["of"] // 50


def test_a_loss_that_is_no_number_is_told_with_what_to_do(kit, context):
    class Nothing(Objective):
        def __call__(self, outputs, batch):
            return outputs[0].sum() * float("nan")

    with pytest.raises(StepError, match="loss became nan in step 1") as error:
        train(kit.network(), QUICK, kit.as_model(kit.network()), context, objective=Nothing())
    assert "learning_rate" in error.value.hint


def test_parts_of_a_batch_give_the_gradient_of_the_whole(kit, make_context):
    model = kit.as_model(
        kit.network(norm=False)[:7].append(nn.Linear(8, 3)).eval()
    )  # dropout draws for each part
    options = dataclasses.replace(QUICK, epochs=1, optimiser="sgd")
    whole = train(model.value, options, model, make_context())
    parts = train(model.value, dataclasses.replace(options, accumulate=3), model, make_context())

    for one, other in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_what_a_step_must_not_change_is_put_back_after_each(kit, context):
    module = kit.network()
    mask = torch.rand(module[3].weight.shape) > 0.5
    module[3].weight.data *= mask

    def put_back(network):
        network[3].weight.mul_(mask)

    options = dataclasses.replace(QUICK, ema=0.9)
    trained = train(module, options, kit.as_model(module), context, after_step=put_back)
    assert (trained[3].weight[~mask] == 0).all()
    assert not torch.equal(trained[3].weight, module[3].weight)


@pytest.mark.parametrize(("share", "held"), [(0.5, True), (0.1, False), (1.0, False)])
def test_zeros_that_are_a_mask_are_held_and_others_are_trained(kit, context, share, held):
    module = kit.network()
    weight = module[3].weight
    zeros = torch.zeros(weight.numel(), dtype=torch.bool)
    zeros[: round(share * weight.numel())] = True
    weight.data.view(-1)[zeros] = 0

    trained = train(module, dataclasses.replace(QUICK, ema=0.9), kit.as_model(module), context)

    assert bool((trained[3].weight.view(-1)[zeros] == 0).all()) is held


def test_what_a_networks_own_code_raises_in_training_is_told(kit, context):
    class Inplace(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.rest = kit.network()[0], kit.network()[5:]

        def forward(self, x):
            y = self.first(x).relu()
            y += y.sigmoid().mul_(y)
            return self.rest(y.mul_(2))

    with pytest.raises(StepError, match="fails in step 1 of training: one of the variables") as error:
        train(Inplace(), QUICK, kit.as_model(Inplace()), context)
    assert "gradients go back" in error.value.hint


def test_weights_that_end_as_nan_are_no_result(kit, context):
    data = context.data
    none = dataclasses.replace(data.select, photos=())
    context = dataclasses.replace(context, data=dataclasses.replace(data, select=none))

    def spoil(network):
        network[3].weight.fill_(math.nan) if last.append(1) or len(last) == steps else None

    last, steps = [], QUICK.epochs * max(1, len(data.train) // QUICK.batch_size)
    with pytest.raises(StepError, match="infinite or NaN"):
        train(kit.network(), QUICK, kit.as_model(kit.network()), context, after_step=spoil)


def test_patience_waits_for_nothing_where_there_is_no_select(kit, context):
    data = context.data
    none = dataclasses.replace(data.select, photos=())
    context = dataclasses.replace(context, data=dataclasses.replace(data, select=none))

    train(kit.network(), dataclasses.replace(QUICK, patience=1), kit.as_model(kit.network()), context)

    assert context.details["training"]["steps"] == context.details["training"]["of"]


def test_a_running_average_lags_behind_the_weights(kit, make_context):
    model = kit.as_model(kit.network())
    options = dataclasses.replace(QUICK, epochs=1, schedule="constant", batch_norm=False)
    plain = train(model.value, options, model, make_context())
    average = train(model.value, dataclasses.replace(options, ema=0.999), model, make_context())

    start, end, between = (m[3].weight.detach() for m in (model.value, plain, average))
    assert (between - start).norm() < (end - start).norm()
    assert not torch.equal(between, start)


def test_statistics_of_batch_norms_are_those_of_photographs_as_used(kit, data):
    module = kit.network()
    whole = Pixels(data.train, dataclasses.replace(kit.preprocess, crop=None).pixels, Silent(), 2**20)
    normalise = Normalise(kit.preprocess, torch.device("cpu"))
    reestimate(module, whole, lambda pixels: center_crop(pixels, [16, 16]), normalise)
    (batch,) = data.train.batches(len(whole), kit.preprocess)
    with torch.no_grad():
        values = module[0](torch.from_numpy(batch.inputs))

    torch.testing.assert_close(module[1].running_mean, values.mean((0, 2, 3)))
    assert module[1].momentum == 0.1
    assert not module[1].training


def test_photographs_without_labels_need_a_teacher(kit, make_context, unlabelled):
    context = make_context(data=unlabelled)
    model = kit.as_model(kit.network())
    with pytest.raises(StepError, match="needs labels") as error:
        train(model.value, QUICK, model, context, objective=CrossEntropy())
    assert "distill.logits" in error.value.hint

    options = dataclasses.replace(QUICK, mixup=0.4)
    train(model.value, options, model, context, objective=Distil(context.original))
    select = context.details["training"]["select"]
    assert select["right"] is None
    curve = next(e for e in context.exhibits if e.title == "training: loss").series["select"]
    assert select["loss"] < curve[0][1] / 2


def test_no_photographs_to_select_by_is_no_obstacle(kit, make_context, data):
    empty = dataclasses.replace(data.select, photos=())
    context = make_context(data=dataclasses.replace(data, select=empty))
    module = kit.network()

    assert not same(train(module, QUICK, kit.as_model(module), context), module)
    assert context.details["training"]["select"] is None


def test_tensorboard_that_is_not_installed_is_told_before_training(kit, context, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(StepError, match="TensorBoard") as error:
        train(
            kit.network(), dataclasses.replace(QUICK, tensorboard=True), kit.as_model(kit.network()), context
        )
    assert "penjing[tensorboard]" in error.value.hint


def test_tensorboard_gets_the_curves_of_the_report(kit, context):
    pytest.importorskip("tensorboard")
    train(kit.network(), dataclasses.replace(QUICK, tensorboard=True), kit.as_model(kit.network()), context)
    (events,) = (context.folder / "tensorboard" / "training").glob("events.*")
    assert b"loss/select" in events.read_bytes()


def test_progress_tells_epochs_scores_and_the_time_left(kit, make_context):
    told = []

    class Heard:
        def begin(self, what, total=None):
            told.append(what)

        def advance(self, count=1): ...

        def end(self, result=""):
            told.append(result)

        def warn(self, message): ...

    model = kit.as_model(kit.network())
    train(model.value, dataclasses.replace(QUICK, epochs=2), model, make_context(progress=Heard()))
    assert told[told.index("epoch 1 of 2") + 1].endswith(" s left")
    assert "% right" in told[told.index("epoch 2 of 2") + 1]


def test_processes_that_decode_change_nothing(kit, make_context):
    model = kit.as_model(kit.network())
    options = dataclasses.replace(QUICK, epochs=1)
    alone = train(model.value, options, model, make_context())
    helped = train(model.value, dataclasses.replace(options, workers=1), model, make_context())

    assert same(alone, helped)


@pytest.mark.parametrize("learning_rate", [2e-2, 0.0])
def test_all_photographs_are_seen_again_for_the_batch_norms_of_the_best_and_of_the_last_where_that_is_another(
    kit, make_context, monkeypatch, learning_rate
):
    from penjing_training import loop

    whole, alike, finish = [], [], loop._Job._finish

    def counted(network, photos, clean, normalise, *most):
        whole.extend([] if most else [network])
        return reestimate(network, photos, clean, normalise, *most)

    def finished(job):
        alike.append(job.found == job.step)
        return finish(job)

    monkeypatch.setattr(loop, "reestimate", counted)
    monkeypatch.setattr(loop._Job, "_finish", finished)
    options = dataclasses.replace(QUICK, learning_rate=learning_rate)
    train(kit.network(), options, kit.as_model(kit.network()), make_context())

    assert alike == [learning_rate > 0], "the best is the last where it learns, else the first"
    assert len(whole) == (1 if alike[0] else 2)


@pytest.mark.parametrize("objective", [CrossEntropy, Distil])
def test_tensors_of_any_number_of_dimensions_are_trained(kit, context, objective):
    class Volume(nn.Module):
        """Channels as depth, for a convolution in three dimensions, and a grid as detectors keep one."""

        def __init__(self):
            super().__init__()
            self.first, self.volume, self.head = (
                nn.Conv2d(3, 8, 4, 4),
                nn.Conv3d(1, 4, 3, padding=1),
                nn.Linear(4, 3),
            )
            self.register_buffer("grid", torch.ones(1, 4, 1, 4, 4))

        def forward(self, x):
            return self.head((self.volume(self.first(x).unsqueeze(1)) * self.grid).mean((2, 3, 4)))

    model = kit.as_model(Volume().eval())
    learn = objective(model) if objective is Distil else objective()
    options = dataclasses.replace(QUICK, epochs=1)

    trained = train(model.value, options, model, context, objective=learn)

    assert trained.volume.weight.shape == (4, 1, 3, 3, 3)
