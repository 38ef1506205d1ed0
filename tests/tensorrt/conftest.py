"""A machine with TensorRT, played by a script, and runs made for it."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from penjing.device import Device, builtin_profiles, find_device
from penjing.model import Model
from penjing.testing import small_model
from penjing_tensorrt import installed
from penjing_tensorrt.installed import Installed

FAKE = Path(__file__).with_name("fake_trtexec.py")


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """Return a small network as a file, which tests must leave as it is."""
    return small_model(tmp_path_factory.mktemp("exported"), "onnx")


@pytest.fixture
def graph(exported: Model, tmp_path: Path) -> Model:
    """Return a copy of it of the test's own."""
    (tmp_path / "graph").mkdir()
    path = tmp_path / "graph" / "model.onnx"
    path.write_bytes(exported.value.read_bytes())
    return exported.become("onnx", path)


@pytest.fixture
def device() -> Callable[[str], Device]:
    """Return a function that reads a built-in profile."""
    return lambda name: find_device(name, builtin_profiles())


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the path of a program that stands in for trtexec; what it is asked goes into tmp_path/calls."""
    program = tmp_path / "bin" / "trtexec"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{FAKE}" "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("FAKE_TRTEXEC_CALLS", str(tmp_path / "calls"))
    return program


@pytest.fixture
def calls(tmp_path: Path) -> Callable[[], list[list[str]]]:
    """Return a function that returns what the stand-in was asked so far, `--help` excepted."""

    def read() -> list[list[str]]:
        path = tmp_path / "calls"
        asked = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return [words for words in asked if words != ["--help"]]

    return read


@pytest.fixture
def on_board(fake: Path, monkeypatch: pytest.MonkeyPatch) -> Installed:
    """Let this machine be any board, with nothing but the stand-in for trtexec 10.3 on it."""
    found = Installed(trtexec=str(fake), trtexec_version="10.3.0")
    monkeypatch.setattr(installed, "look", lambda: found)
    real = installed._why_another_machine
    monkeypatch.setattr(
        installed,
        "_why_another_machine",
        lambda device, seen: real(dataclasses.replace(device, here=True), seen),
    )
    return found
