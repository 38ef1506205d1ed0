"""Which machine is a device, and what it can build an engine with."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from penjing_tensorrt import installed, trtexec
from penjing_tensorrt.installed import Installed, same_gpu, why_no_engine, why_no_session

RTX = Installed(module="10.3.0", gpus=("NVIDIA GeForce RTX 3090",), sm="8.6")


@pytest.mark.parametrize(
    ("title", "name", "same"),
    [
        ("GeForce RTX 3090", "NVIDIA GeForce RTX 3090", True),
        ("GeForce RTX 3090", "NVIDIA GeForce RTX 3090 Ti", False),
        ("GeForce RTX 4090", "NVIDIA GeForce RTX 4090 Laptop GPU", False),
        ("GeForce RTX 4090", "NVIDIA GeForce RTX 4090 D", False),
        ("GeForce RTX 3090", "NVIDIA GeForce RTX 4090", False),
        ("NVIDIA T4", "Tesla T4", True),
        ("NVIDIA A10", "NVIDIA A10", True),
        ("NVIDIA A10", "NVIDIA A10G", False),
        ("NVIDIA A10", "NVIDIA A100-SXM4-40GB", False),
        ("NVIDIA L4", "NVIDIA L40S", False),
        ("NVIDIA L4", "", False),
    ],
)
def test_a_gpu_is_told_by_its_name(title: str, name: str, same: bool) -> None:
    assert same_gpu(title, name) is same


def test_an_engine_is_built_where_gpu_and_version_are_the_devices(device) -> None:
    assert why_no_engine(device("rtx-3090"), RTX) == why_no_session(device("rtx-3090"), RTX) == ""
    assert "is not a GeForce RTX 4090" in why_no_engine(device("rtx-4090"), RTX)
    assert "10.3.0 is here, and rtx-3090@tensorrt-11 has" in why_no_engine(
        device("rtx-3090@tensorrt-11"), RTX
    )
    assert "no NVIDIA GPU" in why_no_engine(device("rtx-3090"), Installed(module="10.3.0"))
    assert "not installed" in why_no_engine(device("rtx-3090"), dataclasses.replace(RTX, module=""))


def test_trtexec_alone_builds_and_opens_no_session(device) -> None:
    found = dataclasses.replace(
        RTX, module="", trtexec="/usr/src/tensorrt/bin/trtexec", trtexec_version="10.3.0"
    )

    assert why_no_engine(device("rtx-3090"), found) == ""
    assert "penjing tune" in why_no_session(device("rtx-3090"), found)


def test_a_board_is_told_by_its_identity(device) -> None:
    board = device("jetson-orin-nano")
    found = Installed(module="10.3.0")

    assert "is not a Jetson Orin Nano" in why_no_engine(board, found)
    assert why_no_engine(dataclasses.replace(board, here=True), found) == ""


def test_this_machine_is_looked_at(fake: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    smi = fake.with_name("nvidia-smi")
    smi.write_text('#!/bin/sh\necho "NVIDIA GeForce RTX 3090, 8.6"\n')
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake.parent}:/usr/bin:/bin")
    monkeypatch.setattr(installed, "_module", lambda: "")
    found = installed.look.__wrapped__()

    assert (found.trtexec, found.trtexec_version, found.version) == (str(fake), "10.3.0", "10.3.0")
    assert (found.gpus, found.sm) == (("NVIDIA GeForce RTX 3090",), "8.6")


def test_a_machine_without_any_of_it_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(trtexec, "PLACE", str(tmp_path / "none"))
    monkeypatch.setattr(installed, "_module", lambda: "")

    assert installed.look.__wrapped__() == Installed()


def test_a_driver_that_fails_tells_of_no_gpu(fake: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    smi = fake.with_name("nvidia-smi")
    smi.write_text("#!/bin/sh\necho NVIDIA-SMI has failed\nexit 9\n")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake.parent}:/usr/bin:/bin")

    assert installed.look.__wrapped__().gpus == ()
