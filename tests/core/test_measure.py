"""Measuring models beside each other, with sessions made by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from penjing import measure
from penjing.data import Batch, Photo, Split
from penjing.errors import StepError
from penjing.measure import Tally, Timing, answer, interleave
from penjing.model import Model, Tensor
from penjing.preprocess import Preprocess
from penjing.step import Silent
from penjing.task import Classification, Fidelity


class Photographs(Split):
    """A split of arrays: photograph i is filled with i, and its label is i modulo 3."""

    def batches(self, size, preprocess, limit=None):
        for start in range(0, len(self), size):
            numbers = np.arange(start, min(start + size, len(self)))
            inputs = np.broadcast_to(numbers[:, None, None, None], (len(numbers), 3, 2, 2)).astype(np.float32)
            yield Batch(inputs, numbers % 3 if self.labelled else None, self.photos[start : start + size])


def photographs(n, labelled=True):
    return Photographs("test", tuple(Photo(Path(f"{i}.png"), i % 3, f"{i}") for i in range(n)), labelled)


def right(batch):
    """Answer every photograph rightly."""
    return [np.eye(3, dtype=np.float32)[batch[:, 0, 0, 0].astype(int) % 3]]


def tallies(sessions, n=10, batch=None, labelled=True, task=None):
    model = Model("onnx", None, "net", "0", (Tensor("x", (batch, 3, 2, 2)),))
    return answer(sessions, model, photographs(n, labelled), Preprocess(), task or Classification(), Silent())


def test_each_photograph_is_scored_once_by_each_model():
    found = tallies({"original": right, "small": lambda batch: [-right(batch)[0]]})
    assert found["original"].right == [True] * 10
    assert found["small"].right == [False] * 10
    assert found["original"].agrees == [True] * 10
    assert found["small"].agrees == [False] * 10
    assert found["small"].n == 10
    assert found["original"].sqnr == 200.0


@pytest.mark.parametrize("batch", [1, 3, 4, 16])
def test_a_fixed_batch_is_filled_up_and_what_comes_of_it_is_dropped(batch):
    seen = []

    def session(inputs):
        seen.append(inputs.shape[0])
        return right(inputs)

    found = tallies({"original": session}, batch=batch)
    assert set(seen) == {batch}
    assert found["original"].right == [True] * 10
    assert found["original"].n == 10
    assert found["original"].signal == 10


def test_a_model_that_leaves_its_batch_open_gets_several_at_once():
    seen = []
    tallies({"original": lambda batch: seen.append(len(batch)) or right(batch)})
    assert seen == [measure.BATCH, 10 - measure.BATCH]


def test_all_outputs_count_for_the_noise():
    reference = lambda batch: [right(batch)[0], np.full((len(batch), 4), 2.0)]  # noqa: E731 - short
    off = lambda batch: [right(batch)[0], np.full((len(batch), 4), 2.5)]  # noqa: E731 - short
    small = tallies({"original": reference, "small": off})["small"]
    assert small.signal == 10 * (1 + 4 * 4)
    assert small.noise == 10 * 4 * 0.25
    assert small.sqnr == pytest.approx(10 * np.log10(17))


def test_integers_among_the_outputs_are_no_signal():
    found = tallies({"original": lambda batch: [right(batch)[0], np.full(len(batch), 7)]})
    assert found["original"].signal == 10


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_outputs_that_are_no_numbers_leave_no_ratio_and_no_right_answer(value):
    broken = lambda batch: [np.full((len(batch), 3), value, np.float32)]  # noqa: E731 - short
    found = tallies({"original": right, "small": broken})
    assert found["small"].sqnr is None
    assert found["small"].noise is None
    assert found["original"].sqnr == 200.0
    if np.isnan(value):
        assert found["small"].right == [False] * 10
    found = tallies({"original": broken, "small": broken})
    assert found["small"].signal is None
    assert found["small"].sqnr is None


def test_outputs_of_another_shape_than_the_originals_leave_no_ratio():
    """Detectors that suppress overlaps return as many boxes as they find."""
    reference, fewer = (lambda batch, n=n: [np.ones((n, 6), np.float32)] for n in (5, 3))
    found = tallies({"original": reference, "small": fewer}, labelled=False, task=Fidelity())
    assert found["small"].sqnr is None
    assert found["original"].sqnr == 200.0


@pytest.mark.parametrize("output", [np.ones((5, 6), np.float32), np.float32(1), np.ones((0, 6), np.float32)])
def test_photographs_are_counted_and_not_outputs(output):
    found = tallies(
        {"original": lambda batch: [np.asarray(output)]}, n=7, batch=1, labelled=False, task=Fidelity()
    )
    assert found["original"].n == 7


def test_without_labels_nothing_is_right_or_wrong():
    found = tallies({"original": right}, labelled=False)
    assert found["original"].right == []
    assert measure.accuracy(found["original"], None, "top-1") is None


def test_no_photograph_at_all_is_an_error():
    with pytest.raises(StepError, match="No photograph of the test split"):
        tallies({"original": right}, n=0)


def test_a_session_that_fails_stops_the_measurement():
    def fails(batch):
        raise StepError("The model does not take this.")

    with pytest.raises(StepError, match="does not take"):
        tallies({"original": fails})


def test_accuracy_has_its_interval_and_the_drop_its_paired_one():
    original = Tally(right=[True] * 90 + [False] * 10, n=100)
    small = Tally(right=[True] * 80 + [False] * 15 + [True] * 5, n=100)
    record = measure.accuracy(small, original, "top-1")
    assert (record["value"], record["n"]) == (0.85, 100)
    assert record["drop"] == pytest.approx(5)
    low, high = record["drop_interval"]
    assert low < 5 < high
    assert (low, high) == pytest.approx((-2.96, 12.77), abs=0.01)
    assert record["retained"] == pytest.approx(85 / 90)
    assert measure.accuracy(original, None, "top-1")["drop"] is None


def test_of_an_original_that_is_never_right_no_share_is_kept():
    record = measure.accuracy(Tally(right=[True, False], n=2), Tally(right=[False, False], n=2), "top-1")
    assert record["retained"] is None
    assert record["drop"] == -50


def test_fidelity_without_answers_is_the_ratio_alone():
    record = measure.fidelity(Tally(signal=100.0, noise=1.0, n=4))
    assert record == {"agreement": None, "agreement_interval": None, "sqnr_db": 20.0, "n": 4}


def test_the_speed_is_compared_within_each_round():
    """A machine that is ten times slower in half of the rounds is so for both models."""
    rounds = {
        "original": [[0.002] * 5, [0.020] * 5, [0.002] * 5, [0.020] * 5],
        "small": [[0.001] * 5, [0.010] * 5, [0.001] * 5, [0.010] * 5],
    }
    record = Timing(rounds, batch=4, threads=2).record("small")
    assert record["speedup"] == pytest.approx(2)
    assert record["speedup_interval"] == pytest.approx([2, 2])
    assert record["runs"] == 20
    assert record["threads"] == 2
    assert record["throughput_per_s"] == pytest.approx(4 / (record["median_ms"] / 1e3))
    assert record["median_ms"] <= record["p90_ms"]


def test_models_are_timed_in_turn_and_the_first_runs_are_not_counted():
    calls = []
    sessions = {name: lambda batch, name=name: calls.append(name) or [] for name in ("original", "small")}
    timing = interleave(
        sessions, np.zeros((1, 3, 2, 2), np.float32), threads=1, seconds=0.001, progress=Silent(), rounds=6
    )
    turns = [name for i, name in enumerate(calls) if i == 0 or calls[i - 1] != name]
    assert turns[-12:] == ["original", "small"] * 6
    assert len(timing.rounds["original"]) == len(timing.rounds["small"]) == 6
    counted = sum(len(block) for blocks in timing.rounds.values() for block in blocks)
    assert counted == len(calls) - 2 * (3 + 1) - 2 * 2 * 6
