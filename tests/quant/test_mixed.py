"""Accuracy-bounded mixed precision: what is sensitive goes back to float, up to the bound."""

import dataclasses
import math

import numpy as np
import onnx
import pytest
from penjing.errors import PlanError
from penjing.goal import Goal
from penjing.task import Classification
from penjing_quant.cost import products, sizes, times
from penjing_quant.judge import Verdict
from penjing_quant.mixed import MixedPrecision
from penjing_quant.search import search
from penjing_quant.sensitivity import Group, Noisy, Sensitivity, groups_of, moves, remaining
from penjing_quant.session import Network, sqnr
from penjing_quant.static import StaticQuantisation
from penjing_quant.verify import violations

CHEAP = MixedPrecision(method="minmax", equalise=False, bias_correction=False, float_layers=0)


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.fixture
def net(build):
    """Three layers and an addition; one scale for each weight drowns the second layer."""
    nodes = [
        ("Conv", ["x", "w0"], ["a"], {"pads": [1] * 4}),
        ("Relu", ["a"], ["r"], {}),
        ("Conv", ["r", "w1"], ["b"], {}),
        ("Conv", ["b", "w2"], ["c"], {}),
        ("Add", ["r", "c"], ["s"], {}),
        ("Conv", ["s", "w3"], ["d"], {}),
        ("GlobalAveragePool", ["d"], ["p"], {}),
        ("Flatten", ["p"], ["y"], {}),
    ]
    drowned = random(8, 8, 1, 1)
    drowned[0] *= 300
    back = random(8, 8, 1, 1, seed=2)
    back[:, 0] /= 300
    weights = {"w0": random(8, 3, 3, 3), "w1": drowned, "w2": back, "w3": random(4, 8, 1, 1, seed=3)}
    return build(nodes, weights)


def floats(details):
    return {entry["node"] for entry in details["left_float"] if "of the noise" in entry["why"]}


@pytest.mark.parametrize("scheme", ["cpu", "tensorrt"])
def test_the_layer_at_fault_goes_back_to_float_and_the_bound_is_kept(
    scheme, net, apply, photographs, request
):
    scheme = request.getfixturevalue(scheme)
    step = dataclasses.replace(CHEAP, per_channel=False, sqnr=30.0)
    result, context = apply(step, net, scheme, photographs)
    static, plain = apply(StaticQuantisation(**_shared(step)), net, scheme, photographs)
    model = onnx.load(result.value)
    images = [image[None] for image in photographs]

    assert plain.details["sqnr_db"]["plain"] < 30
    assert context.details["met"]
    assert "b_node" in floats(context.details)
    assert len(floats(context.details)) < 5
    assert sqnr(Network(net.model), Network(model, simulated=True), images) > 27
    assert not violations(model, scheme)
    assert static.value.read_bytes() != result.value.read_bytes()


def _shared(step):
    names = {field.name for field in dataclasses.fields(StaticQuantisation)}
    return {name: getattr(step, name) for name in names}


def test_nothing_goes_back_where_the_bound_is_kept_already(net, apply, cpu, photographs):
    result, context = apply(dataclasses.replace(CHEAP, sqnr=5.0), net, cpu, photographs)
    static, _ = apply(StaticQuantisation(**_shared(CHEAP)), net, cpu, photographs)
    assert result.value.read_bytes() == static.value.read_bytes()
    assert context.details["search"] == context.details["search"][:1]


def test_a_bound_out_of_reach_is_told_and_the_best_seen_returned(net, apply, cpu, photographs):
    step = dataclasses.replace(CHEAP, per_channel=False, sqnr=200.0, most=0.5)
    _, context = apply(step, net, cpu, photographs)
    assert not context.details["met"]
    assert any("was not reached" in warning for warning in context.warnings)
    best = max(entry["sqnr_db"] for entry in context.details["search"])
    assert context.details["judged"]["sqnr_db"] == pytest.approx(best, abs=0.5)


def test_labels_and_the_goal_bound_the_drop(net, apply, cpu, photographs, split):
    """Every photograph has the class that the float network gives it, so that each flip is a loss."""
    network = Network(net.model)
    images = np.concatenate([photographs, random(200, 3, 8, 8, seed=9)])
    labels = np.array([int(network(image[None])["y"].argmax()) for image in images])
    select = split(images, labels=labels, name="select")
    step = dataclasses.replace(CHEAP, per_channel=False, weight_bits=4)
    _, context = apply(
        step, net, cpu, photographs, select=select, task=Classification(), goal=Goal(max_drop=2.0)
    )

    details = context.details
    assert details["bound"] == 2.0
    assert details["met"]
    assert details["search"][0]["drop"] > 2.0
    assert details["judged"]["drop"] <= 2.0
    assert details["judged"]["split"] == "select"
    assert [exhibit.kind for exhibit in context.exhibits] == ["bars", "table", "lines", "bars"]
    _, free = apply(step, net, cpu, photographs, select=select, task=Classification())
    assert free.details["bound"] is None
    assert free.details["judged"]["drop_interval"][0] <= 0


