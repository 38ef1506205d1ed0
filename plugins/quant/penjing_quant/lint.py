"""`penjing lint`: every rule of a device that an ONNX file breaks."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click
from penjing.errors import InputError, first_line

from penjing_quant.rules import Finding, label

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir
    from penjing.device import Device
    from penjing.step import Backend

#: nodes that are shown of each rule
SHOWN = 5
#: domains whose operators onnxruntime brings
_RUNTIME = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft"})
#: exit code of a file that breaks a rule, as of a demand that is not met
BROKEN = 10
#: operators that take an infinite constant for no bound, or for what is never chosen
_BOUNDED = frozenset({"Clip", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Max", "Min", "Where"})


def lint(path: Path, device: Device, backend: Backend) -> list[Finding]:
    """Return what in the ONNX file at `path` breaks the rules of a device and of the backend that runs it there.

    Raises InputError where it is no ONNX file. A file whose weights lie elsewhere is told of that alone.
    """
    from penjing.onnx_file import external, read

    model = read(path)
    if files := external(model):
        return [
            _finding(
                "one-file",
                "A network is one file.",
                path.name,
                "",
                f"Weights lie in {', '.join(files[:3])}; nothing else was checked.",
                "the file that goes to the device is moved alone",
                "Bring it into one file: `penjing compress` does, and onnx.save does by default.",
            )
        ]
    opset = list(_opset(model, device))
    invalid, mixed = _faults(model, path)
    if invalid:
        return [*opset, *invalid]
    return [*opset, *mixed, *_of_the_graph(model, device, backend)]


def _finding(rule: str, says: str, node: str, operator: str, what: str, source: str, cure: str) -> Finding:
    return Finding(rule, says, node, operator, what, source, cure)


def _opset(model: onnx.ModelProto, device: Device) -> Iterator[Finding]:
    opset = next((e.version for e in model.opset_import if e.domain in ("", "ai.onnx")), 1)
    if opset > device.max_opset:
        yield _finding(
            "opset",
            f"{device} reads opsets up to {device.max_opset}.",
            "",
            "",
            f"The file is written in opset {opset}.",
            device.sources.get("max_opset", "profile of the device"),
            f"Export with opset {device.max_opset} or older; onnx.export does for this device.",
        )


def _faults(model: onnx.ModelProto, path: Path) -> tuple[list[Finding], list[Finding]]:
    """Return what breaks the standard of a node by itself, and what does between nodes: their types."""
    import onnx

    try:
        try:
            onnx.checker.check_model(_complete(model))
        except onnx.checker.ValidationError as error:
            return [_standard(error, " Nothing else was checked.")], []
        try:
            onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
        except onnx.shape_inference.InferenceError as error:
            return [], [_standard(error, "")]
    except Exception as error:  # onnx raises whatever a damaged file leads it into
        raise InputError(
            f"{path} is damaged: {type(error).__name__}, {str(error)[:200]}", hint="Export or copy it again."
        ) from error
    return [], []


def _standard(error: Exception, more: str) -> Finding:
    return _finding(
        "standard",
        "The graph keeps to the ONNX standard: what each operator takes, and of which type.",
        "",
        "",
        first_line(error) + more,
        "onnx.checker and shape inference",
        "Export the network again; where one operator mixes types, cast one of them.",
    )


def _complete(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model whose outputs have shapes, without which onnx's checker takes none; runtimes do."""
    import onnx

    if all(value.type.tensor_type.HasField("shape") for value in model.graph.output):
        return model
    found = {value.name: value for value in onnx.shape_inference.infer_shapes(model).graph.output}
    complete = onnx.ModelProto()
    complete.CopyFrom(model)
    for value in complete.graph.output:
        value.CopyFrom(found[value.name])
        value.type.tensor_type.shape.SetInParent()  # where a maker's own operator leaves it unknown
    return complete


def _of_the_graph(model: onnx.ModelProto, device: Device, backend: Backend) -> Iterator[Finding]:
    from penjing_quant.already import QUANTISED
    from penjing_quant.graph import prepared
    from penjing_quant.verify import findings

    net = prepared(model)
    scheme = backend.scheme(device)
    yield from _operators(net, device, backend)
    yield from _weights(net.graph)
    if scheme is not None and scheme.placement != "all":
        yield from _open_dimensions(net.graph, device, scheme.placement == "every")
    if not any(node.op_type in QUANTISED for node in net.graph):
        return
    if scheme is None:
        yield _finding(
            "int8",
            f"{device} runs no quantised graphs.",
            "",
            "",
            "The graph holds QuantizeLinear or DequantizeLinear.",
            device.sources.get("precisions", "profile of the device"),
            "Give the float network.",
        )
        return
    yield from findings(net.graph, scheme)


