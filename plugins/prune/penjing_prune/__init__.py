"""Pruning: whole channels removed, or two of every four weights."""

from __future__ import annotations

from penjing.hookspecs import hookimpl
from penjing.step import Technique


@hookimpl
def penjing_techniques() -> list[type[Technique]]:
    """Bring prune.structured and prune.sparse24."""
    from penjing_prune.sparse24 import Sparse24
    from penjing_prune.structured import Structured

    return [Structured, Sparse24]
