"""The host: it finds plugins, keeps what they bring, and asks them to act. Two hosts share nothing."""

from __future__ import annotations

import dataclasses
import inspect
import os
from collections.abc import Callable, Iterable
from functools import cached_property
from importlib.metadata import Distribution, EntryPoint, distributions
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pluggy

from penjing import builtin, hookspecs, promise
from penjing.device import Device, find_device
from penjing.errors import InputError, PenjingError, PlanError, PluginError, did_you_mean
from penjing.model import Model
from penjing.step import Backend, Step

if TYPE_CHECKING:
    from penjing.goal import Goal
    from penjing.preprocess import Preprocess
    from penjing.recipe import Recipe
    from penjing.step import Context
    from penjing.task import Task

GROUP = "penjing"
#: hooks that ask what a plugin brings
NOUNS = ("penjing_techniques", "penjing_backends", "penjing_devices", "penjing_tasks")

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Plugin:
    """A plugin as found: its entry point, the distribution it came with, and why it is broken ("" where it works)."""

    name: str
    module: str
    distribution: str
    broken: str = ""


class Host:
    """Holds plugins and speaks for them.

    `plugins` are modules or objects to register besides those found through entry points; with
    `entry_points=False` only they, and the host's own answers, take part.
    """

    def __init__(self, plugins: Iterable[object] = (), *, entry_points: bool = True) -> None:
        self._manager = pluggy.PluginManager(GROUP)
        self._manager.add_hookspecs(hookspecs)
        self._manager.register(builtin, "penjing")
        self.plugins: list[Plugin] = []
        if entry_points:
            for distribution, entry in _entry_points():
                self.plugins.append(self._load(distribution, entry))
        for plugin in plugins:
            self._register(plugin, getattr(plugin, "__name__", repr(plugin)))
        try:
            self._manager.check_pending()
        except pluggy.PluginValidationError as error:
            raise PluginError(str(error), hint="Compare the name with penjing.hookspecs.") from error
        self._brought = {noun: self._ask(noun) for noun in NOUNS}

    def _load(self, distribution: Distribution, entry: EntryPoint) -> Plugin:
        plugin = Plugin(entry.name, entry.value, f"{distribution.name} {distribution.version}")
        try:
            self._register(entry.load(), entry.name)
        except (
            Exception,
            SystemExit,
        ) as error:  # whatever a module does when it is imported; kept as its reason
            return dataclasses.replace(plugin, broken=_reason(error))
        return plugin

    def _register(self, plugin: object, name: str) -> None:
        try:
            self._manager.register(plugin, name)
        except pluggy.PluginValidationError as error:
            reason = " ".join(str(error).splitlines())
            raise PluginError(f"The plugin {name} cannot be registered: {reason}.") from error
        except ValueError as error:  # its further lines list every plugin
            raise PluginError(f"The plugin {name} cannot be registered: {_reason(error)}.") from error

    def _ask(self, noun: str) -> list[tuple[str, Any]]:
        """Return what every plugin brings, each thing with the name of its plugin.

        A plugin found through an entry point may import what it needs only now: where that fails it is broken.
        """
        brought: list[tuple[str, Any]] = []
        for implementation in getattr(self._manager.hook, noun).get_hookimpls():
            name = implementation.plugin_name
            if implementation.wrapper or implementation.hookwrapper:
                raise PluginError(f"The plugin {name} wraps {noun}.", hint="Only verbs can be wrapped.")
            try:
                brought += [(name, item) for item in implementation.function()]
            except (Exception, SystemExit) as error:  # as for importing it
                if name not in {plugin.name for plugin in self.plugins}:
                    raise PluginError(f"The plugin {name} fails in {noun}: {_reason(error)}") from error
                self.plugins = [
                    dataclasses.replace(plugin, broken=_reason(error)) if plugin.name == name else plugin
                    for plugin in self.plugins
                ]
        return brought

    @property
    def broken(self) -> dict[str, str]:
        """Return why each broken plugin could not be loaded, by name."""
        return {plugin.name: plugin.broken for plugin in self.plugins if plugin.broken}

    def hooks_of(self, name: str) -> list[str]:
        """Return the hooks that the plugin called `name` answers."""
        plugin = self._manager.get_plugin(name)
        callers = self._manager.get_hookcallers(plugin) if plugin is not None else None
        return sorted(caller.name for caller in callers or ())

    @cached_property
    def steps(self) -> dict[str, type[Step]]:
        """Return every technique and backend by name."""
        kinds = self._collect("penjing_techniques", _name_of)
        backends = self._collect("penjing_backends", _name_of)
        for name in kinds.keys() & backends.keys():
            raise PluginError(f"{name!r} is both a technique and a backend.")
        for name, kind in (kinds | backends).items():
            if not (inspect.isclass(kind) and issubclass(kind, Step) and dataclasses.is_dataclass(kind)):
                raise PluginError(f"{name!r} is not a dataclass derived from Technique or Backend: {kind!r}.")
            if wrong := promise.fault(kind):
                raise PluginError(
                    f"The step {name!r} of {kind.__module__} is not declared as it must be: {wrong}."
                )
        return kinds | backends

    @property
    def backends(self) -> frozenset[str]:
        """Return the names of the backends."""
        return frozenset(name for name, kind in self.steps.items() if issubclass(kind, Backend))

    def origin(self, step: str) -> str:
        """Return the distribution, with its version, whose plugin brings the step; "" for one registered by hand."""
        kind = self.step(step)
        for plugin in self.plugins:
            if kind.__module__.split(".")[0] == plugin.module.split(":")[0].split(".")[0]:
                return plugin.distribution
        return ""

    @cached_property
    def tasks(self) -> dict[str, Task]:
        """Return every task by name."""
        return self._collect("penjing_tasks", _name_of)

    @cached_property
    def profiles(self) -> list[Path]:
        """Return the paths of all device profiles."""
        return sorted(map(Path, self._collect("penjing_devices", os.fspath)))

    def step(self, name: str) -> type[Step]:
        """Return the technique or backend called `name`."""
        try:
            return self.steps[name]
        except KeyError:
            raise PlanError(f"There is no step {name!r}.", hint=self._hint(name)) from None

    def _hint(self, name: str) -> str:
        return did_you_mean(name, self.steps) + self._losses()

    def _losses(self) -> str:
        """Return what to add to a hint where something may be missing because a plugin is broken."""
        reasons = "; ".join(f"{plugin} ({reason})" for plugin, reason in self.broken.items())
        return f" Plugins that could not be loaded: {reasons}." if reasons else ""

    def device(self, name: str) -> Device:
        """Return the device called `name`, `name@stack`, or described by the TOML file `name`."""
        return find_device(name, self.profiles)

    def open(
        self, source: str, *, weights: Path | None = None, preprocess: Preprocess | None = None
    ) -> Model:
        """Open the model that `source` names."""
        with promise.kept(f"A plugin asked to open {source!r}", "penjing_open"):
            model: Model | None = self._manager.hook.penjing_open(
                source=source, weights=weights, preprocess=preprocess
            )
        if model is None:
            raise InputError(
                f"Nothing here can open {source!r}.",
                hint="Sources look like torchvision:resnet50, timm:NAME, hub:OWNER/REPO:ENTRY, path/model.py:factory, "
                "package.module:factory, x.onnx or x.pt2." + self._losses(),
            )
        if not isinstance(model, Model):
            raise PluginError(f"A plugin opened {source!r} and returned no model, but {model!r}.")
        return model

    def recipe(self, device: Device, model: Model, goal: Goal) -> Recipe:
        """Return the recipe that the plugins, or else the device's profile, have for this model."""
        from penjing.recipe import Recipe

        with promise.kept(f"A plugin asked for a recipe for {device.name}", "penjing_recipe"):
            recipe = self._manager.hook.penjing_recipe(device=device, model=model, goal=goal)
        if not (isinstance(recipe, Recipe) and recipe.uses):
            raise PluginError(f"A plugin's recipe for {device.name} is no Recipe with steps, but {recipe!r}.")
        return recipe

    def apply(self, step: Step, model: Model, context: Context) -> Model:
        """Carry out one step and hold it to its promise."""
        result: Model | None = self._manager.hook.penjing_apply(step=step, model=model, context=context)
        if not isinstance(result, Model):
            raise PluginError(
                f"{step.name} returned no model, but {result!r}.", hint="Return model.become(…)."
            )
        if result.form != step.produces:
            raise PluginError(f"{step.name} promised form {step.produces!r} and returned {result.form!r}.")
        return result

    def backend(self, name: str) -> Backend:
        """Return the backend called `name` with its default options."""
        kind = self.step(name)
        if not issubclass(kind, Backend):
            raise PlanError(f"{name!r} is a technique, not a backend.")
        return kind()

    def add_commands(self, cli: Any) -> None:
        """Let plugins add their commands to the command line."""
        self._manager.hook.penjing_commands(cli=cli)

    def _collect(self, hook: str, name_of: Callable[[Any], str]) -> dict[str, Any]:
        """Return the answers to one noun by name, a duplicate name being an error that names both plugins."""
        found: dict[str, Any] = {}
        owners: dict[str, str] = {}
        for owner, item in self._brought[hook]:
            try:
                name = name_of(item)
            except (AttributeError, TypeError) as error:
                raise PluginError(f"{item!r}, from the plugin {owner}, has no name.") from error
            if name in found:
                raise PluginError(
                    f"{name!r} comes twice: from {owners[name]} and from {owner}.",
                    hint="Uninstall one of them, or rename.",
                )
            found[name], owners[name] = item, owner
        return found


def _name_of(item: Any) -> str:
    """Return the name of what a plugin brings; TypeError where it is no text."""
    if not isinstance(item.name, str):
        raise TypeError(f"name is {item.name!r}")
    return item.name


def _reason(error: BaseException) -> str:
    """Return the first line of what an error says."""
    reason = error.message if isinstance(error, PenjingError) else f"{type(error).__name__}: {error}"
    return (reason.strip() or type(error).__name__).splitlines()[0]


def _entry_points() -> list[tuple[Distribution, EntryPoint]]:
    """Return the entry points of our group, each once, sorted so that order never depends on the file system."""
    found = {
        (entry.name, entry.value): (distribution, entry)
        for distribution in distributions()
        for entry in distribution.entry_points
        if entry.group == GROUP
    }
    return [found[key] for key in sorted(found)]
