"""How outputs are scored."""

from __future__ import annotations

import numpy as np
import pytest
from penjing.model import Model, Tensor
from penjing.task import Classification, Fidelity, answers

NAN = float("nan")


def model(*shapes):
    outputs = tuple(Tensor(f"y{i}", shape) for i, shape in enumerate(shapes))
    return Model("onnx", None, "net", "0", (Tensor("x", (1, 3, 8, 8)),), outputs)


@pytest.mark.parametrize(
    ("shapes", "fits"),
    [
        ([(None, 10)], True), ([(1, 2)], True), ([(1, 10), (1, 5)], True), ([], False), ([(1, 1)], False),
        ([(1, None)], False), ([(1, 10, 4)], False), ([(10,)], False), ([(1, 10, 1, 1)], False),
    ],
)  # fmt: skip
def test_classification_fits_scores_for_each_class_and_fidelity_fits_all(shapes, fits):
    assert Classification().fits(model(*shapes)) == fits
    assert Fidelity().fits(model(*shapes))


def test_the_highest_score_is_the_answer_and_the_first_of_equals():
    scores = np.array([[0.1, 0.9, 0.0], [3.0, 3.0, 1.0]], np.float16)
    assert answers([scores]).tolist() == [1, 0]
    assert Classification().score([scores], np.array([1, 1])).tolist() == [True, False]


@pytest.mark.parametrize("bad", [[NAN, 1, 0], [0, 1, NAN]])
def test_scores_that_are_no_numbers_are_never_right_and_agree_with_nothing(bad):
    outputs, sound = [np.array([bad])], [np.array([[0.0, 1.0, 0.0]])]
    task = Classification()
    for label in (0, 1, 2):
        assert task.score(outputs, np.array([label])).tolist() == [False]
    assert task.agreement(outputs, outputs).tolist() == [False]
    assert task.agreement(outputs, sound).tolist() == [False]
    assert task.agreement(sound, sound).tolist() == [True]


def test_infinite_scores_are_still_in_order():
    assert answers([np.array([[0.0, np.inf, 1.0], [-np.inf, -1.0, -2.0]])]).tolist() == [1, 1]


def test_fidelity_scores_nothing():
    outputs = [np.zeros((2, 4, 4))]
    assert Fidelity().score(outputs, np.array([0, 1])) is None
    assert Fidelity().agreement(outputs, outputs) is None
