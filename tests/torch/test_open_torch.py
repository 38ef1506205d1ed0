"""Sources of PyTorch networks: what opens, what is refused, and with which words."""

import json
import pickle
import sys
import types
import zipfile
from pathlib import Path

import penjing_torch
import pytest
import torch
from penjing.errors import InputError
from penjing.preprocess import Preprocess
from torch import nn

SMALL = Preprocess(crop=8)
FACTORY = """
from torch import nn
calls = []
def net():
    body = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)).train()
SHARED = nn.Conv2d(3, 4, 3).train()
def shared(): return SHARED
def scripted():
    import torch, warnings
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.script(net())
def broken(): raise KeyError("no such thing")
def number(): return 3
def needs(width): return nn.Conv2d(3, width, 3)
class Two(nn.Module):
    def forward(self, left, right): return left + right
def two(): return Two()
class Wrapped(nn.Module):
    def __init__(self):
        super().__init__()
        self.module = nn.Conv2d(3, 4, 3)
        nn.init.zeros_(self.module.weight)
    def forward(self, x): return self.module(x)
def wrapped(): return Wrapped()
class Both(nn.Module):
    def forward(self, x): return x.mean(1), x.sum(1)
def both(): return Both()
class Table(nn.Module):
    def forward(self, x): return {"scores": x.mean(1), "boxes": x}
def table(): return Table()
class Nested(nn.Module):
    def forward(self, x): return x.mean(1), [x, {"input": x.sum(1), "none": None}]
def nested(): return Nested()
class Words(nn.Module):
    def forward(self, x): return x, "words"
def words(): return Words()
def half(): return net().half()
class Casting(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
    def forward(self, x): return self.conv(x.half())
def casting(): return Casting().half()
def poisoned():
    module = net()
    module[5].weight.data[0, 0] = float("nan")
    return module
def fake():
    import torch
    return nn.Sequential(nn.Conv2d(3, 4, 3), torch.ao.quantization.FakeQuantize())
"""


def open_torch(source, weights=None, preprocess=SMALL):
    return penjing_torch.penjing_open(str(source), weights, preprocess)


@pytest.fixture
def factory(tmp_path):
    folder = tmp_path / "my näts"
    folder.mkdir()
    path = folder / "model.py"
    path.write_text(FACTORY)
    return lambda name: f"{path}:{name}"


@pytest.fixture
def state(factory):
    return open_torch(factory("net")).value.state_dict()


def refusal(source, weights=None, preprocess=SMALL):
    with pytest.raises(InputError) as caught:
        open_torch(source, weights, preprocess)
    return f"{caught.value.message} {caught.value.hint}"


def test_a_factory_opens_in_eval_mode_with_its_shapes_recorded(factory):
    model = open_torch(factory("net"))

    assert not any(part.training for part in model.value.modules())
    assert [str(tensor) for tensor in (*model.inputs, *model.outputs)] == [
        "input float32[1, 3, 8, 8]",
        "output float32[1, 5]",
    ]
    assert all(parameter.requires_grad for parameter in model.value.parameters())


def test_opening_twice_gives_the_same_fingerprint_and_leaves_the_random_state_alone(factory):
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)

    first, second = open_torch(factory("net")), open_torch(factory("net"))

    assert first.fingerprint == second.fingerprint
    assert torch.equal(expected, torch.rand(1))


def test_changed_code_changes_the_fingerprint(factory):
    source = factory("net")
    before = open_torch(source).fingerprint
    path = Path(source.rpartition(":")[0])
    path.write_text(FACTORY + "\n# forward now does something else\n")

    assert open_torch(source).fingerprint != before


def test_preprocessing_and_weights_change_the_fingerprint(factory, state, tmp_path):
    state["5.bias"] += 1
    torch.save(state, tmp_path / "w.pt")

    found = {
        open_torch(factory("net")).fingerprint,
        open_torch(factory("net"), preprocess=Preprocess(crop=8, scale=1.0)).fingerprint,
        open_torch(factory("net"), tmp_path / "w.pt").fingerprint,
    }

    assert len(found) == 3


def test_a_module_that_others_hold_is_left_in_training_mode(tmp_path, monkeypatch):
    (tmp_path / "held_by_others.py").write_text(FACTORY)
    monkeypatch.syspath_prepend(tmp_path)

    model = open_torch("held_by_others:shared")

    assert sys.modules.pop("held_by_others").SHARED.training
    assert not model.value.training


