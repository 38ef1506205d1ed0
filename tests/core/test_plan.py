"""Plans: what is refused before anything runs, what is left out, and what is shown."""

from __future__ import annotations

import dataclasses
import io
import math
from pathlib import Path

import pytest
from penjing import plan_view
from penjing.api import Request, compress, plan
from penjing.errors import InputError, PlanError
from penjing.goal import Goal
from penjing.host import Host
from penjing.model import Model, Tensor
from penjing.options import build
from penjing.plan import _obstacle


@pytest.fixture
def made(toy, host, place):
    """Return a function that plans with a recipe of the tables given."""

    def go(*tables, **changes):
        if tables:
            toy.recipe(place, *tables)
        return plan(toy.request(place, **changes), host=host)

    return go


def test_the_columns_of_a_plan(made):
    planned = made()
    names = {column: [step.name for step in steps] for column, steps in planned.columns.items()}
    assert names == {
        "original": ["toy.tidy", "toy.run"],
        "direct": ["toy.tidy", "toy.round", "toy.run"],
        "optimised": ["toy.tidy", "toy.round", "toy.run"],
    }
    assert [step.digits for step in (planned.direct[1], planned.optimised[1])] == [0, 1]
    assert planned.backend.name == "toy.run"


def test_planning_writes_and_runs_nothing(made, place, toy):
    before = sorted(place.rglob("*"))
    made()
    assert sorted(place.rglob("*")) == before
    assert toy.applied == []


