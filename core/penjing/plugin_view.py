"""Plugins as people and tools read them."""

from __future__ import annotations

import dataclasses
import textwrap
from typing import TYPE_CHECKING, Any

import click

from penjing.options import options_of
from penjing.step import Backend

if TYPE_CHECKING:
    from penjing.host import Host


def listing(host: Host) -> dict[str, Any]:
    """Return every plugin with its hooks, and every step with its options."""
    return {
        "plugins": [
            {**dataclasses.asdict(plugin), "hooks": host.hooks_of(plugin.name)} for plugin in host.plugins
        ],
        "steps": [
            {
                "name": name,
                "kind": "backend" if issubclass(step, Backend) else "technique",
                "what": (step.__doc__ or "").strip().split("\n", 1)[0],
                "accepts": sorted(step.accepts),
                "produces": step.produces,
                "needs": sorted(step.needs),
                "options": [
                    {"name": option.name, "kind": option.kind, "default": option.default, "help": option.help}
                    for option in options_of(step).values()
                ],
            }
            for name, step in sorted(host.steps.items())
        ],
    }


def page(found: dict[str, Any]) -> str:
    """Return plugins and steps as text, a step in a line."""
    lines = []
    for plugin in found["plugins"]:
        lines.append(
            f"{click.style(plugin['name'], bold=True)}  {plugin['module']}, from {plugin['distribution']}"
        )
        if plugin["broken"]:
            lines.append(click.style(_wrapped(f"broken: {plugin['broken']}"), fg="red"))
        elif plugin["hooks"]:
            lines.append(click.style(_wrapped(", ".join(plugin["hooks"])), dim=True))
    lines.append("")
    for step in found["steps"]:
        lines += [click.style(step["name"], bold=True), _wrapped(step["what"])]
    lines.append("\n`penjing plugins STEP` shows the options of a step.")
    return "\n".join(lines) + "\n"


def step_page(step: dict[str, Any]) -> str:
    """Return a step and its options as text."""
    lines = [f"{click.style(step['name'], bold=True)}  {step['kind']}", _wrapped(step["what"])]
    lines.append(_wrapped(f"Takes {' or '.join(step['accepts'])}, returns {step['produces']}."))
    if step["needs"]:
        lines.append(_wrapped(f"Needs photographs for {', '.join(step['needs'])}."))
    for option in step["options"]:
        lines.append(f"\n  {click.style(option['name'], bold=True)} = {option['default']}")
        lines.append(_wrapped(option["help"], "    "))
        lines.append(click.style(_wrapped(f"Takes {option['kind']}.", "    "), dim=True))
    lines.append(f"\nChange one with --set {step['name']}.OPTION=VALUE, or in a recipe.")
    return "\n".join(lines) + "\n"


def _wrapped(text: str, indent: str = "  ") -> str:
    return textwrap.fill(text, 80, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)
