"""`penjing lint`: each rule is found where it is broken, by node, and nowhere else; hostile files are told, not run."""

import copy
import json
import types

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from penjing import Host
from penjing.cli import cli
from penjing.errors import InputError, PlanError
from penjing_quant.lint import lint
from penjing_tensorrt.operators import oldest, readable
from penjing_tensorrt.scheme import scheme

RTX, XAVIER = Host().device("rtx-3090"), Host().device("jetson-xavier-nx")
TENSORRT = types.SimpleNamespace(
    name="tensorrt", scheme=scheme, operators=lambda device: readable(oldest(device))
)
RANDOM = np.random.default_rng(0)


def weights(*shape):
    return (RANDOM.standard_normal(shape) / 10).astype(np.float32)


def trip(at, to, scale="s", zero="z"):
    return [
        ("QuantizeLinear", [at, scale, zero], f"{to}_i"),
        ("DequantizeLinear", [f"{to}_i", scale, zero], to),
    ]


def conv(at, to, bias=""):
    """A convolution with an integer weight; what it reads must be dequantised."""
    weight = ("DequantizeLinear", ["w", "ws", "wz"], f"{to}_w", {"axis": 0})
    return [weight, ("Conv", [at, f"{to}_w", *([bias] if bias else [])], to, {"pads": [1] * 4})]


CONSTANTS = {
    "s": np.float32(0.1), "s2": np.float32(0.2), "minus": np.float32(-0.1), "nan": np.float32("nan"),
    "z": np.int8(0), "z5": np.int8(5), "u": np.uint8(0),
    "w": RANDOM.integers(-127, 128, (32, 32, 3, 3)).astype(np.int8),
    "ws": np.full(32, 0.01, np.float32), "wz": np.zeros(32, np.int8),
    "ws31": np.full(31, 0.01, np.float32), "wz31": np.zeros(31, np.int8),
    "s32": np.full(32, 0.1, np.float32), "z32": np.zeros(32, np.int8),
    "b": np.zeros(32, np.int32), "bs": np.full(32, 0.001, np.float32),
    "wf": weights(32, 32, 3, 3), "g": RANDOM.integers(-127, 128, (64, 32)).astype(np.int8),
    "gs": np.full(64, 0.01, np.float32), "gz": np.zeros(64, np.int8),
    "inf": np.array([np.inf] * 32, np.float32).reshape(1, 32, 1, 1), "unbound": np.float32("inf"),
    "narrow": RANDOM.integers(-127, 128, (8, 32, 3, 1)).astype(np.int8), "ns": np.full(8, 0.01, np.float32),
    "nz": np.zeros(8, np.int8),
}  # fmt: skip


def graph(*nodes, shape=(1, 32, 8, 8), opset=17, constants=CONSTANTS, outputs=("y",)):
    made = []
    for group in nodes:
        for kind, inputs, output, *attributes in group if isinstance(group, list) else [group]:
            domain = "acme" if kind == "Custom" else ""
            made.append(
                helper.make_node(
                    kind, inputs, [output], f"{output}_node", domain=domain, **(attributes or [{}])[0]
                )
            )
    read = {name for node in made for name in node.input}
    net = helper.make_graph(
        made,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(shape))],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items() if name in read],
    )  # fmt: skip
    return helper.make_model(
        net, opset_imports=[helper.make_opsetid("", opset), helper.make_opsetid("acme", 1)], ir_version=8
    )


@pytest.fixture
def rules(tmp_path):
    """Return a function that lints a graph and returns the rules broken, each with the nodes that break it."""

    def run(model, device=RTX, backend=TENSORRT):
        path = tmp_path / "net.onnx"
        onnx.save(model, path)
        found = {}
        for finding in lint(path, device, backend):
            found.setdefault(finding.rule, []).append(finding.node)
        return found

    return run


