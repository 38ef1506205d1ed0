"""A bundle that is not as it was made is refused, with the reason, before any of it is used."""

import hashlib
import io
import itertools
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx.external_data_helper import set_external_data
from penjing import bundle
from penjing.bundle import runner
from penjing.errors import InputError

Reseal = Callable[[Path, Callable[[dict[str, Any]], object]], None]
FILES = ("model.onnx", "runner.py", "README.md", "golden/input.npy", "golden/output-0.npy")


def refusal(folder: Path) -> str:
    with pytest.raises(runner.RunnerError) as caught:
        runner.Bundle(str(folder))
    assert caught.value.code == runner.BAD_BUNDLE
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", FILES)
def test_a_changed_byte_is_refused(copied: Path, name: str) -> None:
    data = bytearray((copied / name).read_bytes())
    data[len(data) // 2] ^= 1
    (copied / name).write_bytes(data)

    assert refusal(copied) == f"{name} is not as it was made: copy the bundle again."


@pytest.mark.parametrize("name", FILES)
def test_a_file_cut_short_or_grown_or_missing_is_refused(copied: Path, name: str) -> None:
    data = (copied / name).read_bytes()
    (copied / name).write_bytes(data[:-1])
    assert "is not as it was made" in refusal(copied)
    (copied / name).write_bytes(data + b"\0")
    assert "more than the" in refusal(copied)
    (copied / name).unlink()
    assert "No such file" in refusal(copied)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_changed_bit_of_the_manifest_is_refused(copied: Path, place: float, bit: int) -> None:
    data = bytearray((copied / "manifest.json").read_bytes())
    before = bytes(data)
    data[int(place * len(data))] ^= 1 << bit
    (copied / "manifest.json").write_bytes(data)
    try:
        same = json.loads(data) == json.loads(before)  # white space, say
    except ValueError:
        same = False
    if not same:
        refusal(copied)
    (copied / "manifest.json").write_bytes(before)


@pytest.mark.parametrize("name", ["model.onnx", "golden/input.npy", "manifest.json", "golden"])
def test_a_link_is_refused_even_to_the_right_content(copied: Path, tmp_path: Path, name: str) -> None:
    shutil.move(copied / name, tmp_path / "elsewhere")
    (copied / name).symlink_to(tmp_path / "elsewhere")

    assert "it is a link, which no bundle holds" in refusal(copied)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_is_refused_and_not_waited_for(copied: Path) -> None:
    (copied / "model.onnx").unlink()
    os.mkfifo(copied / "model.onnx")

    assert "not a regular file" in refusal(copied)


@pytest.mark.parametrize(
    "name",
    [
        "../secret",
        "/etc/passwd",
        "golden/../../secret",
        "a\\b",
        "C:secret",
        ".hidden",
        "",
        "a//b",
        "a/",
        "a\n",
    ],
)
def test_a_name_that_leads_out_of_the_folder_is_refused(copied: Path, reseal: Reseal, name: str) -> None:
    (copied.parent / "secret").write_text("secret")
    facts = {"size": 6, "sha256": hashlib.sha256(b"secret").hexdigest()}
    reseal(copied, lambda manifest: manifest["files"].update({name: facts}))

    assert "leads out of its folder" in refusal(copied)


def test_a_newer_schema_is_refused_with_both_numbers(copied: Path, reseal: Reseal) -> None:
    reseal(copied, lambda manifest: manifest.update(schema=2))

    assert refusal(copied) == "The bundle has schema 2; this runner reads up to 1: use the bundle's own."


ABSURD = {
    "a file of a terabyte": lambda m: m["files"]["model.onnx"].update(size=10**12),
    "a negative size": lambda m: m["files"]["model.onnx"].update(size=-1),
    "too many files": lambda m: m["files"].update(
        {f"f{i}": {"size": 0, "sha256": "0" * 64} for i in range(200)}
    ),
    "an input of a terabyte": lambda m: m["inputs"][0].update(shape=[1, 3, 10**6, 10**6]),
    "an input of no height": lambda m: m["inputs"][0].update(shape=[1, 3, 0, 8]),
    "two inputs": lambda m: m["inputs"].append(m["inputs"][0]),
    "an input of objects": lambda m: m["inputs"][0].update(dtype="object"),
    "outputs without a record": lambda m: m["outputs"].append(m["outputs"][0]),
    "a resize to a million": lambda m: m["preprocess"].update(resize=10**6),
    "a crop of nothing": lambda m: m["preprocess"].update(crop=[0, 8]),
    "a std of zero": lambda m: m["preprocess"].update(std=[1, 0, 1]),
    "a scale of text": lambda m: m["preprocess"].update(scale="1/255"),
    "a mean too short": lambda m: m["preprocess"].update(mean=[0.5]),
    "a million threads": lambda m: m["runtime"].update(threads=10**6),
    "threads that are true": lambda m: m["runtime"].update(threads=True),
    "a runtime nobody knows": lambda m: m["runtime"].update(name="abacus"),
    "a version that is a command": lambda m: m["runtime"].update(minimum="1.0; rm -rf /"),
    "a version that is a number": lambda m: m["runtime"].update(minimum=1.5),
    "a million labels": lambda m: m.update(labels=["x"] * 200_000),
    "a label that moves the cursor": lambda m: m.update(labels=["\x1b[2J", "b", "c"]),
    "any distance is allowed": lambda m: m["golden"].update(tolerance=1e9),
    "a record that is no file of it": lambda m: m["golden"].update(input="golden/other.npy"),
    "a record that is a list": lambda m: m["golden"].update(outputs=[["golden/input.npy"]]),
    "a record for two": lambda m: m["golden"].update(input="model.onnx"),
    "an interpolation that is a list": lambda m: m["preprocess"].update(interpolation=[]),
    "a model that is a list": lambda m: m.update(model=[]),
    "a device without a name": lambda m: m["device"].pop("title"),
    "a task that is a number": lambda m: m.update(task=1),
}


@pytest.mark.parametrize("change", ABSURD.values(), ids=ABSURD.keys())
def test_a_manifest_with_absurd_values_is_refused(copied: Path, reseal: Reseal, change: Any) -> None:
    reseal(copied, change)

    assert "no sound bundle" in refusal(copied)


FIELDS = (
    "schema",
    "digest",
    "task",
    "labels",
    "files",
    "model",
    "golden",
    "inputs",
    "outputs",
    "device",
    "runtime",
)
KINDS = (None, [], {}, "", 0, [[]], {"a": None})
ALLOWED = (("labels", []), ("task", ""))


@pytest.mark.parametrize(
    ("field", "value"), [pair for pair in itertools.product(FIELDS, KINDS) if pair not in ALLOWED]
)
def test_a_field_of_the_wrong_kind_never_ends_in_a_traceback(
    copied: Path, reseal: Reseal, field: str, value: Any
) -> None:
    path = copied / "manifest.json"
    if field == "digest":
        path.write_text(json.dumps({**json.loads(path.read_text()), "digest": value}))
    else:
        reseal(copied, lambda manifest: manifest.update({field: value}))

    refusal(copied)


@pytest.mark.parametrize(
    "text",
    [b"", b"[]", b"\xff\xfe", b'{"schema": NaN}', b"[" * 10**5, b'{"a":' * 10**4 + b"1" + b"}" * 10**4,
     b'{"schema": ' + b"9" * 10**6 + b"}", b" " * (runner.MAX_MANIFEST + 1)],
    ids=["empty", "list", "binary", "nan", "open brackets", "deep", "long number", "long"],
)  # fmt: skip
def test_a_manifest_that_is_none_is_refused(copied: Path, text: bytes) -> None:
    (copied / "manifest.json").write_bytes(text)

    refusal(copied)


def npy(array: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array, **options)
    return file.getvalue()


HEADER = npy(np.zeros((4, 8, 8, 3), np.uint8))
ARRAYS = {
    "objects": npy(np.array([{}], object), allow_pickle=True),
    "columns first": npy(np.asfortranarray(np.zeros((4, 3)))),
    "a shape of a terabyte": HEADER.replace(b"(4, 8, 8, 3)", b"(4, 9999999)"),
    "a negative shape": HEADER.replace(b"(4, 8, 8, 3)", b"(-4, -8,8,3)"),
    "a call in the header": HEADER.replace(b"(4, 8, 8, 3)", b"(exit(), 3,)"),
    "no array": b"hello",
    "cut short": HEADER[:-1],
}


@pytest.mark.parametrize("content", ARRAYS.values(), ids=ARRAYS.keys())
def test_a_record_that_is_no_plain_array_is_refused(copied: Path, reseal: Reseal, content: bytes) -> None:
    (copied / "golden" / "input.npy").write_bytes(content)
    facts = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    reseal(copied, lambda manifest: manifest["files"].update({"golden/input.npy": facts}))
    opened = runner.Bundle(str(copied))

    with pytest.raises(runner.RunnerError, match=r"input\.npy is not a"):
        opened.array("golden/input.npy")


def test_a_model_that_reads_other_files_is_refused(pristine: Path) -> None:
    manifest = runner.Bundle(str(pristine)).manifest
    model = onnx.load(pristine / "model.onnx")
    (weight,) = model.graph.initializer
    set_external_data(weight, "../../secret", offset=0, length=36)
    weight.ClearField("raw_data")

    with pytest.raises(runner.RunnerError, match="keeps weights in other files"):
        runner.OnnxRuntime(model.SerializeToString(), manifest, 1)


def test_penjing_refuses_what_the_runner_refuses_in_the_same_words(copied: Path) -> None:
    (copied / "model.onnx").write_bytes(b"another")

    with pytest.raises(InputError, match=r"^model\.onnx is not as it was made"):
        bundle.read(copied)


def test_other_files_in_the_folder_do_not_matter(copied: Path) -> None:
    (copied / "photo.jpg").write_bytes(b"mine")

    assert bundle.read(copied).manifest["task"] == "classification"


@pytest.mark.parametrize(
    "change", [{"std": [1e-300, 1, 1]}, {"scale": 1e-300}, {"crop": [9, 8]}, {"resize": [8, 9]}]
)
def test_preprocessing_that_cannot_be_that_of_the_model_is_refused(
    copied: Path, reseal: Reseal, change: dict[str, Any]
) -> None:
    reseal(copied, lambda manifest: manifest["preprocess"].update(change))

    assert "wrong field preprocess" in refusal(copied)


def test_more_threads_than_this_machine_has_cores_are_not_started(copied: Path, reseal: Reseal) -> None:
    reseal(copied, lambda manifest: manifest["runtime"].update(threads=1024))

    assert runner.Model(runner.Bundle(str(copied))).threads == runner.cores() <= (os.cpu_count() or 1)


def test_where_there_is_no_bundle_the_folder_is_named(tmp_path: Path) -> None:
    assert refusal(tmp_path) == f"manifest.json in {tmp_path} cannot be read: No such file or directory."
