"""Quantisation to 8-bit integers: weights and activations with ranges from photographs, or weights alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from penjing.hookspecs import hookimpl
from penjing.step import Technique

if TYPE_CHECKING:
    import click


@hookimpl
def penjing_techniques() -> list[type[Technique]]:
    """Bring quant.static and quant.dynamic."""
    from penjing_quant.dynamic import DynamicQuantisation
    from penjing_quant.static import StaticQuantisation

    return [StaticQuantisation, DynamicQuantisation]


@hookimpl
def penjing_commands(cli: click.Group) -> None:
    """Bring `penjing lint`."""
    from penjing_quant.lint import command

    cli.add_command(command)
