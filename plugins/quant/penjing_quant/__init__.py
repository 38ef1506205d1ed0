"""Quantisation to 8-bit integers: weights and activations with ranges from photographs, or weights alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from penjing.hookspecs import hookimpl
from penjing.step import Technique

if TYPE_CHECKING:
    import click


@hookimpl
def penjing_techniques() -> list[type[Technique]]:
    """Bring quant.static, quant.mixed and quant.dynamic."""
    from penjing_quant.dynamic import DynamicQuantisation
    from penjing_quant.mixed import MixedPrecision
    from penjing_quant.static import StaticQuantisation

    return [StaticQuantisation, MixedPrecision, DynamicQuantisation]


@hookimpl
def penjing_commands(cli: click.Group) -> None:
    """Bring `penjing lint` and `penjing explain`."""
    from penjing_quant import explain, lint

    cli.add_command(lint.command)
    cli.add_command(explain.command)
