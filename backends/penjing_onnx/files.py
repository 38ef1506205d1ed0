"""ONNX files read as data: bounded, whole, and with their external data brought inside."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import TYPE_CHECKING

from penjing.errors import InputError
from penjing.files import inside
from penjing.onnx_file import LARGEST, constants, graphs, measure, read, size

if TYPE_CHECKING:
    import onnx

_HINT = "Export or copy it again."


def load(path: Path) -> onnx.ModelProto:
    """Return the model in a file as every runtime reads it.

    External data are inside it, sparse weights are filled up, the nodes of a graph have names of their own, and inputs
    left out at the end of a node are gone.

    Raises InputError for a file that is missing, too large, damaged or newer than the onnx that is installed,
    for external data that are missing, too short, or not within the file's own folder, and for weights that hold
    another number of bytes than their shape has room for.
    """
    model = read(path)
    if not model.ir_version:
        raise InputError(f"{path} is not an ONNX file: it holds no graph.", hint=_HINT)
    _refuse_newer(model, path)
    _embed(model, path)
    for graph in graphs(model.graph):
        _fill_up(graph, path)
        _name(graph)
    _complete(model)
    return model


def serialise(model: onnx.ModelProto) -> bytes:
    """Return the bytes of a model: the same for the same model."""
    return bytes(model.SerializeToString(deterministic=True))


def opset_of(model: onnx.ModelProto) -> int:
    """Return the version of the standard operators that a model is written in."""
    return next((int(entry.version) for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 1)


def _refuse_newer(model: onnx.ModelProto, path: Path) -> None:
    import onnx

    hint = (
        f"Update onnx (here: {onnx.__version__}) and onnxruntime, or export the network for an older version."
    )
    if model.ir_version > onnx.IR_VERSION:
        raise InputError(
            f"{path} is written in IR version {model.ir_version}; "
            f"onnx {onnx.__version__} reads up to {onnx.IR_VERSION}.",
            hint=hint,
        )
    if opset_of(model) > onnx.defs.onnx_opset_version():
        raise InputError(
            f"{path} is written in opset {opset_of(model)}; "
            f"onnx {onnx.__version__} knows up to {onnx.defs.onnx_opset_version()}.",
            hint=hint,
        )


def _fill_up(graph: onnx.GraphProto, path: Path) -> None:
    """Write sparse initialisers in full, which onnx-ir and most runtimes do not read."""
    import numpy as np
    from onnx import numpy_helper

    for sparse in graph.sparse_initializer:
        name, shape = sparse.values.name, tuple(sparse.dims)
        values, indices = (numpy_helper.to_array(tensor) for tensor in (sparse.values, sparse.indices))
        if math.prod(shape) * values.itemsize > LARGEST:
            raise InputError(f"{path}: the sparse weights {name!r} have over {LARGEST} bytes in full.")
        try:
            full = np.zeros(shape, values.dtype)
            full[tuple(indices.T) if indices.ndim > 1 else np.unravel_index(indices, shape)] = values
        except (IndexError, ValueError) as error:
            raise InputError(
                f"{path} is damaged: its sparse weights {name!r} lie outside their shape.", hint=_HINT
            ) from error
        graph.initializer.append(numpy_helper.from_array(full, name))
    del graph.sparse_initializer[:]


def _name(graph: onnx.GraphProto) -> None:
    """Give each node a name of its own, without which onnxruntime takes no file, and cut inputs left out at its end."""
    taken, seen, numbers = {node.name for node in graph.node}, set[str](), itertools.count(1)
    for node in graph.node:
        if node.name and node.name in seen:
            node.name = next(name for i in numbers if (name := f"{node.name}_{i}") not in taken)
            taken.add(node.name)
        seen.add(node.name)
        while node.input and not node.input[-1]:
            del node.input[-1]


def _complete(model: onnx.ModelProto) -> None:
    """Infer the shapes of outputs that have none: runtimes take such files, onnx's checker does not."""
    import onnx

    if all(value.type.tensor_type.HasField("shape") for value in model.graph.output):
        return
    inferred = onnx.shape_inference.infer_shapes(model)
    for value, found in zip(model.graph.output, inferred.graph.output, strict=True):
        value.CopyFrom(found)


def _embed(model: onnx.ModelProto, path: Path) -> None:
    import onnx

    external = [t for t in constants(model) if t.data_location == onnx.TensorProto.EXTERNAL]
    if not external:
        return
    total = model.ByteSize()
    for tensor in external:
        data = _external(tensor, path)
        total += len(data)
        if total > LARGEST:
            raise InputError(
                f"{path} with its external data is over {LARGEST} bytes; such models are not served."
            )
        tensor.ClearField("external_data")
        tensor.ClearField("data_location")  # absent, as in a file that never had external data
        tensor.raw_data = data
        measure(tensor, path)


def _external(tensor: onnx.TensorProto, path: Path) -> bytes:
    """Return the bytes of a tensor kept in another file, which must lie in the folder of `path`."""
    about = {entry.key: entry.value for entry in tensor.external_data}
    location = about.get("location", "")
    try:
        file = inside(path.parent, location)
    except InputError as error:
        raise InputError(
            f"{path}: the weights {tensor.name!r} lie outside its folder, at {location!r}; refused."
        ) from error
    if not location or not file.is_file():
        raise InputError(
            f"{path} keeps its weights in {location!r}, which is missing.",
            hint=f"Put {location} next to it, or export the network as one file.",
        )
    try:
        offset = int(about.get("offset", 0))
        length = int(about.get("length", size(tensor) or 0))
    except ValueError as error:
        raise InputError(f"{path}: the place of {tensor.name!r} in {location} is not a number.") from error
    if offset < 0 or not 0 <= length <= LARGEST or offset + length > file.stat().st_size:
        raise InputError(
            f"{location} is too short for the weights {tensor.name!r}: another version, or cut off."
        )
    with file.open("rb") as stream:
        stream.seek(offset)
        return stream.read(length)
