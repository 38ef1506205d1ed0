"""Every step of every plugin installed keeps the promises that `penjing.testing` asks of anybody's."""

from __future__ import annotations

from pathlib import Path

import pytest
from penjing import Host
from penjing.options import options_of
from penjing.testing import check_declaration, check_step, small_context, small_model

STEPS = Host().steps
#: options without which a step can do nothing
OPTIONS = {"distill.student": {"student": "penjing.testing:small_network"}}
each_step = pytest.mark.parametrize("name", sorted(STEPS))


@each_step
def test_every_step_says_what_it_is(name: str) -> None:
    check_declaration(STEPS[name])


@each_step
def test_every_option_has_a_help_that_is_a_sentence(name: str) -> None:
    helps = [option.help for option in options_of(STEPS[name]).values()]

    assert [text for text in helps if not (text[:1].isupper() and text.endswith("."))] == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "form"), [(name, form) for name, step in sorted(STEPS.items()) for form in sorted(step.accepts)]
)
def test_every_step_keeps_its_promises(name: str, form: str, tmp_path: Path) -> None:
    check_step(STEPS[name](**OPTIONS.get(name, {})), small_model(tmp_path, form), small_context(tmp_path))
