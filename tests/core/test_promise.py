"""Steps of other people with one fault each: one clear error, and nothing of it is kept."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from penjing.api import compress
from penjing.errors import PenjingError, PlanError, PluginError, StepError
from penjing.exhibit import Bars, Table
from penjing.hookspecs import hookimpl
from penjing.host import Host
from penjing.options import option
from penjing.step import Backend, Technique

ONNX = frozenset({"onnx"})


def technique(**changes) -> type[Technique]:
    """Return a technique that is right but for the changes."""
    said = {"name": "bad.step", "accepts": ONNX, "produces": "onnx", "__doc__": "Do nothing.", **changes}
    said.setdefault("apply", lambda self, model, context: model)
    return dataclass(frozen=True)(type("Bad", (Technique,), {k: v for k, v in said.items() if v is not None}))


def fails(*_):
    return 1 / 0


@pytest.fixture
def run(toy, place):
    """Return a function that carries out the job with a step in the middle, and returns the error."""

    def go(kind: type[Technique], table: str = '"bad.step"') -> PenjingError:
        plugin = SimpleNamespace(__name__="bad", penjing_techniques=hookimpl(lambda: [kind]))
        toy.recipe(place, '"toy.tidy"', table, '"toy.run"')
        with pytest.raises(PenjingError) as error:
            compress(toy.request(place), host=Host([toy, plugin], entry_points=False))
        assert not list((place / "run").glob("steps/bad.step-*")), "what is at fault is not kept"
        assert not (place / "run" / "report.json").exists()
        return error.value

    return go


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": 3}, "has no name"),
        ({"name": "../x"}, "its name must be of letters"),
        ({"accepts": None}, "accepts must be a frozenset"),
        ({"accepts": "onnx"}, "accepts must be a frozenset"),
        ({"produces": None}, "produces must be a form"),
        ({"needs": frozenset({"luck"})}, "needs must be a frozenset of calibration"),
        ({"__annotations__": {"share": "float"}}, "share has no default"),
        (
            {"__annotations__": {"share": "Nowhere"}, "share": option(1, "A share.")},
            "'Nowhere' is not defined",
        ),
    ],
)
def test_a_step_that_is_not_declared_as_it_must_be_is_told(run, changes, words):
    error = run(technique(**changes))
    assert isinstance(error, PluginError)
    assert words in error.message


@pytest.mark.parametrize("method", ["check", "check_source", "explain", "naive", "resources", "sources"])
def test_a_method_that_raises_by_mistake_is_named(run, method):
    error = run(technique(**{method: fails}))
    assert isinstance(error, PluginError)
    assert error.message == f"bad.step fails in {method}: ZeroDivisionError: division by zero"
    assert error.hint


@pytest.mark.parametrize(
    ("method", "answer"), [("explain", None), ("naive", 3), ("sources", ("teacher",))], ids=str
)
def test_a_method_that_returns_something_else_is_named(run, method, answer):
    error = run(technique(**{method: lambda *_: answer}))
    assert isinstance(error, PluginError)
    assert f"bad.step.{method}() returned" in error.message


@pytest.mark.parametrize(
    ("tell", "field"),
    [
        (lambda context: context.details.update(x={1, 2}), "details.x"),
        (lambda context: context.details.update(x=float("nan")), "details.x"),
        (lambda context: context.details.update(x={1: 2}), "details.x"),
        (lambda context: context.warn(3), "warnings[0]"),
        (lambda context: context.show(Bars("t", "ms", {"a": float("nan")})), "exhibits[0].values.a"),
        (lambda context: context.show(Table("t", ["a"], [[1]])), "exhibits[0].rows[0][0]"),
        (lambda context: context.show("a picture"), "what it tells the report"),
    ],
)
def test_what_no_report_can_hold_is_told_before_the_step_is_kept(run, tell, field):
    def apply(self, model, context):
        tell(context)
        return model

    error = run(technique(apply=apply))
    assert isinstance(error, PluginError)
    assert field in error.message


def test_a_step_that_ends_python_fails_as_any_other(run):
    def apply(self, model, context):
        raise SystemExit(3)

    error = run(technique(apply=apply))
    assert isinstance(error, StepError)
    assert "bad.step failed: SystemExit: 3" in error.message


def test_a_step_that_writes_into_the_model_it_was_given_is_found_out(run, toy, place):
    def apply(self, model, context):
        model.value.write_text("9 9 9")
        return model

    error = run(technique(apply=apply))
    assert isinstance(error, PluginError)
    assert "bad.step changed the model that it was given" in error.message
    toy.recipe(place, '"toy.tidy"', '"toy.run"')
    report = compress(toy.request(place), host=Host([toy], entry_points=False))
    assert report["columns"][0]["accuracy"]
    assert (place / "run/original/model.onnx").read_text() == "1.04 1.01 0.97", "it was made anew"


@pytest.mark.parametrize("made", ["nothing", "folder", "link"])
def test_what_a_step_returns_must_be_a_file_of_its_own(run, made):
    def apply(self, model, context):
        path: Path = context.folder / "result.onnx"
        if made == "folder":
            path.mkdir()
        elif made == "link":
            path.symlink_to(model.value)
        return model.become("onnx", path)

    error = run(technique(apply=apply))
    assert isinstance(error, PluginError)
    assert "result.onnx" in error.message


def test_options_that_do_not_go_together_are_refused_in_the_words_of_the_step(run):
    def together(self):
        raise ValueError("low is above high")

    error = run(technique(__post_init__=together))
    assert isinstance(error, PlanError)
    assert "low is above high" in error.message


@pytest.mark.parametrize("answer", ["a model", fails], ids=["text", "error"])
def test_a_plugin_that_opens_a_source_wrongly_is_told(toy, place, answer):
    def opened(source, weights, preprocess):
        return answer() if callable(answer) else answer

    plugin = SimpleNamespace(__name__="bad", penjing_open=hookimpl(tryfirst=True)(opened))
    with pytest.raises(PluginError, match=r"model\.onnx"):
        compress(toy.request(place), host=Host([toy, plugin], entry_points=False))


def test_a_plugin_whose_recipe_is_none_is_told(toy, place):
    def recipe(device, model, goal):
        return "smaller"

    plugin = SimpleNamespace(__name__="bad", penjing_recipe=hookimpl(recipe))
    with pytest.raises(PluginError, match="no Recipe with steps, but 'smaller'"):
        compress(toy.request(place), host=Host([toy, plugin], entry_points=False))


def backend(**changes) -> type[Backend]:
    """Return a backend that is right but for the changes."""
    said = {
        "name": "bad.run", "accepts": ONNX, "produces": "onnx", "exact": True, "__doc__": "Run.",
        "apply": lambda self, model, context: model,
        "available": lambda self, device: "it is elsewhere",
        "open": lambda self, model, device: lambda batch: [batch.mean(axis=(2, 3))],
        **changes,
    }  # fmt: skip
    return dataclass(frozen=True)(type("Bad", (Backend,), {k: v for k, v in said.items() if v is not None}))


def run_on(toy, place, kind: type[Backend]):
    plugin = SimpleNamespace(__name__="bad", penjing_backends=hookimpl(lambda: [kind]))
    toy.recipe(place, '"toy.tidy"', '"bad.run"')
    return compress(toy.request(place), host=Host([toy, plugin], entry_points=False))


def test_a_backend_without_fault_is_measured(toy, place):
    assert run_on(toy, place, backend())["columns"][0]["accuracy"]["value"] > 0.9


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"open": None}, "it has no method open"),
        ({"available": fails}, "bad.run fails in available"),
        ({"open": fails}, "bad.run fails in open"),
        ({"deployment": fails}, "bad.run fails in deployment"),
        ({"resources": lambda *_: {"share": float("nan")}}, "bad.run fails in resources"),
        ({"open": lambda *_: fails}, "The backend fails in running a model: ZeroDivisionError"),
        ({"open": lambda *_: lambda batch: None}, "no list of arrays of numbers, but None"),
        ({"open": lambda *_: lambda batch: []}, "no list of arrays"),
        ({"open": lambda *_: lambda batch: [[1, 2, 3]]}, "no list of arrays"),
        ({"open": lambda *_: lambda batch: [np.array(["a"])]}, "no list of arrays"),
    ],
)
def test_a_backend_at_fault_is_told_and_nothing_is_reported(toy, place, changes, words):
    with pytest.raises(PluginError) as error:
        run_on(toy, place, backend(**changes))
    assert words in error.value.message
    assert not (place / "run" / "report.json").exists()


def test_fewer_answers_than_photographs_are_no_accuracy(toy, place):
    kind = backend(open=lambda *_: lambda batch: [batch.mean(axis=(2, 3))[:1]])
    with pytest.raises(StepError, match=r"answers 1 photographs of \d+ "):
        run_on(toy, place, kind)
