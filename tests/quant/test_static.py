import dataclasses
import subprocess
import sys

import numpy as np
import onnx
import pytest
from penjing.errors import PlanError, StepError
from penjing_quant.static import StaticQuantisation


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.fixture
def net(build):
    nodes = [
        ("Conv", ["x", "w0", "b0"], ["a"], {"pads": [1] * 4}),
        ("Relu", ["a"], ["r"], {}),
        ("Conv", ["r", "w1"], ["c"], {"group": 8}),
        ("HardSwish", ["c"], ["h"], {}),
        ("Conv", ["h", "w2"], ["y"], {}),
    ]
    spread = np.logspace(-2, 2, 8).astype(np.float32)
    weights = {
        "w0": random(8, 3, 3, 3) * spread.reshape(-1, 1, 1, 1),
        "b0": random(8),
        "w1": random(8, 1, 3, 3) / spread.reshape(-1, 1, 1, 1),
        "w2": random(4, 8, 1, 1),
    }
    return build(nodes, weights)


def test_the_result_tells_how_it_came_about(net, apply, cpu, photographs):
    result, context = apply(StaticQuantisation(float_layers=0), net, cpu, photographs)
    assert result.value.parent == context.folder
    onnx.checker.check_model(result.value)
    details = context.details
    assert details["quantised"] == {"Conv": [3, 3]}
    assert (details["photographs"], details["photographs_held_out"]) == (16, 4)
    assert details["left_float"] == [
        {"node": "h_node", "op": "HardSwish", "why": "the backend has no integer kernel for it"}
    ]
    assert details["equalised"] == ["a_node → c_node"]
    assert details["sqnr_db"]["equalised"] > details["sqnr_db"]["plain"] + 10
    assert not context.warnings


def test_the_same_photographs_give_the_same_bytes_whatever_the_batches(net, apply, cpu, photographs):
    """Faults R1 and R30."""
    first, _ = apply(StaticQuantisation(), net, cpu, photographs)
    second, _ = apply(StaticQuantisation(), net, cpu, photographs, sizes=[2, 2, 1])
    assert first.value.read_bytes() == second.value.read_bytes()
    assert first.fingerprint == second.fingerprint


@pytest.mark.parametrize("method", ["minmax", "average", "percentile", "entropy", "mse"])
def test_every_method_obeys_tensorrts_scheme(method, net, apply, tensorrt, photographs):
    result, context = apply(StaticQuantisation(method=method), net, tensorrt, photographs)
    assert context.details["quantised"] == {"Conv": [3, 3]}
    zeros = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(result.value).graph.initializer}
    assert not any(
        zeros[n.input[2]].any() for n in onnx.load(result.value).graph.node if n.op_type == "QuantizeLinear"
    )


def test_naive_is_one_scale_for_each_tensor_and_no_recovery(net, apply, cpu, photographs):
    naive = StaticQuantisation().naive()
    _, context = apply(naive, net, cpu, photographs)
    assert (naive.method, naive.per_channel) == ("minmax", False)
    assert set(context.details["sqnr_db"]) == {"plain"}


def test_naive_does_what_quantize_static_does_by_default(build, apply, cpu, photographs, outputs, tmp_path):
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    nodes = [("Conv", ["x", "w0"], ["a"], {}), ("Relu", ["a"], ["r"], {}), ("Conv", ["r", "w1"], ["y"], {})]
    spread = np.logspace(-1, 1, 8).astype(np.float32).reshape(-1, 1, 1, 1)
    net = build(nodes, {"w0": random(8, 3, 3, 3) * spread, "w1": random(4, 8, 3, 3)})

    class Reader(CalibrationDataReader):
        images = iter(image for i, image in enumerate(photographs) if i % 5 != 4)  # the rest are held out

        def get_next(self):
            return {"x": image[None]} if (image := next(self.images, None)) is not None else None

    quantize_static(net.path, tmp_path / "theirs.onnx", Reader(), activation_type=QuantType.QUInt8)
    result, _ = apply(StaticQuantisation().naive(), net, cpu, photographs)
    (float_,), (ours,), (theirs,) = (
        outputs(m, photographs)
        for m in (net.model, onnx.load(result.value), onnx.load(tmp_path / "theirs.onnx"))
    )
    assert np.square(ours - theirs).sum() < 0.1 * np.square(theirs - float_).sum()


def test_a_quantised_model_is_refused(net, apply, cpu, photographs):
    net.path = apply(StaticQuantisation(), net, cpu, photographs)[0].value
    with pytest.raises(StepError, match="quantised already"):
        apply(StaticQuantisation(), net, cpu, photographs)


def test_an_old_opset_is_refused(net, apply, cpu, photographs):
    model = onnx.load(net.path)
    model.opset_import[0].version = 11
    onnx.save(model, net.path)
    with pytest.raises(StepError, match="opset 11"):
        apply(StaticQuantisation(), net, cpu, photographs)


def test_nothing_to_quantise_is_told_and_the_model_passes(build, apply, cpu, photographs):
    net = build([("Sigmoid", ["x"], ["y"], {})], {})
    result, context = apply(StaticQuantisation(), net, cpu, photographs)
    assert result.value == net.path
    assert "Nothing in this network can be quantised; it stays as it was." in context.warnings