def test_few_labels_are_told(net, apply, cpu, photographs, split):
    select = split(photographs, labels=np.zeros(len(photographs), np.int64), name="select")
    _, context = apply(CHEAP, net, cpu, photographs, select=select, task=Classification())
    assert any("so few can hardly tell" in warning for warning in context.warnings)


def test_the_same_photographs_give_the_same_bytes(net, apply, cpu, photographs):
    step = dataclasses.replace(CHEAP, per_channel=False, sqnr=30.0)
    first, second = (apply(step, net, cpu, photographs)[0] for _ in range(2))
    assert first.value.read_bytes() == second.value.read_bytes()


def test_all_layers_back_in_float_is_the_network_that_was_given(net, apply, cpu, photographs, outputs):
    step = dataclasses.replace(CHEAP, sqnr=199.0, bias_correction=True)
    result, context = apply(step, net, cpu, photographs)
    (expected,), (got,) = outputs(net.model, photographs), outputs(onnx.load(result.value), photographs)
    assert context.details["met"]
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-4)


def test_the_naive_form_is_that_of_static(net, apply, cpu, photographs):
    step = MixedPrecision(max_drop=1.0)
    result, _ = apply(step.naive(), net, cpu, photographs)
    static, _ = apply(StaticQuantisation().naive(), net, cpu, photographs)
    assert result.value.read_bytes() == static.value.read_bytes()


def test_a_goal_is_part_of_the_cache_key():
    assert MixedPrecision.heeds_goal
    assert not StaticQuantisation.heeds_goal


def test_the_plan_says_when_layers_go_back(cpu):
    class Device:
        name, here, precisions = "board", False, ("int8",)

    class Backend:
        name = "backend.test"
        scheme = staticmethod(lambda device: cpu)
        available = staticmethod(lambda device: "elsewhere")

    assert "go back to float until at most 0.5 points" in MixedPrecision(max_drop=0.5).explain(
        Device, Backend
    )
    assert "goal" in MixedPrecision().explain(Device, Backend)
    Backend.scheme = staticmethod(lambda device: None)
    with pytest.raises(PlanError):
        MixedPrecision().check(Device, Backend)


# -- sensitivity


@pytest.fixture
def measured(net, cpu, quantise, photographs):
    from penjing.step import Silent

    written = quantise(net.model, cpu, photographs, per_channel=False)
    from penjing_quant.calibrate import calibrate

    photos = lambda: ((f"photo{i}", image[None]) for i, image in enumerate(photographs))  # noqa: E731 - short
    ranges = calibrate(net.model, ["x", "r", "b", "c", "s", "d", "p", "y"], photos, cpu).ranges
    sensitivity = Sensitivity(net.model, written, ranges, cpu, frozenset())
    images = [image[None] for image in photographs]
    total = sqnr(Network(net.model), Network(written.model, simulated=True), images)
    return sensitivity.measure(images, Silent()), total


def test_noises_of_quantisers_add_up_to_that_of_the_network(measured):
    quantisers, total = measured
    added = -10 * math.log10(sum(one.noise for one in quantisers))
    assert added == pytest.approx(total, abs=2.5)


def test_the_drowned_weight_is_the_most_sensitive(measured):
    quantisers, _ = measured
    worst = max((one for one in quantisers if one.kind == "weights"), key=lambda one: one.noise)
    assert worst.name == "b_node"


def test_layers_of_one_weight_are_one_group(build, cpu):
    nodes = [
        ("Conv", ["x", "w"], ["a"], {}),
        ("Conv", ["a", "w"], ["b"], {}),
        ("Flatten", ["b"], ["f"], {}),
        ("Gemm", ["f", "v"], ["y"], {}),
    ]
    net = build(nodes, {"w": random(3, 3, 1, 1), "v": random(192, 4)})
    groups = groups_of(net.model, ["a_node", "b_node", "f_node", "y_node"])
    assert {name: set(group.nodes) for name, group in groups.items()} == {
        "a_node": {"a_node", "b_node"}, "y_node": {"y_node"},
    }  # fmt: skip


# -- the search, on made-up numbers


def _search(noise, costs, **options):
    groups = {name: Group(name, frozenset([name])) for name in costs}
    quantisers = [
        Noisy(f"q{i}", "weights", frozenset(names), value) for i, (names, value) in enumerate(noise)
    ]
    measured = []

    def measure(floats):
        measured.append(floats)
        if options.get("refuse") and floats & options["refuse"]:
            return None
        left = remaining(quantisers, floats) + (options["hurt"](floats) if "hurt" in options else 0)
        return Verdict(-10 * math.log10(max(left, 1e-30)))

    found = search(
        groups, quantisers, costs, measure, lambda v: v.sqnr >= options.get("sqnr", 30),
        options.get("most", len(groups)), options["progress"],
    )  # fmt: skip
    return found, measured


