"""The gate tells what TensorRT-RTX says of a graph, by node, rule and cure, and survives whatever happens to it."""

import sys
import types

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from penjing.errors import InputError
from penjing_tensorrt import rtx
from penjing_tensorrt.rtx import USUAL, available, gate, targets

installed = pytest.mark.skipif(bool(available()), reason=available() or "TensorRT-RTX is installed")
WEIGHT = np.random.default_rng(0).standard_normal((32, 32, 3, 3)).astype(np.float32)
CONSTANTS = {
    "w": WEIGHT, "s": np.float32(0.1), "minus": np.float32(-0.1), "z": np.int8(0), "z5": np.int8(5),
    "b": np.zeros(32, np.int32), "bs": np.float32(0.01),
}  # fmt: skip


def trip(scale="s", zero="z"):
    return [
        ("QuantizeLinear", ["x", scale, zero], "i", {}),
        ("DequantizeLinear", ["i", scale, zero], "q", {}),
    ]


def conv(*inputs):
    return ("Conv", [*inputs], "y", {"pads": [1] * 4})


@pytest.fixture
def file(tmp_path):
    """Return a function that writes a graph and returns its path."""

    def write(*nodes, shape=(1, 32, 8, 8), named=True):
        made = [helper.make_node(k, i, [o], f"{o}_node" if named else None, **a) for k, i, o, a in nodes]
        read = {name for node in made for name in node.input}
        net = helper.make_graph(
            made, "net", [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
            [numpy_helper.from_array(np.asarray(a), name) for name, a in CONSTANTS.items() if name in read],
        )  # fmt: skip
        path = tmp_path / "a net.onnx"
        onnx.save(helper.make_model(net, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
        return path

    return write


@installed
def test_a_sound_graph_is_accepted_for_three_generations_of_cards(file, tmp_path):
    verdict = gate(file(*trip(), conv("q", "w")), engine=tmp_path / "net.engine")

    assert verdict.accepted
    assert (verdict.targets, verdict.refusals) == (USUAL, ())
    assert verdict.engine_bytes == (tmp_path / "net.engine").stat().st_size
    assert (tmp_path / "net.engine").read_bytes()[:4] == b"vtrt"
    assert verdict.version


@installed
def test_an_open_batch_is_built_for_one(file):
    assert gate(file(*trip(), conv("q", "w"), shape=("N", 32, 8, 8))).accepted


@installed
@pytest.mark.parametrize(
    ("nodes", "node", "operator", "rule"),
    [
        ([*trip("s", "z5"), conv("q", "w")], "i_node", "QuantizeLinear", "zero points are 0"),
        ([*trip("minus"), conv("q", "w")], "i_node", "QuantizeLinear", "scales are positive"),
        ([("Det", ["x"], "y", {})], "y_node", "Det", "the parser reads no Det"),
        (
            [*trip(), ("DequantizeLinear", ["b", "bs"], "bf", {}), conv("q", "w", "bf")],
            "bf_node", "DequantizeLinear", "DequantizeLinear reads int8, not int32 or uint8",
        ),
        (
            [("Cast", ["x"], "h", {"to": 10}), conv("h", "w")],
            "y_node", "Conv", "the inputs of one operator have one type, since the graph's types decide",
        ),
    ],
)  # fmt: skip
def test_a_refusal_names_the_node_the_rule_and_the_cure(nodes, node, operator, rule, file):
    verdict = gate(file(*nodes))

    assert verdict.outcome == "refused"
    refusal = verdict.refusals[0]
    assert (refusal.node, refusal.operator, refusal.rule) == (node, operator, rule)
    assert refusal.cure
    assert "cudaError" not in refusal.message


@installed
def test_a_node_without_a_name_is_called_by_what_it_puts_out(file):
    assert gate(file(*trip("s", "z5"), conv("q", "w"), named=False)).refusals[0].node == "i"


@installed
@pytest.mark.parametrize("content", [b"", b"hello", bytes(range(256)) * 8])
def test_what_holds_no_network_is_refused(content, tmp_path):
    (tmp_path / "net.onnx").write_bytes(content)

    assert gate(tmp_path / "net.onnx").outcome == "refused"


def test_a_file_that_is_missing_is_told(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        gate(tmp_path / "net.onnx")


def test_a_card_that_nothing_can_be_built_for_here_is_an_error_of_the_caller(tmp_path):
    with pytest.raises(ValueError, match=r"8\.7"):
        gate(tmp_path / "net.onnx", ["8.6", "8.7"])


@pytest.fixture
def worker(tmp_path, monkeypatch):
    """Return a function that lets a script of its own take the place of the native library's process."""
    (tmp_path / "net.onnx").write_bytes(b"")

    def play(code):
        script = tmp_path / "worker"
        script.write_text(f"#!{sys.executable}\n{code}\n")
        script.chmod(0o755)
        monkeypatch.setattr(rtx, "available", lambda: "")
        monkeypatch.setattr(rtx.sys, "executable", str(script))
        return gate(tmp_path / "net.onnx", timeout=20 if "sleep" not in code else 0.2)

    return play


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "ended by signal 11"),
        ("import sys; sys.exit('no room')", "ended with code 1: no room"),
        ("print('not JSON')", "ended with code 0"),
        ("import time; time.sleep(60)", "did not finish in 0.2 s"),
    ],
)
def test_a_library_that_dies_or_hangs_leaves_the_question_open(code, reason, worker):
    verdict = worker(code)

    assert verdict.outcome == "undecided"
    assert reason in verdict.reason


@pytest.mark.parametrize(("others", "outcome"), [([], "undecided"), (["another fault"], "refused")])
def test_a_kernel_that_tensorrt_has_and_this_library_lacks_leaves_the_question_open(others, outcome, worker):
    said = "Error Code 2: Internal Error (Assertion !layerImpls.empty() failed. nms_3 has no runners that implement it)"
    errors = [{"node": "", "operator": "", "code": "", "message": message} for message in (said, *others)]
    report = {"version": "1.7.1", "errors": errors, "bytes": 0, "seconds": 0.1}

    verdict = worker(f"import json; print(json.dumps({report!r}))")

    assert verdict.outcome == outcome
    assert ("no kernel for nms_3; TensorRT may have one" in verdict.reason) == (not others)


def test_without_the_library_the_question_is_open_and_what_to_install_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    (tmp_path / "net.onnx").write_bytes(b"")

    verdict = gate(tmp_path / "net.onnx")

    assert verdict.outcome == "undecided"
    assert "pip install tensorrt-rtx-cu13-libs" in verdict.reason


@pytest.mark.parametrize(
    ("sm", "wanted"), [("8.6", ("8.6",)), ("12.0", ("12.0",)), ("8.7", USUAL), (None, USUAL)]
)
def test_a_card_is_built_for_and_a_board_is_stood_in_for_by_cards(sm, wanted):
    assert targets(types.SimpleNamespace(sm=sm)) == wanted