RELU = ("Relu", ["c"], "y")
CLEAN = {
    "convolution": graph(trip("x", "q"), conv("q", "c"), RELU),
    "an end left open": graph(("Clip", ["x", "", "unbound"], "y")),
    "float": graph(("Conv", ["x", "wf"], "c", {"pads": [1] * 4}), RELU),
    "residual": graph(
        trip("x", "q"), conv("q", "c"), ("Relu", ["c"], "r"), trip("r", "q2"), conv("q2", "d"),
        ("Add", ["d", "q2"], "a"), ("Relu", ["a"], "r2"), trip("r2", "q3"), conv("q3", "y"),
    ),
    "silu": graph(
        trip("x", "q"), conv("q", "c"), ("Sigmoid", ["c"], "g1"), ("Mul", ["c", "g1"], "m"), trip("m", "q2"),
        conv("q2", "y"),
    ),
    "attention gate": graph(
        trip("x", "q"), conv("q", "c"), ("GlobalAveragePool", ["c"], "p"), ("Sigmoid", ["p"], "g1"),
        ("Mul", ["c", "g1"], "m"), trip("m", "q2"), conv("q2", "y"),
    ),
    "dynamic batch": graph(trip("x", "q"), conv("q", "c"), RELU, shape=("N", 32, 8, 8)),
}  # fmt: skip
POOLED = [("GlobalAveragePool", ["q"], "p"), ("Flatten", ["p"], "f")]
BROKEN = {
    "zero-point": (graph(trip("x", "q", "s", "z5"), conv("q", "c"), RELU), ["q_i"]),
    "scale": (graph(trip("x", "q", "minus"), conv("q", "c"), RELU), ["q_i"]),
    "type": (graph(trip("x", "q", "s", "u"), conv("q", "c"), RELU), ["q_i"]),
    "bias": (
        graph(("DequantizeLinear", ["b", "bs"], "bf", {"axis": 0}), trip("x", "q"), conv("q", "c", "bf"), RELU),
        ["bf"],
    ),
    "activation-axis": (
        graph([(k, i, o, {"axis": 1}) for k, i, o in trip("x", "q", "s32", "z32")], conv("q", "c"), RELU),
        ["q_i"],
    ),
    "weight-axis": (
        graph(
            trip("x", "q"), ("DequantizeLinear", ["w", "ws", "wz"], "d", {"axis": 1}),
            ("Conv", ["q", "d"], "c", {"pads": [1] * 4}), RELU,
        ),
        ["d"],
    ),
    "scalar": (
        graph(trip("x", "q"), conv("q", "c"), ("ReduceSum", ["c"], "r", {"keepdims": 0}), trip("r", "y")),
        ["y_i"],
    ),
    "half-quantised": (graph(conv("x", "c"), RELU), ["c_node"]),
    "pair": (
        graph(
            ("QuantizeLinear", ["x", "s", "z"], "i"), ("DequantizeLinear", ["i", "s2", "z"], "q"), conv("q", "c"), RELU
        ),
        ["q"],
    ),
    "activation-function": (
        graph(trip("x", "q"), conv("q", "c"), trip("c", "n"), ("Relu", ["n"], "r"), trip("r", "q2"), conv("q2", "y")),
        ["n_i"],
    ),
    "silu": (
        graph(
            trip("x", "q"), conv("q", "c"), ("Sigmoid", ["c"], "g1"), trip("g1", "n"), ("Mul", ["c", "n"], "m"),
            trip("m", "q2"), conv("q2", "y"),
        ),
        ["n_i"],
    ),
    "residual": (
        graph(
            trip("x", "q"), conv("q", "c"), ("Relu", ["c"], "r"), trip("r", "q2"), conv("q2", "d"),
            ("Add", ["d", "r"], "a"), trip("a", "q3"), conv("q3", "y"),
        ),
        ["a_node"],
    ),
    "concat": (
        graph(
            trip("x", "q"), conv("q", "c"), trip("c", "p", "s2"), ("Slice", ["x", "k0", "k1"], "h"), trip("h", "r"),
            ("Concat", ["p", "r"], "k", {"axis": 0}), trip("k", "t", "s2"), conv("t", "y"),
            constants={**CONSTANTS, "k0": np.zeros(4, np.int64), "k1": np.array([1, 32, 8, 8], np.int64)},
        ),
        ["k_node"],
    ),
    "pool": (graph(trip("x", "q"), ("GlobalAveragePool", ["q"], "p"), ("Sigmoid", ["p"], "y")), ["p_node"]),
    "left-float": (
        graph(
            trip("x", "q"), POOLED, trip("f", "t"), ("DequantizeLinear", ["g", "gs", "gz"], "gw", {"axis": 0}),
            ("Gemm", ["t", "gw"], "y", {"transB": 1}),
        ),
        ["y_node"],
    ),
    "decoder": (
        graph(trip("x", "q"), conv("q", "c"), ("Sigmoid", ["c"], "p"), trip("p", "y")),
        ["p_node"],
    ),
    "operator": (graph(("Custom", ["x"], "y")), ["y_node"]),
    "opset": (graph(RELU, ("Identity", ["x"], "c"), opset=23), [""]),
    "standard": (graph(("Cast", ["x"], "h", {"to": 10}), ("Conv", ["h", "wf"], "c"), RELU), [""]),
    "finite": (graph(("Add", ["x", "inf"], "y")), ["inf"]),
    "shape": (graph(("Relu", ["x"], "y"), shape=("N", 32, "H", "W")), ["x"]),
}  # fmt: skip
BROKEN["opset"][0].graph.node[0].CopyFrom(helper.make_node("Relu", ["x"], ["c"], "c_node"))
BROKEN["opset"][0].graph.node[1].CopyFrom(helper.make_node("Identity", ["c"], ["y"], "y_node"))


