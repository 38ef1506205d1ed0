"""The command line itself: errors become one message and an exit code, and little is loaded for little."""

from __future__ import annotations

import subprocess
import sys

import click
import pytest
from penjing import cli as module
from penjing.cli import cli, main
from penjing.console import wrapped
from penjing.errors import InputError, PenjingError, PlanError, PluginError, StepError


@pytest.fixture
def penjing(monkeypatch, capsys):
    """Return a function that runs the command line and returns exit code, output and errors."""

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["penjing", *words])
        code = 0
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def failing(monkeypatch):
    """Return a function that makes `penjing fail` raise an error."""

    def install(error):
        def fail():
            raise error

        monkeypatch.setitem(cli.commands, "fail", click.Command("fail", callback=fail))

    return install


@pytest.mark.parametrize(
    ("kind", "code"), [(PenjingError, 1), (PlanError, 3), (InputError, 3), (StepError, 4), (PluginError, 5)]
)
def test_each_kind_of_error_has_its_exit_code_one_message_and_a_hint(penjing, failing, kind, code):
    failing(kind("It is so.", hint="Do this."))
    assert penjing("fail") == (code, "", "error: It is so.\nwhat to do: Do this.\n")
    failing(kind("It is so."))
    assert penjing("fail") == (code, "", "error: It is so.\n")


def test_an_error_that_nobody_foresaw_is_owned_up_to(penjing, failing):
    failing(ZeroDivisionError("division by zero"))
    code, out, err = penjing("fail")
    assert (code, out) == (70, "")
    assert "a fault in Penjing or a plugin: ZeroDivisionError: division by zero" in err
    assert "--debug" in err
    assert "Traceback" not in err


@pytest.mark.parametrize("error", [StepError("It is so."), ZeroDivisionError("no")])
def test_debug_lets_the_error_through(penjing, failing, error):
    failing(error)
    with pytest.raises(type(error)):
        penjing("--debug", "fail")


def test_the_keyboard_and_a_closed_pipe_have_the_exit_codes_of_a_shell(penjing, failing):
    failing(KeyboardInterrupt())
    assert penjing("fail")[0] == 130
    failing(BrokenPipeError())
    assert penjing("fail")[0] == 141


@pytest.mark.parametrize(
    "words",
    [
        ("compres",), ("compress",), ("compress", "x.onnx", "--colour"), ("compress", "x.onnx", "--seed", "-1"),
        ("compress", "x.onnx", "--seed", "4294967296"), ("compress", "x.onnx", "--max-broken", "nan"),
        ("compress", "x.onnx", "--max-broken", "1.1"), ("measure", "run", "--seconds", "nan"), ("predict", "run"),
        ("predict", "run", "x.png", "--column", "best"), ("report",),
    ],
)  # fmt: skip
def test_a_command_line_that_cannot_be_read_is_a_usage_error(penjing, words):
    code, out, err = penjing(*words)
    assert (code, out) == (2, "")
    assert "Usage: penjing" in err
    assert "Error: " in err


def test_help_and_version_are_no_errors(penjing):
    for words in (["--help"], ["-h"], ["--version"], *([name, "--help"] for name in cli.commands)):
        code, out, err = penjing(*words)
        assert (code, err) == (0, "")
        assert out.startswith(("Usage: penjing", "penjing, version"))


def test_every_option_says_what_it_is():
    for command in cli.commands.values():
        assert command.help
        for parameter in command.params:
            assert isinstance(parameter, click.Argument) or parameter.help, (command.name, parameter.name)


def test_commands_of_plugins_join_in(monkeypatch, penjing):
    from penjing.host import Host

    monkeypatch.setattr(Host, "add_commands", lambda self, group: group.add_command(click.Command("extra")))
    monkeypatch.setattr(cli, "_complete", False)
    assert "extra" in penjing("--help")[1]
    cli.commands.pop("extra")
    assert module.cli is cli


@pytest.mark.parametrize(
    "words", [["devices"], ["devices", "jetson-agx-orin"], ["plugins"], ["plugins", "quant.static"]]
)
def test_listings_are_no_wider_than_80_columns(penjing, words):
    code, shown, _ = penjing(*words)

    assert code == 0
    assert max(map(len, shown.splitlines())) <= 80


def test_an_unknown_step_is_told_with_the_nearest(penjing):
    code, _, told = penjing("plugins", "quant.statik")

    assert code == 3
    assert "quant.static" in told


@pytest.mark.parametrize("words", [["--help"], ["devices"], ["plugins"], ["compress", "--help"]])
def test_little_is_loaded_for_little(words):
    program = f"""
import sys
sys.argv = ["penjing", *{words!r}]
from penjing.cli import main
try:
    main()
except SystemExit:
    pass
heavy = {{"torch", "onnx", "onnxruntime", "torchvision", "numpy", "PIL"}} & set(sys.modules)
sys.stderr.write(",".join(sorted(heavy)))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert done.stdout


def test_lines_fit_the_terminal_words_stay_whole_and_a_terminal_obeys_nothing(monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")

    text = wrapped("a\x1b[31m name " + "x" * 30 + " and more words", first="! ", then="  ")

    assert text.splitlines() == ["! a\N{REPLACEMENT CHARACTER}[31m name", "  " + "x" * 30, "  and more words"]


def test_what_speaks_of_a_board_is_refused_without_one(penjing):
    code, _, error = penjing("measure", "run", "--path", "there")

    assert code == 2
    assert "--host" in error
