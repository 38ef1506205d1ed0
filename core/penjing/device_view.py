"""Devices as people and tools read them."""

from __future__ import annotations

import dataclasses
import textwrap
from typing import TYPE_CHECKING, Any

import click

from penjing.device import THIS_MACHINE, Device, read_profile

if TYPE_CHECKING:
    from penjing.host import Host


def listing(host: Host) -> list[dict[str, Any]]:
    """Return name, title, backend and stacks of every device."""
    devices = [host.device(THIS_MACHINE), *(read_profile(path) for path in host.profiles)]
    return [
        {
            "name": device.name,
            "title": device.title,
            "backend": device.backend,
            "installed": device.backend in host.steps,
            "precisions": list(device.precisions),
            "stacks": list(device.stacks),
        }
        for device in devices
    ]


def table(found: list[dict[str, Any]]) -> str:
    """Return the listing as text."""
    width = max(len(entry["name"]) for entry in found)
    lines = []
    for entry in found:
        backend = entry["backend"] + ("" if entry["installed"] else " (not installed)")
        lines.append(f"{click.style(entry['name'].ljust(width), bold=True)}  {entry['title']} · {backend}")
        if entry["stacks"]:
            lines.append(_wrapped("@ " + ", ".join(entry["stacks"]), width + 2))
    return "\n".join(lines) + "\n"


def facts(device: Device) -> dict[str, Any]:
    """Return every fact of a device with its source, and its recipe."""
    known = dataclasses.asdict(device)
    sources, recipe, further = known.pop("sources"), known.pop("recipe"), known.pop("facts")
    known["isa"] = sorted(known["isa"])
    known |= further
    return {
        "name": device.name,
        "facts": {
            name: {"value": value, "source": _source(name, sources)}
            for name, value in known.items()
            if value not in (None, "", (), [], {})
        },
        "recipe": [dict(step) for step in recipe],
    }


def page(found: dict[str, Any]) -> str:
    """Return the facts as text."""
    lines = []
    for name, fact in found["facts"].items():
        value = fact["value"]
        shown = ", ".join(map(str, value)) if isinstance(value, list | tuple) else value
        if isinstance(value, dict):
            shown = ", ".join(f"{key} {entry}" for key, entry in value.items())
        lines.append(click.style(name.ljust(20), bold=True) + _wrapped(str(shown), 21)[20:])
        if fact["source"]:
            lines.append(click.style(_wrapped(fact["source"], 21), dim=True))
    recipe = " → ".join(step["use"] for step in found["recipe"])
    lines.append(click.style("recipe".ljust(20), bold=True) + _wrapped(recipe, 21)[20:])
    return "\n".join(lines) + "\n"


def _wrapped(text: str, indent: int) -> str:
    return textwrap.fill(text, 80, initial_indent=" " * indent, subsequent_indent=" " * indent)


def _source(name: str, sources: dict[str, str]) -> str:
    own = sources.get(name)
    return own or "; ".join(sorted({text for key, text in sources.items() if key.startswith(f"{name}.")}))
