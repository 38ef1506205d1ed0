"""Opening `.onnx` files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from penjing.errors import InputError, first_line
from penjing.files import digest
from penjing.model import Model, Tensor
from penjing.onnx_file import signature
from penjing.preprocess import Preprocess

from penjing_onnx.files import load, opset_of, serialise

if TYPE_CHECKING:
    import onnx

#: operators of a graph that computes with integers already
QUANTISED = frozenset(
    {
        "QuantizeLinear",
        "DequantizeLinear",
        "DynamicQuantizeLinear",
        "ConvInteger",
        "MatMulInteger",
        "QLinearConv",
        "QLinearMatMul",
        "QLinearAdd",
        "QLinearMul",
        "QLinearGlobalAveragePool",
        "QLinearAveragePool",
        "QLinearConcat",
        "QLinearSigmoid",
        "QGemm",
    }
)
#: keys of the file's own metadata, which `onnx.export` writes
PREPROCESS, LABELS, SOURCE = "penjing.preprocess", "penjing.labels", "penjing.source"


def open_file(source: str, weights: Path | None, preprocess: Preprocess | None) -> Model:
    """Open an `.onnx` file. What the user says of preprocessing goes before what the file says."""
    path = Path(source)
    if weights is not None:
        raise InputError(f"{source} holds its own weights; --weights does not go with it.")
    model = load(path)
    warnings = _check(model, path)
    inputs, outputs = signature(model)
    about = {entry.key: entry.value for entry in model.metadata_props}
    if preprocess is None and PREPROCESS in about:
        table = _json(about[PREPROCESS], PREPROCESS, path)
        if not isinstance(table, dict):
            raise InputError(f"{path}: {PREPROCESS} in its metadata is not a table.")
        preprocess = Preprocess.from_dict(table)
    if len(inputs) == 1:
        _check_image(inputs[0], preprocess, path)
    text = json.dumps(preprocess.to_dict() if preprocess else None, sort_keys=True)
    return Model(
        form="onnx",
        value=path,
        source=source,
        fingerprint=digest(serialise(model), text),
        inputs=inputs,
        outputs=outputs,
        preprocess=preprocess,
        labels=_labels(about, path),
        warnings=warnings,
    )


def is_quantised(model: onnx.ModelProto) -> bool:
    """Return whether a graph holds operators on integers, or Q/DQ around others."""
    return any(node.op_type in QUANTISED for node in model.graph.node)


def _check(model: onnx.ModelProto, path: Path) -> tuple[str, ...]:
    """Return what is worth a warning; InputError where the file breaks the standard."""
    import onnx

    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        raise InputError(f"{path} is not valid ONNX: {first_line(error)}", hint="Export it again.") from error
    warnings = []
    try:
        onnx.checker.check_model(model, full_check=True)
    except onnx.shape_inference.InferenceError as error:
        warnings.append(f"The shapes in the graph cannot be inferred: {first_line(error)}")
    if is_quantised(model):
        warnings.append("The model is already quantised: it will not be quantised a second time.")
    if opset_of(model) < 13:
        warnings.append(f"The model is written in opset {opset_of(model)}: onnx.export raises it to 13.")
    return tuple(warnings)


def _check_image(tensor: Tensor, preprocess: Preprocess | None, path: Path) -> None:
    """Raise InputError where the one input is no NCHW image, or not the one that preprocessing makes."""
    if len(tensor.shape) != 4:
        raise InputError(f"{path} takes {tensor}; an image has 4 dimensions: batch, channels, height, width.")
    channels, height, width = tensor.shape[1:]
    if channels not in (1, 3, None) and width in (1, 3):
        raise InputError(
            f"{path} takes {tensor}: channels last.",
            hint="Export it with channels first: batch, channels, height, width.",
        )
    if preprocess is None:
        raise InputError(f"{path} does not say how an image becomes its input.", hint=_template(tensor))
    for name, have, made in zip(
        ("channels", "height", "width"),
        (channels, height, width),
        (1 if preprocess.channels == "L" else 3, *(preprocess.size or (None, None))),
        strict=True,
    ):
        if have is not None and made is not None and have != made:
            raise InputError(
                f"{path} takes {tensor}; the preprocessing makes {name} {made}.",
                hint="Change crop, resize or channels in the file for --preprocess.",
            )


def _template(tensor: Tensor) -> str:
    channels, height, width = tensor.shape[1:]
    grey = channels == 1
    size = f"[{height or 224}, {width or 224}]" + (
        "" if height and width else "   # left open in the file: choose"
    )
    return f"""Say it in a file for --preprocess FILE.toml, with the values it was trained with:
resize = {size}
interpolation = "bilinear"
scale = 0.00392156862745       # multiplies 0…255; 1.0 keeps it
mean = {[0.5] if grey else [0.485, 0.456, 0.406]}   # subtracted after scaling; 0 where nothing was
std = {[0.5] if grey else [0.229, 0.224, 0.225]}    # divides then; 1 where nothing did
channels = "{"L" if grey else "RGB"}"               # or "BGR", "L\""""


def _labels(about: dict[str, str], path: Path) -> tuple[str, ...]:
    labels = _json(about.get(LABELS, "[]"), LABELS, path)
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise InputError(f"{path}: {LABELS} in its metadata is not a list of names.")
    return tuple(labels)


def _json(text: str, key: str, path: Path) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: {key} in its metadata is not JSON: {error}.") from error
