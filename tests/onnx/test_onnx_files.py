"""Opening `.onnx` files: what is recorded, and what is refused."""

import json
from pathlib import Path

import numpy as np
import onnx
import penjing_onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from penjing import onnx_file
from penjing.errors import InputError
from penjing.preprocess import Preprocess
from penjing_onnx.files import load

SMALL = Preprocess(crop=8)


def tiny(
    shape=(1, 3, 8, 8),
    *,
    opset=17,
    ir=8,
    nodes=None,
    inputs=None,
    initializers=(),
    domains=(),
    outputs=("y",),
):
    """Make a model: one Conv, or the nodes given."""
    weight = numpy_helper.from_array(
        np.random.default_rng(0).normal(size=(4, 3, 3, 3)).astype(np.float32), "w"
    )
    graph = helper.make_graph(
        nodes or [helper.make_node("Conv", ["x", "w"], ["y"], "conv")],
        "tiny",
        inputs or [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [weight, *initializers],
    )
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return helper.make_model(graph, opset_imports=imports, ir_version=ir)


def saved(model, folder, name="net.onnx", **options):
    onnx.save(model, folder / name, **options)
    return folder / name


def open_onnx(path, preprocess=SMALL):
    return penjing_onnx.penjing_open(str(path), None, preprocess)


def refusal(path, preprocess=SMALL):
    with pytest.raises(InputError) as caught:
        open_onnx(path, preprocess)
    return f"{caught.value.message} {caught.value.hint}"


def external(folder):
    return saved(tiny(), folder, save_as_external_data=True, location="net.onnx.data", size_threshold=0)


def test_a_file_opens_with_inputs_and_outputs_recorded(tmp_path):
    folder = tmp_path / "meine Dateien 模型"
    folder.mkdir()
    model = open_onnx(saved(tiny(("batch", 3, 8, 8)), folder))

    assert [str(tensor) for tensor in model.inputs] == ["x float32[?, 3, 8, 8]"]
    assert [tensor.name for tensor in model.outputs] == ["y"]
    assert model.preprocess == SMALL
    assert model.warnings == ()


def test_an_initialiser_that_is_an_input_too_is_none(tmp_path):
    values = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, s)
        for n, s in (("x", [1, 3, 8, 8]), ("w", [4, 3, 3, 3]))
    ]

    assert [tensor.name for tensor in open_onnx(saved(tiny(inputs=values), tmp_path)).inputs] == ["x"]


def test_the_file_tells_its_own_preprocessing_and_labels_and_the_user_goes_before(tmp_path):
    model = tiny()
    own = Preprocess(resize=(8, 8), scale=1.0)
    model.metadata_props.add(key="penjing.preprocess", value=json.dumps(own.to_dict()))
    model.metadata_props.add(key="penjing.labels", value='["cat", "dog"]')
    path = saved(model, tmp_path)

    assert open_onnx(path, None).preprocess == own
    assert open_onnx(path, None).labels == ("cat", "dog")
    assert open_onnx(path, SMALL).preprocess == SMALL


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("penjing.preprocess", "{", "is not JSON"),
        ("penjing.preprocess", "[1]", "is not a table"),
        ("penjing.preprocess", '{"size": 3}', "size"),
        ("penjing.labels", '{"a": 1}', "is not a list of names"),
    ],
)
def test_broken_metadata_are_refused(tmp_path, key, value, words):
    model = tiny()
    model.metadata_props.add(key=key, value=value)

    assert words in refusal(saved(model, tmp_path), None if "preprocess" in key else SMALL)


def test_unknown_preprocessing_is_answered_with_a_template_of_the_files_own_size(tmp_path):
    assert "resize = [8, 8]" in refusal(saved(tiny(), tmp_path), None)


def test_preprocessing_of_another_size_is_refused(tmp_path):
    assert "makes height 9" in refusal(saved(tiny(), tmp_path), Preprocess(crop=9))


def test_channels_last_is_told_apart(tmp_path):
    nodes = [helper.make_node("Relu", ["x"], ["y"])]

    assert "channels last" in refusal(saved(tiny((1, 8, 8, 3), nodes=nodes), tmp_path))


def test_external_data_count_for_the_fingerprint_wherever_they_are_kept(tmp_path):
    one = open_onnx(saved(tiny(), tmp_path, "one.onnx")).fingerprint
    path = external(tmp_path)
    assert path.stat().st_size < 400

    two = open_onnx(path).fingerprint
    data = bytearray((tmp_path / "net.onnx.data").read_bytes())
    data[0] ^= 1
    (tmp_path / "net.onnx.data").write_bytes(data)

    assert open_onnx(path).fingerprint not in (one, two)
    assert one == two


