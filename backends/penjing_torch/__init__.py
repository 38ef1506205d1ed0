"""Opens PyTorch models: torchvision, timm, torch.hub, a factory in Python, or an exported program."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from penjing.hookspecs import hookimpl

if TYPE_CHECKING:
    from penjing.model import Model
    from penjing.preprocess import Preprocess


@hookimpl(trylast=True)  # `package.module:factory` is the widest of grammars: others are asked first
def penjing_open(source: str, weights: Path | None, preprocess: Preprocess | None) -> Model | None:
    """Open the PyTorch model that `source` names."""
    from penjing_torch.sources import opener_of

    opener = opener_of(source)
    return opener(source, weights, preprocess) if opener else None
