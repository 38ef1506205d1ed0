"""A plan: a recipe checked against a device, a model, the data at hand and a goal. Nothing has run."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from penjing import promise
from penjing.errors import PlanError, PluginError
from penjing.options import build
from penjing.step import Backend, Step

if TYPE_CHECKING:
    from penjing.data import Data
    from penjing.device import Device
    from penjing.goal import Goal
    from penjing.host import Host
    from penjing.model import Model
    from penjing.recipe import Recipe, Use
    from penjing.task import Task


@dataclasses.dataclass(frozen=True)
class Line:
    """One line of a plan: a step by name, what it does for this device, and why it is left out ("" where it is not)."""

    use: Use
    step: Step | None
    why: str
    left_out: str = ""


@dataclasses.dataclass(frozen=True)
class Plan:
    """What would run, and what would not and why."""

    recipe: Recipe
    device: Device
    model: Model
    data: Data | None
    task: Task
    goal: Goal
    lines: tuple[Line, ...]
    #: why this plan cannot be carried out yet; "" where it can
    refusal: str = ""

    @property
    def backend(self) -> Backend:
        """Return the step that ends the plan; PlanError where the plan is refused."""
        if self.refusal:
            raise PlanError(self.refusal, hint="`penjing plugins` lists what is installed.")
        last = self.optimised[-1]
        assert isinstance(last, Backend)
        return last

    @property
    def optimised(self) -> tuple[Step, ...]:
        """Return the steps of the recipe that are carried out."""
        return tuple(line.step for line in self.lines if line.step is not None and not line.left_out)

    @property
    def original(self) -> tuple[Step, ...]:
        """Return those of them that change the form only: they make the model all else is compared with."""
        return tuple(step for step in self.optimised if step.exact)

    @property
    def direct(self) -> tuple[Step, ...]:
        """Return the same techniques in their naive form."""
        return tuple(naive for step in self.optimised if (naive := _naive(step)) is not None)

    @property
    def columns(self) -> dict[str, tuple[Step, ...]]:
        """Return the steps that make each column of the report."""
        return {"original": self.original, "direct": self.direct, "optimised": self.optimised}


def make_plan(
    host: Host, recipe: Recipe, device: Device, model: Model, data: Data | None, goal: Goal
) -> Plan:
    """Check `recipe` and return the plan; PlanError says what cannot be carried out.

    A device whose backend is not installed still gets its plan, with the `refusal` that executing it will raise.
    """
    _check_model(model, data)
    backend, refusal = _backend(host, recipe, device)
    lines: list[Line] = []
    form = model.form
    for use in recipe.uses:
        if use.name == device.backend and refusal:
            lines.append(Line(use, None, f"The backend of {device.title}."))
            continue
        if use.name not in host.steps and use.optional:
            lines.append(Line(use, None, "", f"No plugin installed here brings {use.name}."))
            continue
        if use.name not in host.steps and refusal:
            lines.append(Line(use, None, "No plugin installed here brings it."))
            continue
        step = build(host.step(use.name), use.name, use.options)
        obstacle, hint = _obstacle(step, form, model, device, backend, data)
        if obstacle and not use.optional:
            raise PlanError(obstacle, hint=hint)
        why = "" if obstacle else _why(step, device, backend)
        lines.append(Line(use, step, why, obstacle))
        if not obstacle:
            form = step.produces
    plan = Plan(recipe, device, model, data, choose_task(host, model), goal, tuple(lines), refusal)
    if not refusal and not isinstance(plan.optimised[-1] if plan.optimised else None, Backend):
        raise PlanError(
            f"{recipe.origin}: the last step is no backend, so that nothing could run the result.",
            hint=f'End the recipe with use = "{device.backend}".',
        )
    _ = plan.direct  # whose steps a plugin's fault should not keep back until the others have run
    return plan


def _naive(step: Step) -> Step | None:
    with promise.kept(step.name, "naive"):
        naive = step.naive()
    if naive is not None and type(naive) is not type(step):
        raise PluginError(f"{step.name}.naive() returned another kind of step: {naive!r}.")
    return naive


def choose_task(host: Host, model: Model) -> Task:
    """Return the task that scores this model: a plugin's where one fits, then classification, then fidelity."""
    fitting = []
    for task in host.tasks.values():
        with promise.kept(task.name, "fits"):
            fitting += [task] if task.fits(model) else []
    own = ("classification", "fidelity")
    return min(fitting, key=lambda task: own.index(task.name) if task.name in own else -1)


