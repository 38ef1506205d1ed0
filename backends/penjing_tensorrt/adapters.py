"""The two ways of telling TensorRT the precision: flags that allow formats, or the types of the graph itself.

TensorRT 8 to 10 are weakly typed unless asked otherwise; from 10 (9 in the header) a network can be strongly
typed, and from 11 each one is.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Any

from penjing.errors import PlanError

from penjing_tensorrt.versions import PRECISION_FLAGS, Target, need, stacks_where

if TYPE_CHECKING:
    from penjing.device import Device

    from penjing_tensorrt.build import Build
    from penjing_tensorrt.versions import Typing


class Adapter(ABC):
    """How precision is told."""

    typing: Typing

    @abstractmethod
    def check(self, device: Device, aim: Target, precision: str) -> None:
        """Raise PlanError where the option `precision` cannot be had."""

    @abstractmethod
    def formats(self, device: Device, precision: str, graph: Collection[str]) -> tuple[str, ...]:
        """Return the formats to allow for a graph that holds those of `graph`."""

    @abstractmethod
    def flags(self, build: Build, aim: Target) -> Iterator[str]:
        """Yield the flags of trtexec that tell the precision."""

    @abstractmethod
    def network_flags(self, trt: Any) -> int:
        """Return the flags that the module `trt`, TensorRT's, creates the network with."""

    @abstractmethod
    def configure(self, trt: Any, config: Any, build: Build) -> None:
        """Set the builder flags of `config`."""


class WeaklyTyped(Adapter):
    """Flags allow formats, and the builder takes the fastest of them for each layer."""

    typing: Typing = "weak"

    def check(self, device: Device, aim: Target, precision: str) -> None:
        if not aim.weak:
            raise PlanError(
                f"TensorRT {aim.name} of {device.title} builds strongly typed networks only (from 11.0 on).",
                hint=stacks_where(device, lambda other, _: other.weak) or "Leave tensorrt.typing=auto.",
            )
        if precision in ("auto", "fp32"):
            return
        if precision == "best":
            need(device, aim, "--best", "best precision")
            return
        need(device, aim, PRECISION_FLAGS[precision], precision.upper())
        if precision not in device.precisions:
            raise PlanError(
                f"{device.title} does not compute in {precision.upper()}"
                + (f" with TensorRT {aim.name}." if device.stack else "."),
                hint=stacks_where(
                    device,
                    lambda other, it: precision in it.precisions and other.has(PRECISION_FLAGS[precision]),
                )
                or f"It computes in {', '.join(device.precisions)}.",
            )

    def formats(self, device: Device, precision: str, graph: Collection[str]) -> tuple[str, ...]:
        if precision == "best":
            return ("best",)
        wanted = set(graph)
        if precision not in ("auto", "fp32"):
            wanted.add(precision)
        # what stays float beside integers is faster in half precision: NVIDIA/TensorRT issue 4021
        if precision != "fp32" and wanted & {"int8", "fp8", "int4"} and "fp16" in device.precisions:
            wanted.add("fp16")
        return tuple(name for name in PRECISION_FLAGS if name in wanted)

    def flags(self, build: Build, aim: Target) -> Iterator[str]:
        for name in build.formats:
            yield "--best" if name == "best" else PRECISION_FLAGS[name]
        if build.layers:
            yield f"--precisionConstraints={build.constraints}"
            yield "--layerPrecisions=" + ",".join(f"{layer}:{name}" for layer, name in build.layers.items())
        if build.calibration:
            yield f"--calib={build.calibration}"

    def network_flags(self, trt: Any) -> int:
        # explicit batches are a flag until 10, where there is nothing else
        flag = getattr(trt.NetworkDefinitionCreationFlag, "EXPLICIT_BATCH", None)
        return 0 if flag is None else 1 << int(flag)

    def configure(self, trt: Any, config: Any, build: Build) -> None:
        formats = ("fp16", "bf16", "int8") if build.formats == ("best",) else build.formats
        for name in formats:
            if (flag := getattr(trt.BuilderFlag, name.upper(), None)) is not None:
                config.set_flag(flag)
        if build.layers:
            strict = "OBEY" if build.constraints == "obey" else "PREFER"
            config.set_flag(getattr(trt.BuilderFlag, f"{strict}_PRECISION_CONSTRAINTS"))


class StronglyTyped(Adapter):
    """Each tensor has the type that the graph says; no flag changes it."""

    typing: Typing = "strong"

    def check(self, device: Device, aim: Target, precision: str) -> None:
        if not aim.strong:
            need(device, aim, "--stronglyTyped", "strongly typed networks")
        if precision != "auto":
            raise PlanError(
                f"A strongly typed network has the precision of its graph; tensorrt.precision={precision} "
                f"is for weakly typed ones, and TensorRT {aim.name} of {device.title} builds a strongly typed one.",
                hint="Leave precision=auto: quant.static writes INT8 into the graph, quant.fp16 writes FP16.",
            )

    def formats(self, device: Device, precision: str, graph: Collection[str]) -> tuple[str, ...]:
        return tuple(name for name in PRECISION_FLAGS if name in graph)

    def flags(self, build: Build, aim: Target) -> Iterator[str]:
        if aim.choice:  # 11 takes the flag too, and says that it does nothing
            yield "--stronglyTyped"

    def network_flags(self, trt: Any) -> int:
        flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
        return 0 if flag is None else 1 << int(flag)

    def configure(self, trt: Any, config: Any, build: Build) -> None:
        """Set nothing: there is no builder flag for precision."""


def adapter(typing: Typing) -> Adapter:
    """Return the adapter for a way of typing."""
    return StronglyTyped() if typing == "strong" else WeaklyTyped()
