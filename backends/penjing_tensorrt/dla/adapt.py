"""`dla.adapt`: what would fall back to the GPU is rewritten into what the DLA has, held to computing the same."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from penjing.errors import PlanError, StepError
from penjing.files import digest, write_bytes
from penjing.options import option
from penjing.step import Technique

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir
    from penjing.agreement import Agreement
    from penjing.device import Device
    from penjing.model import Model, Tensor
    from penjing.step import Backend, Context
    from typing_extensions import Self

    from penjing_tensorrt.dla.limits import Target
    from penjing_tensorrt.dla.rewrites import Rewrite

#: the rewrites run until nothing changes; a network needs two or three rounds
ROUNDS = 20


@dataclasses.dataclass(frozen=True)
class Adapt(Technique):
    """Rewrite layers that the DLA does not have into layers that it has, and compare outputs."""

    name = "dla.adapt"
    accepts = frozenset({"onnx"})
    produces = "onnx"

    batch: int = option(
        1, "Images in a batch, where the network leaves that open: the DLA takes one size.", between=(1, 4096)
    )

    def check(self, device: Device, backend: Backend) -> None:
        """Raise PlanError where the plan does not end on a DLA, or the device has none."""
        from penjing_tensorrt.dla.limits import dla_of

        if backend.name != "dla":
            raise PlanError(
                f"The plan ends with {backend.name}, on the GPU; "
                + (
                    "`--set dla.core=0` ends it on the DLA."
                    if device.dla_cores
                    else "its DLA cannot be used."
                )
            )
        dla_of(device)

    def explain(self, device: Device, backend: Backend) -> str:
        """Return the DLA that the network is made to fit."""
        from penjing_tensorrt.dla.limits import dla_of

        return f"Layers that {dla_of(device).title} does not have become layers that it has; outputs stay the same."

    def resources(self, device: Device, backend: Backend) -> dict[str, Any]:
        """Return the DLA, and the versions of what rewrites and verifies."""
        from importlib.metadata import version

        from penjing_tensorrt.dla.limits import dla_of

        try:
            target: Any = dataclasses.asdict(dla_of(device))
        except PlanError:
            target = None
        return {
            "dla": target,
            **{name: version(name) for name in ("onnx", "onnx-ir", "onnxscript", "onnxruntime")},
        }

    def naive(self) -> Self | None:
        """Return None: the direct column shows the network as it comes."""
        return None

    def apply(self, model: Model, context: Context) -> Model:
        """Write `model.onnx` into the step's folder, and say what was rewritten and what is left."""
        from penjing.onnx_file import signature

        from penjing_tensorrt.dla.agree import agree
        from penjing_tensorrt.dla.graph import load, prepare
        from penjing_tensorrt.dla.limits import Target, dla_of
        from penjing_tensorrt.dla.place import place
        from penjing_tensorrt.dla.strip import is_quantised
        from penjing_tensorrt.dla.view import show

        target = dla_of(context.device) if context.device.dla_generation else Target(2)
        given = load(model.value)
        if is_quantised(given):
            context.warn(
                "dla.adapt comes before quantisation; this graph is quantised already and stays as it is."
            )
            return model
        before, frozen = prepare(given, self.batch)
        if frozen:
            context.warn(f"The network's open batch is fixed to {self.batch}: the DLA builds for one size.")
        after, done, dropped, agreement = adapted(
            before, target, agree_with=lambda a, b: agree(a, b, context.seed)
        )
        for name in dropped:
            context.warn(f"dla.adapt left out the rewrite {name!r}: outputs would have changed.")
        data = after.SerializeToString(deterministic=True)
        path = context.folder / "model.onnx"
        write_bytes(path, data)
        first, last = place(before, target), place(after, target)
        context.details.update(
            rewrites=done, dropped=dropped, before=_totals(first), after=last.to_dict(), **agreement.details()
        )
        show(context, last, first)
        inputs, outputs = signature(after)
        return model.become(
            "onnx", path, fingerprint=digest(data), inputs=_keep(model.inputs, inputs), outputs=outputs
        )


