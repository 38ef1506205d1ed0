"""Distillation: a network learns from what another makes of the same photographs."""

from __future__ import annotations

from penjing.hookspecs import hookimpl
from penjing.step import Technique


@hookimpl
def penjing_techniques() -> list[type[Technique]]:
    """Bring distill.logits, distill.features, distill.attention and distill.student."""
    from penjing_distill.steps import Attention, Features, Logits, Student

    return [Logits, Features, Attention, Student]
