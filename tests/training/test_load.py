"""The PyTorch network of a finished run, had again in another process."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import penjing
import pytest
import torch
from penjing.errors import InputError
from penjing.files import sha256_of
from safetensors.torch import load_file, save_file

TRAINED = '"distill.logits"\nepochs = 1\nbatch_size = 16'


def student(place: Path) -> str:
    return (
        f'"distill.student"\nstudent = "{place / "model.py"}:student"\nepochs = 2\nbatch_size = 16\n'
        "learning_rate = 0.02\nflip = false"
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory, plain, kit):
    """Return a folder with a finished run of two steps that train, the second another network."""
    place = tmp_path_factory.mktemp("place")
    kit.photographs(place / "photos")
    plain.lay_out(place, TRAINED, student(place))
    report = penjing.compress(plain.request(place), host=plain.host())
    assert report["columns"][-1]["failed"] is None
    return place


@pytest.fixture
def place(finished, tmp_path):
    """Return a copy of the finished run, to be changed; its source stays where it was."""
    shutil.copytree(finished / "run", tmp_path / "run")
    return tmp_path


def kept(run: Path, step: str) -> dict[str, torch.Tensor]:
    (path,) = run.glob(f"steps/{step}-*/weights.safetensors")
    return load_file(path)


def test_it_is_the_network_of_the_run_to_the_bit_in_another_process(finished):
    script = (
        "import sys, penjing\nfrom safetensors.torch import save_file\n"
        "network = penjing.load(sys.argv[1])\nassert not network.training\n"
        "save_file(network.state_dict(), sys.argv[2])"
    )
    out = finished / "loaded.safetensors"
    subprocess.run([sys.executable, "-c", script, str(finished / "run"), str(out)], check=True)
    found, expected = load_file(out), kept(finished / "run", "distill.student")

    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert found["4.weight"].shape == (3, 4), "the student has four channels"


def test_a_run_is_taken_up_again_from_what_it_kept(finished, plain):
    told = []

    class Heard:
        def begin(self, what, total=None): ...
        def advance(self, count=1): ...

        def end(self, result=""):
            told.append(result)

        def warn(self, message): ...

    penjing.compress(plain.request(finished), host=plain.host(), progress=Heard())
    assert told.count("already done") >= 4


def test_the_columns_are_networks_of_their_own(finished):
    original, direct = (penjing.load(finished / "run", name) for name in ("original", "optimised"))
    assert original[0].out_channels == 8
    assert direct[0].out_channels == 4


def test_loading_leaves_the_folder_as_it_is(place):
    before = {path: sha256_of(path) for path in place.rglob("*") if path.is_file()}
    penjing.load(place / "run")
    assert {path: sha256_of(path) for path in place.rglob("*") if path.is_file()} == before


def test_a_source_that_changed_is_refused(finished, place):
    model = finished / "model.py"
    text = model.read_text()
    try:
        model.write_text(text.replace("manual_seed(0)", "manual_seed(9)"))
        with pytest.raises(InputError, match="changed since") as error:
            penjing.load(place / "run")
        assert "Put them back" in error.value.hint
        model.unlink()
        with pytest.raises(InputError, match=r"cannot be opened: .*model\.py does not exist") as error:
            penjing.load(place / "run")
        assert str(Path.cwd()) in error.value.hint
    finally:
        model.write_text(text)


def test_weights_that_were_given_are_loaded_again(finished, tmp_path, plain):
    network = penjing.load(finished / "run", "original")
    weights = {name: tensor.clone() + 0.25 for name, tensor in network.state_dict().items()}
    save_file(weights, tmp_path / "mine.safetensors")
    shutil.copytree(finished / "photos", tmp_path / "photos")
    plain.lay_out(tmp_path)
    penjing.compress(plain.request(tmp_path, weights=tmp_path / "mine.safetensors"), host=plain.host())

    again = penjing.load(tmp_path / "run", "original")
    assert torch.equal(again[0].weight, weights["0.weight"])
    with pytest.raises(InputError, match="has no PyTorch network"):
        penjing.load(tmp_path / "run")


def test_a_result_that_was_damaged_is_refused(place):
    (path,) = (place / "run").glob("steps/distill.student-*/weights.safetensors")
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    with pytest.raises(InputError, match=r"distill\.student left .* not whole"):
        penjing.load(place / "run")


@pytest.mark.parametrize("name", ["optimised", "../optimised", "tuned"])
def test_a_column_that_is_not_there_is_refused(place, name):
    (place / "run" / "optimised" / "steps.json").unlink()
    with pytest.raises(InputError, match="no finished"):
        penjing.load(place / "run", name)


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(InputError, match="not the folder of a run"):
        penjing.load(tmp_path)


def test_another_teacher_or_original_is_another_result_and_a_step_that_does_not_train_is_kept(
    finished, plain, tmp_path
):
    """What a step that trains learns from is part of its key."""

    def keys(run: Path) -> dict[str, str]:
        steps = json.loads((run / "optimised" / "steps.json").read_text())["steps"]
        return {step["name"]: step["key"] for step in steps}

    shutil.copytree(finished / "photos", tmp_path / "photos")
    plain.lay_out(tmp_path, f'{TRAINED}\nteacher = "{tmp_path / "teacher.py"}:network"')
    found = []
    for seed in (3, 4):
        (tmp_path / "teacher.py").write_text(plain.MODEL.replace("manual_seed(0)", f"manual_seed({seed})"))
        penjing.compress(plain.request(tmp_path), host=plain.host())
        found.append(keys(tmp_path / "run")["distill.logits"])
    assert found[0] != found[1]


def test_a_teacher_that_cannot_be_opened_is_told_before_anything_runs(finished, plain, tmp_path):
    shutil.copytree(finished / "photos", tmp_path / "photos")
    plain.lay_out(tmp_path, f'{TRAINED}\nteacher = "torchvision:resnet1000"')
    with pytest.raises(InputError, match="resnet1000"):
        penjing.compress(plain.request(tmp_path), host=plain.host())
    assert not list((tmp_path / "run").glob("steps/*"))


@pytest.mark.parametrize(("name", "value"), [("source", 3), ("weights", 3)])
def test_a_run_json_that_was_changed_is_refused_by_its_field(place, name, value):
    path = place / "run" / "run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), name: value}))
    with pytest.raises(InputError, match=f"its '{name}' cannot be read"):
        penjing.load(place / "run")
