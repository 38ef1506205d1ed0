"""Quantisation: integers with ranges from photographs, by training, or of weights alone; mixed precision; FP16."""

from __future__ import annotations

from typing import TYPE_CHECKING

from penjing.hookspecs import hookimpl
from penjing.step import Technique

if TYPE_CHECKING:
    import click


@hookimpl
def penjing_techniques() -> list[type[Technique]]:
    """Bring the steps named quant.*."""
    from penjing_quant.dynamic import DynamicQuantisation
    from penjing_quant.fp16 import HalfPrecision
    from penjing_quant.mixed import MixedPrecision
    from penjing_quant.qat import QuantisationAwareTraining
    from penjing_quant.static import StaticQuantisation

    return [StaticQuantisation, MixedPrecision, QuantisationAwareTraining, DynamicQuantisation, HalfPrecision]


@hookimpl
def penjing_commands(cli: click.Group) -> None:
    """Bring `penjing lint` and `penjing explain`."""
    from penjing_quant import explain, lint

    cli.add_command(lint.command)
    cli.add_command(explain.command)
