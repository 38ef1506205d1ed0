"""TensorRT, and the deep learning accelerator of Jetson boards."""

from __future__ import annotations

from typing import TYPE_CHECKING

from penjing.hookspecs import hookimpl

if TYPE_CHECKING:
    import click
    from penjing.step import Backend, Technique


@hookimpl
def penjing_backends() -> list[type[Backend]]:
    """Bring `tensorrt` and `dla`."""
    from penjing_tensorrt.backend import TensorRT
    from penjing_tensorrt.dla.backend import Dla

    return [TensorRT, Dla]


@hookimpl
def penjing_techniques() -> list[type[Technique]]:
    """Bring `dla.adapt`."""
    from penjing_tensorrt.dla.adapt import Adapt

    return [Adapt]


@hookimpl
def penjing_commands(cli: click.Group) -> None:
    """Bring `penjing tune` and `penjing dla`."""
    from penjing_tensorrt.dla import command
    from penjing_tensorrt.tune_command import tune

    cli.add_command(tune)
    command.add(cli)
