"""Finished steps on disk: found again whole and unchanged, or not at all."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from penjing import sealed
from penjing.errors import InputError, PluginError
from penjing.model import Model, Tensor
from penjing.preprocess import Preprocess
from penjing.step import Technique
from penjing.store import Store

FACTS = {"options": {}, "key": "k" * 64, "seconds": 0.1, "broken": []}
KEY = "k" * 64


@dataclass(frozen=True)
class Write(Technique):
    """Write a file."""

    name = "write"
    accepts = frozenset({"onnx", "torch"})
    produces = "onnx"

    def apply(self, model, context):
        raise AssertionError


@pytest.fixture
def before(tmp_path):
    path = tmp_path / "source.onnx"
    path.write_bytes(b"source")
    shape = (Tensor("x", (1, 3, 8, 8)),)
    return Model("onnx", path, "source.onnx", "0", shape, preprocess=Preprocess(crop=8), labels=("a", "b"))


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "run")


def keep(store, before, content=b"result"):
    with store.room() as folder:
        (folder / "model.onnx").write_bytes(content)
        after = replace(before, value=folder / "model.onnx", outputs=(Tensor("y", (None, 2)),))
        context = SimpleNamespace(folder=folder, details={"nodes": 3}, warnings=["careful"], exhibits=[])
        return store.keep(Write(), KEY, before, after, context, FACTS)


def test_a_kept_step_is_found_with_all_it_said(store, before):
    kept = keep(store, before)
    found = store.find(Write(), KEY, before)

    assert not kept.reused
    assert found.reused
    assert found.model == kept.model
    assert found.record == json.loads(json.dumps(kept.record))
    assert found.model.value.read_bytes() == b"result"
    assert found.model.value.parent.parent == store.folder
    assert found.model.outputs == (Tensor("y", (None, 2)),)
    assert found.model.fingerprint == KEY
    assert (found.model.preprocess, found.model.labels) == (before.preprocess, before.labels)


def test_another_key_finds_nothing(store, before):
    keep(store, before)
    assert store.find(Write(), "j" * 64, before) is None


def test_a_step_that_returns_its_input_is_found_as_that(store, before):
    with store.room() as folder:
        context = SimpleNamespace(folder=folder, details={}, warnings=[], exhibits=[])
        store.keep(Write(), KEY, before, before, context, FACTS)
    assert store.find(Write(), KEY, before).model.value == before.value


@pytest.mark.parametrize("content", [b"", b"resulu", b"result and more"])
def test_a_changed_file_is_not_used(store, before, content):
    path = keep(store, before).model.value
    path.write_bytes(content)
    assert store.find(Write(), KEY, before) is None
    assert keep(store, before).model.value.read_bytes() == b"result"
    assert store.find(Write(), KEY, before) is not None


def test_a_missing_file_is_not_made_up(store, before):
    keep(store, before).model.value.unlink()
    assert store.find(Write(), KEY, before) is None


RECORDS = [
    "",
    "{",
    "[]",
    "null",
    "3",
    '"x"',
    "{}",
    '{"files": 3}',
    '{"files": {}}',
    '{"files": {"../../x": "0"}}',
]


@pytest.mark.parametrize("content", RECORDS)
def test_a_damaged_record_is_none(store, before, content):
    folder = keep(store, before).model.value.parent
    (folder / "step.json").write_text(content)
    assert store.find(Write(), KEY, before) is None


@pytest.mark.parametrize(
    "field", ["value", "inputs", "outputs", "files", "details", "warnings", "seconds", "broken"]
)
def test_a_record_in_which_anything_was_changed_is_none(store, before, field):
    path = keep(store, before).model.value.parent / "step.json"
    record = json.loads(path.read_text())
    record[field] = "../../../etc/passwd"
    path.write_text(json.dumps(record))
    assert store.find(Write(), KEY, before) is None


def test_a_forged_record_cannot_point_outside(store, before):
    path = keep(store, before).model.value.parent / "step.json"
    record = sealed.read(path)
    for field, value in (("files", {"../../../source.onnx": "0"}), ("value", "../../../source.onnx")):
        sealed.write(path, {**record, field: value})
        with pytest.raises(InputError, match="points outside"):
            store.find(Write(), KEY, before)


def test_nothing_of_a_step_that_failed_is_left(store):
    with pytest.raises(RuntimeError), store.room() as folder:
        (folder / "half").write_bytes(b"half")
        raise RuntimeError
    assert list(store.folder.iterdir()) == []


def test_what_a_killed_process_left_is_removed_and_the_rest_kept(store, before):
    keep(store, before)
    (store.folder / ".unfinished-x").mkdir()
    (store.folder / ".unfinished-x" / "half").write_bytes(b"half")
    again = Store(store.root)
    assert [path.name for path in again.folder.iterdir()] == [f"write-{KEY[:16]}"]
    assert again.find(Write(), KEY, before) is not None


def test_a_file_outside_the_folder_of_the_step_is_refused(store, before, tmp_path):
    elsewhere = tmp_path / "elsewhere.onnx"
    elsewhere.write_bytes(b"x")
    with store.room() as folder, pytest.raises(PluginError, match="outside its own folder"):
        context = SimpleNamespace(folder=folder, details={}, warnings=[], exhibits=[])
        store.keep(Write(), KEY, before, replace(before, value=elsewhere), context, FACTS)


def test_a_value_that_is_neither_file_nor_module_is_refused(store, before):
    with store.room() as folder, pytest.raises(PluginError, match="neither a file nor a module"):
        context = SimpleNamespace(folder=folder, details={}, warnings=[], exhibits=[])
        store.keep(Write(), KEY, before, replace(before, value={"weights": 1}), context, FACTS)


def test_the_weights_of_a_module_are_put_onto_a_copy_of_the_one_given(store):
    import torch

    given, better = (torch.nn.Sequential(torch.nn.Linear(2, 2)) for _ in range(2))
    before = Model("torch", given, "model.py:net", "0", (Tensor("x", (1, 2)),))
    kind = type("Train", (Write,), {"produces": "torch"})()
    with store.room() as folder:
        context = SimpleNamespace(folder=folder, details={}, warnings=[], exhibits=[])
        store.keep(kind, KEY, before, replace(before, value=better), context, FACTS)
    found = store.find(kind, KEY, before).model.value
    assert found is not given
    assert torch.equal(found[0].weight, better[0].weight)
    assert not torch.equal(given[0].weight, better[0].weight)


def test_a_sealed_record_takes_names_that_are_no_text_and_no_nan(tmp_path: Path):
    path, record = (
        tmp_path / "r.json",
        {"a": [1, 2.5, None], "file": os.fsdecode(b"\xff.png"), "2": {"b": True}},
    )
    sealed.write(path, record)
    assert sealed.read(path) == record
    with pytest.raises(ValueError, match="JSON"):
        sealed.write(path, {"a": float("nan")})
    assert sealed.read(path) == record
    assert sealed.read(tmp_path / "none.json") is None