def test_external_data_left_behind_are_named(tmp_path):
    path = external(tmp_path)
    (tmp_path / "net.onnx.data").unlink()

    assert "'net.onnx.data', which is missing" in refusal(path)


def test_external_data_of_another_length_are_refused(tmp_path):
    path = external(tmp_path)
    model = onnx.load(path, load_external_data=False)
    next(entry for entry in model.graph.initializer[0].external_data if entry.key == "length").value = "428"
    path.write_bytes(model.SerializeToString())

    assert "take 432 bytes, and there are 428" in refusal(path)


def test_external_data_cut_short_are_refused(tmp_path):
    path = external(tmp_path)
    (tmp_path / "net.onnx.data").write_bytes(b"\0" * 100)

    assert "too short" in refusal(path)


@pytest.mark.parametrize("where", ["../secret", "absolute", "link"])
def test_external_data_outside_the_folder_are_refused(tmp_path, where):
    folder = tmp_path / "model"
    folder.mkdir()
    secret = tmp_path / "secret"
    secret.write_bytes(b"\0" * 1000)
    if where == "link":
        (folder / "link").symlink_to(secret)
    path = external(folder)
    model = onnx.load(path, load_external_data=False)
    for entry in model.graph.initializer[0].external_data:
        if entry.key == "location":
            entry.value = str(secret) if where == "absolute" else where
    path.write_bytes(model.SerializeToString())

    assert "outside its folder" in refusal(path)


@pytest.mark.parametrize("content", [b"", b"\x08", b"hello, this is no model", bytes(range(256))])
def test_what_is_no_onnx_is_refused(tmp_path, content):
    (tmp_path / "net.onnx").write_bytes(content)

    assert "is not an ONNX file" in refusal(tmp_path / "net.onnx")


def test_a_file_cut_short_or_missing_is_refused(tmp_path):
    path = saved(tiny(), tmp_path)
    path.write_bytes(path.read_bytes()[:-20])

    assert refusal(path)
    assert "does not exist" in refusal(tmp_path / "none.onnx")


@pytest.mark.parametrize("change", [-4, -1, 1, 4])
def test_weights_that_do_not_fill_their_shape_are_refused(tmp_path, change):
    model = tiny()
    weight = model.graph.initializer[0]
    weight.raw_data = weight.raw_data[:change] if change < 0 else weight.raw_data + b"\0" * change

    assert f"'w' of shape [4, 3, 3, 3] take 432 bytes, and there are {432 + change}" in refusal(
        saved(model, tmp_path)
    )


@pytest.mark.parametrize(
    "kind", [TensorProto.FLOAT, TensorProto.INT64, TensorProto.FLOAT16, TensorProto.BFLOAT16]
)
def test_weights_given_as_numbers_are_counted_too(tmp_path, kind):
    typed = helper.make_tensor("typed", kind, [2, 3], [0] * 6)
    assert not typed.HasField("raw_data")
    open_onnx(saved(tiny(initializers=[typed]), tmp_path))
    typed.dims[0] = 2**40

    assert "take 3298534883328 numbers, and there are 6" in refusal(
        saved(tiny(initializers=[typed]), tmp_path)
    )


def test_weights_without_any_numbers_are_refused(tmp_path):
    empty = TensorProto(name="empty", data_type=TensorProto.FLOAT, dims=[4])

    assert "take 4 numbers, and there are 0" in refusal(saved(tiny(initializers=[empty]), tmp_path))


@pytest.mark.parametrize(
    "kind", [TensorProto.COMPLEX64, TensorProto.INT4, TensorProto.BOOL, TensorProto.STRING]
)
@pytest.mark.parametrize("count", [0, 1, 3])
def test_what_onnx_writes_as_numbers_is_read(tmp_path, kind, count):
    values = [b"a"] * count if kind == TensorProto.STRING else [1] * count
    model = tiny(opset=21, ir=10, initializers=[helper.make_tensor("typed", kind, [count], values)])

    assert len(onnx_file.read(saved(model, tmp_path)).graph.initializer) == 2


def test_weights_of_four_bits_share_bytes(tmp_path):
    odd = helper.make_tensor("odd", TensorProto.INT4, [3], bytes([0x21, 0x03]), raw=True)

    assert len(open_onnx(saved(tiny(opset=21, ir=10, initializers=[odd]), tmp_path)).inputs) == 1


def test_a_graph_that_breaks_the_standard_is_refused(tmp_path):
    nodes = [helper.make_node("Conv", ["x", "nowhere"], ["y"])]

    assert "is not valid ONNX" in refusal(saved(tiny(nodes=nodes), tmp_path))


