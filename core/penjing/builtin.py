"""The host's own answers to the hooks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from penjing.device import builtin_profiles
from penjing.hookspecs import hookimpl

if TYPE_CHECKING:
    from penjing.device import Device
    from penjing.goal import Goal
    from penjing.model import Model
    from penjing.recipe import Recipe
    from penjing.step import Context, Step
    from penjing.task import Task


@hookimpl
def penjing_devices() -> list[Path]:
    """Bring the profiles that come with the host."""
    return builtin_profiles()


@hookimpl
def penjing_tasks() -> list[Task]:
    """Bring classification, and fidelity for everything that cannot be scored otherwise."""
    from penjing.task import Classification, Fidelity

    return [Classification(), Fidelity()]


@hookimpl(trylast=True)
def penjing_recipe(device: Device, model: Model, goal: Goal) -> Recipe:
    """Take the recipe of the device's profile."""
    from penjing.recipe import from_tables

    return from_tables(device.recipe, f"the profile of {device.name}")


@hookimpl(trylast=True)
def penjing_apply(step: Step, model: Model, context: Context) -> Model:
    """Let the step do its work."""
    return step.apply(model, context)