def test_layers_that_the_clock_left_float_until_none_is_quantised_are_told(
    net, apply, cpu, photographs, monkeypatch
):
    monkeypatch.setattr("penjing_quant.quantiser.Quantiser.float_layers", lambda self, calibration: 9)
    _, context = apply(StaticQuantisation(), net, cpu, photographs)
    assert context.details["tensors"] == 0
    assert any("float_layers = 0 has them compute in integers" in one for one in context.warnings)
    assert not apply(StaticQuantisation(float_layers=9), net, cpu, photographs)[1].warnings


@pytest.mark.parametrize("pixels", [None, np.zeros((0, 3, 8, 8), np.float32)])
def test_no_photographs_is_an_error_that_says_so(pixels, net, apply, cpu):
    """Fault R7."""
    with pytest.raises(StepError, match="no photograph"):
        apply(StaticQuantisation(), net, cpu, pixels)


def test_photographs_that_are_all_black_are_warned_of(net, apply, cpu, photographs):
    """Fault R7."""
    _, context = apply(StaticQuantisation(), net, cpu, photographs * 0)
    assert any("one same value at the network's input x" in warning for warning in context.warnings)


def test_a_dead_activation_is_warned_of(build, apply, cpu, photographs):
    """Fault R7."""
    nodes = [
        ("Conv", ["x", "w", "b"], ["a"], {}),
        ("Relu", ["a"], ["r"], {}),
        ("Conv", ["r", "v"], ["y"], {}),
    ]
    weights = {"w": np.zeros((4, 3, 1, 1), np.float32), "b": -np.ones(4, np.float32), "v": random(4, 4, 1, 1)}
    _, context = apply(StaticQuantisation(), build(nodes, weights), cpu, photographs)
    assert any("never change" in warning and " r" in warning for warning in context.warnings)


def test_too_few_photographs_to_hold_any_out_are_told(net, apply, cpu, photographs):
    _, context = apply(StaticQuantisation(), net, cpu, photographs[:3])
    assert any("Fewer than 5" in warning for warning in context.warnings)
    assert context.details["photographs"] == 3


def test_the_number_of_photographs_can_be_bounded(net, apply, cpu, photographs):
    _, context = apply(StaticQuantisation(images=10), net, cpu, photographs)
    assert (context.details["photographs"], context.details["photographs_held_out"]) == (8, 2)


def test_the_scheme_and_versions_are_part_of_the_cache_key(cpu):
    """Fault R30."""

    class Backend:
        name = "backend.test"
        scheme = staticmethod(lambda device: cpu)

    facts = StaticQuantisation(float_layers=0).resources(None, Backend)
    assert facts["scheme"]["activation"] == "uint8"
    assert facts["scheme"]["operators"] == sorted(cpu.operators)
    assert {"onnx", "onnxruntime", "numpy"} <= set(facts)


def test_a_backend_that_cannot_is_refused_before_anything_runs(cpu):
    class Device:
        name = "board"
        precisions = ("fp32", "fp16")

    class Backend:
        name = "backend.test"
        scheme = staticmethod(lambda device: None)

    with pytest.raises(PlanError, match="does not compute in int8"):
        StaticQuantisation().check(Device, Backend)
    Device.precisions = ("fp32", "int8")

    with pytest.raises(PlanError, match="runs no quantised graphs"):
        StaticQuantisation().check(Device, Backend)
    Backend.scheme = staticmethod(lambda device: dataclasses.replace(cpu, symmetric=True))
    with pytest.raises(PlanError, match="no negatives"):
        StaticQuantisation().check(Device, Backend)


def test_loading_the_plugin_imports_no_framework():
    code = (
        "import sys, penjing_quant; penjing_quant.penjing_techniques();"
        "print(sorted({'torch', 'onnx', 'onnxruntime', 'numpy'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_other_ranges_are_tried_where_symmetric_integers_fare_badly_and_the_best_is_kept(
    net, apply, tensorrt, photographs
):
    step = StaticQuantisation(equalise=False, bias_correction=False)
    _, context = apply(step, net, tensorrt, photographs)
    tried = context.details["sqnr_db"]
    assert tried["plain"] < 20
    assert set(tried) == {"plain", "average", "mse"}
    best = max(tried, key=tried.__getitem__)
    assert context.details["method"] == {"plain": "percentile"}.get(best, best)


@pytest.mark.parametrize("changes", [{"method": "minmax"}, {"other_ranges": False}])
def test_ranges_that_the_user_chose_stay(changes, net, apply, tensorrt, photographs):
    step = StaticQuantisation(equalise=False, bias_correction=False, **changes)
    _, context = apply(step, net, tensorrt, photographs)
    assert set(context.details["sqnr_db"]) == {"plain"}


def test_no_other_ranges_are_tried_for_integers_with_zero_points(net, apply, cpu, photographs):
    step = StaticQuantisation(equalise=False, bias_correction=False, float_layers=0)
    _, context = apply(step, net, cpu, photographs)
    assert context.details["sqnr_db"]["plain"] < 20
    assert set(context.details["sqnr_db"]) == {"plain"}
