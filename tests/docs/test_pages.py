"""Every page says what is true of the code: links, commands, options, hooks, TOML and Python."""

from __future__ import annotations

import ast
import itertools
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from penjing import toml
from penjing.cli import cli
from penjing.device import read_profile
from penjing.host import Host
from penjing.options import build, options_of
from penjing.preprocess import Preprocess
from penjing.recipe import from_tables

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())

BLOCK = re.compile(r"^( *)```(\w*)\n(.*?)^\1```", re.DOTALL | re.MULTILINE)


@each_page
def test_links_resolve(page: Path) -> None:
    text = BLOCK.sub("", _text(page))
    targets = re.findall(r"\]\(([^)\s]+)\)|(?:src|srcset)=\"([^\"]+)\"", text)
    dead = []
    for target in ("".join(pair) for pair in targets):
        if target.startswith(("https://", "http://", "mailto:")):
            continue
        name, _, anchor = target.partition("#")
        linked = page.parent / name if name else page
        if not linked.exists() or (anchor and anchor not in _anchors(linked)):
            dead.append(target)

    assert dead == []


@each_page
def test_commands_and_their_options_exist(page: Path) -> None:
    wrong = []
    for line in _commands(page):
        words = [word for word in shlex.split(line, comments=True)[1:] if word != "--debug"]
        if not words or words[0].startswith("-") or not re.fullmatch(r"[a-z]+", words[0]):
            continue  # `penjing --help`, `penjing COMMAND`
        command = cli.get_command(click.Context(cli), words[0])  # plugins add theirs at first need
        if isinstance(command, click.Group) and len(words) > 1:
            command = command.commands.get(words[1])
        if command is None:
            wrong.append(line)
            continue
        known = {name for parameter in command.params for name in parameter.opts} | {"--help", "-h"}
        wrong += [
            f"{line}: {word}" for word in words if word.startswith("-") and word.split("=")[0] not in known
        ]

    assert wrong == []


@each_page
def test_settings_name_options_that_exist(page: Path) -> None:
    steps = Host().steps
    unknown = [
        setting
        for setting in re.findall(r"--set ([a-z]\S*=\S+?)(?=[\s`]|$)", _text(page))
        if not _builds(steps, setting) and not _brought_by_the_page(page, setting.rpartition(".")[0])
    ]

    assert unknown == []


@each_page
def test_hooks_exist(page: Path) -> None:
    from penjing import hookspecs

    named = set(re.findall(r"\b(penjing_\w+)\(", _text(page)))

    assert {name for name in named if not hasattr(hookspecs, name)} == set()


@each_page
def test_toml_is_read_by_what_reads_it(page: Path, tmp_path: Path) -> None:
    for text in _blocks(page, "toml"):
        _read_toml(toml.loads(text), text, page, tmp_path)


@each_page
def test_python_compiles(page: Path) -> None:
    for code in _blocks(page, "python"):
        ast.parse(code)


@each_page
def test_public_names_in_python_exist(page: Path) -> None:
    import penjing

    imported = itertools.chain.from_iterable(
        (alias.name for alias in node.names)
        for code in _blocks(page, "python")
        for node in ast.walk(ast.parse(code))
        if isinstance(node, ast.ImportFrom) and node.module == "penjing"
    )

    assert set(imported) <= set(penjing.__all__)


@each_page
def test_files_of_the_repository_exist(page: Path) -> None:
    named = re.findall(r"`((?:core|plugins|backends|scripts|examples)/[\w/.-]+)`", _text(page))

    assert [name for name in named if not (ROOT / name).exists()] == []


@each_page
def test_devices_exist(page: Path) -> None:
    """A name after --device is a profile, with its stack, or a file that a page shows."""
    host = Host()
    for line in _commands(page):
        for name in re.findall(r"--device ([a-z][\w@.-]*)", line):
            if not name.endswith(".toml"):
                host.device(name)


@pytest.mark.parametrize("command", sorted(cli.commands))
def test_every_command_is_explained_somewhere(command: str) -> None:
    generated = ROOT / "docs" / "command-line.md"

    assert any(f"penjing {command}" in _text(page) for page in PAGES if page != generated)


def _text(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def _blocks(page: Path, language: str) -> Iterator[str]:
    for indent, found, text in BLOCK.findall(_text(page)):
        if found == language:
            yield "".join(line.removeprefix(indent) for line in text.splitlines(keepends=True))


def _commands(page: Path) -> Iterator[str]:
    """Yield every command of Penjing on a page: in blocks of sh and between backticks."""
    for block in _blocks(page, "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            yield from re.findall(r"(?<![\w./-])penjing [^&|;]+", line.replace(".venv/bin/", ""))
    prose = BLOCK.sub("", _text(page))
    yield from re.findall(r"`(penjing [^`…]+)`", prose)


def _anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", BLOCK.sub("", _text(page)), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def _builds(steps: dict[str, Any], setting: str) -> bool:
    """Tell whether STEP.OPTION=VALUE names an option of a step here, and a value it takes."""
    path, _, value = setting.partition("=")
    name, _, option = path.rpartition(".")
    if name not in steps or option not in options_of(steps[name]):
        return False
    build(steps[name], name, {option: value})
    return True


def _brought_by_the_page(page: Path, step: str) -> bool:
    """Tell whether the Python on a page defines a step of that name, as a tutorial for plugins does."""
    return any(f'name = "{step}"' in code for code in _blocks(page, "python"))


def _read_toml(table: dict[str, Any], text: str, page: Path, folder: Path) -> None:
    if "backend" in table:
        path = folder / f"{table['name']}.toml"
        path.write_text(text, encoding="utf-8")
        read_profile(path)
    elif "recipe" in table:
        steps = Host().steps
        for use in from_tables(table["recipe"], page.name).uses:
            if not _brought_by_the_page(page, use.name):
                build(steps[use.name], use.name, use.options)
    elif not {"project", "build-system", "tool"} & set(table):
        Preprocess.from_dict(table)
