"""A plugin of toy steps, and a folder with what they work on."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
from penjing.host import Host


@pytest.fixture(scope="session")
def toy() -> ModuleType:
    """Return tests/core/toy.py."""
    path = Path(__file__).with_name("toy.py")
    specification = importlib.util.spec_from_file_location("penjing_toy", path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules["penjing_toy"] = module  # where dataclasses look up their annotations
    specification.loader.exec_module(module)
    return module


@pytest.fixture
def host(toy: ModuleType) -> Host:
    """Return a host that knows the toy steps only."""
    return Host([toy], entry_points=False)


@pytest.fixture
def place(toy: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with photographs, a model and a recipe of toy steps; timing takes no time."""
    monkeypatch.setattr("penjing.compare.TIMING", 0.001)
    toy.lay_out(tmp_path)
    toy.applied.clear()
    return tmp_path
