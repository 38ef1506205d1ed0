"""What engine is wanted, apart from the tool that builds it: trtexec and the Python API read the same record."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from penjing_tensorrt.versions import Typing


@dataclasses.dataclass(frozen=True)
class Build:
    """An engine to be built."""

    typing: Typing
    #: number formats that a weakly typed build may use besides fp32, of `versions.PRECISION_FLAGS`; "best" for all
    formats: tuple[str, ...] = ()
    #: shape of the input by its name: least, usual and largest; empty where the graph leaves nothing open
    shapes: Mapping[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]] = dataclasses.field(
        default_factory=dict
    )
    #: memory that tactics may use, in MiB; 0 leaves it to TensorRT
    workspace: int = 0
    #: further pools by trtexec's name, in MiB: "dlaSRAM", "dlaLocalDRAM", "dlaGlobalDRAM"
    pools: Mapping[str, int] = dataclasses.field(default_factory=dict)
    #: 0 to 5; None leaves it to TensorRT (3)
    level: int | None = None
    tf32: bool = True
    sparse: bool = False
    version_compatible: bool = False
    #: "none", "ampere+" or "sameComputeCapability"
    hardware: str = "none"
    #: precisions that single layers are held to, by name, and how strictly: "prefer" or "obey"
    layers: Mapping[str, str] = dataclasses.field(default_factory=dict)
    constraints: str = "obey"
    #: names of files: what timing of kernels found, and INT8 scales for networks without Q/DQ; "" for none
    timing_cache: str = ""
    calibration: str = ""
    #: core of the deep learning accelerator, and whether layers it cannot run go to the GPU; None builds for the GPU
    dla_core: int | None = None
    gpu_fallback: bool = False
    #: flags of trtexec beyond these, each checked like the others
    extra: tuple[str, ...] = ()