def test_neighbours_of_a_file_are_importable_and_then_forgotten(tmp_path):
    results = []
    for name, width in (("a", 4), ("b", 6)):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "layers_next_door.py").write_text(f"from torch import nn\nlayer = nn.Conv2d(3, {width}, 3)")
        (folder / "model.py").write_text(
            "def net():\n    from layers_next_door import layer\n    return layer"
        )
        results.append(open_torch(folder / "model.py:net").outputs[0].shape[1])
        assert str(folder) not in sys.path

    assert results == [4, 6]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nett", "Did you mean net"),
        ("broken", "KeyError"),
        ("number", "returned a int, not a torch.nn.Module"),
        ("needs", "without arguments"),
        ("calls", "is a list"),
        ("two", "2 inputs: left, right"),
        ("words", "puts out Tensor and str"),
        ("casting", "leave out what casts its input to float16"),
        ("Both", "puts out"),
        ("poisoned", "NaN, first in 5.weight"),
        ("fake", "quantised already, or prepared for it: 1 is a FakeQuantize"),
    ],
)
def test_a_factory_that_cannot_serve_is_refused_in_words(factory, name, words):
    if name == "Both":  # a class called without arguments is a factory too
        assert len(open_torch(factory("Both")).outputs) == 2
    else:
        assert words in refusal(factory(name))


def test_two_outputs_are_recorded_by_number(factory):
    assert [tensor.name for tensor in open_torch(factory("both")).outputs] == ["output_0", "output_1"]


def test_outputs_of_a_mapping_have_its_keys_for_names_and_nested_ones_numbers(factory):
    assert [tensor.name for tensor in open_torch(factory("table")).outputs] == ["scores", "boxes"]
    assert [tensor.name for tensor in open_torch(factory("nested")).outputs] == [
        "output_0", "output_1", "output_2",
    ]  # fmt: skip


def test_a_network_of_half_precision_becomes_float32_and_says_so(factory, state, tmp_path):
    model = open_torch(factory("half"))

    assert {tensor.dtype for tensor in model.value.parameters()} == {torch.float32}
    assert model.outputs[0].dtype == "float32"
    assert model.warnings == ("Weights kept in float16 are computed with in float32.",)
    torch.save(state, tmp_path / "w.pt")
    loaded = open_torch(factory("half"), tmp_path / "w.pt").value.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.items())


def test_a_dynamically_quantised_network_is_refused(tmp_path):
    (tmp_path / "q.py").write_text(
        "import torch\nfrom torch import nn\n"
        "def net():\n    body = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))\n"
        "    return torch.ao.quantization.quantize_dynamic(body)"
    )

    assert "quantised already" in refusal(f"{tmp_path}/q.py:net")


def test_torchscript_from_a_factory_is_refused_with_what_to_return_instead(factory):
    text = refusal(factory("scripted"))

    assert "is TorchScript" in text
    assert "before torch.jit.script" in text


def test_a_network_of_unknown_input_is_refused_with_a_template(factory):
    assert "crop = 224" in refusal(factory("net"), preprocess=None)
    assert "leaves the size" in refusal(factory("net"), preprocess=Preprocess(resize=8))
    assert "does not run on an input of 1 × 1 × 8 × 8" in refusal(
        factory("net"), preprocess=Preprocess(crop=8, channels="L", mean=(0.5,), std=(0.5,))
    )


def test_a_missing_file_or_module_is_named():
    assert "/nowhere/model.py does not exist" in refusal("/nowhere/model.py:net")
    assert "no Python module 'no_such_package'" in refusal("no_such_package.models:net")
    assert open_torch("x.onnx") is None
    assert open_torch("resnet50") is None


