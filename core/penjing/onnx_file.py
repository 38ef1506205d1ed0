"""ONNX files read as data: whole, bounded, and without touching any other file."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from penjing.errors import InputError
from penjing.model import Tensor

if TYPE_CHECKING:
    import onnx

#: bytes; protobuf keeps no message of 2 GiB or more
LARGEST = 2**31 - 1
_AGAIN = "Export or copy it again."


def read(path: Path) -> onnx.ModelProto:
    """Return the model in a file; weights that it keeps in other files stay there.

    Raises InputError for a file that is missing, too large or damaged: one that holds no graph with outputs, or
    weights of another number of bytes than their shape has room for.
    """
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # ships no types

    try:
        size = path.stat().st_size
        if size > LARGEST:
            raise InputError(f"{path} is {size} bytes long; an ONNX file has at most {LARGEST}.")
        model = onnx.load_model_from_string(path.read_bytes())
    except FileNotFoundError:
        raise InputError(f"{path} does not exist.") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from error
    except DecodeError as error:
        raise InputError(f"{path} is not an ONNX file, or is cut short.", hint=_AGAIN) from error
    if not model.HasField("graph") or not model.graph.output:
        raise InputError(f"{path} is not an ONNX file: it holds no graph.", hint=_AGAIN)
    for tensor in constants(model):
        measure(tensor, path)
    return model


def graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """Yield a graph and those nested in its nodes."""
    yield graph
    yield from _inside(graph.node)


def constants(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Yield all constants of a model, whatever subgraph or function holds them."""
    nodes = [node for function in model.functions for node in function.node]
    for graph in [*graphs(model.graph), *_inside(nodes)]:
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield from (sparse.values, sparse.indices)
        nodes += graph.node
    for node in nodes:
        for attribute in node.attribute:
            yield from (*attribute.tensors, *([attribute.t] if attribute.HasField("t") else ()))
            for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                yield from (sparse.values, sparse.indices)


def external(model: onnx.ModelProto) -> list[str]:
    """Return the other files that a model keeps tensors in."""
    import onnx

    kept = [tensor for tensor in constants(model) if tensor.data_location == onnx.TensorProto.EXTERNAL]
    places = [{entry.key: entry.value for entry in tensor.external_data} for tensor in kept]
    return list(dict.fromkeys(place.get("location", "?") for place in places))


def signature(model: onnx.ModelProto) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Return the inputs, without those that are initialisers too, and the outputs."""
    weights = {tensor.name for tensor in model.graph.initializer}
    return (
        tuple(_tensor(value) for value in model.graph.input if value.name not in weights),
        tuple(_tensor(value) for value in model.graph.output),
    )


def _tensor(value: onnx.ValueInfoProto) -> Tensor:
    import onnx

    kind = value.type.tensor_type
    shape = tuple(int(d.dim_value) if d.dim_value > 0 else None for d in kind.shape.dim)
    try:
        dtype = str(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type))
    except KeyError:
        dtype = "unknown"  # a sequence, a map or an optional: not a tensor
    return Tensor(value.name, shape, dtype)


def _inside(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.GraphProto]:
    for node in nodes:
        for attribute in node.attribute:
            for inner in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else ())):
                yield from graphs(inner)


def size(tensor: onnx.TensorProto) -> int | None:
    """Return the bytes that a constant of its shape and type takes; None for strings, and for an unknown type."""
    import onnx_ir as ir

    try:
        bits = ir.DataType(tensor.data_type).bitwidth
    except (TypeError, ValueError):  # onnx's checker has something to say of the unknown
        return None
    return int(-(-math.prod(tensor.dims) * bits // 8))


def measure(tensor: onnx.TensorProto, path: Path) -> None:
    """Raise InputError for weights that do not fill their shape; onnx's checker looks for them since 1.21 only."""
    import onnx

    wanted = size(tensor)
    if wanted is None or tensor.data_location == onnx.TensorProto.EXTERNAL:
        return
    if tensor.HasField("raw_data"):
        held, what = len(tensor.raw_data), "bytes"
    else:
        fields = (
            tensor.float_data,
            tensor.int32_data,
            tensor.int64_data,
            tensor.double_data,
            tensor.uint64_data,
        )
        held, what = sum(map(len, fields)), "numbers"
        count = math.prod(tensor.dims)
        if tensor.data_type in (onnx.TensorProto.COMPLEX64, onnx.TensorProto.COMPLEX128):
            wanted = 2 * count
        elif wanted >= count:  # else several share one number, as they share one byte
            wanted = count
    if wanted != held:
        raise InputError(
            f"{path} is damaged: its weights {tensor.name!r} of shape {list(tensor.dims)} "
            f"take {wanted} {what}, and there are {held}.",
            hint=_AGAIN,
        )
