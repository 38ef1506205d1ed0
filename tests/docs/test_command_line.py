"""docs/command-line.md says what `--help` says; `python tests/docs/test_command_line.py` writes it anew."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click
from penjing.cli import cli
from penjing.host import Host
from penjing.options import options_of

PAGE = Path(__file__).parents[2] / "docs" / "command-line.md"
#: those who bring the steps of the page; plugins that happen to be installed stay out of it
OURS = (
    "penjing_torch",
    "penjing_onnx",
    "penjing_onnxrt",
    "penjing_quant",
    "penjing_prune",
    "penjing_distill",
    "penjing_tensorrt",
)

HEAD = """# Command line

What `penjing COMMAND --help` says. `--json` prints on standard output for machines, progress goes to standard error.
The global option `--debug` goes before the command.

| exit code | meaning |
|--|--|
| 0 | done; every demand is met, or none was made |
| 1 | an error of another kind; `doctor`: a problem was found |
| 2 | the command line cannot be read |
| 3 | the plan is refused, or a file that was given cannot be used: nothing has run |
| 4 | a step failed; what came before it is kept |
| 5 | a plugin broke its promise |
| 10 | done, and a demand is not met |
| 11 | done, and a demand cannot be decided from so few photographs or runs |
| 70 | a fault in Penjing or a plugin that nobody foresaw |
| 130 | stopped from the keyboard; the same command goes on |
"""

STEPS = """
## Options of steps

`--set STEP.OPTION=VALUE` changes one, and a `[[recipe]]` table takes the same names.
`penjing plugins STEP` lists those of every plugin installed.
"""


def page() -> str:
    """Return the page as it should be."""
    return HEAD + "".join(_commands()) + STEPS + "".join(_steps())


def _commands() -> Iterator[str]:
    top = click.Context(cli, info_name="penjing", **cli.context_settings)
    from importlib import import_module

    plugins = click.Group()
    Host([import_module(name) for name in OURS], entry_points=False).add_commands(plugins)
    own = {name: command for name, command in cli.commands.items() if name not in plugins.commands}
    for name, command in {**own, **dict(sorted(plugins.commands.items()))}.items():
        context = click.Context(command, info_name=name, parent=top, terminal_width=100)
        text = "\n".join(line.rstrip() for line in command.get_help(context).splitlines())
        yield f"\n## penjing {name}\n\n```text\n{text}\n```\n"


def _steps() -> Iterator[str]:
    from importlib import import_module

    host = Host([import_module(name) for name in OURS], entry_points=False)
    for name, step in sorted(host.steps.items()):
        yield f"\n### {name}\n\n{(step.__doc__ or '').strip().splitlines()[0]}\n"
        if options := options_of(step):
            yield "\n| option | default | takes | meaning |\n|--|--|--|--|\n"
        for option in options.values():
            yield f"| `{option.name}` | {_toml(option.default)} | {option.kind} | {option.help} |\n"


def _toml(value: object) -> str:
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def test_the_page_says_what_help_says() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), f"python {Path(__file__).name} writes it anew"


def test_every_exit_code_is_on_the_page() -> None:
    from penjing import errors
    from penjing.cli import showing

    kinds = (errors.PenjingError, errors.PlanError, errors.InputError, errors.StepError, errors.PluginError)
    codes = {kind.exit_code for kind in kinds} | {showing.NOT_MET, showing.NOT_DECIDABLE, showing.FAULT}

    assert {f"| {code} |" for code in codes} <= {
        line[: line.index("|", 1) + 1] for line in HEAD.splitlines() if line.startswith("|")
    }


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
