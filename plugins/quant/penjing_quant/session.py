"""Running graphs in onnxruntime while they are worked on."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from penjing import onnx_session
from penjing.errors import StepError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import onnx
    import onnxruntime as ort

    Array = npt.NDArray[np.float32]


class Network:
    """A graph of one image input that puts out tensors by name, given one photograph at a time."""

    def __init__(
        self, model: onnx.ModelProto, tensors: Sequence[str] | None = None, *, simulated: bool = False
    ) -> None:
        """Load `model` to put out `tensors`, or its own outputs (None).

        `simulated` computes in float between Q/DQ: this machine's integer kernels may overflow where those of
        the device do not.
        """
        import onnx

        self.input = only_input(model)
        names = [output.name for output in model.graph.output] if tensors is None else list(tensors)
        self.echo = self.input.name in names
        self.names = [name for name in names if name != self.input.name]
        probe = onnx.ModelProto()
        probe.CopyFrom(model)
        have = {output.name for output in probe.graph.output}
        probe.graph.output.extend(onnx.ValueInfoProto(name=name) for name in self.names if name not in have)
        # as it stands: fused kernels may overflow too
        self.session = _load(probe, optimise=not simulated)

    def __call__(self, pixels: Array) -> dict[str, Array]:
        """Run one photograph [1, channels, height, width], repeated where the network has a fixed batch."""
        import numpy as np

        batch = self.input.type.tensor_type.shape.dim[0].dim_value
        feed = np.repeat(pixels, batch, axis=0) if batch > 1 else pixels
        try:
            results = self.session.run(self.names, {self.input.name: feed}) if self.names else []
        except Exception as error:  # as above
            raise StepError(
                f"The network cannot run a photograph of shape {list(feed.shape)}: {error}",
                hint="The preprocessing must end in the size that the network takes.",
            ) from error
        outputs = dict(zip(self.names, results, strict=True))
        return {self.input.name: pixels, **outputs} if self.echo else outputs


def _load(model: onnx.ModelProto, *, optimise: bool) -> ort.InferenceSession:
    return onnx_session.load(model.SerializeToString(), name="the network", threads=0, optimise=optimise)


class Walk:
    """A graph carried out in stretches, for several photographs, so that what passes through can be changed.

    What a stretch puts out is kept until nothing later reads it.
    """

    def __init__(self, model: onnx.ModelProto, photographs: Sequence[Array]) -> None:
        self.model = model
        #: what makes a tensor that no photograph changes, such as a weight from its codes
        self.fixed: dict[str, onnx.NodeProto] = {}
        constants = {initialiser.name for initialiser in model.graph.initializer} | {""}
        self.nodes = []
        for node in model.graph.node:
            if reads(node) <= constants | self.fixed.keys() and not node.name:
                self.fixed.update(dict.fromkeys(node.output, node))
            else:
                self.nodes.append(node)
        self.last = {name: place for place, node in enumerate(self.nodes) for name in reads(node)}
        self.alive: dict[str, list[Array]] = {only_input(model).name: list(photographs)}
        self.place = 0

    def to(self, name: str) -> list[Array]:
        """Carry out the graph up to the node `name`; return its first output, to be changed in place."""
        end = self._index(name) + 1
        target = self.nodes[end - 1].output[0]
        self._advance(end, target)
        result = self.alive[target]
        self.alive = {t: values for t, values in self.alive.items() if self.last.get(t, 0) >= end}
        return result

    def before(self, name: str) -> list[Array]:
        """Carry out the graph up to where the node `name` is next; return its first input."""
        end = self._index(name)
        self._advance(end)
        self.alive = {t: values for t, values in self.alive.items() if self.last.get(t, 0) >= end}
        return self.alive[self.nodes[end].input[0]]

    def _index(self, name: str) -> int:
        return next(i for i, node in enumerate(self.nodes) if node.name == name)

    def _advance(self, end: int, target: str = "") -> None:
        stretch, self.place = self.nodes[self.place : end], end
        made = {output for node in stretch for output in node.output}
        wanted = [t for t in made if t == target or self.last.get(t, 0) >= end]
        if not wanted:
            return
        session = _load(self._part(stretch, wanted), optimise=False)
        feeds = {t for node in stretch for t in reads(node)} & set(self.alive)
        for t in wanted:
            self.alive[t] = []
        for i in range(len(next(iter(self.alive.values())))):
            results = session.run(wanted, {f: self.alive[f][i] for f in feeds})
            for t, values in zip(wanted, results, strict=True):
                self.alive[t].append(values)

    def _part(self, nodes: list[onnx.NodeProto], outputs: list[str]) -> onnx.ModelProto:
        import onnx

        nodes = [*self._fixing(nodes), *nodes]
        read = {t for node in nodes for t in reads(node)}
        inputs = [
            onnx.helper.make_tensor_value_info(t, onnx.helper.np_dtype_to_tensor_dtype(values[0].dtype), None)
            for t, values in self.alive.items()
            if t in read
        ]
        constants = [initialiser for initialiser in self.model.graph.initializer if initialiser.name in read]
        graph = onnx.helper.make_graph(
            nodes, "part", inputs, [onnx.ValueInfoProto(name=t) for t in outputs], constants
        )
        return onnx.helper.make_model(
            graph, opset_imports=self.model.opset_import, ir_version=self.model.ir_version
        )

    def _fixing(self, nodes: Sequence[onnx.NodeProto]) -> list[onnx.NodeProto]:
        """Return what makes the fixed tensors that `nodes` read, in order."""
        needed: list[onnx.NodeProto] = []
        for node in nodes:
            for name in reads(node):
                before = self.fixed.get(name)
                if before is not None and all(before is not one for one in needed):
                    needed += [one for one in self._fixing([before]) if all(one is not n for n in needed)]
                    needed.append(before)
        return needed


def reads(node: onnx.NodeProto) -> set[str]:
    """Return what `node` reads, the branches of an If and the bodies of loops included."""
    inner = {t for a in node.attribute if a.HasField("g") for n in a.g.node for t in reads(n)}
    return inner | set(node.input)


@dataclasses.dataclass
class Power:
    """The power of a signal and of the noise on it, summed up photograph by photograph."""

    signal: float = 0.0
    noise: float = 0.0

    def add(self, expected: Array, got: Array) -> None:
        """Count one photograph's values."""
        import numpy as np

        wanted = expected.astype(np.float64)
        self.signal += float(np.square(wanted).sum())
        self.noise += float(np.square(got - wanted).sum())

    @property
    def decibels(self) -> float | None:
        """Return the signal-to-quantisation-noise ratio in dB; None where there is no noise."""
        if self.noise <= 1e-30 * self.signal:
            return None
        return 10 * math.log10(max(self.signal, 1e-300) / self.noise)

    @property
    def share(self) -> float:
        """Return the noise as a share of the signal."""
        return self.noise / max(self.signal, 1e-300)


def sqnr(reference: Network, other: Network, photographs: Iterable[Array]) -> float:
    """Return the signal-to-quantisation-noise ratio in dB, that of the worst output; 300 where nothing differs."""
    powers: dict[str, Power] = {}
    for pixels in photographs:
        got = other(pixels)
        for name, values in reference(pixels).items():
            powers.setdefault(name, Power()).add(values, got[name])
    found = [power.decibels for power in powers.values()]
    return min(300.0 if decibels is None else decibels for decibels in found)


def only_input(model: onnx.ModelProto) -> onnx.ValueInfoProto:
    """Return the network's one image input; StepError where it has none, or several inputs."""
    constants = {initialiser.name for initialiser in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in constants]
    if len(inputs) != 1 or len(inputs[0].type.tensor_type.shape.dim) != 4:
        raise StepError(
            f"Quantisation feeds photographs to one input of four dimensions; this network has "
            f"{', '.join(value.name for value in inputs) or 'none'}.",
            hint="Export the network with its image input alone.",
        )
    image: onnx.ValueInfoProto = inputs[0]
    return image