def _keep(given: tuple[Tensor, ...], found: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return the inputs found; those of the model given where the graph's own are called otherwise."""
    return found if [t.name for t in given] == [t.name for t in found] else given


def _totals(placement: Any) -> dict[str, Any]:
    table: dict[str, Any] = placement.to_dict()
    table.pop("layers")
    return table


def adapted(
    model: onnx.ModelProto, target: Target, *, agree_with: Any = None
) -> tuple[onnx.ModelProto, dict[str, int], list[str], Agreement]:
    """Return a prepared graph rewritten for `target`, how often each rewrite was done, and which were dropped.

    The whole is run beside the original on seeded inputs; where outputs differ, rewrites are added one kind after
    another, and those that change them are left out. Raises StepError where the network cannot be run here.
    """
    from penjing_tensorrt.dla.agree import agree

    agree_with = agree_with or agree
    kinds = list(_rewrites())
    after, done = _rewritten(model, target, kinds)
    agreement = agree_with(model, after)
    if agreement.enough:
        return after, done, [], agreement
    kept: list[str] = []
    dropped: list[str] = []
    for kind in kinds:
        trial, counts = _rewritten(model, target, [*kept, kind])
        if counts.get(kind) and not agree_with(model, trial).enough:
            dropped.append(kind)
        else:
            kept.append(kind)
    after, done = _rewritten(model, target, kept)
    agreement = agree_with(model, after)
    if not agreement.enough:
        raise StepError(
            f"The rewritten network answers otherwise ({agreement.sqnr_db:.1f} dB), whichever rewrite is left out.",
            hint="Leave dla.adapt out of the recipe.",
        )
    return after, done, dropped, agreement


def _rewritten(
    model: onnx.ModelProto, target: Target, kinds: Collection[str]
) -> tuple[onnx.ModelProto, dict[str, int]]:
    import onnx_ir as ir
    from onnx_ir.passes import common as passes

    from penjing_tensorrt.dla.graph import inferred

    done: Counter[str] = Counter()
    proto = model
    for _ in range(ROUNDS):
        changed = False
        for name in kinds:
            net = ir.from_proto(proto)
            count = _apply(net, target, name)
            if count:
                passes.RemoveUnusedNodesPass()(net)
                proto = inferred(ir.to_proto(net))
                done[name] += count
                changed = True
        if not changed:
            break
    net = ir.from_proto(proto)
    passes.RemoveUnusedNodesPass()(net)
    passes.NameFixPass()(net)
    return inferred(ir.to_proto(net)), dict(done)


def _apply(net: ir.Model, target: Target, name: str) -> int:
    from penjing_tensorrt.dla.rules import judge

    operators, rewrite, only_off = _rewrites()[name]
    count = 0
    for node in list(net.graph):
        if node.op_type in operators and node.domain in ("", "ai.onnx") and node.graph is not None:
            if only_off and judge(node, target).dla:
                continue
            count += rewrite(node, target)
    return count


def _rewrites() -> dict[str, tuple[Collection[str], Rewrite, bool]]:
    """Return each rewrite: the operators it takes, and whether it takes only those that the DLA does not."""
    from penjing_tensorrt.dla import flatten, moves, rewrites

    return {
        "normalisation folded": (("BatchNormalization",), rewrites.normalisation, False),
        "padding moved into its readers": (("Pad",), rewrites.pad, True),
        "average in small windows": (
            ("GlobalAveragePool", "ReduceMean", "AveragePool"),
            rewrites.average,
            True,
        ),
        "maximum in small windows": (("MaxPool", "GlobalMaxPool", "ReduceMax"), rewrites.maximum, True),
        "matrix as convolution": (("Gemm", "MatMul"), flatten.matrix, False),
        "view moved to the end": (
            (*flatten.POINTWISE, *flatten.BINARY, "Softmax", "LogSoftmax"),
            flatten.sink,
            False,
        ),
        "views removed": (flatten.VIEWS, flatten.view, False),
        "convolution for moved values": (moves.MOVES, moves.moved, False),
        "clip for hard sigmoid": (("HardSigmoid", "HardSwish"), rewrites.hard_sigmoid, True),
        "sigmoid and product for swish": (("Swish",), rewrites.swish, True),
        "product for division": (("Div", "Neg", "Pow"), rewrites.arithmetic, True),
        "scales for sizes": (("Resize",), rewrites.resize, True),
    }