def _operators(net: ir.Model, device: Device, backend: Backend) -> Iterator[Finding]:
    known = backend.operators(device)
    for node in net.graph.all_nodes():
        if known is None and node.domain in _RUNTIME:
            continue
        if known is not None and node.domain in ("", "ai.onnx") and node.op_type in known:
            continue
        name = node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}"
        yield _finding(
            "operator",
            f"The runtime of {device} reads the operator.",
            label(node),
            node.op_type,
            f"{name} {label(node)} is none that {backend.name} reads there.",
            f"operators that the {backend.name} backend lists for {', '.join(map(' '.join, device.runtime.items()))}",
            "Compress from the original network: onnx.export writes such operators in others where it can.",
        )


def _weights(graph: ir.Graph) -> Iterator[Finding]:
    import numpy as np

    for name, value in graph.initializers.items():
        tensor = value.const_value
        if tensor is None or not tensor.dtype.is_floating_point():
            continue
        with np.errstate(invalid="ignore"):  # NaN of small types, which are looked for here
            numbers = tensor.numpy().astype(np.float64)
        bound = all(use.node.op_type in _BOUNDED and use.node.domain == "" for use in value.uses())
        if np.isnan(numbers).any() or (np.isinf(numbers).any() and not bound):
            yield _finding(
                "finite",
                "Weights are finite.",
                name or "",
                "",
                f"{name} holds infinite values or NaN.",
                "what reads them puts out NaN",
                "In float16 what lies beyond 65504 becomes infinite: leave that layer float32; quant.fp16 does.",
            )


def _open_dimensions(graph: ir.Graph, device: Device, fixed_batch: bool) -> Iterator[Finding]:
    for value in graph.inputs:
        shape = list(value.shape or ())
        open_ = [i for i, size in enumerate(shape) if not isinstance(size, int) and (i or fixed_batch)]
        if open_:
            yield _finding(
                "shape",
                "The network's input has a fixed size" + (", its batch too." if fixed_batch else "."),
                value.name or "",
                "",
                f"{value.name} has the shape {[d if isinstance(d, int) else '?' for d in shape]}.",
                "TensorRT Developer Guide, Working with Dynamic Shapes: each open size needs a profile",
                "Export with a fixed size; onnx.export does where the preprocessing tells it.",
            )


@click.command("lint")
@click.argument("model", type=click.Path(path_type=Path), metavar="MODEL.onnx")
@click.option("--device", default="this-machine", show_default=True, metavar="NAME", help="Device profile.")
@click.option(
    "--backend", metavar="NAME", help="Rules of this backend, such as dla, in place of the device's own."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON on standard output.")
def command(model: Path, device: str, backend: str | None, as_json: bool) -> None:
    """Tell which rules of a device the file MODEL.onnx breaks, by node, and what to do.

    Rules are those of the device's backend on quantised graphs, its opset and operators. Exits with 0 where none is
    broken, 10 where one is, 3 where there is no such file or device.
    """
    from penjing.host import Host

    host = Host()
    target = host.device(device)
    used = host.backend(backend or target.backend)
    if backend is not None:
        used.check(target, used)
    found = lint(model, target, used)
    if as_json:
        broken = [dataclasses.asdict(finding) for finding in found]
        click.echo(json.dumps({"model": str(model), "device": str(target), "broken": broken}, indent=1))
    else:
        click.echo(_page(found, model, target), nl=False)
    sys.exit(BROKEN if found else 0)


def _page(found: list[Finding], model: Path, device: Device) -> str:
    """Return findings by rule, as text."""
    from penjing.console import wrapped

    if not found:
        return f"{click.style('✓', fg='green')} {model.name} breaks no rule of {device}.\n"
    rules: dict[str, list[Finding]] = {}
    for finding in found:
        rules.setdefault(finding.rule, []).append(finding)
    lines = []
    for rule, broken in rules.items():
        head = wrapped(f"✗ {rule}: {broken[0].says}", then="    ")
        lines.append(
            head.replace(f"✗ {rule}", f"{click.style('✗', fg='red')} {click.style(rule, bold=True)}", 1)
        )
        lines += [wrapped(finding.what, first="    ", then="      ") for finding in broken[:SHOWN]]
        if len(broken) > SHOWN:
            lines.append(f"    … and {len(broken) - SHOWN} more (--json lists all)")
        sources = dict.fromkeys(finding.source for finding in broken)
        lines += [
            wrapped(f"source: {'; '.join(sources)}", first="  ", then="    "),
            wrapped(f"what to do: {broken[0].cure}", first="  ", then="    "),
        ]
    count = f"{len(rules)} rule{'s' if len(rules) > 1 else ''}"
    return "\n".join([*lines, f"{model.name} breaks {count} of {device}.\n"])
