"""An engine's header tells who made it; any other file is told for what it is."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from penjing.cli import cli
from penjing.device import builtin_profiles, find_device
from penjing.doctor import examine_engine, observe
from penjing.engine_file import read_header
from penjing.errors import InputError

TRTEXEC = "&&&& RUNNING TensorRT.trtexec [TensorRT v{}] [b30] # trtexec --help\n"


def header(tag: bytes = b"ftrt", version: tuple[int, ...] = (10, 3, 0, 30), form: int = 0) -> bytes:
    return tag + form.to_bytes(4, "little") + bytes(16) + bytes(version)


@pytest.fixture
def engine(tmp_path: Path):
    """Return a function that writes an engine file."""

    def write(content: bytes) -> Path:
        path = tmp_path / "model.plan"
        path.write_bytes(content)
        return path

    return write


def evidence(version: str = "", tag: str = ""):
    """Return what a machine with this TensorRT says."""
    versions = {"tensorrt": version} if version else {}
    said = TRTEXEC.format(tag) if tag else ""
    return dataclasses.replace(
        observe(), versions=versions, trtexec_output=said, trtexec="trtexec" if tag else ""
    )


def statuses(path: Path, device: str | None, seen) -> dict[str, str]:
    target = find_device(device, builtin_profiles()) if device else None
    return {finding.subject: finding.status for finding in examine_engine(path, target, seen)}


def test_the_maker_and_its_version_are_read(engine) -> None:
    found = read_header(engine(header() + bytes(100)))

    assert (found.maker, found.version, found.full, found.size) == ("TensorRT", "10.3.0", "10.3.0.30", 128)


def test_an_engine_of_tensorrt_rtx_is_told_apart(engine) -> None:
    found = read_header(engine(header(b"vtrt", (1, 7, 1, 116))))

    assert (found.maker, found.version) == ("TensorRT-RTX", "1.7.1")


@pytest.mark.parametrize(
    "content", [header(version=(0, 0, 0, 0)), header(form=239), header(version=(200, 3, 1, 0))]
)
def test_a_version_that_cannot_be_one_is_not_told(engine, content: bytes) -> None:
    assert read_header(engine(content)).version == ""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"ftrt", "cut off: an engine has more than 4 bytes"),
        (header()[:-1], "cut off"),
        (b"\x08\x08\x12\x07pytorch", "an ONNX file"),
        (b"PK\x03\x04....", "a ZIP file"),
        (b"version https://git-lfs.github.com/spec/v1", "Git LFS"),
        (b'{"schema": 1}', "a JSON file"),
        (b"\x00\x01\x02\x03" * 20, "begins with"),
    ],
)
def test_a_file_that_is_no_engine_is_told_for_what_it_is(engine, content: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        read_header(engine(content))
    assert error.value.hint


def test_a_missing_file_or_a_folder_is_no_engine(tmp_path: Path) -> None:
    for path in (tmp_path / "none.plan", tmp_path):
        with pytest.raises(InputError, match="cannot be read"):
            read_header(path)


@given(st.binary(max_size=64), st.sampled_from([b"", b"ftrt", b"vtrt"]))
def test_whatever_a_file_holds_there_is_an_answer(tmp_path_factory, content: bytes, tag: bytes) -> None:
    path = tmp_path_factory.mktemp("engine") / "model.plan"
    path.write_bytes(tag + content)
    try:
        found = read_header(path)
    except InputError as error:
        assert str(path) in error.message
    else:
        assert found.maker in ("TensorRT", "TensorRT-RTX")


@pytest.mark.parametrize(
    ("version", "tag", "status"),
    [
        ("", "", "absent"),
        ("10.3.0", "", "ok"),
        ("", "100300", "ok"),
        ("10.7.0", "", "warning"),
        ("10.1.0", "", "problem"),
        ("11.1.0", "", "problem"),
        ("8.6.2", "", "problem"),
    ],
)
def test_an_engine_loads_in_the_tensorrt_that_made_it(engine, version: str, tag: str, status: str) -> None:
    assert statuses(engine(header()), None, evidence(version, tag))["engine here"] == status


def test_an_engine_is_compared_with_the_tensorrt_of_a_device(engine) -> None:
    path = engine(header())

    assert statuses(path, "jetson-orin-nano", evidence())["engine on jetson-orin-nano@jetpack-6.2"] == "ok"
    old = statuses(path, "jetson-orin-nano@jetpack-5.1", evidence())
    assert old["engine on jetson-orin-nano@jetpack-5.1"] == "problem"
    assert statuses(path, "raspberry-pi-5", evidence())["engine on raspberry-pi-5"] == "problem"
    rtx = engine(header(b"vtrt", (1, 7, 1, 116)))
    assert set(statuses(rtx, "rtx-3090", evidence("10.3.0")).values()) == {"ok", "problem"}


def test_every_fault_comes_with_a_cure(engine) -> None:
    device = find_device("jetson-orin-nano", builtin_profiles())
    for content in (header(), header(b"vtrt"), header(version=(8, 6, 1, 0)), header(form=1)):
        for version in ("", "8.5.1", "8.6.1", "10.3.0", "10.7", "11.4.1", "garbage"):
            findings = examine_engine(engine(content), device, evidence(version))
            assert all(finding.cure for finding in findings if finding.status != "ok")


def test_the_command_line_tells_of_an_engine(engine) -> None:
    path = engine(header(version=(8, 6, 1, 6)))
    answer = CliRunner().invoke(
        cli, ["doctor", "--engine", str(path), "--device", "jetson-orin-nano", "--json"]
    )

    findings = {finding["subject"]: finding for finding in json.loads(answer.output)}
    assert answer.exit_code == 1
    assert "TensorRT 8.6.1" in findings["engine"]["what"]
    assert "runner.py --build" in findings["engine on jetson-orin-nano@jetpack-6.2"]["cure"]