@pytest.mark.parametrize(
    "wrap", [None, "state_dict", "model", "model_state_dict", "module.", "_orig_mod.", "module._orig_mod."]
)
def test_checkpoints_are_unwrapped(factory, state, tmp_path, wrap):
    state["5.bias"] += 1
    if wrap and wrap.endswith("."):
        content = {f"{wrap}{key}": value for key, value in state.items()}
    else:
        content = {wrap: state, "epoch": 3} if wrap else state
    torch.save(content, tmp_path / "w.pth")

    assert torch.equal(open_torch(factory("net"), tmp_path / "w.pth").value[5].bias, state["5.bias"])


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
def test_a_network_that_calls_a_part_of_its_own_module_takes_its_weights(factory, tmp_path, prefix):
    expected = open_torch(factory("wrapped")).value.state_dict()
    torch.save({f"{prefix}{key}": value + 1 for key, value in expected.items()}, tmp_path / "w.pt")

    found = open_torch(factory("wrapped"), tmp_path / "w.pt").value.state_dict()

    assert torch.equal(found["module.weight"], expected["module.weight"] + 1)


def test_safetensors_load_and_a_truncated_one_does_not(factory, state, tmp_path):
    from safetensors.torch import save_file

    path = tmp_path / "w.safetensors"
    save_file(state, path)
    assert open_torch(factory("net"), path)
    path.write_bytes(path.read_bytes()[:-10])

    assert "not a whole safetensors file" in refusal(factory("net"), path)


def test_weights_that_do_not_fit_are_listed(factory, state, tmp_path):
    state["extra"] = torch.zeros(1)
    state["5.weight"] = torch.zeros(7, 4)
    del state["0.bias"]
    torch.save(state, tmp_path / "w.pt")

    text = refusal(factory("net"), tmp_path / "w.pt")

    for words in (
        "1 missing: 0.bias",
        "1 unexpected: extra",
        "1 of another shape: 5.weight is [7, 4], not",
    ):
        assert words in text


