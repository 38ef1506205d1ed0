"""docs/plugins.md describes the hooks as they are, and its examples are files that pass their tests."""

from __future__ import annotations

import inspect
import itertools
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from penjing import Host, hookspecs
from penjing.recipe import from_tables
from penjing.step import Backend, Step

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "penjing-lottery"
PAGE = (ROOT / "docs" / "plugins.md").read_text(encoding="utf-8")
HOOKS = {name: hook for name, hook in vars(hookspecs).items() if hasattr(hook, "penjing_spec")}


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


def sections() -> Iterator[tuple[str, str]]:
    """Yield the title and text of each section of the third level."""
    for part in re.split(r"^### ", PAGE, flags=re.MULTILINE)[1:]:
        title, _, text = part.partition("\n")
        yield title, re.split(r"^## ", text, flags=re.MULTILINE)[0]


@pytest.fixture
def lottery() -> ModuleType:
    """Return the module shown on the page, made from the page."""
    module = ModuleType("penjing_lottery")
    sys.modules[module.__name__] = module  # dataclasses look there for annotations
    exec(compile(blocks("python")[0], "plugins.md", "exec"), module.__dict__)  # the example is the test
    del sys.modules[module.__name__]
    return module


def test_the_technique_shown_is_the_example() -> None:
    assert blocks("python")[0] == (EXAMPLE / "penjing_lottery.py").read_text(encoding="utf-8")


def test_the_technique_has_no_more_lines_than_the_title_says() -> None:
    lines = [line for line in blocks("python")[0].splitlines() if line.strip()]

    assert "## Write a technique in 30 lines" in PAGE
    assert len(lines) <= 30


def test_the_test_shown_is_the_examples() -> None:
    assert (EXAMPLE / "test_penjing_lottery.py").read_text(encoding="utf-8") in blocks("python")


def test_the_entry_point_shown_is_the_examples() -> None:
    assert blocks("toml")[0] in (EXAMPLE / "pyproject.toml").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_example_passes_its_test() -> None:
    """As its author would run it; what `pip install` does for the path is done by hand."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "."]
    path = {**os.environ, "PYTHONPATH": str(EXAMPLE)}
    result = subprocess.run(command, cwd=EXAMPLE, env=path, capture_output=True, text=True, check=False)

    assert result.returncode == 0, result.stdout + result.stderr
    assert "1 passed" in result.stdout


def test_the_recipe_shown_fits_together(lottery: ModuleType) -> None:
    from penjing import toml
    from penjing.options import build

    host = Host([lottery])
    uses = from_tables(toml.loads(blocks("toml")[1])["recipe"], "the page").uses
    steps = [build(host.step(use.name), use.name, use.options) for use in uses]

    assert all(step.produces in after.accepts for step, after in itertools.pairwise(steps))
    assert isinstance(steps[-1], Backend)


def test_every_hook_has_a_section_with_its_signature_and_says_what_it_does() -> None:
    found = dict(sections())

    assert len(HOOKS) >= 8
    for name, hook in HOOKS.items():
        signature = inspect.signature(hook)
        text = found[f"{name}({', '.join(signature.parameters)})"].strip()
        line, _, description = text.partition("\n")
        assert line == "`" + str(signature).replace("'", "") + "`", name
        assert len(description.split()) > 5, name


def test_there_is_no_section_for_a_hook_that_is_not_there() -> None:
    titles = {title.partition("(")[0] for title, _ in sections() if title.startswith("penjing_")}

    assert titles == set(HOOKS)


@pytest.mark.parametrize("name", HOOKS)
def test_every_hook_has_a_docstring(name: str) -> None:
    assert inspect.getdoc(HOOKS[name])


def test_every_part_of_a_step_is_on_the_page() -> None:
    own = {name for kind in (Step, Backend) for name in vars(kind) | vars(kind).get("__annotations__", {})}
    public = {name for name in own if not name.startswith("_")} - {"threads"}

    assert {name for name in public if not re.search(rf"`{name}[`(]", PAGE)} == set()


def test_the_wrapper_shown_times_a_step(lottery: ModuleType, tmp_path: Path) -> None:
    from penjing import Context, Goal, Model

    code = next(block for block in blocks("python") if "wrapper=True" in block)
    timer = ModuleType("timer")
    exec(compile(code, "plugins.md", "exec"), timer.__dict__)  # the example is the test
    host = Host([lottery, timer], entry_points=False)
    backend: Any = None
    context = Context(host.device("x86-64-avx2"), Goal(), None, tmp_path, backend)

    class Idle(lottery.Lottery):  # type: ignore[misc, name-defined]  # a base made at run time
        """Do nothing."""

        def apply(self, model: Model, context: Context) -> Model:
            return model

    host.apply(Idle(), Model("torch", None, "here", "0", ()), context)

    assert context.details["my_seconds"] >= 0
