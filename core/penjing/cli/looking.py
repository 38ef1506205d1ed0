"""Commands that tell what there is: devices, plugins, and what is installed here."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from penjing.cli.options import PATH


@click.command()
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON on standard output.")
def devices(name: str | None, as_json: bool) -> None:
    """List device profiles, or the facts of the device NAME and where each comes from."""
    from penjing import device_view
    from penjing.host import Host

    host = Host()
    if name is None:
        found = device_view.listing(host)
        click.echo(json.dumps(found, indent=1) if as_json else device_view.table(found), nl=as_json)
    else:
        facts = device_view.facts(host.device(name))
        click.echo(json.dumps(facts, indent=1) if as_json else device_view.page(facts), nl=as_json)


@click.command()
@click.argument("step", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON on standard output.")
def plugins(step: str | None, as_json: bool) -> None:
    """List plugins, the hooks each answers, why a broken one is broken, and all steps; or the options of STEP."""
    from penjing import plugin_view
    from penjing.host import Host

    host = Host()
    found = plugin_view.listing(host)
    if step is None:
        click.echo(json.dumps(found, indent=1) if as_json else plugin_view.page(found), nl=as_json)
    else:
        name = host.step(step).name
        one = next(entry for entry in found["steps"] if entry["name"] == name)
        click.echo(json.dumps(one, indent=1) if as_json else plugin_view.step_page(one), nl=as_json)


@click.command()
@click.option("--device", metavar="NAME", help="Also compare with what this device runs.")
@click.option(
    "--engine",
    type=PATH,
    metavar="FILE",
    help="Look at this engine file alone: who made it, and whether it loads here and on the device.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON on standard output.")
def doctor(device: str | None, engine: Path | None, as_json: bool) -> None:  # fmt: skip
    """Tell what is installed here, what will not work together, and what to do about it.

    An engine file is read, never executed: its header says whether TensorRT or TensorRT-RTX made it, and which version.
    """
    import dataclasses

    from penjing.console import wrapped
    from penjing.doctor import examine, examine_engine
    from penjing.host import Host

    host = Host()
    target = host.device(device) if device else None
    findings = examine_engine(engine, target) if engine else examine(target, host.broken)
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(finding) for finding in findings], indent=1))
    else:
        marks = {
            "ok": ("✓", "green"),
            "warning": ("!", "yellow"),
            "problem": ("✗", "red"),
            "absent": ("–", None),
        }
        for finding in findings:
            mark, colour = marks[finding.status]
            line = wrapped(f"{mark} {finding.subject}: {finding.what}")
            click.echo(line.replace(mark, click.style(mark, fg=colour), 1))
            for line in finding.cure.splitlines():
                click.echo(wrapped(line, first="    ", then="    "))
    sys.exit(1 if any(finding.status == "problem" for finding in findings) else 0)
