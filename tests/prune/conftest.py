"""Makes prune_networks.py importable, and every test draw the same weights."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

_SPEC = importlib.util.spec_from_file_location(
    "prune_networks", Path(__file__).with_name("prune_networks.py")
)
assert _SPEC is not None
assert _SPEC.loader is not None
sys.modules["prune_networks"] = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(sys.modules["prune_networks"])


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
