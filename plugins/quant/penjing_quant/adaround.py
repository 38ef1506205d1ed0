"""AdaRound: whether each weight is rounded up or down is learnt, so that its layer puts out what it should.

After Nagel et al. 2020, "Up or Down? Adaptive Rounding for Post-Training Quantization" (arXiv 2004.10568): layer by
layer, the output under inputs that are quantised already, its activation function included, is brought near the
float network's (section 3.3, "asymmetric reconstruction"). A rectified sigmoid h(V) in 0…1 stands for the rounding,
and a regulariser 1 − |2h − 1|^β, with β falling, draws each to 0 or 1 (equations 22 to 25).

In place of whole photographs, patches are learnt from: the inputs of output positions drawn at random. So memory is
bounded, and every kind of layer is a matrix product.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from penjing_quant.graph import CLIPPING
from penjing_quant.session import Walk

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import onnx
    import torch
    from penjing.step import Context, Scheme

    from penjing_quant.integers import Weight
    from penjing_quant.photographs import Photographs
    from penjing_quant.quantiser import Candidate
    from penjing_quant.static import StaticQuantisation

    Array = npt.NDArray[np.float32]

#: photographs to learn from at most, and bytes of what passes between layers for all of them
MOST, MEMORY = 256, 512 * 2**20
#: patches of a layer at most, bytes of them at most, and patches of one step
PATCHES, PATCH_BYTES, BATCH = 8192, 192 * 2**20, 512
#: one patch in so many is not learnt from, and judges
JUDGED = 8
#: the rectified sigmoid's ends (section 3.2 of the paper); the regulariser's weight where the loss of rounding
#: to the nearest is 1; the exponent at first and at last; the share of steps before the regulariser acts
STRETCH, SHRINK = 1.1, -0.1
WEIGHT, BETA, WARM_UP = 1.0, (20.0, 2.0), 0.2
RATE = 1e-2


@dataclasses.dataclass
class Layer:
    """What is learnt from: a layer's quantised inputs and its float outputs at positions drawn at random."""

    #: [groups, patches, inputs]
    inputs: Array
    #: [patches, outputs], after the activation function
    wanted: Array
    #: [groups, outputs of a group, inputs]
    weight: Array
    #: one for each output
    bias: Array
    #: least and greatest value of the activation function's output
    clip: tuple[float, float]


