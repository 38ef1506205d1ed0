from __future__ import annotations

import sys
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from penjing import Context, Goal, Host, InputError, Model, PlanError, PluginError, Tensor, hookimpl
from penjing.step import Step, Technique

MODEL = Model("torch", object(), "here", "0", (Tensor("input", (1, 3, 8, 8)),))


def technique(called: str, **changes: Any) -> type[Technique]:
    def apply(self: Technique, model: Model, context: Context) -> Model:
        return model

    about = {"name": called, "accepts": frozenset({"torch"}), "produces": "torch", "__doc__": "Do nothing."}
    return dataclass(frozen=True)(type("Nothing", (Technique,), {**about, "apply": apply, **changes}))


def plugin(name: str, **hooks: Callable[..., Any]) -> SimpleNamespace:
    return SimpleNamespace(__name__=name, **{hook: hookimpl(answer) for hook, answer in hooks.items()})


def bringing(name: str, *steps: Any) -> SimpleNamespace:
    return plugin(name, penjing_techniques=lambda: list(steps))


def host(*plugins: object) -> Host:
    return Host(plugins, entry_points=False)


def context(folder: Path) -> Context:
    device = host().device("x86-64-avx2")
    return Context(device, Goal(), None, folder, backend=None)  # type: ignore[arg-type]  # no step here asks for it


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Generator[Callable[[str, str], None]]:
    """Install a distribution with one module, which is its one plugin, as pip would."""
    monkeypatch.syspath_prepend(tmp_path)
    modules = []

    def install(name: str, code: str) -> None:
        modules.append(f"plugin_{name}")
        (tmp_path / f"plugin_{name}.py").write_text(code)
        about = tmp_path / f"penjing_{name}-1.5.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: penjing-{name}\nVersion: 1.5\n")
        (about / "entry_points.txt").write_text(f"[penjing]\n{name} = plugin_{name}\n")

    yield install
    for module in modules:
        sys.modules.pop(module, None)


GOOD = """
from dataclasses import dataclass
from penjing import Technique, hookimpl

@dataclass(frozen=True)
class Wish(Technique):
    '''Wish.'''
    name = "test.wish"
    accepts = frozenset({"torch"})
    produces = "torch"

    def apply(self, model, context):
        return model

@hookimpl
def penjing_techniques():
    return [Wish]
"""


def test_two_hosts_share_nothing() -> None:
    one, other = host(bringing("a", technique("test.a"))), host(bringing("b", technique("test.b")))

    assert set(one.steps) == {"test.a"}
    assert set(other.steps) == {"test.b"}
    assert set(host().steps) == set()


def test_the_same_plugin_may_join_two_hosts() -> None:
    shared = bringing("shared", technique("test.a"))

    assert set(host(shared).steps) == set(host(shared).steps) == {"test.a"}


def test_a_step_that_comes_twice_names_both_plugins() -> None:
    with pytest.raises(PluginError, match=r"'test\.a' comes twice: from (one and from two|two and from one)"):
        host(bringing("one", technique("test.a")), bringing("two", technique("test.a"))).steps  # noqa: B018 - asked for


def test_a_misspelt_hook_is_an_error() -> None:
    with pytest.raises(PluginError, match="penjing_technique") as caught:
        host(plugin("one", penjing_technique=lambda: [1]))

    assert "penjing.hookspecs" in caught.value.hint


def test_a_hook_with_an_argument_that_is_not_given_is_an_error() -> None:
    with pytest.raises(PluginError, match=r"one cannot be registered.*colour"):
        host(plugin("one", penjing_open=lambda source, colour: None))


def test_a_hook_need_not_take_every_argument() -> None:
    assert host(plugin("one", penjing_open=lambda source: MODEL)).open("here") is MODEL


def test_what_brings_things_cannot_be_wrapped() -> None:
    def wrapper() -> Generator[None, Any, Any]:
        return (yield)

    wrapping = SimpleNamespace(__name__="one", penjing_techniques=hookimpl(wrapper=True)(wrapper))
    with pytest.raises(PluginError, match="one wraps penjing_techniques"):
        host(wrapping)


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (object, "has no name"),
        (type("Plain", (), {"name": "test.plain"}), "not a dataclass derived"),
        (type("NoDataclass", (Step,), {"name": "test.step"}), "not a dataclass derived"),
        (technique("test.a")(), "not a dataclass derived"),
    ],
)
def test_what_is_no_step_is_refused(item: Any, message: str) -> None:
    with pytest.raises(PluginError, match=message):
        host(bringing("one", item)).steps  # noqa: B018 - asked for


