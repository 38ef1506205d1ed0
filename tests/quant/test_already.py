"""Files that compute with integers already are recognised before anything runs."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from penjing.api import Request, plan
from penjing.errors import PlanError
from penjing.preprocess import Preprocess
from penjing_quant.already import integers
from penjing_quant.static import StaticQuantisation


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def network(nodes, weights):
    """Return a network of nodes from x to y, an image of 8 x 8 to [N, 4]."""
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4])],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


CONV = helper.make_node("Conv", ["x", "w"], ["c"])
TAIL = [
    helper.make_node("GlobalAveragePool", ["c"], ["p"]),
    helper.make_node("Flatten", ["p"], ["y"]),
]
WEIGHT, CODES = {"w": random(4, 3, 1, 1)}, np.ones((4, 3, 1, 1), np.int8)


def around_activations():
    trip = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        helper.make_node("Conv", ["d", "w"], ["c"]),
    ]
    return network([*trip, *TAIL], {**WEIGHT, "s": np.float32(0.1), "z": np.uint8(128)})


def weights_through_q_dq():
    read = helper.make_node("DequantizeLinear", ["i", "s"], ["w"])
    return network([read, CONV, *TAIL], {"i": CODES, "s": np.float32(0.1)})


def weights_through_cast_and_mul():
    read = [helper.make_node("Cast", ["i"], ["f"], to=1), helper.make_node("Mul", ["f", "s"], ["w"])]
    return network([*read, CONV, *TAIL], {"i": CODES, "s": np.float32(0.1)})


def weights_with_a_zero_point_in_constants():
    codes = helper.make_node("Constant", [], ["i"], value=numpy_helper.from_array(CODES.astype(np.uint8)))
    read = [
        codes,
        helper.make_node("Cast", ["i"], ["f"], to=1),
        helper.make_node("Sub", ["f", "z"], ["g"]),
        helper.make_node("Mul", ["g", "s"], ["w"]),
    ]
    return network([*read, CONV, *TAIL], {"z": np.float32(8), "s": np.float32(0.1)})


def integer_operators():
    convolve = helper.make_node(
        "QLinearConv", ["q", "s", "z", "i", "s", "j", "s", "z"], ["o"], kernel_shape=[1, 1]
    )
    read = helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"])
    back = helper.make_node("DequantizeLinear", ["o", "s", "z"], ["c"])
    weights = {"i": CODES, "s": np.float32(0.1), "z": np.uint8(0), "j": np.int8(0)}
    return network([read, convolve, back, *TAIL], weights)


def at_run_time():
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "t", "z"]),
        helper.make_node("ConvInteger", ["q", "i", "z"], ["k"]),
        helper.make_node("Cast", ["k"], ["c"], to=1),
    ]
    return network([*nodes, *TAIL], {"i": CODES})


def inside_a_function():
    trip = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
    ]
    rounded = helper.make_function(
        "own", "Rounded", ["x", "s", "z"], ["d"], trip, [helper.make_opsetid("", 17)]
    )
    call = helper.make_node("Rounded", ["x", "s", "z"], ["d"], domain="own")
    nodes = [call, helper.make_node("Conv", ["d", "w"], ["c"]), *TAIL]
    made = network(nodes, {**WEIGHT, "s": np.float32(0.1), "z": np.uint8(128)})
    made.opset_import.append(helper.make_opsetid("own", 1))
    made.functions.append(rounded)
    return made


KINDS = [
    around_activations, weights_through_q_dq, weights_through_cast_and_mul,
    weights_with_a_zero_point_in_constants, integer_operators, at_run_time, inside_a_function,
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("step", ["quant.static", "quant.mixed"])
def test_a_quantised_file_is_refused_by_the_plan(kind, step, tmp_path):
    path, recipe = tmp_path / "net.onnx", tmp_path / "recipe.toml"
    onnx.save(kind(), path)
    recipe.write_text(f'[[recipe]]\nuse = "{step}"\n[[recipe]]\nuse = "onnxrt"\n')
    photos = _photographs(tmp_path / "photos")
    request = Request(
        str(path),
        "x86-64-avx2",
        photos,
        preprocess=Preprocess(resize=(8, 8)),
        recipe=recipe,
        out=tmp_path / "run",
    )
    with pytest.raises(PlanError, match=r"net.onnx is quantised already: it holds .*") as caught:
        plan(request)

    assert "float model" in caught.value.hint
    assert not (tmp_path / "run").exists()


def test_an_optional_step_is_left_out_of_the_plan_and_why(tmp_path):
    path, recipe = tmp_path / "net.onnx", tmp_path / "recipe.toml"
    onnx.save(around_activations(), path)
    recipe.write_text('[[recipe]]\nuse = "quant.static"\noptional = true\n[[recipe]]\nuse = "onnxrt"\n')
    photos = _photographs(tmp_path / "photos")
    request = Request(str(path), "x86-64-avx2", photos, preprocess=Preprocess(resize=(8, 8)), recipe=recipe)
    planned = plan(request)
    assert "quantised already" in planned.lines[0].left_out
    assert [step.name for step in planned.optimised] == ["onnxrt"]


def _photographs(folder):
    from penjing.testing import photographs

    return photographs(folder, classes=4, each=2, size=8)


def test_what_the_quantiser_writes_is_recognised(apply, build, cpu, photographs):
    weights = {"w": random(40, 3, 1, 1), "v": random(40, 40, 1, 1)}
    net = build([("Conv", ["x", "w"], ["a"], {}), ("Conv", ["a", "v"], ["y"], {})], weights)
    assert integers(net.model) == []
    for count in (0, 1, 2):  # the last with float layers alone, whose weights are stored as bytes
        result, _ = apply(StaticQuantisation(float_layers=count), net, cpu, photographs)
        assert integers(onnx.load(result.value))


def test_bytes_that_are_no_weights_do_not_count():
    mask = [helper.make_node("Cast", ["m"], ["f"], to=1), helper.make_node("Mul", ["x", "f"], ["k"])]
    convolve = helper.make_node("Conv", ["k", "w"], ["c"])
    assert integers(network([*mask, convolve, *TAIL], {**WEIGHT, "m": np.ones((8, 8), np.uint8)})) == []
