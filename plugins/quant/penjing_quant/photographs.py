"""The photographs of a quantisation: those that measure ranges, and those kept apart to judge by."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING

from penjing.errors import StepError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from penjing.data import Split
    from penjing.model import Model
    from penjing.preprocess import Preprocess
    from penjing.step import Context

    Array = npt.NDArray[np.float32]

#: every so many photographs one is kept from calibration, to judge by
HELD_OUT = 5
#: photographs to judge a candidate by, and to correct biases with, at most: they are kept in memory
JUDGES, CORRECTORS = 50, 64


@dataclasses.dataclass
class Photographs:
    """Those that measure ranges, read anew at every pass, and those kept apart to judge by."""

    split: Split
    preprocess: Preprocess
    limit: int

    def __call__(self) -> Iterator[tuple[str, Array]]:
        """Yield the photographs to calibrate with, one by one."""
        return (photo for number, photo in enumerate(self._all()) if not self._is_held_out(number))

    def judges(self) -> list[Array]:
        """Return photographs kept apart; where there are too few to keep any, those that calibrate."""
        kept = [
            pixels
            for number, (_, pixels) in enumerate(self._all(JUDGES * HELD_OUT))
            if self._is_held_out(number)
        ]
        return kept or [pixels for _, pixels in self()]

    def first(self, most: int) -> list[Array]:
        """Return the first photographs to calibrate with."""
        return [pixels for _, (_, pixels) in zip(range(most), self(), strict=False)]

    @property
    def held_out(self) -> bool:
        """Tell whether there are enough photographs to keep some apart."""
        return min(self.limit, len(self.split)) >= HELD_OUT

    def _is_held_out(self, number: int) -> bool:
        return number % HELD_OUT == HELD_OUT - 1

    def _all(self, most: int | None = None) -> Iterator[tuple[str, Array]]:
        limit = self.limit if most is None else min(self.limit, most)
        for batch in self.split.batches(8, self.preprocess, limit):
            for photo, pixels in zip(batch.photos, batch.inputs, strict=True):
                yield str(photo.path), pixels[None]


def photographs(model: Model, context: Context, limit: int) -> Photographs:
    """Return the photographs to calibrate `model` with, `limit` at most; StepError where there are none."""
    if context.data is None or not len(context.data.calibrate):
        raise StepError(
            "There is no photograph to calibrate with.",
            hint="Give --data with photographs like those on the device.",
        )
    if model.preprocess is None:
        raise StepError(
            "How photographs become this network's input is not known.", hint="Give --preprocess FILE."
        )
    return Photographs(context.data.calibrate, model.preprocess, limit)
