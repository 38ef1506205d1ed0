"""Photographs as they are trained on."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from penjing import Preprocess
from penjing.errors import StepError
from penjing.photos import read_photo
from penjing.step import Silent
from penjing_training import TrainingOptions
from penjing_training.photographs import Augmented, Batch, Course, Normalise, Pixels, load, mixed

PLAIN = TrainingOptions(crop=1.0, flip=False)


def augmented(split, preprocess, options, bound=2**20, seed=0):
    pixels = Pixels(split, dataclasses.replace(preprocess, crop=None).pixels, Silent(), bound)
    return Augmented(pixels, preprocess.size, options, preprocess.interpolation, seed)


@pytest.mark.parametrize(
    "preprocess",
    [
        Preprocess(resize=(20, 20), crop=16),
        Preprocess(resize=19, crop=(15, 18)),
        Preprocess(crop=17, channels="BGR", scale=1.0),
        Preprocess(resize=(20, 24), channels="L"),
    ],
)
def test_without_random_crops_they_are_as_the_network_gets_them_in_use(data, preprocess):
    dataset = augmented(data.train, preprocess, PLAIN)
    normalise = Normalise(preprocess, torch.device("cpu"))
    for index, photo in enumerate(data.train.photos[:5]):
        mine = normalise(dataset[0, index][0][None])[0]
        assert torch.equal(mine, torch.from_numpy(preprocess(read_photo(photo.path))))


def test_a_random_crop_has_the_size_for_use_and_depends_on_seed_epoch_and_photograph_alone(data, kit):
    one, other, third = (augmented(data.train, kit.preprocess, TrainingOptions(), seed=s) for s in (0, 0, 1))
    first = one[0, 3][0]
    one[1, 5]

    assert first.shape == (3, 16, 16)
    assert first.dtype == torch.uint8
    assert torch.equal(first, other[0, 3][0])
    assert not torch.equal(first, one[1, 3][0])
    assert not torch.equal(first, third[0, 3][0])


def test_what_does_not_fit_into_memory_is_decoded_each_time_and_the_same(data, kit):
    kept, not_kept = (augmented(data.train, kit.preprocess, PLAIN, bound) for bound in (2**20, 0))
    assert torch.equal(kept[0, 1][0], not_kept[0, 1][0])


def test_a_photograph_that_vanishes_while_training_is_named(tmp_path, kit):
    from penjing import open_data

    data = open_data(kit.photographs(tmp_path / "photos"), outputs=3)
    dataset = augmented(data.train, kit.preprocess, PLAIN, bound=0)
    data.train.photos[0].path.unlink()
    with pytest.raises(StepError, match=data.train.photos[0].path.name):
        dataset[0, 0]


def test_broken_photographs_are_noted_and_left_out(tmp_path, kit):
    from penjing import open_data

    data = open_data(kit.photographs(tmp_path / "photos"), outputs=3)
    path = data.train.photos[0].path
    path.write_bytes(path.read_bytes()[:80])
    pixels = Pixels(data.train, kit.preprocess.pixels, Silent(), 2**20)

    assert len(pixels) == len(data.train) - 1
    assert path in data.broken


@settings(max_examples=60)
@given(
    photographs=st.integers(2, 90),
    batch=st.integers(2, 40),
    world=st.integers(1, 4),
    accumulate=st.integers(1, 5),
    step=st.integers(0, 60),
)
def test_the_shares_of_all_processes_and_parts_are_the_batch_of_one_process(
    photographs, batch, world, accumulate, step
):
    def seen(world, accumulate):
        options = TrainingOptions(batch_size=batch, accumulate=accumulate)
        courses = [Course(photographs, options, 0, rank, world) for rank in range(world)]
        return courses[0].steps, sorted(key for c in courses for part in c.parts(step) for key in part)

    alone = seen(1, 1)
    assert seen(world, accumulate) == alone
    assert len(alone[1]) == min(batch, photographs)


def test_an_epoch_sees_each_photograph_at_most_once_and_in_another_order_each_time():
    course = Course(50, TrainingOptions(batch_size=7), 0, 0, 1)
    first, second = (
        [index for step in range(e * 7, (e + 1) * 7) for part in course.parts(step) for _, index in part]
        for e in (0, 1)
    )
    assert course.per_epoch == 7
    assert len(set(first)) == len(first) == 49
    assert first != second


def test_mixing_mixes_targets_in_the_same_shares():
    torch.manual_seed(0)
    inputs = torch.eye(4)[:, :, None, None]
    batch = mixed(Batch(inputs, torch.arange(4)), 1.0, 4)

    assert torch.allclose(batch.inputs[:, :, 0, 0], batch.targets)
    assert 0 < batch.targets[0, 0] < 1
    assert torch.allclose(batch.targets.sum(1), torch.ones(4))


def test_a_million_photographs_are_put_into_order_once_an_epoch_and_not_before_the_first_step(monkeypatch):
    drawn = []

    def counted(count, **options):
        drawn.append(count)
        return randperm(count, **options)

    randperm = torch.randperm
    monkeypatch.setattr(torch, "randperm", counted)

    class Counted:
        def __getitem__(self, key):
            return torch.tensor(key), 0

    course = Course(1_000_003, TrainingOptions(epochs=3, batch_size=4), seed=5, rank=0, world=1)
    parts = load(Counted(), course, 249_999, 0)
    for _ in range(4):
        next(parts)

    assert len(drawn) == 2  # of the epoch that ends with the first of them, and of the next