def test_a_plugin_given_by_hand_that_fails_is_an_error() -> None:
    def fail() -> list[Any]:
        raise OSError("libfast.so.3: cannot open shared object file")

    with pytest.raises(PluginError, match=r"one fails in penjing_backends: OSError: libfast"):
        host(plugin("one", penjing_backends=fail))


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import missing_library", "ModuleNotFoundError: No module named 'missing_library'"),
        ("raise OSError('libfast.so.3: cannot open\\nmore')", "OSError: libfast.so.3: cannot open"),
        ("raise SystemExit(1)", "SystemExit: 1"),
        ("def broken(:", "SyntaxError: invalid syntax"),
        ("from penjing import PlanError\nraise PlanError('This needs a licence.')", "This needs a licence."),
        (
            "from penjing import hookimpl\n@hookimpl\ndef penjing_backends():\n    import missing_library",
            "ModuleNotFoundError: No module named 'missing_library'",
        ),
    ],
    ids=["import", "library", "exit", "syntax", "own", "when asked"],
)
def test_a_broken_plugin_is_listed_with_its_reason_and_the_rest_works(
    install: Callable[[str, str], None], code: str, reason: str
) -> None:
    install("bad", code)
    install("good", GOOD)

    found = Host()

    assert found.broken["bad"].startswith(reason)
    assert "\n" not in found.broken["bad"]
    assert "good" not in found.broken
    assert issubclass(found.step("test.wish"), Technique)
    assert found.origin("test.wish") == "penjing-good 1.5"
    assert found.hooks_of("good") == ["penjing_techniques"]


def test_an_unknown_step_is_refused_with_the_nearest_and_with_what_is_broken(
    install: Callable[[str, str], None],
) -> None:
    install("bad", "import missing_library")
    install("good", GOOD)

    with pytest.raises(PlanError, match=r"no step 'test\.wihs'") as caught:
        Host().step("test.wihs")

    assert caught.value.hint.startswith("Did you mean test.wish?")
    assert "bad (ModuleNotFoundError: No module named 'missing_library')" in caught.value.hint


def test_two_plugins_of_one_name_do_not_stop_the_rest(
    install: Callable[[str, str], None], tmp_path: Path
) -> None:
    install("good", GOOD)
    install("other", "")
    (tmp_path / "penjing_other-1.5.dist-info" / "entry_points.txt").write_text(
        "[penjing]\ngood = plugin_other\n"
    )

    found = Host()

    assert [bool(found.broken)] == [True]
    assert "already registered" in found.broken["good"]


def test_without_entry_points_only_the_plugins_given_take_part(install: Callable[[str, str], None]) -> None:
    install("good", GOOD)

    found = Host(entry_points=False)

    assert found.plugins == []
    assert found.steps == {}
    assert set(found.tasks) == {"classification", "fidelity"}
    assert found.profiles


def test_a_wrapper_sees_every_step_carried_out(tmp_path: Path) -> None:
    seen: list[tuple[str, str]] = []

    @hookimpl(wrapper=True)
    def penjing_apply(step: Step, model: Model) -> Generator[None, Model, Model]:
        seen.append(("before", step.name))
        try:
            return (yield)
        finally:
            seen.append(("after", step.name))

    step = technique("test.a")
    found = host(bringing("one", step), SimpleNamespace(__name__="watch", penjing_apply=penjing_apply))

    assert found.apply(step(), MODEL, context(tmp_path)) is MODEL
    assert seen == [("before", "test.a"), ("after", "test.a")]


def test_a_wrapper_sees_an_error_that_goes_on_to_the_caller(tmp_path: Path) -> None:
    seen: list[str] = []

    @hookimpl(wrapper=True)
    def penjing_apply(step: Step) -> Generator[None, Model, Model]:
        try:
            return (yield)
        except ZeroDivisionError as error:
            seen.append(str(error))
            raise

    def fail(self: Step, model: Model, context: Context) -> Model:
        raise ZeroDivisionError("no images")

    found = host(SimpleNamespace(__name__="watch", penjing_apply=penjing_apply))
    with pytest.raises(ZeroDivisionError):
        found.apply(technique("test.a", apply=fail)(), MODEL, context(tmp_path))

    assert seen == ["no images"]


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (MODEL.become("onnx", Path("x.onnx")), "promised form 'torch' and returned 'onnx'"),
        (None, "returned no model, but None"),
        ("model", "returned no model, but 'model'"),
    ],
)
def test_a_step_that_returns_something_else_breaks_its_promise(
    tmp_path: Path, result: Any, message: str
) -> None:
    step = technique("test.a", apply=lambda self, model, context: result)

    with pytest.raises(PluginError, match=message):
        host().apply(step(), MODEL, context(tmp_path))


def test_a_source_that_nobody_opens_is_refused_with_what_is_broken(
    install: Callable[[str, str], None],
) -> None:
    install("bad", "import missing_library")

    with pytest.raises(InputError, match="Nothing here can open 'x:y:z'") as caught:
        Host().open("x:y:z")

    assert "torchvision:" in caught.value.hint
    assert "bad (ModuleNotFoundError" in caught.value.hint


def test_a_technique_is_no_backend() -> None:
    with pytest.raises(PlanError, match="is a technique, not a backend"):
        host(bringing("one", technique("test.a"))).backend("test.a")


def test_a_plugins_recipe_comes_before_the_profiles() -> None:
    from penjing import Recipe, Use

    mine = Recipe((Use("test.a"),), "mine")
    bare, found = host(), host(plugin("one", penjing_recipe=lambda model: mine))
    device = bare.device("x86-64-avx2")

    assert found.recipe(device, MODEL, Goal()) is mine
    assert bare.recipe(device, MODEL, Goal()).origin == "the profile of x86-64-avx2"


def test_a_plugins_commands_join_the_command_line() -> None:
    import click

    cli = click.Group()
    host(plugin("one", penjing_commands=lambda cli: cli.add_command(click.Command("hello")))).add_commands(
        cli
    )

    assert list(cli.commands) == ["hello"]
