"""The model that flows between steps."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from penjing.preprocess import Preprocess


@dataclasses.dataclass(frozen=True)
class Tensor:
    """An input or output: its name, shape (None for a dimension left open) and numpy dtype name."""

    name: str
    shape: tuple[int | None, ...]
    dtype: str = "float32"

    def __str__(self) -> str:
        return f"{self.name} {self.dtype}[{', '.join('?' if d is None else str(d) for d in self.shape)}]"


@dataclasses.dataclass(frozen=True)
class Model:
    """A network in one of its forms. A step never changes the one it was given.

    `form` says what `value` is: "torch" an `nn.Module` in eval mode, "onnx" the `Path` of one `.onnx` file,
    or whatever form a plugin brings. The host never looks inside `value`.
    """

    form: str
    value: Any
    #: where it was opened from, as the user wrote it
    source: str
    #: hex digest that changes when weights or structure do
    fingerprint: str
    #: NCHW image inputs, the first dimension being the batch; most models have one
    inputs: tuple[Tensor, ...]
    #: empty where the form cannot tell before it runs
    outputs: tuple[Tensor, ...] = ()
    #: how an image becomes the input; None where the source does not know
    preprocess: Preprocess | None = None
    #: class names in the order of the output, where the source knows them
    labels: tuple[str, ...] = ()
    #: what the user should know about how it was opened
    warnings: tuple[str, ...] = ()

    def become(self, form: str, value: Any, **changes: Any) -> Model:
        """Return this model in another form, keeping where it came from and how images are prepared."""
        return dataclasses.replace(self, form=form, value=value, **changes)
