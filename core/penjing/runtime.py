"""Run a bundle from Python, by the very code that runs it on a board.

from penjing.runtime import load

predict = load("bundle/")
for answer in predict(["a.jpg", "b.jpg"]):
    print(answer.image, answer.top[0].label, answer.top[0].share)
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from penjing import bundle
from penjing.bundle import runner
from penjing.errors import InputError
from penjing.photos import pillow_warnings

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image as Picture

    Array = np.ndarray[Any, Any]
    #: a file, an image, or pixels: uint8 RGB [height, width, 3] or grey [height, width]
    Image = str | os.PathLike[str] | Picture | Array

__all__ = ["Answer", "Guess", "Predictor", "load"]


@dataclasses.dataclass(frozen=True)
class Guess:
    """A class that an image may be of: its index and name, and its share of 1."""

    index: int
    label: str
    share: float


@dataclasses.dataclass(frozen=True, eq=False)
class Answer:
    """What the model says of one image."""

    #: its path, or its number among the images given
    image: str
    #: the likeliest classes, the first before others; empty where the model does not classify
    top: tuple[Guess, ...]
    #: the model's outputs by name, the first side being 1
    outputs: Mapping[str, Array]


class Predictor:
    """A bundle, loaded. It is not for several threads at a time."""

    def __init__(self, model: runner.Model) -> None:
        self._model = model

    @property
    def manifest(self) -> Mapping[str, Any]:
        """Return the bundle's manifest."""
        return self._model.manifest

    def predict(self, images: Iterable[Image], top: int = 5) -> list[Answer]:
        """Return the answer for each image, in order; InputError names the first that cannot be read."""
        _check_images(images)
        if top < 0:
            raise InputError(f"top is {top}.", hint="Give the number of classes to name, 0 or more.")
        with pillow_warnings(), bundle.said():
            named = ((_name(image, index), _prepared(image, index)) for index, image in enumerate(images))
            return [self._answer(found) for found in self._model.answer(named, top)]

    __call__ = predict

    def _answer(self, found: Mapping[str, Any]) -> Answer:
        if "error" in found:
            raise InputError(f"{found['image']}: {found['error']}.")
        names: Sequence[str] = [tensor["name"] for tensor in self.manifest["outputs"]]
        guesses = (Guess(entry["class"], entry["label"], entry["share"]) for entry in found.get("top", ()))
        return Answer(found["image"], tuple(guesses), dict(zip(names, found["outputs"], strict=True)))


def load(folder: str | Path, *, threads: int = 0, batch: int = 0, any_machine: bool = False) -> Predictor:
    """Load a bundle whose files are as they were made; 0 stands for what its manifest says.

    Raises InputError for one that is not sound, PlanError where this machine is not what it was made for and
    `any_machine` does not allow for other speed and answers.
    """
    if threads < 0 or batch < 0:
        raise InputError(f"threads is {threads}, batch {batch}.", hint="Give a number above 0, or 0.")
    with bundle.said():
        return Predictor(runner.Model(runner.Bundle(str(folder)), threads, batch, any_machine))


def _check_images(images: object) -> None:
    """Raise InputError for one image where several are asked for: its letters or rows could pass for images."""
    from PIL.Image import Image as Picture

    shape: tuple[int, ...] = getattr(images, "shape", ())
    one = isinstance(images, str | bytes | os.PathLike | Picture) or (len(shape) == 3 and shape[-1] == 3)
    if one or not isinstance(images, Iterable):
        what = f"an array of shape {list(shape)}" if shape else f"a {type(images).__name__}"
        raise InputError(f"{what} is no list of images.", hint="Give a list, also of one: predict([image]).")


def _name(image: Image, index: int) -> str:
    return os.fspath(image) if isinstance(image, str | os.PathLike) else f"image {index}"


def _prepared(image: Image, index: int) -> Any:
    """Return a path as text, anything else as an upright RGB image."""
    import numpy as np
    from PIL import Image as Pillow

    if isinstance(image, str | os.PathLike):
        if Path(image).is_dir():
            raise InputError(f"{os.fspath(image)} is a folder.", hint="Give the photographs in it.")
        return os.fspath(image)
    if isinstance(image, np.ndarray):
        if (
            image.dtype != np.uint8
            or not (image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3))
            or not image.size
        ):
            raise InputError(
                f"image {index} is an array of {image.dtype} {list(image.shape)}.",
                hint="Give uint8 of shape [height, width, 3], in the order RGB, or [height, width].",
            )
        image = Pillow.fromarray(np.ascontiguousarray(image))
    if not isinstance(image, Pillow.Image):
        raise InputError(
            f"image {index} is a {type(image).__name__}.", hint="Give a path, a Pillow image or an array."
        )
    try:
        return runner.as_rgb(image)
    except runner.ImageError as error:
        raise InputError(f"image {index}: {error}.") from error
