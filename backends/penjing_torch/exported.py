"""Exported programs (`.pt2`): checked and written anew before torch reads them.

`torch.export.load` unpickles what an archive tells it to, falls back to unsafe unpickling, evaluates
expressions with sympy, generates Python from names in the graph and looks operators up by dotted path. So
an archive is taken as data first: its graph may hold only what is allowed here, and torch gets a copy made
of the checked parts.
"""

from __future__ import annotations

import io
import json
import re
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from penjing.errors import InputError, first_line

from penjing_torch.module import as_model
from penjing_torch.weights import check_archive

if TYPE_CHECKING:
    from penjing.model import Model
    from penjing.preprocess import Preprocess

#: records that are copied, below the archive's own folder; all others are left out
RECORDS = re.compile(
    r"archive_format|archive_version|byteorder|\.data/\w+|models/model\.json|data/sample_inputs/model\.pt"
    r"|data/weights/(weight_\d+|model_weights_config\.json)"
    r"|data/constants/(tensor_\d+|model_constants_config\.json)"
)
#: operators without side effects outside the tensors they are given
OPERATOR = re.compile(
    r"torch\.ops\.(aten|torchvision)\.(?!from_file|save|load|_?print|warn|set_data)\w+\.\w+"
    r"|torch\.sym_(int|float|max|min|not|sqrt|sum)|math\.(ceil|floor|trunc)"
    r"|_operator\.(add|sub|mul|truediv|floordiv|mod|pow|neg|eq|ne|lt|le|gt|ge|and_|or_|not_|getitem)"
)
#: sizes as sympy writes them: numbers, symbols such as s0 or u3, arithmetic with small powers only
EXPRESSION = re.compile(
    # at most one alternative fits at each place, so that no text makes the match slow
    r"(?:[su](?=\d)|\d|(?:FloorDiv|ModularIndexing|PythonMod|Mod|CeilToInt|Max|Min)\b"
    r"|[ ()+\-/,]|\*(?!\*)|\*\*[2-4](?![\d*]))*"
)
#: a size left open, as PyTorch writes it where batches are: its name says as much
OPEN_SIZE = re.compile(r"Symbol\('([su]\d{1,9})'(?:, (?:positive|integer|nonnegative)=True)*\)")
#: any other text: no quote, bracket or brace that could end a literal in generated code
TEXT = re.compile(r"[\w .,:;+\-*/()<>=%]*")
#: kinds of argument that carry no object, code or graph of their own
ARGUMENTS = frozenset(
    {
        "as_none",
        "as_tensor",
        "as_tensors",
        "as_nested_tensors",
        "as_optional_tensor",
        "as_optional_tensors",
        "as_int",
        "as_ints",
        "as_int_lists",
        "as_float",
        "as_floats",
        "as_string",
        "as_strings",
        "as_bool",
        "as_bools",
        "as_scalar_type",
        "as_memory_format",
        "as_layout",
        "as_device",
        "as_sym_int",
        "as_sym_ints",
        "as_sym_bool",
        "as_sym_bools",
        "as_sym_float",
        "as_sym_floats",
        "as_expr",
        "as_name",
        "as_complex",
    }
)


def open_program(source: str, weights: Path | None, preprocess: Preprocess | None) -> Model:
    """Open a program saved by `torch.export.save`; its input shape comes from the program."""
    import torch

    if weights is not None:
        raise InputError(f"{source} holds its own weights; --weights does not go with it.")
    path = Path(source)
    if not path.is_file():
        raise InputError(f"{source} does not exist.")
    clean = _checked_copy(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own deprecations, no matter of the user's
            program = torch.export.load(clean)
            module = program.module(check_guards=False)
    except Exception as error:  # torch's reader has no error of its own for an archive it cannot read
        raise InputError(
            f"{source} cannot be loaded by torch {torch.__version__}: {first_line(error)}",
            hint="Save it again with torch.export.save, with this version of torch.",
        ) from error
    for method in ("train", "eval"):
        vars(module).pop(method, None)  # torch blocks both; an inference graph is the same in either mode
    arguments: tuple[Any, ...] = (program.example_inputs or ((), {}))[0]
    if len(arguments) != 1 or not isinstance(arguments[0], torch.Tensor) or arguments[0].ndim != 4:
        raise InputError(f"{source} does not take one image: its example input is not one NCHW tensor.")
    return as_model(module, source, preprocess, shape=(1, *arguments[0].shape[1:]))


def _checked_copy(path: Path) -> io.BytesIO:
    """Return an archive of the checked records of another; InputError where one is not plain data."""
    try:
        check_archive(path)
        with zipfile.ZipFile(path) as archive:
            records = {
                name.partition("/")[2]: archive.read(name)
                for name in archive.namelist()
                if RECORDS.fullmatch(name.partition("/")[2])
            }
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, RuntimeError) as error:
        raise InputError(f"{path} is damaged, or no exported program: {first_line(error)}") from error
    if "models/model.json" not in records or "data/sample_inputs/model.pt" not in records:
        raise InputError(
            f"{path} holds no exported program.",
            hint="Save one with torch.export.save(torch.export.export(model, (image,)), 'model.pt2').",
        )
    try:
        records["models/model.json"] = _checked_graph(records["models/model.json"], path)
        for name, data in records.items():
            if name.endswith("_config.json"):
                _check_payloads(data, records, name.rpartition("/")[0], path)
    except (KeyError, TypeError, AttributeError) as error:  # JSON of another shape than an exported program's
        raise InputError(f"{path} is damaged, or of an unknown version: {error!r}.") from error
    _check_sample(records["data/sample_inputs/model.pt"], path)
    copy = io.BytesIO()
    with zipfile.ZipFile(copy, "w", zipfile.ZIP_STORED) as archive:
        for name, data in records.items():
            archive.writestr(f"model/{name}", data)
    copy.seek(0)
    return copy