def missing_backend(host: Host, device: Device) -> str:
    """Return why nothing here can serve the device: its backend is not installed, or broken; "" where it is there."""
    if device.backend in host.steps:
        return ""
    reason = host.broken.get(device.backend)
    return f"{device.title} needs the backend {device.backend!r}, which " + (
        f"could not be loaded: {reason}." if reason else "no plugin installed here brings."
    )


def _check_model(model: Model, data: Data | None) -> None:
    if len(model.inputs) != 1:
        names = ", ".join(str(tensor) for tensor in model.inputs)
        raise PlanError(
            f"{model.source} has {len(model.inputs)} inputs ({names}); photographs can feed one.",
            hint="Wrap the model so that it makes the other inputs itself.",
        )
    if model.inputs[0].dtype != "float32":
        raise PlanError(
            f"{model.source} takes {model.inputs[0]}; photographs become numbers in float32.",
            hint="Export it with an input in float32, which a Cast makes what the network wants.",
        )
    if data is not None and model.preprocess is None:
        raise PlanError(
            f"How a photograph becomes the input of {model.source} is not known.",
            hint="Give --preprocess FILE.toml.",
        )


def _backend(host: Host, recipe: Recipe, device: Device) -> tuple[Backend | None, str]:
    """Return the backend that the recipe ends with; None, with a refusal, where it is not installed."""
    if recipe.uses[-1].name == device.backend and (refusal := missing_backend(host, device)):
        return None, refusal
    backends = [use for use in recipe.uses if issubclass(host.steps.get(use.name, Step), Backend)]
    if len(backends) != 1:
        raise PlanError(
            f"{recipe.origin}: the recipe has {len(backends)} backends; it takes one, as its last step.",
            hint=f'End the recipe with use = "{device.backend}".',
        )
    step = build(host.step(backends[0].name), backends[0].name, backends[0].options)
    assert isinstance(step, Backend)
    return step, ""


def _obstacle(
    step: Step, form: str, model: Model, device: Device, backend: Backend | None, data: Data | None
) -> tuple[str, str]:
    """Return why this step cannot run, and what to do about it; ("", "") where it can."""
    if form not in step.accepts:
        wanted = " or ".join(sorted(step.accepts))
        return (
            f"{step.name} takes a model of form {wanted}, and gets {form}.",
            _conversion(step, form, model),
        )
    if step.needs and data is None:
        return f"{step.name} needs photographs ({', '.join(sorted(step.needs))}).", "Give --data FOLDER."
    if data is not None:
        from penjing.data import FEW

        if "calibration" in step.needs and not len(data.calibrate):
            return (
                f"{step.name} needs photographs to calibrate with; {data.root} leaves none.",
                "Add photographs.",
            )
        if "training" in step.needs and not len(data.train):
            return (
                f"{step.name} needs photographs to train on; {data.root} leaves none: the "
                f"{len(data.calibrate)} that are not to test or select with calibrate.",
                f"Add photographs: where more than {FEW} are left, half of them are trained on.",
            )
        if "labels" in step.needs and not data.train.labelled:
            return (
                f"{step.name} needs labels; {data.root} has none.",
                "Sort the photographs into class folders.",
            )
    try:
        with promise.kept(step.name, "check_source"):
            step.check_source(model)
        if backend is not None:
            with promise.kept(step.name, "check"):
                step.check(device, backend)
    except PlanError as error:
        return error.message, error.hint
    return "", ""


def _conversion(step: Step, form: str, model: Model) -> str:
    if "onnx" in step.accepts:
        return "Put onnx.export before it."
    if model.form == form == "onnx":
        return f"Open the network from its source in Python, such as path/model.py:factory, or leave {step.name} out."
    return "Move it before onnx.export."


def _why(step: Step, device: Device, backend: Backend | None) -> str:
    if backend is None:
        return (type(step).__doc__ or "").strip().split("\n", 1)[0]
    with promise.kept(step.name, "explain"):
        why = step.explain(device, backend)
    if not isinstance(why, str):
        raise PluginError(f"{step.name}.explain() returned no sentence, but {why!r}.")
    return why
