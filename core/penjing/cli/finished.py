"""Commands on a run that is finished."""

from __future__ import annotations

import json
import math
from pathlib import Path

import click

from penjing.cli.options import PATH, Finite, reaches, speaks
from penjing.cli.showing import show, shown


@click.command()
@click.argument("run", type=PATH)
@speaks
def report(run: Path, as_json: bool, quiet: bool) -> None:
    """Show the report of the folder RUN again, and write its HTML and Markdown anew."""
    from penjing import report as reports
    from penjing.again import report_of
    from penjing.api import described
    from penjing.run import locked

    described(run)
    path = report_of(run)
    with locked(run):
        found = reports.read(path)
        reports.write(found, run)
    show(found, run, as_json, quiet)


@click.command()
@click.argument("run", type=PATH)
@reaches
@click.option("--clean", is_flag=True, help="Remove what is there instead.")
@speaks
def deploy(run: Path, clean: bool, as_json: bool, quiet: bool, **where: str) -> None:
    """Bring the bundle of the folder RUN to a board over your own ssh, and check it there.

    What arrived is not sent twice, and nothing is taken for a bundle until all of it has arrived.
    """
    from penjing import remote

    if not where["host"]:
        raise click.UsageError("Name the board with --host.")
    with shown(quiet) as progress:
        found = (remote.clean if clean else remote.deploy)(run, remote.Place(**where), progress)
    if as_json:
        click.echo(json.dumps(found, indent=1))
    elif not quiet:
        click.echo(f"{found['host']}:{found['path']} {'is clean' if clean else 'answers as recorded'}.")


@click.command()
@click.argument("run", type=PATH)
@click.option("--seconds", type=Finite(1, 3600), default=20, show_default=True, help="Time to spend.")
@reaches
@click.option(
    "--photos",
    type=click.IntRange(0, 10_000),
    default=200,
    show_default=True,
    metavar="N",
    help="With --host: test photographs to copy there at most, and score.",
)
@click.option(
    "--original/--no-original",
    default=True,
    help="With --host: time the original there too, in turn; it is copied as the bundle is.  [default: original]",
)
@speaks
def measure(
    run: Path, seconds: float, photos: int, original: bool, as_json: bool, quiet: bool, **where: str
) -> None:
    """Time the models of the folder RUN anew, interleaved, and renew the report.

    With --host the optimised model's bundle is brought to that board, checked, timed in turn with the original,
    and scored there.
    """
    if not where["host"] and (where["path"] or where["python"] or where["ssh"] != "ssh"):
        raise click.UsageError("--path, --ssh and --python speak of a board: name it with --host.")
    with shown(quiet) as progress:
        if where["host"]:
            from penjing import remote

            place = remote.Place(**where)
            found = remote.measure(
                run, place, progress, seconds=math.ceil(seconds), photos=photos, original=original
            )
        else:
            from penjing.again import measure_again

            found = measure_again(run, seconds, progress)
    show(found, run, as_json, quiet)


@click.command()
@click.argument("run", type=PATH)
@click.argument("images", type=PATH, nargs=-1, required=True)
@click.option("--top", type=click.IntRange(1, 100), default=5, show_default=True, help="Classes to show.")
@click.option(
    "--column",
    type=click.Choice(["original", "direct", "optimised"]),
    default="optimised",
    show_default=True,
    help="Which model of the run answers.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON on standard output.")
def predict(run: Path, images: tuple[Path, ...], top: int, column: str, as_json: bool) -> None:  # fmt: skip
    """Show what a model of the folder RUN sees in IMAGES."""
    from penjing.again import predict as ask

    found = ask(run, images, top, column)
    if as_json:
        click.echo(json.dumps(found, indent=1))
        return
    for entry in found:
        click.echo(entry["image"])
        for answer in entry["answers"]:
            click.echo(f"  {answer['share']:7.1%}  {answer['label']}")
        for output in entry["outputs"]:
            click.echo(
                f"  {output['name']} {output['shape']}: from {output['low']:.4g} to {output['high']:.4g}"
            )