def test_a_newer_file_says_both_versions(tmp_path):
    assert f"opset 999; onnx {onnx.__version__}" in refusal(saved(tiny(opset=999), tmp_path))
    assert f"IR version 99; onnx {onnx.__version__}" in refusal(saved(tiny(ir=99), tmp_path))


@pytest.mark.parametrize("kind", ["Q/DQ", "ConvInteger"])
def test_a_quantised_file_is_recognised(tmp_path, kind):
    scale = numpy_helper.from_array(np.float32(0.1), "s")
    zero = numpy_helper.from_array(np.uint8(128), "z")
    weight = numpy_helper.from_array(np.ones((4, 3, 3, 3), np.uint8), "wq")
    nodes = [helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"])]
    if kind == "Q/DQ":
        nodes.append(helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]))
    else:
        nodes += [
            helper.make_node("ConvInteger", ["q", "wq", "z"], ["i"]),
            helper.make_node("Cast", ["i"], ["y"], to=TensorProto.FLOAT),
        ]
    model = tiny(nodes=nodes, initializers=[scale, zero, weight])

    assert "already quantised" in open_onnx(saved(model, tmp_path)).warnings[0]


def test_two_inputs_and_integer_inputs_are_recorded_for_the_plan(tmp_path):
    values = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8]),
        helper.make_tensor_value_info("sizes", TensorProto.INT64, [1, 2]),
    ]
    nodes = [
        helper.make_node("Cast", ["sizes"], ["s"], to=TensorProto.FLOAT),
        helper.make_node("ReduceSum", ["s"], ["t"]),
        helper.make_node("Add", ["x", "t"], ["y"]),
    ]
    model = open_onnx(saved(tiny(inputs=values, nodes=nodes), tmp_path), None)

    assert [tensor.dtype for tensor in model.inputs] == ["float32", "int64"]


def test_a_file_of_weights_beside_it_is_refused(tmp_path):
    with pytest.raises(InputError, match="own weights"):
        penjing_onnx.penjing_open(str(saved(tiny(), tmp_path)), Path("w.pt"), SMALL)
    assert penjing_onnx.penjing_open("net.pt2", None, None) is None


def test_nodes_that_share_a_name_get_their_own(tmp_path):
    nodes = [helper.make_node("Conv", ["x", "w"], ["a"], "node")]
    nodes += [
        helper.make_node("Relu", [before], [after], "node") for before, after in ("ab", "bc", "cd", "de")
    ]
    nodes[3].name = "node_1"
    nodes.append(helper.make_node("Relu", ["e"], ["y"]))
    names = [node.name for node in load(saved(tiny(nodes=nodes), tmp_path)).graph.node]

    assert names == ["node", "node_2", "node_3", "node_1", "node_4", ""]


def test_an_input_left_out_at_the_end_of_a_node_is_cut(tmp_path):
    nodes = [
        helper.make_node("Conv", ["x", "w", ""], ["a"], "conv"),
        helper.make_node("Clip", ["a", "", "most"], ["b"], "low end left out"),
        helper.make_node("Clip", ["b", "", ""], ["y"], "both left out"),
    ]
    most = numpy_helper.from_array(np.float32(6), "most")
    graph = load(saved(tiny(nodes=nodes, initializers=[most]), tmp_path)).graph

    assert [list(node.input) for node in graph.node] == [["x", "w"], ["a", "", "most"], ["b"]]


def sparse(dense, *, flat=True, shape=None):
    places = np.flatnonzero(dense) if flat else np.argwhere(dense)
    values = numpy_helper.from_array(dense[dense != 0], "w")
    made = tiny()
    made.graph.ClearField("initializer")
    indices = numpy_helper.from_array(places.astype(np.int64), "places")
    made.graph.sparse_initializer.append(
        helper.make_sparse_tensor(values, indices, shape or list(dense.shape))
    )
    return made


@pytest.mark.parametrize("flat", [True, False])
def test_sparse_weights_are_filled_up(flat, tmp_path):
    dense = np.zeros((4, 3, 3, 3), np.float32)
    dense[1, 2, 0, 1], dense[3, 0, 2, 2] = 2, -3
    model = load(saved(sparse(dense, flat=flat), tmp_path))

    (weight,) = model.graph.initializer
    assert weight.name == "w"
    np.testing.assert_array_equal(numpy_helper.to_array(weight), dense)
    assert not model.graph.sparse_initializer


def test_sparse_weights_that_cannot_be_filled_up_are_refused(tmp_path):
    dense = np.zeros((4, 3, 3, 3), np.float32)
    dense[3, 0, 2, 2] = -3
    assert "lie outside their shape" in refusal(saved(sparse(dense, shape=[1, 3, 3, 3]), tmp_path))
    assert "in full" in refusal(saved(sparse(dense, shape=[1 << 20, 3, 300, 300]), tmp_path))
