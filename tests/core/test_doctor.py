import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from penjing.device import Device, builtin_profiles, find_device, read_profile
from penjing.doctor import (
    Evidence,
    Finding,
    examine,
    observe,
    parse_cuda,
    parse_nvidia_smi,
    parse_tegra_release,
    parse_trtexec,
)
from penjing.doctor import (
    output as _output,
)
from penjing.doctor.nvidia import why_not_served

NV_TEGRA_RELEASE = """# R36 (release), REVISION: 4.4, GCID: 41062509, BOARD: generic, EABI: aarch64
# KERNEL_VARIANT: oot
TARGET_USERSPACE_LIB_DIR=nvidia
"""
TRTEXEC_10 = """&&&& RUNNING TensorRT.trtexec [TensorRT v100300] [b30] # /usr/src/tensorrt/bin/trtexec --help
=== Model Options ===
"""
TRTEXEC_8 = "&&&& RUNNING TensorRT.trtexec [TensorRT v8502] # trtexec --help\n"
CUDA = '{"cuda": {"name": "CUDA SDK", "version": "12.6.68"}, "cuda_cudart": {"version": "12.6.68"}}'
NVIDIA_SMI = "NVIDIA GeForce RTX 4090, 550.54.14, 24564 MiB\nNVIDIA GeForce RTX 3090, 550.54.14, 24576 MiB\n"
NO_DRIVER = "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.\n"

CPU = Device(
    name="this-machine",
    title="Intel(R) Core(TM) i7-4770",
    backend="onnxrt",
    arch="x86_64",
    isa=frozenset({"avx2"}),
    precisions=("fp32", "int8"),
    channel_multiple=16,
    max_opset=22,
    memory_gb=16,
    runtime={"onnxruntime": "==1.22.0"},
    facts={"cpu": "Intel(R) Core(TM) i7-4770", "cores": 8},
    here=True,
)
VERSIONS = {
    "torch": "2.9.0",
    "torchvision": "0.24.0",
    "onnx": "1.19.0",
    "onnxruntime": "1.22.0",
    "onnxsim": "0.4.36",
    "onnxscript": "0.5.0",
    "pluggy": "1.5.0",
}
HEALTHY = Evidence(
    python="3.12.3",
    system="Linux 6.8",
    arch="x86_64",
    machine=CPU,
    free_disk_gb=100,
    requirements=("torch>=2.9", "onnxruntime>=1.21", "pluggy>=1.5"),
    versions=VERSIONS,
    trtexec="",
    trtexec_output="",
    tegra_release="",
    cuda_json="",
    nvidia_smi="",
)
ORIN = dataclasses.replace(
    HEALTHY,
    python="3.10.12",
    arch="aarch64",
    trtexec="/usr/src/tensorrt/bin/trtexec",
    trtexec_output=TRTEXEC_10,
    tegra_release=NV_TEGRA_RELEASE,
    cuda_json=CUDA,
)


def device(name: str, *, here: bool = False) -> Device:
    return dataclasses.replace(find_device(name, builtin_profiles()), here=here)


def find(subject: str, evidence: Evidence = HEALTHY, target: Device | None = None) -> Finding:
    """Return the one finding about `subject`."""
    (finding,) = [f for f in examine(target, {}, evidence) if f.subject == subject]
    return finding


def faults(evidence: Evidence, target: Device | None = None) -> dict[str, str]:
    return {f.subject: f.status for f in examine(target, {}, evidence) if f.status in ("warning", "problem")}


def test_a_healthy_machine_has_no_fault() -> None:
    assert faults(HEALTHY) == {}
    assert faults(HEALTHY, device("x86-64-avx2", here=True)) == {}
    assert faults(ORIN, device("jetson-orin-nano", here=True)) == {}