@pytest.mark.parametrize("name", CLEAN)
def test_a_graph_that_keeps_the_rules_is_clean(name, rules):
    assert rules(CLEAN[name]) == {}


@pytest.mark.parametrize("rule", BROKEN)
def test_each_rule_is_found_where_it_is_broken(rule, rules):
    model, nodes = BROKEN[rule]

    found = rules(model)

    assert found.get(rule) == nodes
    assert set(found) - {rule} <= {"left-float", "half-quantised"}


def test_a_narrow_convolution_is_to_stay_float(rules):
    narrow = graph(
        trip("x", "q"),
        ("DequantizeLinear", ["narrow", "ns", "nz"], "n", {"axis": 0}),
        ("Conv", ["q", "n"], "y"),
    )

    assert rules(narrow) == {"left-float": ["y_node"]}
    assert rules(narrow, backend=types.SimpleNamespace(**{**vars(TENSORRT), "scheme": dla})) == {}


def dla(device):
    return scheme(device, dla=True)


def test_the_operators_of_the_devices_own_version_count(rules):
    late = graph(("HardSwish", ["x"], "y"))

    assert rules(late) == {}
    assert rules(late, XAVIER) == {"operator": ["y_node"]}


def test_operators_inside_branches_count(rules):
    branch = helper.make_graph(
        [helper.make_node("HardSwish", ["x"], ["b"], "inside")], "branch", [], [onnx.ValueInfoProto(name="b")]
    )
    model = graph(("Relu", ["x"], "y"))
    condition = numpy_helper.from_array(np.array(True), "yes")
    model.graph.node[0].CopyFrom(
        helper.make_node("If", ["yes"], ["y"], "if", then_branch=branch, else_branch=copy.deepcopy(branch))
    )
    model.graph.initializer.append(condition)
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT

    assert rules(model, XAVIER)["operator"] == ["inside", "inside"]


def test_a_device_without_integers_takes_no_quantised_graph(rules):
    nano = Host().device("jetson-nano")

    assert "int8" in rules(graph(trip("x", "q"), conv("q", "c"), RELU, opset=13), nano)


def test_onnxruntime_has_rules_of_its_own(rules):
    host = Host()
    pi, cpu = host.device("raspberry-pi-5"), host.device("x86-64-avx2")
    signed = graph(trip("x", "q", "s", "z5"), conv("q", "c"), RELU)

    assert rules(signed, pi, host.backend("onnxrt")) == {}
    assert rules(signed, cpu, host.backend("onnxrt")) == {"type": ["q_i"]}


def test_weights_in_another_file_are_told_and_not_read(rules, tmp_path):
    model = graph(("Conv", ["x", "wf"], "y"))
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../etc/passwd")

    assert rules(model) == {"one-file": ["net.onnx"]}