def _checked_graph(data: bytes, path: Path) -> bytes:
    """Return a graph without what only debugging needs, everything left in it being allowed."""
    tree = _json(OPEN_SIZE.sub(r"\1", data.decode(errors="replace")).encode(), path)
    graph = tree["graph_module"]
    for node in graph["graph"]["nodes"]:
        node["metadata"] = {}
        if not OPERATOR.fullmatch(node["target"]):
            raise _refusal(path, f"operator {node['target']!r}")
        for given in node["inputs"]:
            if given["name"] in ("training", "train") and given["arg"].get("as_bool"):
                raise InputError(
                    f"{path} was exported in training mode.",
                    hint="Call model.eval() before torch.export.export.",
                )
    tree["guards_code"] = []
    graph["metadata"] = {}
    graph["treespec_namedtuple_fields"] = {}
    graph["module_call_graph"] = [call for call in graph["module_call_graph"] if call["fqn"] == ""]
    signatures = [call["signature"] for call in graph["module_call_graph"]]
    specs = [{key: signature.pop(key) for key in ("in_spec", "out_spec")} for signature in signatures]
    _check_values(tree, path)
    for signature, spec in zip(signatures, specs, strict=True):
        for text in spec.values():
            _check_spec(_json(text.encode(), path), path)
        signature.update(spec)
    return json.dumps(tree).encode()


def _check_values(tree: Any, path: Path) -> None:
    for key, value in _walk(tree):
        if key.startswith("as_") and key not in ARGUMENTS:
            raise _refusal(path, f"argument {key}")
        if not TEXT.fullmatch(key) or (isinstance(value, str) and not TEXT.fullmatch(value)):
            raise _refusal(path, f"text {value if TEXT.fullmatch(key) else key!r}")
        if key == "expr_str" and (len(str(value)) > 500 or not EXPRESSION.fullmatch(str(value))):
            raise _refusal(path, f"expression {value!r}")


def _walk(tree: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every value of a JSON tree with the key it stands under."""
    stack = [(key, tree)]
    while stack:
        key, value = stack.pop()
        yield key, value
        if isinstance(value, dict):
            stack += value.items()
        elif isinstance(value, list):
            stack += [(key, item) for item in value]


def _check_spec(spec: Any, path: Path) -> None:
    """Allow trees of tuples, lists and tables only: others import modules that they name."""
    for key, value in _walk(spec):
        if key == "type" and value not in (None, "builtins.tuple", "builtins.list", "builtins.dict"):
            raise _refusal(path, f"structure of type {value!r}")
        if key == "context" and value is not None:
            keys = _json(value.encode(), path)
            if not (keys is None or (isinstance(keys, list) and all(isinstance(k, str) for k in keys))):
                raise _refusal(path, f"structure with {value!r}")


def _check_payloads(data: bytes, records: dict[str, bytes], folder: str, path: Path) -> None:
    for name, payload in _json(data, path).get("config", {}).items():
        record = f"{folder}/{payload.get('path_name')}"
        if payload.get("use_pickle") or record not in records:
            raise _refusal(
                path, f"pickled object {name!r}" if payload.get("use_pickle") else f"missing record {record}"
            )
        sizes = [size.get("as_int") for size in payload["tensor_meta"]["sizes"]]
        if not records[record] and 0 not in sizes:
            raise _refusal(path, f"tensor {name!r} without content")
        if not TEXT.fullmatch(name):
            raise _refusal(path, f"name {name!r}")


def _check_sample(data: bytes, path: Path) -> None:
    import pickle

    import torch

    try:
        torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError, OSError) as error:
        raise _refusal(path, "pickled object in place of the example inputs") from error


def _json(data: bytes, path: Path) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is damaged: a record is not JSON ({error}).") from error


def _refusal(path: Path, what: str) -> InputError:
    return InputError(
        f"{path} holds the {what}, which a network of images does not need; refused, nothing was executed.",
        hint="Open the network from its Python source instead: model.py:factory.",
    )