class Rounder:
    """Rounds the weights of one quantised network anew."""

    def __init__(self, best: Candidate, scheme: Scheme, step: StaticQuantisation, context: Context) -> None:
        self.best, self.scheme, self.step, self.context = best, scheme, step, context
        per_channel = scheme.per_channel if step.per_channel is None else step.per_channel
        self.per_channel = per_channel

    def run(self, photographs: Photographs) -> dict[str, Weight]:
        """Return the weights of all layers that can be learnt, by node name.

        Those that several layers share, ConvTranspose, and what is padded in other ways than by numbers stay as
        they are.
        """
        import numpy as np
        import onnx

        best, progress = self.best, self.context.progress
        quantised = onnx.ModelProto()
        quantised.CopyFrom(best.written.model)
        images = photographs.first(min(MOST, max(8, MEMORY // max(alive_bytes(best.exact), 1))))
        exact, rounded = Walk(best.exact, images), Walk(quantised, images)
        weights = Weights(best, quantised)
        random = np.random.default_rng(self.context.seed)
        found: dict[str, Weight] = {}
        names = [node.name for node in best.exact.graph.node if node.name in best.written.integer]
        names = [name for name in names if weights.can_be_learnt(name)]
        progress.begin("rounding weights", len(names))
        for name in names:
            got, wanted = rounded.before(name), exact.to(name)
            layer = weights.layer(name, got, wanted, random)
            weight = self.learn(name, layer, weights)
            found[name] = weight
            weights.replace(name, weight)
            progress.advance()
        progress.end(f"{len(found)} layers")
        return found

    def learn(self, name: str, layer: Layer, weights: Weights) -> Weight:
        """Return the layer's weight, rounded as its outputs want it, or to the nearest if that is better."""
        import numpy as np

        from penjing_quant.integers import weight_codes, weight_limits

        bits, axis = self.step.weight_bits, weights.axis(name)
        array = weights.array(name)
        floor = np.zeros(array.shape[axis], np.float32)
        weight = weight_codes(
            array, axis if self.per_channel else None, self.scheme, floor, bits, nearest=bits < 8
        )
        scale = np.broadcast_to(weight.scale.reshape(-1), (array.shape[axis],))
        rows = scale.reshape(layer.weight.shape[0], -1, 1)
        low, high = weight_limits(self.scheme, bits)
        nearest = np.clip(np.rint(layer.weight / rows), low, high)
        steps = _learn(layer, rows, (low, high), self.step.adaround_steps, self.context.seed)
        kept = layer.inputs[:, ::JUDGED], layer.wanted[::JUDGED]
        if _loss(layer, *kept, nearest * rows) <= _loss(layer, *kept, steps * rows):
            steps = nearest
        codes = weights.unfold(name, steps).astype(np.int64) + weight.zero
        return dataclasses.replace(weight, codes=codes.astype(weight.codes.dtype))


def _loss(layer: Layer, inputs: Array, wanted: Array, weight: Array) -> float:
    import numpy as np

    got = np.matmul(inputs, weight.transpose(0, 2, 1).astype(np.float32))  # [groups, patches, outputs]
    got = got.transpose(1, 0, 2).reshape(len(wanted), -1) + layer.bias
    return float(np.square(np.clip(got, *layer.clip) - wanted, dtype=np.float64).mean())


def _learn(layer: Layer, scale: Array, limits: tuple[int, int], steps: int, seed: int) -> Array:
    """Return the steps (codes less zero point) of the weight, of the shape of `layer.weight`."""
    import numpy as np
    import torch

    learnt = np.arange(len(layer.wanted)) % JUDGED != 0
    inputs = torch.from_numpy(np.array(layer.inputs[:, learnt], order="C"))
    wanted = torch.from_numpy(np.array(layer.wanted[learnt], order="C"))
    bias, unit = torch.from_numpy(layer.bias), torch.from_numpy(np.array(scale, order="C"))
    exactly = torch.from_numpy(np.array(layer.weight, order="C")) / unit
    below = exactly.floor()
    part = (exactly - below).clamp(0.01, 0.99)
    v = torch.logit((part - SHRINK) / (STRETCH - SHRINK)).requires_grad_()
    optimiser = torch.optim.Adam([v], lr=RATE)
    generator = torch.Generator().manual_seed(seed)

    def put_out(h: torch.Tensor, of: torch.Tensor) -> torch.Tensor:
        weight = (below + h).clamp(*limits) * unit
        got = torch.matmul(of, weight.transpose(1, 2)).transpose(0, 1).reshape(of.shape[1], -1)
        clipped: torch.Tensor = (got + bias).clamp(*layer.clip)
        return clipped

    with torch.no_grad():
        some = slice(0, 4 * BATCH)
        usual = (put_out((part >= 0.5).float(), inputs[:, some]) - wanted[some]).square().mean()
        usual = usual.clamp_min(1e-12)
    for number in range(steps):
        drawn = torch.randint(len(wanted), (min(BATCH, len(wanted)),), generator=generator)
        h = (torch.sigmoid(v) * (STRETCH - SHRINK) + SHRINK).clamp(0, 1)
        loss = (put_out(h, inputs[:, drawn]) - wanted[drawn]).square().mean() / usual
        done = (number / steps - WARM_UP) / (1 - WARM_UP)
        if done > 0:
            beta = BETA[1] + (BETA[0] - BETA[1]) * (1 - done)
            loss = loss + WEIGHT * (1 - (2 * h - 1).abs().pow(beta)).mean()
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        optimiser.step()
    with torch.no_grad():
        up = (torch.sigmoid(v) * (STRETCH - SHRINK) + SHRINK) >= 0.5
        result: Array = (below + up).clamp(*limits).numpy()
    return result


class Weights:
    """The layers of a float graph as matrix products, and their weights in the quantised one."""

    def __init__(self, best: Candidate, quantised: onnx.ModelProto) -> None:
        import onnx

        self.nodes = {node.name: node for node in best.model.graph.node}
        self.constants = {t.name: onnx.numpy_helper.to_array(t) for t in best.model.graph.initializer}
        self.graph = quantised.graph
        self.quantised = {node.name: node for node in quantised.graph.node if node.name}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in best.model.graph.node:
            for entry in node.input:
                self.readers.setdefault(entry, []).append(node)
        self.outputs = {output.name for output in best.model.graph.output}

    def attributes(self, name: str) -> dict[str, Any]:
        """Return a node's attributes."""
        import onnx

        return {a.name: onnx.helper.get_attribute_value(a) for a in self.nodes[name].attribute}

    def array(self, name: str) -> Array:
        """Return the float weight."""
        return self.constants[self.nodes[name].input[1]]

    def can_be_learnt(self, name: str) -> bool:
        """Tell whether a layer has a weight of its own, and is a matrix product on patches."""
        node = self.nodes[name]
        if node.op_type not in ("Conv", "Gemm", "MatMul") or len(self.readers[node.input[1]]) > 1:
            return False
        padded = self.attributes(name).get("auto_pad", b"NOTSET") in (b"NOTSET", b"VALID")
        return padded and (node.op_type != "Conv" or self.array(name).ndim == 4)

    def axis(self, name: str) -> int:
        """Return the axis of the weight that holds the output channels."""
        if self.nodes[name].op_type == "Gemm":
            return 0 if self.attributes(name).get("transB", 0) else 1
        return 0 if self.nodes[name].op_type == "Conv" else 1

    def fold(self, name: str) -> Array:
        """Return the weight as [groups, outputs of a group, inputs]."""
        array = self.array(name)
        groups = self.attributes(name).get("group", 1) if self.nodes[name].op_type == "Conv" else 1
        rows = array if self.axis(name) == 0 else array.T
        return rows.reshape(groups, array.shape[self.axis(name)] // groups, -1)

    def unfold(self, name: str, rows: Array) -> Array:
        """Return rows as `fold` makes them in the shape of the weight."""
        array = self.array(name)
        return rows.reshape(array.shape) if self.axis(name) == 0 else rows.reshape(array.shape[::-1]).T

    def layer(self, name: str, got: list[Array], wanted: list[Array], random: np.random.Generator) -> Layer:
        """Return what a layer can be learnt from, given its inputs and its outputs before the activation function."""
        import numpy as np

        weight, node = self.fold(name), self.nodes[name]
        groups, _, length = weight.shape
        most = max(64, min(PATCHES, PATCH_BYTES // (4 * groups * length)))
        each = max(1, most // len(got))
        inputs, targets = [], []
        for before, after in zip(got, wanted, strict=True):
            if node.op_type == "Conv":
                patches, put_out = self._patches(name, before, after, each, random)
            else:
                patches, put_out = before.reshape(1, -1, length), after.reshape(-1, weight.shape[1])
                rows = random.permutation(len(put_out))[:each]
                patches, put_out = patches[:, rows], put_out[rows]
            inputs.append(patches)
            targets.append(put_out)
        clip = self._clip(node)
        channels = weight.shape[0] * weight.shape[1]
        bias = (
            self.constants[node.input[2]]
            if len(node.input) > 2 and node.input[2]
            else np.zeros(1, np.float32)
        )
        return Layer(
            np.concatenate(inputs, axis=1),
            np.clip(np.concatenate(targets), *clip).astype(np.float32),
            weight,
            np.array(np.broadcast_to(bias.reshape(-1), (channels,)), np.float32),
            clip,
        )

    def _patches(
        self, name: str, before: Array, after: Array, count: int, random: np.random.Generator
    ) -> tuple[Array, Array]:
        """Return inputs [groups, count, inputs] and outputs [count, channels] at positions of one convolution."""
        import numpy as np

        attributes, weight = self.attributes(name), self.array(name)
        top, left, bottom, right = attributes.get("pads", (0, 0, 0, 0))
        (down, across), (dy, dx) = attributes.get("strides", (1, 1)), attributes.get("dilations", (1, 1))
        groups, (kh, kw) = attributes.get("group", 1), weight.shape[2:]
        image = np.pad(before, ((0, 0), (0, 0), (top, bottom), (left, right)))
        n, _, height, width = after.shape
        places = random.choice(n * height * width, min(count, n * height * width), replace=False)
        of, y, x = np.unravel_index(places, (n, height, width))
        rows = (y * down)[:, None, None] + (np.arange(kh) * dy)[None, :, None]
        columns = (x * across)[:, None, None] + (np.arange(kw) * dx)[None, None, :]
        # [places, kh, kw, channels], advanced indices first
        patches = image[of[:, None, None], :, rows, columns]
        patches = patches.transpose(3, 0, 1, 2).reshape(groups, -1, len(places), kh * kw)
        return patches.transpose(0, 2, 1, 3).reshape(groups, len(places), -1), after[of, :, y, x]

    def _clip(self, node: onnx.NodeProto) -> tuple[float, float]:
        """Return what the activation function behind a layer clips to."""
        low, high = float("-inf"), float("inf")
        output = node.output[0]
        while output not in self.outputs and len(after := self.readers.get(output, [])) == 1:
            if after[0].op_type not in CLIPPING:
                break
            ends = [self.constants.get(entry) for entry in after[0].input[1:3]]
            if after[0].op_type == "Relu":
                low = max(low, 0.0)
            else:
                low = max(low, float(ends[0])) if ends and ends[0] is not None else low
                high = min(high, float(ends[1])) if len(ends) > 1 and ends[1] is not None else high
            output = after[0].output[0]
        return low, high

    def replace(self, name: str, weight: Weight) -> None:
        """Give the layer of the quantised graph this weight, as the floats that its codes stand for."""
        import numpy as np
        from onnx import numpy_helper

        node = self.quantised[name]
        shape = [-1 if i == weight.axis else 1 for i in range(weight.codes.ndim)]
        scale = weight.scale if weight.axis is None else weight.scale.reshape(shape)
        values = ((weight.codes.astype(np.int64) - weight.zero) * scale).astype(np.float32)
        self.graph.initializer.append(numpy_helper.from_array(values, f"{name}.penjing.rounded"))
        node.input[1] = f"{name}.penjing.rounded"
        if len(node.input) > 2 and node.input[2]:  # one of int32 has the scale of the weight before
            bias = self.constants[self.nodes[name].input[2]]
            self.graph.initializer.append(numpy_helper.from_array(bias, f"{name}.penjing.bias"))
            node.input[2] = f"{name}.penjing.bias"


def alive_bytes(model: onnx.ModelProto) -> int:
    """Return how many bytes of activations two walks through `model` keep for one photograph, at most."""
    import math

    size = {
        value.name: 4 * math.prod(max(d.dim_value, 1) for d in value.type.tensor_type.shape.dim)
        for value in (*model.graph.value_info, *model.graph.input, *model.graph.output)
    }
    last = {entry: place for place, node in enumerate(model.graph.node) for entry in node.input}
    alive: dict[str, int] = {value.name: size.get(value.name, 0) for value in model.graph.input}
    most = sum(alive.values())
    for place, node in enumerate(model.graph.node):
        alive |= {output: size.get(output, 0) for output in node.output}
        most = max(most, sum(alive.values()))
        alive = {name: count for name, count in alive.items() if last.get(name, 0) > place}
    return 2 * most
