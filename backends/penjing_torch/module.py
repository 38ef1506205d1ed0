"""From an `nn.Module` to a `Model`: checked, run once, and given a fingerprint."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from penjing.errors import InputError, first_line
from penjing.files import digest
from penjing.model import Model, Tensor

if TYPE_CHECKING:
    import torch
    from penjing.preprocess import Preprocess
    from torch import nn

#: packages whose modules and tensors are quantised, or observe for it
QUANTISERS = (
    "torch.ao.", "torchao.", "pytorch_quantization.", "modelopt.torch.quantization.", "brevitas.", "bitsandbytes.",
    "optimum.quanto.", "quanto.", "nncf.", "aimet_torch.", "mqbench.", "auto_gptq.",
)  # fmt: skip
TEMPLATE = """Say how an image becomes its input, in a file for --preprocess FILE.toml:
resize = 256                   # the short side in pixels, or [height, width]
crop = 224                     # centre crop: what the network takes
interpolation = "bilinear"
scale = 0.00392156862745       # multiplies 0…255; 1.0 keeps it
mean = [0.485, 0.456, 0.406]   # as it was trained; these are ImageNet's
std = [0.229, 0.224, 0.225]
channels = "RGB"               # or "BGR", "L\""""


def as_model(
    module: nn.Module,
    source: str,
    preprocess: Preprocess | None,
    *,
    labels: tuple[str, ...] = (),
    warnings: tuple[str, ...] = (),
    shape: tuple[int, ...] | None = None,
    content: str = "",
) -> Model:
    """Return `module`, which becomes ours, as a Model in eval mode.

    `shape` is its input's where the source fixes it, else it follows from `preprocess`. `labels` are kept
    where the output has as many classes. `content` is a digest of code that the module itself does not show.
    Weights in another floating-point format become float32: the recipe, not the file, says what the device computes in.
    """
    module.eval()
    _refuse_quantised(module, source)
    kept = in_float32(module)
    _refuse_nan(module, source)
    inputs = _required(module)
    if len(inputs) > 1:
        raise InputError(
            f"{source} takes {len(inputs)} inputs: {', '.join(inputs)}.",
            hint="Only networks of one image input are served.",
        )
    shape = _input_shape(source, preprocess, shape)
    outputs = _run(module, shape, source, kept)
    first = next(iter(outputs.values()))
    classes = first.shape[-1] if first.ndim else 0
    return Model(
        form="torch",
        value=module,
        source=source,
        fingerprint=fingerprint(module, shape, preprocess, content),
        inputs=(Tensor("input", shape),),
        outputs=tuple(
            Tensor(name, tuple(output.shape), str(output.dtype).removeprefix("torch."))
            for name, output in outputs.items()
        ),
        preprocess=preprocess,
        labels=labels if len(labels) == classes else (),
        warnings=(*warnings, *([f"Weights kept in {kept} are computed with in float32."] if kept else [])),
    )


def fingerprint(
    module: nn.Module, shape: tuple[int, ...], preprocess: Preprocess | None, content: str = ""
) -> str:
    """Return a digest of weights, structure, input shape, preprocessing and `content`."""
    parts: list[bytes | str] = [content, re.sub(r"0x[0-9a-f]+", "", str(module)), str(shape)]
    parts.append(json.dumps(preprocess.to_dict() if preprocess else None, sort_keys=True))
    for name, tensor in sorted(module.state_dict().items()):
        parts += [name, str(tensor.dtype), str(tuple(tensor.shape)), _bytes(tensor)]
    return digest(*parts)


def _bytes(tensor: torch.Tensor) -> bytes:
    import torch

    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


def _input_shape(
    source: str, preprocess: Preprocess | None, shape: tuple[int, ...] | None
) -> tuple[int, ...]:
    if preprocess is None:
        raise InputError(f"{source} does not say how an image becomes its input.", hint=TEMPLATE)
    if preprocess.size is None:
        raise InputError(
            f"The preprocessing of {source} leaves the size of the input open.",
            hint="Give crop = SIDE or resize = [height, width] in the file for --preprocess.",
        )
    wanted = (1, 1 if preprocess.channels == "L" else 3, *preprocess.size)
    if shape is not None and shape[1:] != wanted[1:]:
        raise InputError(
            f"{source} takes {_by(shape[1:])}; the preprocessing makes {_by(wanted[1:])}.",
            hint="Change crop, resize or channels in the file for --preprocess.",
        )
    return shape or wanted


