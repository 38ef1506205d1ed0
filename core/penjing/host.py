"""The host: it finds plugins, keeps what they bring, and asks them to act. Two hosts share nothing."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterable
from functools import cached_property
from importlib.metadata import Distribution, EntryPoint, distributions
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pluggy

from penjing import builtin, hookspecs
from penjing.device import Device, find_device
from penjing.errors import InputError, PenjingError, PlanError, PluginError, did_you_mean
from penjing.step import Backend, Step

if TYPE_CHECKING:
    from penjing.goal import Goal
    from penjing.model import Model
    from penjing.preprocess import Preprocess
    from penjing.recipe import Recipe
    from penjing.step import Context
    from penjing.task import Task

GROUP = "penjing"

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

    def _load(self, distribution: Distribution, entry: EntryPoint) -> Plugin:
        plugin = Plugin(entry.name, entry.value, f"{distribution.name} {distribution.version}")
        try:
            self._register(entry.load(), entry.name)
        except (
            Exception,
            SystemExit,
        ) as error:  # whatever a module does when it is imported; kept as its reason
            reason = error.message if isinstance(error, PenjingError) else f"{type(error).__name__}: {error}"
            return dataclasses.replace(
                plugin, broken=reason.strip().splitlines()[0] if reason.strip() else "?"
            )
        return plugin

    def _register(self, plugin: object, name: str) -> None:
        try:
            self._manager.register(plugin, name)
        except (pluggy.PluginValidationError, ValueError) as error:
            raise PluginError(f"The plugin {name} cannot be registered: {error}") from error

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
        kinds = self._collect("penjing_techniques", lambda step: step.name)
        backends = self._collect("penjing_backends", lambda step: step.name)
        for name in kinds.keys() & backends.keys():
            raise PluginError(f"{name!r} is both a technique and a backend.")
        for name, kind in (kinds | backends).items():
            if not (inspect.isclass(kind) and issubclass(kind, Step) and dataclasses.is_dataclass(kind)):
                raise PluginError(f"{name!r} is not a dataclass derived from Technique or Backend: {kind!r}.")
        return kinds | backends

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
        return self._collect("penjing_tasks", lambda task: task.name)

    @cached_property
    def profiles(self) -> list[Path]:
        """Return the paths of all device profiles."""
        return sorted(self._collect("penjing_devices", str).values())

    def step(self, name: str) -> type[Step]:
        """Return the technique or backend called `name`."""
        try:
            return self.steps[name]
        except KeyError:
            raise PlanError(f"There is no step {name!r}.", hint=self._hint(name)) from None

    def _hint(self, name: str) -> str:
        hint = did_you_mean(name, self.steps)
        if self.broken:
            reasons = "; ".join(f"{plugin} ({reason})" for plugin, reason in self.broken.items())
            hint += f" Plugins that could not be loaded: {reasons}."
        return hint

    def device(self, name: str) -> Device:
        """Return the device called `name`, `name@stack`, or described by the TOML file `name`."""
        return find_device(name, self.profiles)

    def open(
        self, source: str, *, weights: Path | None = None, preprocess: Preprocess | None = None
    ) -> Model:
        """Open the model that `source` names."""
        model: Model | None = self._manager.hook.penjing_open(
            source=source, weights=weights, preprocess=preprocess
        )
        if model is None:
            raise InputError(
                f"Nothing here can open {source!r}.",
                hint="Sources look like torchvision:resnet50, timm:NAME, hub:OWNER/REPO:ENTRY, path/model.py:factory, "
                "package.module:factory, x.onnx or x.pt2."
                + (f" Plugins that could not be loaded: {self.broken}." if self.broken else ""),
            )
        return model

    def recipe(self, device: Device, model: Model, goal: Goal) -> Recipe:
        """Return the recipe that the plugins, or else the device's profile, have for this model."""
        recipe: Recipe = self._manager.hook.penjing_recipe(device=device, model=model, goal=goal)
        return recipe

    def apply(self, step: Step, model: Model, context: Context) -> Model:
        """Carry out one step and hold it to its promise."""
        result: Model = self._manager.hook.penjing_apply(step=step, model=model, context=context)
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
        """Ask one noun hook; the answers by name, a duplicate name being an error that names both plugins."""
        found: dict[str, Any] = {}
        owners: dict[str, str] = {}
        for implementation in getattr(self._manager.hook, hook).get_hookimpls():
            for item in implementation.function():
                name = name_of(item)
                if name in found:
                    raise PluginError(
                        f"{name!r} comes twice: from {owners[name]} and from {implementation.plugin_name}.",
                        hint="Uninstall one of them, or rename.",
                    )
                found[name], owners[name] = item, implementation.plugin_name
        return found


def _entry_points() -> list[tuple[Distribution, EntryPoint]]:
    """Return the entry points of our group, each once, sorted so that order never depends on the file system."""
    found = {
        (entry.name, entry.value): (distribution, entry)
        for distribution in distributions()
        for entry in distribution.entry_points
        if entry.group == GROUP
    }
    return [found[key] for key in sorted(found)]