def test_weights_hidden_in_an_attribute_of_a_branch_are_told_too(rules):
    secret = numpy_helper.from_array(np.zeros(3, np.float32), "secret")
    secret.ClearField("raw_data")
    secret.data_location = TensorProto.EXTERNAL
    secret.external_data.add(key="location", value="/etc/passwd")
    branch = helper.make_graph(
        [helper.make_node("Constant", [], ["b"], value=secret)], "branch", [], [onnx.ValueInfoProto(name="b")]
    )
    model = graph(("Relu", ["x"], "y"))
    model.graph.node.append(helper.make_node("If", ["yes"], ["n"], then_branch=branch, else_branch=branch))

    assert rules(model) == {"one-file": ["net.onnx"]}


@pytest.mark.parametrize(
    "content", [b"", b"hello", bytes(range(256)) * 8, onnx.ModelProto(ir_version=8).SerializeToString()]
)
def test_what_is_no_onnx_file_is_refused(content, tmp_path):
    path = tmp_path / "net.onnx"
    path.write_bytes(content)

    with pytest.raises(InputError, match="not an ONNX file"):
        lint(path, RTX, TENSORRT)


def test_a_graph_that_goes_round_in_circles_is_told_of_and_nothing_else_checked(rules):
    circle = graph(("Relu", ["b"], "a"), ("Add", ["a", "x"], "b"), ("HardSwish", ["b"], "y"))

    assert rules(circle, XAVIER) == {"standard": [""]}


@given(data=st.data())
def test_a_damaged_file_is_refused_or_told_of_and_never_a_fault(data, tmp_path_factory):
    whole = bytearray(CLEAN["residual"].SerializeToString())
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("damaged") / "net.onnx"
    path.write_bytes(whole[: data.draw(st.integers(len(whole) // 2, len(whole)))])

    try:
        found = lint(path, RTX, TENSORRT)
    except InputError as error:
        assert error.message
    else:
        assert all(finding.what and finding.cure for finding in found)


@pytest.fixture
def command(monkeypatch):
    """Return a function that runs `penjing lint` with TensorRT's rules, and returns exit code and output."""
    from click.testing import CliRunner

    def run(*arguments):
        monkeypatch.setattr(Host, "backend", lambda self, name: TENSORRT)
        result = CliRunner().invoke(cli, ["lint", *map(str, arguments)])
        return result.exit_code, result.output

    return run


def test_the_command_groups_by_rule_and_exits_with_10(command, tmp_path):
    onnx.save(BROKEN["zero-point"][0], tmp_path / "net.onnx")

    code, output = command(tmp_path / "net.onnx", "--device", "rtx-3090")

    assert code == 10
    assert "✗ zero-point: Zero points are 0." in output
    assert "The zero point of q_i is 5, not 0." in output
    assert "source:" in output
    assert "what to do:" in output
    assert "breaks 1 rule of rtx-3090@tensorrt-10" in output


def test_the_command_exits_with_0_for_a_clean_file(command, tmp_path):
    onnx.save(CLEAN["silu"], tmp_path / "net.onnx")

    code, output = command(tmp_path / "net.onnx", "--device", "rtx-3090")

    assert (code, output) == (0, "✓ net.onnx breaks no rule of rtx-3090@tensorrt-10.\n")


def test_the_command_speaks_json(command, tmp_path):
    onnx.save(BROKEN["silu"][0], tmp_path / "net.onnx")

    code, output = command(tmp_path / "net.onnx", "--device", "rtx-3090", "--json")

    (broken,) = json.loads(output)["broken"]
    assert code == 10
    assert (broken["rule"], broken["node"], broken["operator"]) == ("silu", "n_i", "QuantizeLinear")
    assert broken["source"]
    assert broken["cure"]


def test_a_file_for_the_dla_is_held_to_the_rules_of_the_dla(tmp_path):
    """A DLA wants Q/DQ at every tensor, which would keep a GPU from running a convolution with its SiLU."""
    from click.testing import CliRunner

    onnx.save(BROKEN["silu"][0], tmp_path / "net.onnx")

    def said(*words):
        return CliRunner().invoke(cli, ["lint", str(tmp_path / "net.onnx"), "--device", *words])

    assert "silu" in said("jetson-agx-orin").output
    assert "silu" not in said("jetson-agx-orin", "--backend", "dla").output
    assert isinstance(said("jetson-nano", "--backend", "dla").exception, PlanError)
