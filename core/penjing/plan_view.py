"""A plan as people and tools read it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import RenderableType

    from penjing.plan import Plan
    from penjing.step import Progress


#: where in a network something is, as reasons name it: a part, and a line of code in brackets
_PLACE = re.compile(r" in (?:the network|\S+)(?: \([^)]*\))?")
#: parts left as they are that a terminal names for each reason
NAMED = 3
#: for each line of a plan, parts that its step leaves as they are, and why
Stays = Sequence[Sequence[tuple[str, str]]]


def stays(plan: Plan, progress: Progress | None = None) -> Stays:
    """Ask the first step that is carried out what of the model it leaves as it is: later ones get another model."""
    first = next((line for line in plan.lines if line.step is not None and not line.left_out), None)
    if first is None or first.step is None or plan.model.form not in first.step.accepts:
        return [() for _ in plan.lines]
    if progress:
        progress.begin(f"looking at what {first.use.name} leaves as it is")
    found = first.step.stays(plan.model)
    if progress:
        progress.end()
    return [found if line is first else () for line in plan.lines]


def as_json(plan: Plan, stay: Stays = ()) -> dict[str, Any]:
    """Return the plan as JSON values."""
    stay = stay or [() for _ in plan.lines]
    return {
        "source": plan.model.source,
        "device": {"name": plan.device.name, "title": plan.device.title, "stack": plan.device.stack},
        "recipe": plan.recipe.origin,
        "task": plan.task.name,
        "goal": dataclasses.asdict(plan.goal),
        "input": str(plan.model.inputs[0]),
        "data": _splits(plan),
        "steps": [
            {"use": line.use.name, "options": _options(line), "why": line.why, "left_out": line.left_out,
             "stays": [{"part": part, "why": why} for part, why in parts]}
            for line, parts in zip(plan.lines, stay, strict=True)
        ],
        "direct": [] if plan.refusal else [
            {"use": step.name, "options": dataclasses.asdict(step)} for step in plan.direct  # type: ignore[call-overload]
        ],
        "warnings": [*plan.model.warnings, *(plan.data.warnings if plan.data else ())],
        "refusal": plan.refusal,
    }  # fmt: skip


def render(plan: Plan, stay: Stays = ()) -> RenderableType:
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
    stay = stay or [() for _ in plan.lines]
    for number, (line, parts) in enumerate(zip(plan.lines, stay, strict=True), 1):
        options = "  ".join(f"{key}={str(value).lower()}" for key, value in _changed(line).items())
        mark = Text(f"{number}. ", "dim") if not line.left_out else Text("–  ", "yellow")
        lines.append(Text.assemble("\n", mark, (line.use.name, "bold")))
        if options:
            lines.append(Padding(Text(options, "dim"), (0, 0, 0, 3)))
        lines.append(Padding(Text(f"left out: {line.left_out}" if line.left_out else line.why), (0, 0, 0, 3)))
        lines.extend(Padding(Text(text, "dim"), (0, 0, 0, 3)) for text in _reasons(parts))
    lines.append(Text("\nOptions not shown have their defaults: `penjing plugins STEP` lists them.", "dim"))
    lines.extend(Text.assemble("\n", ("! ", "yellow"), warning) for warning in as_json(plan)["warnings"])
    if plan.refusal:
        lines.append(Text.assemble("\n", ("cannot be carried out yet: ", "red"), plan.refusal))
    return Group(*lines)


def _reasons(parts: Sequence[tuple[str, str]]) -> list[str]:
    """Return a line for each reason why parts stay; where several have one, without the places it names."""
    found: dict[str, list[tuple[str, str]]] = {}
    for part, why in parts:
        found.setdefault(_PLACE.sub("", why).rstrip(","), []).append((part, why))
    lines = []
    for why, alike in sorted(found.items(), key=lambda item: -len(item[1])):
        names = ", ".join(part for part, _ in alike[:NAMED])
        more = f" and {len(alike) - NAMED} more" if len(alike) > NAMED else ""
        lines.append(f"stays: {names}{more}: {why if len(alike) > 1 else alike[0][1]}")
    return lines


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