def test_every_fault_comes_with_a_cure() -> None:
    ill = dataclasses.replace(
        HEALTHY,
        arch="armv7l",
        machine=dataclasses.replace(
            CPU, isa=frozenset(), memory_gb=1, facts={**CPU.facts, "note": "not told"}
        ),
        free_disk_gb=0.5,
        requirements=("torch>=3", "pluggy>=2"),
        versions={"torch": "2.9.0"},
        trtexec="/opt/trtexec",
        nvidia_smi=NO_DRIVER,
    )
    findings = examine(device("jetson-orin-nano@jetpack-5.1", here=True), {"mine": "no libnvinfer.so"}, ill)

    assert all(f.cure for f in findings if f.status != "ok")
    expected = {
        "platform",
        "cpu",
        "memory",
        "disk",
        "torch",
        "pluggy",
        "onnxruntime",
        "trtexec",
        "gpu",
        "plugin mine",
    }
    assert expected <= {f.subject for f in findings if f.status in ("warning", "problem")}


def test_a_package_below_its_bound_is_a_problem() -> None:
    old = dataclasses.replace(HEALTHY, versions={**VERSIONS, "torch": "2.8.1+cpu"})

    assert find("torch", old) == Finding(
        "torch", "problem", "2.8.1+cpu, but >=2.9 is needed", 'pip install "torch>=2.9"'
    )


def test_a_local_or_preview_build_above_the_bound_is_fine() -> None:
    for version in ("2.9.0+cu128", "2.10.0.dev20251101"):
        assert (
            find("torch", dataclasses.replace(HEALTHY, versions={**VERSIONS, "torch": version})).status
            == "ok"
        )


def test_a_version_that_is_none_is_told_not_raised() -> None:
    odd = dataclasses.replace(HEALTHY, versions={**VERSIONS, "torch": "nightly", "onnxruntime": "?"})

    assert faults(odd, device("x86-64-avx2", here=True)) == {
        "torch": "problem",
        "onnxruntime": "problem",
        "onnxruntime for x86-64-avx2": "problem",
    }


def test_without_a_distribution_the_bounds_are_not_known() -> None:
    assert faults(dataclasses.replace(HEALTHY, requirements=())) == {"penjing": "warning"}


def test_other_requirements_are_named_only_where_at_fault() -> None:
    missing = dataclasses.replace(HEALTHY, versions={k: v for k, v in VERSIONS.items() if k != "pluggy"})

    assert "pluggy" not in {f.subject for f in examine(None, {}, HEALTHY)}
    assert find("pluggy", missing).status == "problem"


def test_onnxruntime_tells_what_it_reads() -> None:
    assert find("onnxruntime").what == "1.22.0, reads up to opset 22, IR 10"


def test_tensorrt_need_not_be_here() -> None:
    assert (find("tensorrt").status, find("trtexec").status) == ("absent", "absent")


def test_a_cpu_without_vnni_is_told_of_its_seven_bits() -> None:
    vnni = dataclasses.replace(CPU, isa=frozenset({"avx2", "avx_vnni"}))

    assert "7 bits" in find("cpu").what
    assert "7 bits" not in find("cpu", dataclasses.replace(HEALTHY, machine=vnni)).what


def test_a_broken_plugin_is_a_problem_with_its_reason() -> None:
    (finding,) = [f for f in examine(None, {"penjing-dla": "no libcudla"}, HEALTHY) if "plugin" in f.subject]

    assert (finding.subject, finding.status, finding.what) == ("plugin penjing-dla", "problem", "no libcudla")


def test_a_device_that_is_elsewhere_is_not_measured() -> None:
    assert find("latency", HEALTHY, device("raspberry-pi-5")).status == "absent"
    assert "board" in find("latency", HEALTHY, device("jetson-orin-nano")).cure


def test_the_stack_of_a_device_is_told() -> None:
    what = find("jetson-agx-orin@jetpack-6.2", ORIN, device("jetson-agx-orin")).what

    assert "JetPack 6.1 to 6.2.2, tensorrt ==10.3.*, CUDA 12.6, opset up to 20, 2 DLA cores" in what


def test_another_jetpack_than_the_one_chosen_is_a_problem_on_the_board() -> None:
    target = device("jetson-orin-nano@jetpack-5.1", here=True)

    assert faults(ORIN, target) == {
        "tensorrt for jetson-orin-nano@jetpack-5.1": "problem",
        "jetpack": "problem",
        "cuda": "warning",
    }
    assert "jetson-orin-nano@jetpack-6.2" in find("jetpack", ORIN, target).cure