@pytest.fixture
def silent():
    from penjing.step import Silent

    return Silent()


def test_what_removes_most_noise_for_its_cost_goes_first(silent):
    noise = [(["cheap"], 0.01), (["dear"], 0.011), (["quiet"], 1e-5)]
    found, _ = _search(noise, {"cheap": 1, "dear": 10, "quiet": 1}, sqnr=19, progress=silent)
    assert found.met
    assert found.floats == {"cheap"}


def test_an_activation_goes_only_with_all_that_touch_it(silent):
    noise = [(["one"], 1e-6), (["two"], 1e-6), (["one", "two"], 0.01)]
    found, _ = _search(noise, {"one": 1, "two": 1, "far": 1}, progress=silent)
    assert found.met
    assert found.floats == {"one", "two"}


def test_a_step_that_hurts_is_taken_back(silent):
    noise = [(["bad"], 0.02), (["good"], 0.01)]
    hurt = lambda floats: 0.5 if "bad" in floats else 0.0  # noqa: E731 - short
    found, _ = _search(noise, {"bad": 1, "good": 1}, hurt=hurt, sqnr=100, progress=silent)
    assert "bad" not in found.floats
    assert [step.kept for step in found.steps] == [True, False, True]


def test_success_on_the_last_step_counts(silent):
    noise = [([name], 0.01) for name in "abcd"]
    found, _ = _search(noise, dict.fromkeys("abcd", 1), sqnr=200, progress=silent)
    assert found.met
    assert found.floats == set("abcd")


def test_the_best_seen_is_returned_where_the_bound_is_not_reached(silent):
    noise = [(["a"], 0.01), (["b"], 0.01), (["c"], 0.01)]
    found, measured = _search(noise, dict.fromkeys("abc", 1), most=2, sqnr=200, progress=silent)
    assert not found.met
    assert len(found.floats) == 2
    assert found.floats in measured


def test_what_the_backend_refuses_is_passed_over(silent):
    noise = [(["no"], 0.02), (["yes"], 0.01)]
    found, _ = _search(noise, {"no": 1, "yes": 1}, refuse={"no"}, sqnr=16, progress=silent)
    assert found.floats == {"yes"}


def test_moves_are_single_groups_and_those_around_an_activation():
    groups = {name: Group(name, frozenset([name])) for name in "ab"}
    quantisers = [
        Noisy("w", "weights", frozenset("a"), 1),
        Noisy("t", "activation", frozenset("ab"), 1),
        Noisy("u", "activation", frozenset("az"), 1),
    ]
    assert moves(groups, quantisers) == [frozenset("a"), frozenset("b"), frozenset("ab")]


# -- the bound


@pytest.mark.parametrize(
    ("drop", "interval", "bound", "within"),
    [
        (0.5, (-1.0, 2.0), 1.0, True),
        (1.5, (-1.0, 4.0), 1.0, False),
        (0.8, (0.2, 1.4), 1.0, False),  # a drop for certain, and perhaps more than may be
        (0.5, (0.2, 0.8), 1.0, True),
        (3.0, (-0.5, 6.5), None, True),
        (3.0, (0.5, 5.5), None, False),
    ],
)
def test_a_drop_is_within_its_bound_by_its_interval(drop, interval, bound, within):
    assert Verdict(10.0, 0.9, 0.8, drop, interval).within(bound, 25.0) == within


def test_without_labels_answers_and_sqnr_decide():
    assert Verdict(10.0, agreement=0.995).within(1.0, 25.0)
    assert not Verdict(40.0, agreement=0.98).within(1.0, 25.0)
    assert Verdict(26.0, agreement=0.5).within(None, 25.0)
    assert not Verdict(24.0).within(1.0, 25.0)


# -- costs


def test_costs_are_products_bytes_or_times(net, cpu, quantise, photographs, tmp_path):
    written = quantise(net.model, cpu, photographs)
    groups = groups_of(net.model, written.integer)
    counted = products(net.model, groups).of
    assert counted["a_node"] == pytest.approx(8 * 27 * 64 / 1e6)
    assert counted["a_node"] > counted["d_node"] > 0
    assert sizes(net.model, groups).of["b_node"] == pytest.approx(3 * 64 / 1e3)
    timed = times(net.model, written.model, groups, photographs[:1], tmp_path, 1)
    assert timed is not None
    assert timed.unit == "ms"
    assert set(timed.of) == set(groups)
    assert min(timed.of.values()) > 0
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]
