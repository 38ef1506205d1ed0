"""A plan as people and tools read it."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import RenderableType

    from penjing.plan import Plan


def as_json(plan: Plan) -> dict[str, Any]:
    """Return the plan as JSON values."""
    return {
        "source": plan.model.source,
        "device": {"name": plan.device.name, "title": plan.device.title, "stack": plan.device.stack},
        "recipe": plan.recipe.origin,
        "task": plan.task.name,
        "goal": dataclasses.asdict(plan.goal),
        "input": str(plan.model.inputs[0]),
        "data": _splits(plan),
        "steps": [
            {"use": line.use.name, "options": _options(line), "why": line.why, "left_out": line.left_out}
            for line in plan.lines
        ],
        "direct": [] if plan.refusal else [
            {"use": step.name, "options": dataclasses.asdict(step)} for step in plan.direct  # type: ignore[call-overload]
        ],
        "warnings": [*plan.model.warnings, *(plan.data.warnings if plan.data else ())],
        "refusal": plan.refusal,
    }  # fmt: skip


def render(plan: Plan) -> RenderableType:
    """Return the plan for a terminal."""
    from rich.console import Group
    from rich.padding import Padding
    from rich.text import Text

    device = plan.device
    lines: list[RenderableType] = [
        Text.assemble(
            (plan.model.source, "bold"),
            f"  for  {device.title}",
            f" ({device.stack})" if device.stack else "",
        ),
        Text(
            f"takes {plan.model.inputs[0]}, scored by {plan.task.name}, recipe from {plan.recipe.origin}",
            "dim",
        ),
    ]
    if (splits := _splits(plan)) is not None:
        lines.append(Text("photographs: " + ", ".join(f"{n} to {name}" for name, n in splits.items()), "dim"))
    for number, line in enumerate(plan.lines, 1):
        options = "  ".join(f"{key}={str(value).lower()}" for key, value in _changed(line).items())
        mark = Text(f"{number}. ", "dim") if not line.left_out else Text("–  ", "yellow")
        lines.append(Text.assemble("\n", mark, (line.use.name, "bold")))
        if options:
            lines.append(Padding(Text(options, "dim"), (0, 0, 0, 3)))
        lines.append(Padding(Text(f"left out: {line.left_out}" if line.left_out else line.why), (0, 0, 0, 3)))
    lines.append(Text("\nOptions not shown have their defaults: `penjing plugins STEP` lists them.", "dim"))
    lines.extend(Text.assemble("\n", ("! ", "yellow"), warning) for warning in as_json(plan)["warnings"])
    if plan.refusal:
        lines.append(Text.assemble("\n", ("cannot be carried out yet: ", "red"), plan.refusal))
    return Group(*lines)


def _options(line: Any) -> dict[str, Any]:
    return dataclasses.asdict(line.step) if line.step is not None else dict(line.use.options)


def _changed(line: Any) -> dict[str, Any]:
    """Return the options of a line that have another value than their default."""
    if line.step is None:
        return _options(line)
    plain = dataclasses.asdict(type(line.step)())
    return {key: value for key, value in _options(line).items() if value != plain[key]}


def _splits(plan: Plan) -> dict[str, int] | None:
    data = plan.data
    return (
        None
        if data is None
        else {s.name: len(s) for s in (data.calibrate, data.train, data.select, data.test)}
    )