def test_another_tensorrt_on_a_desktop_is_no_problem_for_a_board() -> None:
    desktop = dataclasses.replace(HEALTHY, versions={**VERSIONS, "tensorrt": "10.7.0"})

    assert faults(desktop, device("jetson-orin-nano")) == {
        "tensorrt for jetson-orin-nano@jetpack-6.2": "warning"
    }


def test_a_graph_that_the_onnxruntime_here_cannot_read_is_told() -> None:
    assert faults(HEALTHY, device("t4@tensorrt-11")) == {"opset": "warning"}


@pytest.mark.parametrize(
    ("text", "version"),
    [
        (NV_TEGRA_RELEASE, "36.4.4"),
        ("# R32 (release), REVISION: 7.1, GCID: 29818004, BOARD: t210ref\n", "32.7.1"),
        ("# R39 (release), REVISION: 2.0, GCID: 1\n", "39.2.0"),
        ("", ""),
        ("# R36 (rele", ""),
    ],
)
def test_l4t_is_told_from_its_release_file(text: str, version: str) -> None:
    assert parse_tegra_release(text) == version


@pytest.mark.parametrize(
    ("text", "version"),
    [
        (TRTEXEC_10, "10.3.0"),
        (TRTEXEC_8, "8.5.2"),
        ("[TensorRT v8201]", "8.2.1"),
        ("&&&& RUNNING TensorRT.trtexec [TensorRT v101602] [b10] # trtexec", "10.16.2"),
        ("&&&& RUNNING TensorRT.trtexec [TensorRT v110401] [b1] # trtexec", "11.4.1"),
        ("error while loading shared libraries: libnvinfer.so.10", ""),
        ("", ""),
    ],
)
def test_tensorrt_is_told_from_the_banner_of_trtexec(text: str, version: str) -> None:
    assert parse_trtexec(text) == version


@pytest.mark.parametrize(
    ("text", "version"),
    [
        (CUDA, "12.6.68"),
        ("", ""),
        ("{", ""),
        ("[]", ""),
        ('{"cuda": []}', ""),
        ('{"cuda": {"version": 12}}', ""),
    ],
)
def test_cuda_is_told_from_its_version_file(text: str, version: str) -> None:
    assert parse_cuda(text) == version


def test_gpus_are_told_from_nvidia_smi() -> None:
    assert [gpu[0] for gpu in parse_nvidia_smi(NVIDIA_SMI)] == [
        "NVIDIA GeForce RTX 4090",
        "NVIDIA GeForce RTX 3090",
    ]
    assert parse_nvidia_smi(NO_DRIVER) == []


@given(st.text(), st.sampled_from([None, "jetson-orin-nano", "raspberry-pi-5"]))
def test_whatever_the_tools_print_there_is_an_answer(text: str, name: str | None) -> None:
    garbled = dataclasses.replace(
        ORIN,
        trtexec_output=text,
        tegra_release=text,
        cuda_json=text,
        nvidia_smi=text,
        versions=dict.fromkeys(VERSIONS, text),
    )

    assert examine(device(name, here=True) if name else None, {}, garbled)


def test_a_tool_that_cannot_be_run_or_fails_is_no_error(tmp_path: Path) -> None:
    broken = tmp_path / "trtexec"
    broken.write_bytes(b"\x7fELF")
    broken.chmod(0o755)

    assert _output([str(tmp_path / "none")]) == ""
    assert _output([str(broken)]) == ""
    code = r"import sys; sys.stderr.buffer.write(b'\xff [TensorRT v8502]'); sys.exit(1)"
    assert parse_trtexec(_output([sys.executable, "-c", code])) == "8.5.2"


def test_observing_names_what_is_installed() -> None:
    evidence = observe()

    assert evidence.machine.here
    assert evidence.versions["onnxruntime"]
    assert evidence.free_disk_gb > 0


