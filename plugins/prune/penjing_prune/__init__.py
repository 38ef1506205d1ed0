"""Pruning: whole channels removed, or two of every four weights."""

from __future__ import annotations

from penjing.hookspecs import hookimpl
from penjing.step import Technique


@hookimpl
def penjing_techniques() -> list[type[Technique]]:
    """Bring prune.structured."""
    from penjing_prune.structured import Structured

    return [Structured]
