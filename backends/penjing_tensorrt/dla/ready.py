"""A network made ready for the DLA: what is simulated, what TensorRT parses, its ranges, and where its layers run."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from penjing.errors import StepError
from penjing.files import digest, write_bytes, write_text
from penjing.onnx_file import signature

from penjing_tensorrt.dla.calibration_cache import Cache
from penjing_tensorrt.dla.graph import load
from penjing_tensorrt.dla.outputs import bare
from penjing_tensorrt.dla.place import place
from penjing_tensorrt.dla.strip import is_quantised, strip

if TYPE_CHECKING:
    from penjing.model import Model

    from penjing_tensorrt.dla.limits import Target
    from penjing_tensorrt.dla.place import Placement
    from penjing_tensorrt.dla.strip import Stripped

#: files beside each other: the graph that is simulated, the one that TensorRT parses, and its ranges
NETWORK, PLAIN, CACHE = "model.onnx", "dla.onnx", "calibration.cache"


@dataclasses.dataclass(frozen=True)
class Ready:
    """A network, quantised or not, for one DLA."""

    model: Model
    #: None for a float network, which runs in FP16
    stripped: Stripped | None
    target: Target
    placement: Placement
    #: outputs that the engine puts out before the view that ends the network, as N×C×1×1
    bare: tuple[str, ...] = ()

    @property
    def held(self) -> dict[str, str]:
        """Return the precision of the layers of a quantised network that stay in FP16, by name."""
        if self.stripped is None or self.target.strongly_typed:
            return {}
        return {layer.name: "fp16" for layer in self.placement.layers if layer.precision == "fp16"}

    def write(self, folder: Path) -> Model:
        """Write the files of a quantised network into `folder`, and return the model that is simulated."""
        if self.stripped is None:
            return self.model
        data = self.stripped.network.SerializeToString(deterministic=True)
        write_bytes(folder / NETWORK, data)
        if self.target.strongly_typed:
            if self.bare:
                parsed, _, _ = bare(self.stripped.network, {})
                write_bytes(folder / PLAIN, parsed.SerializeToString(deterministic=True))
        else:
            write_bytes(folder / PLAIN, self.stripped.plain.SerializeToString(deterministic=True))
            write_text(folder / CACHE, Cache(self.target.version, self.stripped.scales).write())
        return self.model.become("onnx", folder / NETWORK, fingerprint=digest(data))


def make_ready(model: Model, target: Target, *, alone: bool = False) -> Ready:
    """Return what `target` needs of a model; StepError where its shape is open, or its Q/DQ are not the DLA's.

    Where the DLA is `alone`, no GPU beside it, views that end the network are left to who runs the engine.
    """
    path = Path(model.value)
    graph = load(path)
    for tensor in signature(graph)[0]:
        if None in tensor.shape:
            raise StepError(
                f"{path.name} leaves sides of {tensor} open; the DLA builds for one shape.",
                hint="onnx.export.batch=1 or dla.adapt.batch=1 fixes the batch.",
            )
    stripped = strip(graph) if is_quantised(graph) else None
    outputs: tuple[str, ...] = ()
    if stripped is not None and alone:
        plain, scales, outputs = bare(stripped.plain, stripped.scales)
        stripped = dataclasses.replace(stripped, plain=plain, scales=scales)
    target = dataclasses.replace(target, precision="int8" if stripped else "fp16")
    placement = place(
        stripped.plain if stripped else graph,
        target,
        batch=None,
        scales=set(stripped.scales if stripped else ()),
    )
    return Ready(model, stripped, target, placement, outputs)
