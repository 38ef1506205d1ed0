from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from penjing.errors import InputError, PlanError
from penjing.recipe import (
    LARGEST,
    Recipe,
    Use,
    builtin_recipes,
    from_tables,
    from_toml,
    override,
    with_device,
)

TEXT = """
[[recipe]]
use = "prune.lottery"
sparsity = 0.3
optional = true
[[recipe]]
use = "onnx.export"
"""
RECIPE = Recipe((Use("a.b", {"x": 1}), Use("c"), Use("a.b", {"x": 2})), "here")


def read(folder: Path, text: str | bytes) -> Recipe:
    path = folder / "recipe.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return from_toml(path)


def test_a_recipe_is_read_in_order(tmp_path: Path) -> None:
    recipe = read(tmp_path, TEXT)

    assert recipe.uses == (Use("prune.lottery", {"sparsity": 0.3}, optional=True), Use("onnx.export"))
    assert recipe.origin == str(tmp_path / "recipe.toml")


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("", "no steps", r"\[\[recipe\]\]"),
        ("[[recipes]]\nuse = 'a'", "unknown key 'recipes'", r"\[\[recipe\]\]"),
        ("[recipe]\nuse = 'a'", "not a list of tables", "two brackets"),
        ("recipe = ['a']", "not a list of tables", "two brackets"),
        ("[[recipe]]\nuse = 'a'\n[[recipe]]\nuze = 'b'", "step 2 of the recipe is not readable", "use ="),
        ("[[recipe]]\nuse = 3", "step 1 of the recipe is not readable", "use ="),
        ("[[recipe]]\nuse = 'a'\noptional = 'yes'", "step 1 of the recipe is not readable", "true or false"),
        ("[[recipe]\nuse = 'a'", "not valid TOML", ""),
        (b"use = '\xff'", "not valid TOML", ""),
        ("a = " + "[" * 50_000, "not valid TOML", ""),
        ("#" * (LARGEST + 1), "larger than 64 KiB", ""),
    ],
    ids=lambda value: None if len(value) > 99 else value,
)
def test_a_recipe_that_cannot_be_read_says_where_and_why(
    tmp_path: Path, text: str | bytes, message: str, hint: str
) -> None:
    import re

    with pytest.raises(InputError, match=message) as caught:
        read(tmp_path, text)

    assert "recipe.toml" in caught.value.message
    assert re.search(hint, caught.value.hint)


def test_a_recipe_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        from_toml(tmp_path / "none.toml")


@given(st.text(max_size=60))
def test_any_text_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    try:
        recipe = read(tmp_path_factory.getbasetemp(), text)
    except InputError:
        return

    assert recipe.uses


def test_a_setting_reaches_every_step_of_that_name_and_no_other() -> None:
    changed = override(RECIPE, ["a.b.x=3", "c.y = some text "])

    assert [dict(use.options) for use in changed.uses] == [{"x": "3"}, {"y": "some text"}, {"x": "3"}]
    assert [dict(use.options) for use in RECIPE.uses] == [{"x": 1}, {}, {"x": 2}]


def test_the_last_of_two_settings_counts_and_a_value_may_hold_anything() -> None:
    changed = override(RECIPE, ["c.y=1", "c.y=a=b.c"])

    assert changed.uses[1].options == {"y": "a=b.c"}


@pytest.mark.parametrize("setting", ["", "c", "c.y", "c=1", "=", ".y=1", "c.=1", ".=1"])
def test_a_setting_that_cannot_be_read_is_refused(setting: str) -> None:
    with pytest.raises(PlanError, match="is not readable") as caught:
        override(RECIPE, [setting])

    assert "STEP.OPTION=VALUE" in caught.value.hint


def test_a_setting_for_a_step_that_is_not_there_is_refused_with_the_nearest() -> None:
    with pytest.raises(PlanError, match=r"no step 'a\.c'") as caught:
        override(RECIPE, ["a.c.x=1"])

    assert "a.b" in caught.value.hint


@given(st.lists(st.fixed_dictionaries({"use": st.text(), "size": st.integers()}), min_size=1))
def test_options_are_kept_as_given(tables: list[dict[str, Any]]) -> None:
    recipe = from_tables(tables, "here")

    assert [{"use": use.name, **use.options} for use in recipe.uses] == tables
    assert not any(use.optional for use in recipe.uses)


def test_a_recipe_takes_the_steps_of_the_device_where_it_says_so(tmp_path: Path) -> None:
    recipe = read(tmp_path, '[[recipe]]\nuse = "prune.lottery"\n[[recipe]]\nuse = "device"\n')

    assert [use.name for use in with_device(recipe, RECIPE).uses] == ["prune.lottery", "a.b", "c", "a.b"]


def test_a_recipe_may_put_another_step_in_the_place_of_one_of_the_devices(tmp_path: Path) -> None:
    recipe = read(tmp_path, '[[recipe]]\nuse = "device"\ninstead = { "a.b" = "d" }\n')

    assert with_device(recipe, RECIPE).uses == (Use("d"), Use("c"), Use("d"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("speed = 2", "takes nothing but instead"),
        ("optional = true", "takes nothing but instead"),
        ("instead = 3", "takes nothing but instead"),
        ('instead = { "c" = 3 }', "takes nothing but instead"),
        ('instead = { "e" = "d" }', "here has no step 'e'"),
    ],
)
def test_what_the_place_of_the_device_cannot_take_is_refused(tmp_path: Path, line: str, message: str) -> None:
    recipe = read(tmp_path, f'[[recipe]]\nuse = "device"\n{line}\n')

    with pytest.raises(PlanError, match=message):
        with_device(recipe, RECIPE)


@pytest.mark.parametrize("name", builtin_recipes())
def test_a_built_in_recipe_is_found_by_its_name_and_ends_with_the_device(name: str) -> None:
    assert from_toml(Path(name)).uses[-1].name == "device"


def test_an_unknown_name_of_a_recipe_is_told_with_the_nearest() -> None:
    with pytest.raises(PlanError, match="no recipe 'smaler'") as caught:
        from_toml(Path("smaler"))

    assert "smaller" in caught.value.hint
