"""What a board or its TensorRT does not have is refused in the plan, with what has it."""

from __future__ import annotations

import dataclasses

import pytest
from penjing.device import builtin_profiles, find_device
from penjing.errors import PlanError
from penjing_tensorrt.backend import TensorRT


@pytest.mark.parametrize(
    ("name", "options", "message", "hint"),
    [
        ("jetson-orin-nano@jetpack-5.1", {"precision": "bf16"}, r"TensorRT 8\.5 .* has no BF16", "jetpack-6.2"),
        ("jetson-orin-nano", {"precision": "fp8"}, "does not compute in FP8", "It computes in"),
        ("jetson-nano", {"precision": "int8"}, "does not compute in INT8", "It computes in fp32, fp16"),
        ("jetson-thor@jetpack-7.2.2", {"precision": "fp16"}, "has the precision of its graph", "quant.fp16"),
        ("jetson-thor@jetpack-7.2.2", {"precision": "best"}, "strongly typed", "quant.static"),
        ("jetson-thor@jetpack-7.2.2", {"typing": "weak"}, "strongly typed networks only", "jetson-thor@jetpack-7.2"),
        ("jetson-orin-nano@jetpack-6.0", {"typing": "strong"}, r"no strongly typed networks", "jetpack-6.2"),
        ("jetson-xavier-nx", {"version_compatible": True}, r"no version-compatible engines .* 8\.6 and later", ""),
        ("jetson-orin-nano@jetpack-5.1", {"version_compatible": True}, "8.6 and later have it", "jetpack-6.0"),
        ("jetson-xavier-nx", {"level": 3}, "no optimisation level", ""),
        ("jetson-xavier-nx@jetpack-4.6", {"layers": ("fc:fp32",)}, "no precision of single layers", "jetpack-5.1"),
        ("jetson-thor@jetpack-7.2.2", {"layers": ("fc:fp32",)}, "weakly typed engines", ""),
        ("rtx-3090", {"layers": ("fc",)}, "takes NAME:fp32", ""),
        ("jetson-orin-nano", {"hardware_compatible": "ampere+"}, "not documented", "on the board"),
        ("t4", {"hardware_compatible": "ampere+"}, "need compute capability 8.0", ""),
        ("rtx-3090", {"hardware_compatible": "same-compute-capability"}, "10.9 and later", "tensorrt-11"),
        ("t4", {"sparse": True}, "need compute capability 8.0; NVIDIA T4 has 7.5", ""),
        ("rtx-3090", {"batch": 8, "max_batch": 4}, "less than", ""),
        ("raspberry-pi-5", {}, "runs no TensorRT", "onnxrt"),
    ],
)  # fmt: skip
def test_it_is_refused_before_anything_runs(name: str, options: dict, message: str, hint: str) -> None:
    step = TensorRT(**options)
    with pytest.raises(PlanError, match=message) as error:
        step.check(find_device(name, builtin_profiles()), step)

    assert hint in error.value.hint


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("jetson-orin-nano@jetpack-5.1", {"precision": "int8"}),
        ("jetson-orin-nano", {"precision": "bf16"}),
        ("l4", {"precision": "fp8"}),
        ("jetson-orin-nano", {"precision": "best", "version_compatible": True, "level": 5}),
        ("rtx-3090@tensorrt-8.6", {"hardware_compatible": "ampere+"}),
        ("rtx-3090@tensorrt-11", {"hardware_compatible": "same-compute-capability"}),
        ("jetson-orin-nano", {"typing": "strong"}),
    ],
)
def test_what_the_device_has_is_allowed(name: str, options: dict) -> None:
    step = TensorRT(**options)

    step.check(find_device(name, builtin_profiles()), step)


def test_a_gpu_that_no_release_of_the_stack_serves_is_refused(device) -> None:
    """A profile of the user's own may say anything."""
    volta = dataclasses.replace(device("rtx-3090"), title="V100", sm="7.0", runtime={"tensorrt": "==10.13.*"})
    with pytest.raises(PlanError, match=r"serves compute capability 7\.5 and later, not 7\.0, which V100"):
        TensorRT().check(volta, TensorRT())
    TensorRT().check(dataclasses.replace(volta, runtime={"tensorrt": ">=10.0,<11"}), TensorRT())