@pytest.mark.parametrize(
    ("tables", "message", "hint"),
    [
        (['"toy.tydi"', '"toy.run"'], "There is no step 'toy.tydi'", "toy.tidy"),
        (['"toy.round"\ndigit = 2', '"toy.run"'], "no option 'digit'", "digits"),
        (['"toy.round"\ndigits = 10', '"toy.run"'], "an integer from 0 to 9", ""),
        (['"toy.round"\ndigits = nan', '"toy.run"'], "not finite", ""),
        (['"toy.round"\ndigits = 1.5', '"toy.run"'], "not whole", ""),
        (['"toy.tidy"'], "0 backends", "onnxrt"),
        (['"toy.run"', '"toy.run"'], "2 backends", "onnxrt"),
        (['"toy.run"', '"toy.tidy"'], "the last step is no backend", "onnxrt"),
        (['"toy.run"\noptional = "yes"'], "step 1 of the recipe", "true or false"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused(made, tables, message, hint):
    with pytest.raises(PlanError, match=message) as error:
        made(*tables)
    assert hint in error.value.hint


def test_an_optional_step_that_cannot_run_is_left_out_with_the_reason(made):
    planned = made('"toy.magic"\noptional = true', '"toy.tidy"', '"toy.run"')
    assert [(line.use.name, line.left_out) for line in planned.lines] == [
        ("toy.magic", "No plugin installed here brings toy.magic."), ("toy.tidy", ""), ("toy.run", "")
    ]  # fmt: skip
    assert [step.name for step in planned.optimised] == ["toy.tidy", "toy.run"]


def test_a_step_that_needs_photographs_is_refused_without_and_left_out_where_optional(made):
    with pytest.raises(PlanError, match=r"toy\.round needs photographs") as error:
        made('"toy.round"', '"toy.run"', data=None)
    assert "--data" in error.value.hint
    planned = made('"toy.round"\noptional = true', '"toy.run"', data=None)
    assert "needs photographs" in planned.lines[0].left_out


def test_a_step_that_trains_is_refused_where_all_photographs_are_needed_otherwise(made, place):
    with pytest.raises(PlanError, match="to train on") as error:
        made('"toy.train"', '"toy.run"')
    assert "more than 32 are left" in error.value.hint


def test_a_typo_in_an_optional_steps_options_is_still_an_error(made):
    with pytest.raises(PlanError, match="no option"):
        made('"toy.round"\noptional = true\ndigit = 2', '"toy.run"')


@pytest.mark.parametrize("device", ["rtx-3090", "jetson-orin-nano", "jetson-nano", "t4"])
def test_a_device_whose_backend_is_not_installed_gets_a_plan_and_is_refused_clearly(
    made, toy, host, place, device
):
    planned = made(device=device, recipe=None)
    shown = plan_view.as_json(planned)
    assert "needs the backend 'tensorrt', which no plugin installed here brings" in shown["refusal"]
    assert shown["steps"][-1]["use"] == "tensorrt"
    assert shown["direct"] == []
    with pytest.raises(PlanError, match="tensorrt"):
        _ = planned.backend
    with pytest.raises(PlanError, match="tensorrt") as error:
        compress(toy.request(place, device=device, recipe=None), host=host)
    assert "penjing plan" in error.value.hint
    assert not (place / "run").exists()


def test_a_model_of_two_inputs_is_refused_by_name(made, host, monkeypatch):
    real = host.open

    def two(*arguments, **options):
        model = real(*arguments, **options)
        return dataclasses.replace(model, inputs=(*model.inputs, Tensor("mask", (1, 8))))

    monkeypatch.setattr(host, "open", two)
    with pytest.raises(PlanError, match=r"2 inputs \(x float32\[\?, 3, 8, 8\], mask float32\[1, 8\]\)"):
        made()


@pytest.mark.parametrize("dtype", ["float16", "uint8"])
def test_an_input_that_photographs_do_not_become_is_refused_by_its_type(made, host, monkeypatch, dtype):
    real = host.open
    given = (Tensor("x", (1, 3, 8, 8), dtype),)
    monkeypatch.setattr(host, "open", lambda *a, **o: dataclasses.replace(real(*a, **o), inputs=given))
    with pytest.raises(
        PlanError, match=rf"takes x {dtype}\[1, 3, 8, 8\]; photographs become numbers in float32"
    ):
        made()


def test_photographs_without_preprocessing_are_refused(made, host, monkeypatch):
    real = host.open
    monkeypatch.setattr(host, "open", lambda *a, **o: dataclasses.replace(real(*a, **o), preprocess=None))
    with pytest.raises(PlanError, match="not known") as error:
        made()
    assert "--preprocess" in error.value.hint


def test_a_source_that_ends_python_is_an_input_error(made, host, monkeypatch):
    def leaves(*arguments, **options):
        raise SystemExit(0)

    monkeypatch.setattr(host, "open", leaves)
    with pytest.raises(InputError, match="ends Python"):
        made()


def test_classes_go_with_the_model_that_has_as_many_outputs(made):
    assert made().model.labels == ("a", "b", "c")


def test_the_plan_as_people_read_it_fits_a_terminal_and_says_everything(made):
    from rich.console import Console

    planned = made(
        '"toy.magic"\noptional = true',
        '"toy.tidy"',
        '"toy.round"\ndigits = 2',
        '"toy.run"',
        goal=Goal(max_drop=1),
    )
    console = Console(width=80, file=io.StringIO(), record=True)
    console.print(plan_view.render(planned))
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 80
    for word in (
        "toy.magic",
        "left out: No plugin",
        "Copy the model.",
        "   digits=2",
        "takes x float32",
        "calibrate",
        "recipe.toml",
    ):
        assert word in text.replace("\n", "")


@pytest.mark.parametrize("bound", [float("nan"), float("inf"), -1.0])
def test_a_demand_that_no_result_could_be_held_to_is_refused(bound):
    with pytest.raises(PlanError, match="max_drop is"):
        Goal(max_drop=bound)


def test_an_onnx_file_given_to_a_step_for_pytorch_is_told_to_open_its_source() -> None:
    host, step = Host(), build(Host().step("prune.structured"), "prune.structured", {})
    given = Model("onnx", Path("m.onnx"), "m.onnx", "0", (Tensor("input", (1, 3, 8, 8)),))
    device = host.device("x86-64-avx2")
    _, hint = _obstacle(step, "onnx", given, device, host.backend(device.backend), None)

    assert "source in Python" in hint
    assert "leave prune.structured out" in hint


def test_a_plan_says_what_its_first_step_leaves_as_it_is_and_why(made, toy, monkeypatch):
    parts = tuple((f"layer{i}", f"a sum mixes them in layer{i} (net.py:{i})") for i in range(5))
    planned = made('"toy.round"\ndigits = 2', '"toy.tidy"', '"toy.run"')
    monkeypatch.setattr(
        type(planned.lines[0].step), "stays", lambda self, model: (*parts, ("last", "it is an output"))
    )

    stay = plan_view.stays(planned)

    steps = plan_view.as_json(planned, stay)["steps"]
    assert steps[0]["stays"][0] == {"part": "layer0", "why": "a sum mixes them in layer0 (net.py:0)"}
    assert [len(step["stays"]) for step in steps] == [6, 0, 0]
    text = shown(planned, stay)
    assert "stays: layer0, layer1, layer2 and 2 more: a sum mixes them" in text
    assert "stays: last: it is an output" in text
    assert "net.py" not in text


def shown(planned, stay):
    """Return a plan as a wide terminal shows it."""
    from rich.console import Console

    console = Console(width=200, file=io.StringIO(), record=True)
    console.print(plan_view.render(planned, stay))
    return console.export_text()


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("source", 3, "text or a path"),
        ("device", None, "text or a path"),
        ("data", 3, "a path or None"),
        ("preprocess", {"resize": 8}, "a Preprocess"),
        ("recipe", {"use": "toy.run"}, "a path or None"),
        ("settings", "toy.round.digits=2", "a tuple of texts"),
        ("settings", (3,), "STEP.OPTION=VALUE"),
        ("goal", {"max_drop": 1}, "a Goal"),
        ("seed", "1", "a whole number"),
        ("seed", True, "a whole number"),
        ("seed", 2**40, "from 0 to"),
        ("max_broken", math.nan, "from 0 to 1"),
    ],
)
def test_a_request_names_the_field_whose_value_is_of_another_kind(field, value, words):
    with pytest.raises(PlanError) as error:
        Request(**{"source": "model.onnx", "device": "this-machine", field: value})
    assert field in error.value.message
    assert words in error.value.message + error.value.hint


def test_a_request_takes_paths_as_text_and_texts_as_paths():
    asked = Request(Path("m.onnx"), Path("board.toml"), data="photos", settings=["a.b=1"], out="run")
    assert asked == Request("m.onnx", "board.toml", Path("photos"), settings=("a.b=1",), out=Path("run"))
    assert asked.command == "penjing compress m.onnx --device board.toml --data photos --set a.b=1 --out run"


@pytest.mark.parametrize("bound", ["1", True, [1]])
def test_a_demand_that_is_no_number_is_refused(bound):
    with pytest.raises(PlanError, match="must be a number"):
        Goal(max_drop=bound)
