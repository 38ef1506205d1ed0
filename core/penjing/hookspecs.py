"""Every place where a plugin can join in.

A plugin is a module named under the entry-point group `penjing`; its functions marked with `@penjing.hookimpl`
answer the calls below. Plural nouns ask *what do you bring?* and every plugin answers. Verbs ask for one thing
to be done and the first plugin that does it (returns something) wins; a plugin that *wraps* a verb
(`@penjing.hookimpl(wrapper=True)`) can time, cache or log it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    import click

    from penjing.device import Device
    from penjing.goal import Goal
    from penjing.model import Model
    from penjing.preprocess import Preprocess
    from penjing.recipe import Recipe
    from penjing.step import Backend, Context, Step, Technique
    from penjing.task import Task

hookspec = pluggy.HookspecMarker("penjing")
hookimpl = pluggy.HookimplMarker("penjing")


@hookspec
def penjing_techniques() -> list[type[Technique]]:  # type: ignore[empty-body]  # a specification has no body
    """Return the techniques this plugin brings."""


@hookspec
def penjing_backends() -> list[type[Backend]]:  # type: ignore[empty-body]  # a specification has no body
    """Return the backends this plugin brings."""


@hookspec
def penjing_devices() -> list[Path]:  # type: ignore[empty-body]  # a specification has no body
    """Return the device profiles this plugin brings: paths of TOML files."""


@hookspec
def penjing_tasks() -> list[Task]:  # type: ignore[empty-body]  # a specification has no body
    """Return the tasks this plugin brings: ways to score what a model puts out."""


@hookspec(firstresult=True)
def penjing_open(source: str, weights: Path | None, preprocess: Preprocess | None) -> Model | None:
    """Open the model that `source` names, or return None to leave it to another plugin.

    `weights` is a file of weights to load into it, `preprocess` what the user says about the input; both may be None.
    """


@hookspec(firstresult=True)
def penjing_recipe(device: Device, model: Model, goal: Goal) -> Recipe | None:
    """Return the recipe for this model on this device; the host's own answer, the profile's recipe, comes last."""


@hookspec(firstresult=True)
def penjing_apply(step: Step, model: Model, context: Context) -> Model | None:
    """Carry out one step; the host's own answer, `step.apply(model, context)`, comes last. Made to be wrapped."""


@hookspec
def penjing_commands(cli: click.Group) -> None:
    """Add commands to the command line."""
