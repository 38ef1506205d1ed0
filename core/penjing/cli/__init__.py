"""The command line."""

from __future__ import annotations

import sys
from typing import Any

import click

from penjing import __version__
from penjing.cli.asking import compress, demo, plan
from penjing.cli.finished import deploy, measure, predict, report
from penjing.cli.looking import devices, doctor, plugins
from penjing.cli.showing import FAULT
from penjing.errors import PenjingError


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


for _command in (compress, plan, devices, plugins, doctor, report, deploy, measure, predict, demo):
    cli.add_command(_command)


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
