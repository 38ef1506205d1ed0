from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Optional

import pytest
from hypothesis import given
from hypothesis import strategies as st
from penjing.errors import PlanError
from penjing.options import build, option, options_of


@dataclass(frozen=True)
class Every:
    """Have an option of every kind."""

    share: float = option(0.5, "A share.", between=(0, 1))
    count: int = option(3, "A count.")
    flag: bool = option(False, "A flag.")
    word: str = option("", "A word.")
    method: Literal["minmax", "entropy"] = option("minmax", "A method.")
    bits: Literal[4, 8] = option(8, "Bits.")
    layers: tuple[str, ...] = option((), "Layers.")
    sizes: tuple[int, ...] = option((), "Sizes.")
    most: float | None = option(None, "A bound.")
    least: Optional[int] = option(None, "A bound.")  # noqa: UP045 - both spellings are in use
    hidden: int = 7


words = st.text(
    st.characters(codec="utf-8", exclude_characters=",", exclude_categories=("Z", "C")), min_size=1
).filter(lambda word: word.lower() != "none")
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "share": st.floats(0, 1),
    "count": st.integers(),
    "flag": st.booleans(),
    "word": st.text(),
    "method": st.sampled_from(["minmax", "entropy"]),
    "bits": st.sampled_from([4, 8]),
    "layers": st.lists(words).map(tuple),
    "sizes": st.lists(st.integers()).map(tuple),
    "most": st.none() | st.floats(allow_nan=False, allow_infinity=False),
    "least": st.none() | st.integers(),
}


def as_text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


@given(st.fixed_dictionaries(VALUES))
def test_every_value_is_read_back_from_its_text(values: dict[str, Any]) -> None:
    assert build(Every, "every", {name: as_text(value) for name, value in values.items()}) == Every(**values)


@given(st.fixed_dictionaries(VALUES))
def test_every_value_is_read_back_as_toml_has_it(values: dict[str, Any]) -> None:
    toml = {name: list(v) if isinstance(v, tuple) else v for name, v in values.items() if v is not None}

    assert build(Every, "every", toml) == Every(**values)


@given(st.sampled_from(sorted(VALUES)), st.text() | st.integers() | st.floats() | st.lists(st.text()))
def test_any_value_is_read_or_refused_in_words(name: str, value: Any) -> None:
    try:
        build(Every, "every", {name: value})
    except PlanError as error:
        assert error.message.startswith(f"every.{name} takes ")


def test_what_is_not_given_keeps_its_default() -> None:
    assert build(Every, "every", {}) == Every()


def test_a_field_that_is_no_option_is_not_offered() -> None:
    assert "hidden" not in options_of(Every)

    with pytest.raises(PlanError, match="no option 'hidden'"):
        build(Every, "every", {"hidden": 1})


def test_an_unknown_option_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(PlanError, match="every has no option 'shaer'") as caught:
        build(Every, "every", {"shaer": 0.3})

    assert caught.value.hint == "Did you mean share?"


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("share", "1.01", "every.share takes a number from 0 to 1; '1.01' is out of range."),
        ("share", -1, "every.share takes a number from 0 to 1; -1 is out of range."),
        ("share", "nan", "every.share takes a number from 0 to 1; 'nan' is not finite."),
        ("share", "half", "every.share takes a number from 0 to 1; 'half' is not one."),
        ("share", True, "every.share takes a number from 0 to 1; True is not."),
        ("count", "2.5", "every.count takes an integer; '2.5' is not whole."),
        ("count", "1e999", "every.count takes an integer; '1e999' is not finite."),
        ("flag", "maybe", "every.flag takes true or false; 'maybe' is neither."),
        ("flag", 1, "every.flag takes true or false; 1 is neither."),
        ("word", ["a"], "every.word takes text; ['a'] is not."),
        ("method", "max", "every.method takes one of minmax, entropy; 'max' is none of them."),
        ("bits", 2, "every.bits takes one of 4, 8; 2 is none of them."),
        ("layers", 3, "every.layers takes a list of texts; 3 is not a list."),
        ("sizes", "1,b", "every.sizes takes a list of integers; 'b' is not one."),
        ("most", "much", "every.most takes a number or none; 'much' is not one."),
    ],
)
def test_a_value_that_does_not_fit_is_refused_in_words(name: str, value: Any, message: str) -> None:
    with pytest.raises(PlanError) as caught:
        build(Every, "every", {name: value})

    assert caught.value.message == message


@pytest.mark.parametrize("value", [10**400, -(10**400), "9" * 5000], ids=["large", "negative", "digits"])
def test_a_number_too_large_for_a_float_is_refused(value: Any) -> None:
    with pytest.raises(PlanError, match=r"every\.share takes a number"):
        build(Every, "every", {"share": value})


@pytest.mark.parametrize("number", [2**53 + 1, -(2**63) + 1])
def test_a_large_integer_is_not_rounded(number: int) -> None:
    assert build(Every, "every", {"count": str(number)}).count == number


@pytest.mark.parametrize("word", ["true", "Yes", "ON", "1"])
def test_a_flag_takes_the_usual_words(word: str) -> None:
    assert build(Every, "every", {"flag": word}).flag


def test_none_is_a_word_where_none_is_allowed() -> None:
    assert build(Every, "every", {"most": "none"}).most is None
    with pytest.raises(PlanError):
        build(Every, "every", {"share": "none"})


def test_kinds_are_told_in_words() -> None:
    assert {name: found.kind for name, found in options_of(Every).items()}["most"] == "a number or none"


@dataclass(frozen=True)
class Special(Every):
    """Add an option to those inherited."""

    own: int = option(1, "An option of its own.")


def test_a_steps_own_options_come_before_those_it_inherits() -> None:
    assert list(options_of(Special)) == ["own", *options_of(Every)]
