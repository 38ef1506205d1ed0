"""A bundle from Python: the runner's own answers, and Penjing's errors."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from penjing import runtime
from penjing.errors import InputError, PlanError
from PIL import Image

Make = Callable[..., Path]


@pytest.fixture(scope="module")
def predict(pristine: Path) -> runtime.Predictor:
    return runtime.load(pristine)


def test_paths_images_and_arrays_get_the_same_answer(predict: runtime.Predictor, photographs: Path) -> None:
    path = photographs / "green" / "0.png"
    with Image.open(path) as image:
        answers = predict([path, str(path), image, np.asarray(image)], top=2)

    assert [answer.image for answer in answers] == [str(path), str(path), "image 2", "image 3"]
    assert {answer.top for answer in answers} == {answers[0].top}
    assert answers[0].top[0].label == "green"
    assert len(answers[0].top) == 2
    assert answers[0].outputs["scores"].shape == (1, 3)


def test_a_grey_array_is_an_image_too(predict: runtime.Predictor) -> None:
    (answer,) = predict.predict([np.full((5, 6), 128, np.uint8)])

    assert len({round(guess.share, 3) for guess in answer.top}) == 3  # the means of the channels differ


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        ("missing.jpg", r"missing\.jpg: No such file or directory"),
        (np.zeros((3, 8, 8), np.uint8), r"uint8 \[3, 8, 8\]"),
        (np.zeros((8, 8, 3), np.float32), r"float32 \[8, 8, 3\]"),
        (np.zeros((0, 8, 3), np.uint8), r"uint8 \[0, 8, 3\]"),
        (Image.new("F", (4, 4)), "pixels of 32 bits"),
        (7, "image 0 is a int"),
    ],
)
def test_what_is_no_image_is_an_input_error(predict: runtime.Predictor, image: Any, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        predict([image])


def test_a_spoiled_bundle_is_refused(copied: Path) -> None:
    (copied / "README.md").write_text("mine")

    with pytest.raises(InputError, match=r"README\.md"):
        runtime.load(copied)


def test_another_machine_is_a_plan_error_unless_allowed(make: Make, photographs: Path) -> None:
    folder = make(arch="riscv64")

    with pytest.raises(PlanError, match="riscv64"):
        runtime.load(folder)
    assert runtime.load(folder, any_machine=True)([photographs / "red" / "1.png"])[0].top[0].label == "red"


def test_importing_it_imports_no_framework() -> None:
    code = "import sys, penjing.runtime; print({'numpy', 'torch', 'onnx', 'onnxruntime', 'PIL'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize(
    ("images", "what"),
    [
        ("photo.jpg", "a str is no list"),
        (Path("photo.jpg"), "Path is no list"),
        (b"photo.jpg", "a bytes is no list"),
        (Image.new("RGB", (4, 4)), "a Image is no list"),
        (np.zeros((8, 8, 3), np.uint8), r"an array of shape \[8, 8, 3\] is no list"),  # else 8 grey images
        (None, "a NoneType is no list"),
    ],
)
def test_one_image_is_not_taken_for_several(predict: runtime.Predictor, images: Any, what: str) -> None:
    with pytest.raises(InputError, match=what) as caught:
        predict(images)
    assert "predict([image])" in caught.value.hint


def test_a_batch_of_arrays_is_a_list_of_images(predict: runtime.Predictor) -> None:
    assert len(predict(np.zeros((2, 8, 8, 3), np.uint8))) == 2


def test_a_folder_is_no_image(predict: runtime.Predictor, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a folder"):
        predict([tmp_path])


def test_numbers_below_0_are_refused(predict: runtime.Predictor, pristine: Path) -> None:
    with pytest.raises(InputError, match="top is -1"):
        predict([], top=-1)
    for options in ({"threads": -1}, {"batch": -2}):
        with pytest.raises(InputError, match="-"):
            runtime.load(pristine, **options)
