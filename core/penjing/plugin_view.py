"""Plugins as people and tools read them."""

from __future__ import annotations

import dataclasses
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
    """Return the listing as text."""
    lines = []
    for plugin in found["plugins"]:
        lines.append(
            f"{click.style(plugin['name'], bold=True)}  {plugin['module']}, from {plugin['distribution']}"
        )
        if plugin["broken"]:
            lines.append("  " + click.style(f"broken: {plugin['broken']}", fg="red"))
        else:
            lines.append(click.style(f"  {', '.join(plugin['hooks'])}", dim=True))
    for step in found["steps"]:
        lines.append(f"\n{click.style(step['name'], bold=True)}  {step['kind']}: {step['what']}")
        for option in step["options"]:
            lines.append(f"  {option['name']} = {option['default']}  {click.style(option['help'], dim=True)}")
            lines.append(click.style(f"    takes {option['kind']}", dim=True))
    return "\n".join(lines) + "\n"
