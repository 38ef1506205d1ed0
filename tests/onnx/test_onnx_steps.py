"""`onnx.export` and `onnx.simplify`: the same numbers, one file, the opset of the device."""

import copy
import hashlib
import os
import subprocess
import sys
import types

import numpy as np
import onnx
import penjing_onnx
import penjing_torch.module
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from penjing.errors import PlanError, StepError
from penjing.goal import Goal
from penjing.preprocess import Preprocess
from penjing.step import Backend, Context
from torch import nn

Export, Simplify = penjing_onnx.penjing_techniques()
SMALL = Preprocess(crop=8)
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


@pytest.fixture
def context(tmp_path):
    def make(name="step", max_opset=20, operators=None):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        device = types.SimpleNamespace(name="board", max_opset=max_opset)
        backend = types.SimpleNamespace(operators=lambda device: operators)
        return Context(device, Goal(), None, folder, backend)

    return make


def as_model(module, **options):
    torch.manual_seed(0)
    return penjing_torch.module.as_model(module, "here", SMALL, **options)


class Features(nn.Module):
    """What a network may hold that an older opset says otherwise."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = nn.functional.hardswish(self.conv(x))
        left, right = x.chunk(2, 1)
        x = torch.cat([left.mean((2, 3), keepdim=True) * left, nn.functional.gelu(right)], 1)
        x = x + x.amax(1, keepdim=True)
        x = nn.functional.interpolate(x, scale_factor=2.0, mode="bilinear")
        return self.head(self.norm(x.mean((2, 3))))


def file_model(graph, folder, preprocess=SMALL):
    onnx.save(graph, folder / "source.onnx")
    return penjing_onnx.penjing_open(str(folder / "source.onnx"), None, preprocess)


def graph_of(nodes, initializers=(), *, shape=(1, 3, 8, 8), opset=17, domains=(), outputs=("y",)):
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, None if not domains else shape)
            for name in outputs
        ],
        list(initializers),
    )
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8)


def weight(name="w", shape=(4, 3, 3, 3)):
    return numpy_helper.from_array(np.random.default_rng(0).normal(size=shape).astype(np.float32), name)


def ints(name, *values):
    return numpy_helper.from_array(np.array(values, dtype=np.int64), name)


@pytest.mark.parametrize(("opset", "ir"), [(18, 8), (17, 8), (16, 8), (15, 8), (14, 7), (13, 7)])
def test_every_opset_computes_what_torch_does(context, opset, ir):
    here = context()
    model = Export(opset=opset).apply(as_model(Features().eval()), here)
    graph = onnx.load(model.value)

    assert graph.opset_import[0].version == opset == here.details["opset"]
    assert graph.ir_version == ir
    assert here.details["sqnr_db"] > 100
    assert [str(tensor) for tensor in (*model.inputs, *model.outputs)] == [
        "input float32[1, 3, 8, 8]",
        "output float32[1, 5]",
    ]


def test_the_device_chooses_the_opset(context):
    model = as_model(nn.Conv2d(3, 4, 3))
    for maximum, expected in ((13, 13), (17, 17), (20, 18)):
        here = context(max_opset=maximum)
        Export().apply(model, here)
        assert here.details["opset"] == expected


def test_an_opset_the_device_does_not_read_is_refused_before_anything_runs(context):
    device = context(max_opset=17).device
    Export(opset=17).check(device, Backend)
    for opset in (18, 12, 1):
        with pytest.raises(PlanError):
            Export(opset=opset).check(device, Backend)


def test_a_batch_that_the_backend_does_not_take_is_refused_before_anything_runs(context):
    device = context().device

    class Tuned(Backend):
        name = "tuned"
        batch = 8

    for batch in (0, 8):
        Export(batch=batch).check(device, Tuned)
    with pytest.raises(PlanError, match=r"onnx\.export\.batch=1 fixes .* tuned\.batch asks for 8") as caught:
        Export().check(device, Tuned)
    assert "onnx.export.batch=8" in caught.value.hint


def test_the_file_is_one_and_tells_nothing_of_the_machine(context):
    here = context("ein Ordner 模型")
    path = Export().apply(as_model(Features().eval(), labels=tuple("abcde")), here).value

    assert [file.name for file in here.folder.iterdir()] == ["model.onnx"]
    assert b"site-packages" not in path.read_bytes()
    assert __file__.encode() not in path.read_bytes()
    reopened = penjing_onnx.penjing_open(str(path), None, None)
    assert reopened.preprocess == SMALL
    assert reopened.labels == tuple("abcde")


def test_the_same_module_gives_the_same_bytes(context):
    model = as_model(Features().eval())
    digests = set()
    for name in "ab":
        exported = Export().apply(model, context(name))
        simple = Simplify().apply(exported, context(f"{name}s"))
        digests.add(tuple(hashlib.sha256(m.value.read_bytes()).hexdigest() for m in (exported, simple)))

    assert len(digests) == 1


def test_the_module_given_is_left_as_it_was(context):
    module = Features().eval()
    model = as_model(module)
    module.conv.weight.requires_grad_(False)
    calls = []
    module.head.register_forward_hook(lambda *given: calls.append(given))
    before = copy.deepcopy(module.state_dict())

    Export().apply(model, context())

    assert [p.requires_grad for p in module.parameters()].count(False) == 1
    assert len(module.head._forward_hooks) == 1
    assert all(torch.equal(before[key], value) for key, value in module.state_dict().items())
    assert type(module) is Features


def test_pooling_and_flattening_have_their_own_operators(context):
    here = context()
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)).eval()
    Export().apply(as_model(module), here)

    assert here.details["nodes"] == {"Conv": 1, "Flatten": 1, "Gemm": 1, "GlobalAveragePool": 1}
    assert here.details["macs"] == 4 * 27 * 36 + 8
    assert here.details["parameters"] == 4 * 27 + 4 + 8 + 2


@pytest.mark.parametrize("batch", [0, 1, 3])
def test_the_batch_is_fixed_or_left_open(context, batch):
    here = context()
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)).eval()
    model = Export(batch=batch).apply(as_model(module), here)

    assert model.inputs[0].shape[0] == (batch or None)
    assert here.details["macs"] == 4 * 27 * 36 + 8


def test_a_layer_used_twice_keeps_one_weight(context):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x):
            return self.conv(self.conv(x).relu())

    here = context()
    Export().apply(as_model(Twice().eval()), here)

    assert here.details["parameters"] == 3 * 27 + 3
    assert here.details["sqnr_db"] > 100


def test_functional_fake_quantisation_exports_where_torch_ao_does_not(context):
    class Fake(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)
            self.register_buffer("scale", torch.tensor(0.05))
            self.register_buffer("zero", torch.tensor(0, dtype=torch.int32))

        def forward(self, x):
            return self.conv(torch.fake_quantize_per_tensor_affine(x, self.scale, self.zero, -128, 127))

    here = context()
    Export().apply(as_model(Fake().eval()), here)
    assert here.details["nodes"]["QuantizeLinear"] == 1

    model = as_model(nn.Conv2d(3, 4, 3))
    observed = nn.Sequential(model.value, torch.ao.quantization.FakeQuantize())
    with pytest.raises(StepError, match=r"torch\.ao's FakeQuantize"):
        Export().apply(model.become("torch", observed), context())


def test_control_flow_that_depends_on_data_is_a_step_error(context):
    class Fickle(nn.Module):
        def forward(self, x):
            return x * 2 if x.sum() > 0 else x

    with pytest.raises(StepError, match="exporter failed"):
        Export().apply(as_model(Fickle().eval()), context())


def test_a_graph_that_computes_something_else_is_a_step_error(context, monkeypatch):
    def fault(model):
        next(n for n in model.graph if n.op_type == "Relu").op_type = "Sigmoid"

    monkeypatch.setattr("penjing_onnx.tidy.tidy", fault)

    with pytest.raises(StepError, match="output agrees to"):
        Export().apply(as_model(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval()), context())


def test_outputs_that_never_change_are_told(context):
    here = context()
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)).eval()
    nn.init.zeros_(module[3].weight)
    Export().apply(as_model(module), here)

    assert "the same for every input" in here.warnings[0]


def test_an_onnx_file_with_external_data_becomes_one_file(context, tmp_path):
    graph = graph_of([helper.make_node("Conv", ["x", "w"], ["y"])], [weight()])
    onnx.save(graph, tmp_path / "s.onnx", save_as_external_data=True, location="s.data", size_threshold=0)
    model = Export().apply(penjing_onnx.penjing_open(str(tmp_path / "s.onnx"), None, SMALL), context())

    (tmp_path / "s.data").unlink()
    assert onnx.load(model.value).graph.initializer[0].raw_data == weight().raw_data


def test_an_onnx_file_is_lowered_and_raised_to_what_the_device_reads(context, tmp_path):
    newer = graph_of(
        [
            helper.make_node("Conv", ["x", "w"], ["c"]),
            helper.make_node("HardSwish", ["c"], ["h"]),
            helper.make_node("ReduceMean", ["h", "axes"], ["m"], keepdims=0, noop_with_empty_axes=0),
            helper.make_node("Gelu", ["m"], ["y"], approximate="tanh"),
        ],
        [weight(), ints("axes", 1, -1)],
        opset=20,
    )
    here = context(max_opset=13)
    Export().apply(file_model(newer, tmp_path), here)
    assert here.details["opset"] == 13
    assert here.details["sqnr_db"] > 100

    older = graph_of(
        [helper.make_node("Conv", ["x", "w"], ["c"]), helper.make_node("Clip", ["c"], ["y"])],
        [weight()],
        opset=11,
    )
    here = context()
    Export().apply(file_model(older, tmp_path), here)
    assert here.details["opset"] == 13


def test_an_operator_without_an_older_form_is_named(context, tmp_path):
    grid = numpy_helper.from_array(np.zeros((1, 2, 2, 2), np.float32), "g")
    graph = graph_of([helper.make_node("GridSample", ["x", "g"], ["y"], "sample")], [grid])

    with pytest.raises(StepError, match=r"GridSample \(sample\) does not exist in opset 13"):
        Export(opset=13).apply(file_model(graph, tmp_path), context())


@pytest.mark.parametrize("batch", [0, 4])
def test_a_reshape_that_fixes_the_batch_is_told(context, tmp_path, batch):
    graph = graph_of(
        [helper.make_node("Conv", ["x", "w"], ["c"]), helper.make_node("Reshape", ["c", "shape"], ["y"])],
        [weight(), ints("shape", 1, 144)],
    )
    model = file_model(graph, tmp_path)

    Export().apply(model, context())
    with pytest.raises(StepError, match="takes a batch of 1"):
        Export(batch=batch).apply(model, context())


def test_an_open_size_is_fixed_by_the_preprocessing(context, tmp_path):
    graph = graph_of([helper.make_node("Conv", ["x", "w"], ["y"])], [weight()], shape=("n", 3, "h", "w"))
    model = Export().apply(file_model(graph, tmp_path), context())

    assert model.inputs[0].shape == (1, 3, 8, 8)
    assert model.outputs[0].shape == (1, 4, 6, 6)


def test_simplifying_folds_constants_and_changes_nothing_else(context, tmp_path):
    graph = graph_of(
        [
            helper.make_node("Constant", [], ["one"], value=numpy_helper.from_array(np.float32(1))),
            helper.make_node("Add", ["one", "one"], ["two"]),
            helper.make_node("Identity", ["x"], ["i"]),
            helper.make_node("Conv", ["i", "w"], ["c"]),
            helper.make_node("Mul", ["c", "two"], ["y"]),
        ],
        [weight()],
    )
    here = context()
    model = Simplify().apply(file_model(graph, tmp_path), here)

    assert set(here.details["nodes"]) <= {"Conv", "Mul"}
    assert here.details["sqnr_db"] > 100
    assert here.warnings == []
    assert model.inputs[0].name == "x"


def test_operators_of_other_domains_pass_untouched(context, tmp_path):
    graph = graph_of(
        [
            helper.make_node("Identity", ["x"], ["i"]),
            helper.make_node("Magic", ["i"], ["y"], "magic", domain="my.own", power=3),
        ],
        domains=["my.own"],
    )
    here = context()
    result = onnx.load(Simplify().apply(file_model(graph, tmp_path), here).value)

    assert result.graph.node[-1] == graph.graph.node[-1]
    assert "cannot be verified" in here.warnings[0] or "onnxsim" in here.warnings[0]


def test_a_changed_file_that_cannot_be_run_here_is_told(context, tmp_path):
    nodes = [helper.make_node("Magic", ["x"], ["y"], domain="my.own")]
    here = context()
    graph = graph_of(nodes, shape=("n", 3, 8, 8), domains=["my.own"])
    model = Export().apply(file_model(graph, tmp_path), here)

    assert model.inputs[0].shape[0] == 1
    assert "cannot be verified" in here.warnings[0]


def test_loading_the_plugins_imports_no_framework():
    code = (
        "import sys, penjing_onnx, penjing_torch; penjing_onnx.penjing_techniques();"
        "print(sorted({'torch', 'onnx', 'onnxruntime', 'onnxsim', 'numpy', 'onnx_ir'} & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=ENVIRONMENT
    )

    assert result.stdout.strip() == "[]"


def test_non_maximum_suppression_passes_untouched(context, tmp_path):
    graph = graph_of(
        [
            helper.make_node("Reshape", ["x", "s4"], ["boxes"]),
            helper.make_node("ReduceMean", ["boxes"], ["m"], axes=[2], keepdims=0),
            helper.make_node("Unsqueeze", ["m", "one"], ["scores"]),
            helper.make_node("NonMaxSuppression", ["boxes", "scores", "most"], ["picked"], "nms"),
            helper.make_node("Cast", ["picked"], ["y"], to=TensorProto.FLOAT),
        ],
        [ints("s4", 1, 48, 4), ints("one", 1), ints("most", 5)],
    )
    here = context()
    result = onnx.load(Simplify().apply(file_model(graph, tmp_path), here).value)

    assert [n for n in result.graph.node if n.op_type == "NonMaxSuppression"] == [graph.graph.node[3]]


@pytest.mark.parametrize("fault", ["raise", "change"])
def test_a_simplifier_at_fault_leaves_the_graph_as_it_was(context, tmp_path, monkeypatch, fault):
    def simplify(model):
        if fault == "raise":
            raise RuntimeError("segment of a fault")
        model.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.ones((4, 3, 3, 3), np.float32), "w"))
        return model, True

    monkeypatch.setattr("onnxsim.simplify", simplify)
    graph = graph_of([helper.make_node("Conv", ["x", "w"], ["y"])], [weight()])
    here = context()
    result = onnx.load(Simplify().apply(file_model(graph, tmp_path), here).value)

    assert result.graph.node == graph.graph.node
    assert result.graph.initializer[0].raw_data == weight().raw_data
    assert "kept the graph as it was" in here.warnings[0]


def test_two_outputs_keep_their_names_and_order(context):
    class Two(nn.Module):
        def forward(self, x):
            return x.sum(1), x.relu()

    here = context()
    model = Export().apply(as_model(Two().eval()), here)

    assert [(t.name, t.shape) for t in Simplify().apply(model, context("s")).outputs] == [
        ("output_0", (1, 8, 8)),
        ("output_1", (1, 3, 8, 8)),
    ]


def test_outputs_in_a_mapping_or_nested_are_exported_as_they_were_counted(context):
    class Table(nn.Module):
        def forward(self, x):
            return {"scores": x.sum(1), "boxes": x.relu()}

    class Nested(nn.Module):
        def forward(self, x):
            return x.sum(1), [x.relu(), {"left": None, "mean": x.mean((2, 3))}]

    for module in (Table(), Nested()):
        opened = as_model(module)
        exported = Export().apply(opened, context(type(module).__name__))
        assert [(t.name, t.shape) for t in exported.outputs] == [(t.name, t.shape) for t in opened.outputs]


@pytest.mark.slow
def test_mobilenet_v3_small_exports_for_every_runtime(context):
    model = penjing_torch.penjing_open("torchvision:mobilenet_v3_small?weights=none", None, None)
    for opset, operators in ((18, {"HardSwish"}), (17, {"HardSwish"}), (13, set())):
        here = context()
        Simplify().apply(Export(opset=opset).apply(model, here), context("s"))
        assert here.details["sqnr_db"] > 100
        assert here.details["nodes"]["GlobalAveragePool"] == 10
        assert {"HardSwish"} & set(here.details["nodes"]) == operators
        assert 56e6 < here.details["macs"] < 57e6
