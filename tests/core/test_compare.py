"""The report of a run, and the verdict on the user's demands."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from penjing.api import compress
from penjing.goal import Goal
from penjing.report import check
from penjing.verdict import MET, MISSED, OPEN, judge, overall


@pytest.fixture
def report(toy, host, place):
    """Return a function that carries out the job and returns the report."""
    return lambda **changes: compress(toy.request(place, **changes), host=host)


def test_a_report_passes_its_own_check_and_is_what_lies_in_the_folder(report, place):
    import json

    made = report()
    check(made)
    assert json.loads((place / "run" / "report.json").read_text()) == json.loads(json.dumps(made))


def test_the_original_is_the_reference_of_all_else(report):
    original, direct, optimised = report()["columns"]
    assert original["size_ratio"] == 1
    assert original["fidelity"] is None
    assert original["accuracy"]["drop"] is None
    assert optimised["size_ratio"] == optimised["size_bytes"] / original["size_bytes"]
    for column in (direct, optimised):
        assert column["accuracy"]["drop_interval"][0] <= column["accuracy"]["drop"]
        assert 0 <= column["fidelity"]["agreement"] <= 1
    assert original["latency"]["speedup"] == 1


def test_columns_of_the_very_same_model_are_measured_once_and_show_the_same(report, toy, place):
    toy.recipe(place, '"toy.tidy"', '"toy.run"')
    columns = report()["columns"]
    assert len({column["sha256"] for column in columns}) == 1
    assert columns[0]["latency"] == columns[1]["latency"] == columns[2]["latency"]
    assert columns[2]["accuracy"]["drop"] == 0
    assert columns[2]["fidelity"]["agreement"] == 1


def test_each_inexact_step_is_scored_on_select_and_test_is_for_the_report_alone(report):
    made = report()
    scored = [step for step in made["steps"] if step["score"]]
    assert [(step["name"], step["columns"]) for step in scored] == [("toy.round", ["optimised"])]
    score = scored[0]["score"]
    assert score["split"] == "select"
    assert score["n"] == made["data"]["splits"]["select"]
    assert made["columns"][0]["accuracy"]["n"] == made["data"]["splits"]["test"]


def test_the_report_says_which_recipe_made_each_column(report):
    recipes = {
        column["name"]: [(use["use"], use["options"]) for use in column["recipe"]]
        for column in report()["columns"]
    }
    assert recipes["original"] == [("toy.tidy", {}), ("toy.run", {"threads": 1})]
    assert recipes["direct"][1] == ("toy.round", {"digits": 0, "fails": ""})
    assert recipes["optimised"][1] == ("toy.round", {"digits": 1, "fails": ""})


def test_what_was_left_out_is_told_with_its_reason(report, toy, place):
    toy.recipe(place, '"toy.magic"\noptional = true', '"toy.tidy"', '"toy.run"')
    assert report()["left_out"] == [
        {"name": "toy.magic", "why": "No plugin installed here brings toy.magic."}
    ]


def test_the_command_in_the_report_repeats_the_run(report, toy, place):
    import shlex

    words = shlex.split(report(goal=Goal(max_drop=1.5), seed=3, settings=("toy.round.digits=2",))["command"])
    assert words[:2] == ["penjing", "compress"]
    for pair in (
        ("--seed", "3"),
        ("--max-drop", "1.5"),
        ("--set", "toy.round.digits=2"),
        ("--out", str(place / "run")),
    ):
        at = words.index(pair[0])
        assert tuple(words[at : at + 2]) == pair


def column(drop=None, latency=None, size=1_000_000):
    accuracy = None if drop is None else {"drop": drop[1], "drop_interval": [drop[0], drop[2]], "n": 100}
    timed = None if latency is None else {
        "median_ms": latency[1], "median_interval": [latency[0], latency[2]], "runs": 50
    }  # fmt: skip
    return {"accuracy": accuracy, "latency": timed, "size_bytes": size, "latency_why": "it is elsewhere"}


@pytest.mark.parametrize(
    ("goal", "column", "verdict", "why"),
    [
        (Goal(max_drop=3), column(drop=(-1, 1, 3)), MET, "is within the bound"),
        (Goal(max_drop=1), column(drop=(1.1, 2, 3)), MISSED, "is beyond the bound"),
        (Goal(max_drop=1), column(drop=(-1, 0.2, 1.1)), OPEN, "More photographs would tell"),
        (Goal(max_drop=1), column(drop=(1, 2, 3)), OPEN, "on 100 photographs"),
        (Goal(max_drop=1), column(), OPEN, "Without labels"),
        (Goal(max_latency=5), column(latency=(4, 4.5, 5)), MET, "in 50 runs"),
        (Goal(max_latency=5), column(latency=(5.1, 5.2, 5.3)), MISSED, "beyond"),
        (Goal(max_latency=5), column(latency=(4.9, 5, 5.1)), OPEN, "More runs would tell"),
        (Goal(max_latency=5), column(), OPEN, "it is elsewhere"),
        (Goal(max_size=1), column(size=1_000_000), MET, "It is within"),
        (Goal(max_size=1), column(size=1_000_001), MISSED, "beyond"),
        (Goal(max_size=1), column(size=None), OPEN, "no file"),
    ],
)
def test_a_demand_is_met_only_where_the_whole_interval_is_within_it(goal, column, verdict, why):
    (record,) = judge(goal, column)
    assert record["verdict"] == verdict
    assert why in record["why"]


def test_no_demand_no_verdict():
    assert judge(Goal(), column()) == []
    assert overall([]) == MET


@given(st.lists(st.sampled_from([MET, MISSED, OPEN])))
def test_one_miss_is_a_miss_and_else_one_doubt_a_doubt(verdicts):
    found = overall([{"verdict": verdict} for verdict in verdicts])
    assert found == (MISSED if MISSED in verdicts else OPEN if OPEN in verdicts else MET)


@given(st.floats(-50, 50), st.floats(0, 20), st.floats(0, 20), st.floats(0, 60), st.floats(0, 60))
def test_a_wider_bound_never_turns_met_into_missed(value, below, above, one, other):
    record = column(drop=(value - below, value, value + above))
    order = {MISSED: 0, OPEN: 1, MET: 2}
    narrow, wide = sorted((one, other))
    assert (
        order[judge(Goal(max_drop=narrow), record)[0]["verdict"]]
        <= order[judge(Goal(max_drop=wide), record)[0]["verdict"]]
    )