def test_the_doctor_imports_no_framework() -> None:
    code = """
import sys
from penjing.doctor import examine
examine(None, {})
print([name for name in ("torch", "onnx", "onnxruntime", "numpy", "PIL") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"


def test_the_jetpack_of_a_board_is_told_with_what_it_brings() -> None:
    assert (
        "JetPack 6.1 to 6.2.2, which brings TensorRT 10.3, CUDA 12.6, Python 3.10" in find("l4t", ORIN).what
    )
    xavier = dataclasses.replace(
        ORIN, tegra_release="# R35 (release), REVISION: 4.1, GCID: 1\n", python="3.8.10"
    )
    assert "JetPack 5.1 to 5.1.6" in find("l4t", xavier).what
    unknown = dataclasses.replace(ORIN, tegra_release="# R99 (release), REVISION: 1.0, GCID: 1\n")
    assert "not known" in find("l4t", unknown).what


def test_another_tensorrt_or_python_than_jetpacks_is_told() -> None:
    newer = dataclasses.replace(ORIN, trtexec_output=TRTEXEC_10.replace("100300", "100700"), python="3.12.3")

    assert faults(newer) == {"tensorrt of jetpack": "warning", "tensorrt's python": "warning"}
    assert "--system-site-packages" in find("tensorrt's python", newer).cure


def test_a_gpu_that_its_tensorrt_does_not_serve_is_a_problem() -> None:
    smi = "Tesla V100-SXM2-16GB, 580.65.06, 16384 MiB\n"
    versions = {**VERSIONS, "tensorrt": "10.13.3.9"}
    volta = dataclasses.replace(HEALTHY, nvidia_smi=smi, compute_capability="7.0\n", versions=versions)

    assert faults(volta) == {"tensorrt's gpu": "problem"}
    assert "serves compute capability 7.5 and later, not 7.0" in find("tensorrt's gpu", volta).what
    assert "compute capability 7.0" in find("gpu", volta).what
    assert faults(dataclasses.replace(volta, versions={**VERSIONS, "tensorrt": "10.3.0"})) == {}


def test_every_profile_has_a_tensorrt_that_serves_its_gpu() -> None:
    for path in builtin_profiles():
        for stack in (None, *find_device(path.stem, [path]).stacks):
            target = read_profile(path, stack)
            for bound in target.runtime.get("tensorrt", "").split(","):
                if target.sm and bound.startswith(("==", ">=")):
                    assert why_not_served(bound.strip("=<>.*"), target.sm) == ""


def test_a_driver_too_old_for_cuda_is_a_problem() -> None:
    old = dataclasses.replace(HEALTHY, nvidia_smi=NVIDIA_SMI, cuda_json=CUDA.replace("12.6.68", "13.0.48"))

    assert set(faults(old)) == {"driver"}
    assert "older than 580" in find_all("driver", old)[0].what
    assert faults(dataclasses.replace(old, cuda_json=CUDA)) == {}


def find_all(subject: str, evidence: Evidence) -> list[Finding]:
    return [finding for finding in examine(None, {}, evidence) if finding.subject == subject]


def test_two_tensorrts_are_told_apart() -> None:
    both = dataclasses.replace(ORIN, versions={**VERSIONS, "tensorrt": "10.7.0"})

    assert faults(both) == {"tensorrt and trtexec": "warning"}


def test_a_torch_that_leaves_the_gpu_idle_is_told() -> None:
    versions = {**VERSIONS, "torch": "2.9.0+cpu"}

    assert faults(dataclasses.replace(HEALTHY, versions=versions)) == {}
    idle = dataclasses.replace(HEALTHY, versions=versions, nvidia_smi=NVIDIA_SMI)
    assert faults(idle) == {"torch's gpu": "warning"}


def test_an_accelerator_that_the_stack_cannot_use_is_told_with_those_that_can() -> None:
    finding = find("dla", HEALTHY, device("jetson-agx-orin@jetpack-7.2"))

    assert finding.status == "absent"
    assert "jetson-agx-orin@jetpack-6.2" in finding.cure
    dropped = dataclasses.replace(ORIN, trtexec_output=TRTEXEC_10.replace("100300", "100900"))
    assert find("dla", dropped, device("jetson-agx-orin", here=True)).status == "problem"