def _by(shape: tuple[int, ...]) -> str:
    return " × ".join(map(str, shape))


def _required(module: nn.Module) -> list[str]:
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(module.forward).parameters.values()
    return [p.name for p in parameters if p.kind in kinds and p.default is inspect.Parameter.empty]


def in_float32(module: nn.Module) -> str:
    """Turn floating-point weights into float32; return in what they were kept, "" where in nothing else."""
    import torch

    tensors = (*module.parameters(), *module.buffers())
    kinds = {t.dtype for t in tensors if t.is_floating_point()} - {torch.float32}
    if kinds:
        module.float()
    return " and ".join(sorted(str(kind).removeprefix("torch.") for kind in kinds))


def _run(module: nn.Module, shape: tuple[int, ...], source: str, kept: str) -> dict[str, torch.Tensor]:
    """Return the outputs for an image of zeros by name; InputError where it fails or gives no tensors.

    Outputs are counted as torch's exporter counts them: those of tuples, lists and mappings, in order. `kept` is in
    what other format than float32 the weights were, "" for none.
    """
    import torch
    from torch.utils._pytree import tree_leaves

    try:
        with torch.no_grad():
            outputs = module(torch.zeros(shape))
    except Exception as error:  # code that is not ours: any error of it is a fault of the source
        raise InputError(
            f"{source} does not run on an input of {_by(shape)}: {first_line(error)}",
            hint=f"Its weights, kept in {kept}, are computed with in float32: leave out what casts its input to {kept}."
            if kept
            else "Compare crop, resize and channels of the preprocessing with what the network was made for.",
        ) from error
    found = [output for output in tree_leaves(outputs) if output is not None]
    if not found or not all(isinstance(output, torch.Tensor) for output in found):
        kinds = " and ".join(dict.fromkeys(type(output).__name__ for output in found)) or "nothing"
        raise InputError(
            f"{source} puts out {kinds}; only tensors, alone or in tuples, lists and mappings, can be compressed.",
            hint="Wrap it in a module whose forward returns tensors: model.py:factory.",
        )
    if isinstance(outputs, Mapping) and len(outputs) == len(found) and all(map(_is_name, outputs)):
        return dict(zip(outputs, found, strict=True))
    return {f"output_{index}" if len(found) > 1 else "output": one for index, one in enumerate(found)}


def _is_name(key: object) -> bool:
    """Return whether a key of a mapping can name an output in a graph whose input is called so."""
    return isinstance(key, str) and key.isidentifier() and key != "input"


def _refuse_quantised(module: nn.Module, source: str) -> None:
    """Refuse what a quantiser made or prepared: modules, operators of a traced graph, or tensors of integers."""
    found = next(_quantised(module), "")
    if found:
        raise InputError(
            f"{source} is quantised already, or prepared for it: {found}.",
            hint="Pass the float network as it was before it was quantised; Penjing quantises it for the device.",
        )


def _quantised(module: nn.Module) -> Iterator[str]:
    """Yield what in `module` a quantiser left behind, in words."""
    import torch

    for name, part in module.named_modules():
        kind = type(part)
        if kind.__module__.startswith(QUANTISERS):
            yield f"{name or 'it'} is a {kind.__name__}"
        if isinstance(part, torch.fx.GraphModule):
            targets = (str(node.target) for node in part.graph.nodes if node.op == "call_function")
            yield from (f"its graph calls {target}" for target in targets if "quant" in target)
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if tensor.is_quantized or type(tensor).__module__.startswith(QUANTISERS):
            yield f"{name} is a quantised tensor"
        elif tensor.dtype in (torch.int8, torch.uint8) and tensor.ndim > 1 and "weight" in name:
            yield f"{name} is {str(tensor.dtype).removeprefix('torch.')}"


def _refuse_nan(module: nn.Module, source: str) -> None:
    """Refuse NaN anywhere, and infinity in a parameter; a buffer may hold it, as masks of attention do."""
    parameters = {name for name, _ in module.named_parameters()}
    for name, tensor in module.state_dict().items():
        if not tensor.is_floating_point():
            continue
        kind = "NaN" if tensor.isnan().any() else "infinity" if tensor.isinf().any() else ""
        if kind == "NaN" or (kind and name in parameters):
            raise InputError(
                f"{source}: the weights hold {kind}, first in {name}.", hint="Give weights that are finite."
            )