class Evil:
    """A pickle that makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("legacy", [True, False])
def test_a_pickle_with_code_is_refused_and_not_executed(factory, tmp_path, legacy):
    target, path = tmp_path / "made", tmp_path / "w.pt"
    torch.save({"weight": Evil(target)}, path, _use_new_zipfile_serialization=not legacy)

    assert "Nothing was executed" in refusal(factory("net"), path)
    assert not target.exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"PK\x03\x04 not really", "damaged"),
        (b"once upon a time", "damaged"),
        (pickle.dumps([1, 2]), ""),
    ],
)
def test_a_damaged_file_of_weights_is_refused(factory, tmp_path, content, words):
    (tmp_path / "w.pt").write_bytes(content)

    assert words in refusal(factory("net"), tmp_path / "w.pt")


def test_a_truncated_checkpoint_is_refused(factory, state, tmp_path):
    torch.save(state, tmp_path / "w.pt")
    data = (tmp_path / "w.pt").read_bytes()
    for size in (10, len(data) // 2, len(data) - 5):
        (tmp_path / "w.pt").write_bytes(data[:size])
        assert "damaged" in refusal(factory("net"), tmp_path / "w.pt")


def test_what_is_no_tensor_is_named(factory, tmp_path):
    torch.save({"weight": 3}, tmp_path / "w.pt")
    assert "'weight' is an int, not a tensor" in refusal(factory("net"), tmp_path / "w.pt")
    torch.save([torch.zeros(1)], tmp_path / "w.pt")
    assert "holds a list" in refusal(factory("net"), tmp_path / "w.pt")


def test_an_archive_that_would_swell_is_refused(factory, tmp_path):
    with zipfile.ZipFile(tmp_path / "w.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", b"\0" * 20_000_000)

    assert "would unpack to" in refusal(factory("net"), tmp_path / "w.pt")


def test_weights_given_as_the_source_say_what_lacks(state, tmp_path):
    torch.save(state, tmp_path / "w.pt")

    assert "weights only" in refusal(tmp_path / "w.pt")
    assert "does not exist" in refusal(tmp_path / "none.safetensors")


def test_torchvision_opens_by_name_with_its_own_preprocessing():
    model = open_torch("torchvision:squeezenet1_1?num_classes=7&weights=none", preprocess=None)

    assert model.preprocess == Preprocess(resize=256, crop=224)
    assert model.outputs[0].shape == (1, 7)
    assert model.labels == ()
    assert model.warnings


def test_torchvision_mistakes_are_answered():
    assert "Did you mean resnet18" in refusal("torchvision:resnet19")
    assert "1000 classes, not 10" in refusal("torchvision:resnet18?num_classes=10")
    assert "no weights 'IMAGENET_V9'" in refusal("torchvision:resnet18?weights=IMAGENET_V9")
    assert "unexpected keyword" in refusal("torchvision:resnet18?widht=2&weights=none")
    assert "key=value" in refusal("torchvision:resnet18?broken")


def test_weights_that_cannot_be_fetched_say_what_to_do(monkeypatch):
    from urllib.error import URLError

    def offline(*args, **kwargs):
        raise URLError("no route")

    monkeypatch.setattr("torchvision.models._api.WeightsEnum.get_state_dict", offline)

    assert "weights=none" in refusal("torchvision:squeezenet1_1")


def test_timm_opens_with_its_data_config(monkeypatch):
    timm = types.ModuleType("timm")
    timm.list_models = lambda: ["tiny"]
    timm.create_model = lambda name, pretrained: nn.Sequential(
        nn.Conv2d(3, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    config = {
        "input_size": (3, 16, 16),
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "mean": (0.5,) * 3,
        "std": (0.25,) * 3,
    }
    timm.data = types.SimpleNamespace(resolve_model_data_config=lambda module: config)
    monkeypatch.setitem(sys.modules, "timm", timm)

    model = open_torch("timm:tiny", preprocess=None)

    assert model.preprocess == Preprocess(
        resize=18, crop=16, interpolation="bicubic", mean=(0.5,) * 3, std=(0.25,) * 3
    )
    assert "no model 'tidy'" in refusal("timm:tidy")


def test_timm_that_is_not_installed_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)

    assert "pip install 'penjing[timm]'" in refusal("timm:resnet18")


def test_a_hub_folder_opens(tmp_path):
    (tmp_path / "hubconf.py").write_text(
        "from torch import nn\ndef net(width=4): return nn.Conv2d(3, width, 3)"
    )

    assert open_torch(f"hub:{tmp_path}:net?width=6").outputs[0].shape == (1, 6, 6, 6)
    assert "cannot be built" in refusal(f"hub:{tmp_path}:nett")
    assert "neither a folder nor OWNER/REPO" in refusal("hub:/nowhere:net")


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    ).eval()
    path = tmp_path_factory.mktemp("program") / "net.pt2"
    torch.export.save(torch.export.export(network, (torch.zeros(1, 3, 8, 8),)), path)
    return network, path


def test_an_exported_program_whose_batch_was_left_open_takes_any(program, tmp_path):
    network, _ = program
    batch = torch.export.Dim("batch", min=1)
    made = torch.export.export(network, (torch.zeros(2, 3, 8, 8),), dynamic_shapes=({0: batch},))
    torch.export.save(made, tmp_path / "net.pt2")
    model = open_torch(tmp_path / "net.pt2")

    assert model.inputs[0].shape[1:] == (3, 8, 8)
    for images in (torch.rand(1, 3, 8, 8), torch.rand(5, 3, 8, 8)):
        with torch.no_grad():
            assert torch.equal(model.value(images), network(images))


def test_an_exported_program_computes_what_it_was_exported_from(program):
    network, path = program
    model = open_torch(path)
    image = torch.rand(1, 3, 8, 8)

    with torch.no_grad():
        assert torch.equal(model.value(image), network(image))
    model.value.train().eval()
    assert "takes 3 × 8 × 8; the preprocessing makes 3 × 9 × 9" in refusal(
        path, preprocess=Preprocess(crop=9)
    )


def altered(path, target, change):
    """Copy an archive, one of its records being changed."""
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            data = change(name.partition("/")[2], old.read(name))
            if data is not None:
                new.writestr(name, data)
    return target


def on_graph(edit):
    def change(name, data):
        if name != "models/model.json":
            return data
        tree = json.loads(data)
        edit(tree)
        return json.dumps(tree)

    return change


def node(tree):
    return tree["graph_module"]["graph"]["nodes"][0]


ATTACKS = {
    "load_library": on_graph(lambda tree: node(tree).update(target="torch.ops.load_library")),
    "from_file": on_graph(lambda tree: node(tree).update(target="torch.ops.aten.from_file.default")),
    "hub": on_graph(lambda tree: node(tree).update(target="torch.hub.load")),
    "methodcaller": on_graph(lambda tree: node(tree).update(target="_operator.methodcaller")),
    "sympy": on_graph(
        lambda tree: tree["graph_module"]["graph"]["tensor_values"]["input"]["sizes"].append(
            {"as_expr": {"expr_str": "__import__('os').system('true')"}}
        )
    ),
    "large power": on_graph(
        lambda tree: tree["graph_module"]["graph"]["tensor_values"]["input"]["sizes"].append(
            {"as_expr": {"expr_str": "9**9**9**9"}}
        )
    ),
    "name": on_graph(
        lambda tree: tree["graph_module"]["signature"]["input_specs"][0]["parameter"].update(
            parameter_name='0.w"]; x = ["'
        )
    ),
    "structure": on_graph(
        lambda tree: tree["graph_module"]["module_call_graph"][0]["signature"].update(
            in_spec='[1, {"type": "collections.defaultdict", "context": "null", "children_spec": []}]'
        )
    ),
    "enum": on_graph(
        lambda tree: tree["graph_module"]["module_call_graph"][0]["signature"].update(
            in_spec=json.dumps(
                [
                    1,
                    {
                        "type": "builtins.dict",
                        "context": '[{"__enum__": 1, "fqn": "os:x"}]',
                        "children_spec": [],
                    },
                ]
            )
        )
    ),
    "custom object": on_graph(
        lambda tree: node(tree)["inputs"][0].update(arg={"as_custom_obj": {"name": "x"}})
    ),
    "pickled weight": lambda name, data: (
        data.replace(b'"use_pickle": false', b'"use_pickle": true')
        if name.endswith("weights_config.json")
        else data
    ),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_exported_program_with_more_than_a_network_is_refused(program, tmp_path, attack):
    path = altered(program[1], tmp_path / "evil.pt2", ATTACKS[attack])

    assert "nothing was executed" in refusal(path)


def test_example_inputs_of_an_exported_program_are_not_unpickled(program, tmp_path):
    import io

    buffer, target = io.BytesIO(), tmp_path / "made"
    torch.save(Evil(target), buffer)
    path = altered(
        program[1],
        tmp_path / "evil.pt2",
        lambda name, data: buffer.getvalue() if name.endswith("model.pt") else data,
    )

    assert "refused, nothing was executed" in refusal(path)
    assert not target.exists()


def test_guards_of_an_exported_program_are_not_run(program, tmp_path):
    path = altered(
        program[1], tmp_path / "g.pt2", on_graph(lambda tree: tree.update(guards_code=["1/0", "exit()"]))
    )

    assert open_torch(path).outputs[0].shape == (1, 4)


def test_a_damaged_exported_program_is_refused(program, tmp_path):
    data = program[1].read_bytes()
    (tmp_path / "cut.pt2").write_bytes(data[: len(data) // 2])

    assert "damaged" in refusal(tmp_path / "cut.pt2")
    empty = altered(
        program[1], tmp_path / "empty.pt2", lambda name, data: None if "model.json" in name else data
    )
    assert "holds no exported program" in refusal(empty)
    odd = altered(
        program[1], tmp_path / "odd.pt2", lambda name, data: b"{}" if name == "models/model.json" else data
    )
    assert "damaged" in refusal(odd)


def test_a_program_exported_in_training_mode_is_refused(tmp_path):
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout(0.5)).train()
    torch.export.save(torch.export.export(network, (torch.zeros(1, 3, 8, 8),)), tmp_path / "t.pt2")

    assert "training mode" in refusal(tmp_path / "t.pt2")


@pytest.mark.parametrize(
    ("text", "allowed"),
    [
        ("s0 + 2*s1", True),
        ("FloorDiv(s0 - 1, 2) + 1", True),
        ("2**3 + s77", True),
        ("s0**9", False),
        ("s0**22", False),
        ("s0**2**2", False),
        ("exec(1)", False),
        ("Mods1", False),
        ("s", False),
        ("1" * 500_000 + "x", False),
    ],
    ids=lambda value: value[:24] if isinstance(value, str) else None,
)
def test_sizes_in_an_exported_program_are_small_sums_and_nothing_else(text: str, allowed: bool) -> None:
    """The last one would take a pattern that tries every split of a number for ever."""
    from penjing_torch.exported import EXPRESSION

    assert bool(EXPRESSION.fullmatch(text)) == allowed
