"""The interchange every backend reads: opening, exporting to, lowering and simplifying ONNX."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from penjing.hookspecs import hookimpl

if TYPE_CHECKING:
    from penjing.model import Model
    from penjing.preprocess import Preprocess
    from penjing.step import Technique


@hookimpl
def penjing_techniques() -> list[type[Technique]]:
    """Bring `onnx.export` and `onnx.simplify`."""
    from penjing_onnx.export import Export
    from penjing_onnx.simplify import Simplify

    return [Export, Simplify]


@hookimpl
def penjing_open(source: str, weights: Path | None, preprocess: Preprocess | None) -> Model | None:
    """Open an `.onnx` file."""
    if not source.lower().endswith(".onnx"):
        return None
    from penjing_onnx.source import open_file

    return open_file(source, weights, preprocess)
