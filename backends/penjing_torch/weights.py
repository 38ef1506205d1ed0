"""Files of weights: read as data, never as code, and fitted to a network."""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from penjing.errors import InputError, first_line

from penjing_torch.fold import fold_weights
from penjing_torch.module import in_float32

if TYPE_CHECKING:
    import torch
    from torch import nn

#: keys under which training scripts keep the weights in a checkpoint
WRAPPERS = ("state_dict", "model_state_dict", "model")
#: what DistributedDataParallel and torch.compile put before each name, maybe both
PREFIXES = ("module.", "_orig_mod.")
#: how much larger than its file an archive may become
EXPANSION = 4


def load_weights(module: nn.Module, path: Path) -> None:
    """Load a file of weights into `module`; InputError lists what does not fit, with nothing loaded."""
    wanted = module.state_dict()
    found = _unwrapped(fold_weights(read_weights(path), path, wanted), wanted)
    missing = [key for key in wanted if key not in found and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in found if key not in wanted]
    shapes = [
        f"{key} is {list(found[key].shape)}, not {list(tensor.shape)}"
        for key, tensor in wanted.items()
        if key in found and found[key].shape != tensor.shape
    ]
    problems = [
        f"{len(keys)} {what}: {', '.join(keys[:5])}{' …' if len(keys) > 5 else ''}"
        for what, keys in (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
        if keys
    ]
    if problems:
        raise InputError(
            f"{path} does not fit the network: {'; '.join(problems)}.",
            hint="Choose the network these weights were trained with."
            + (" A head of another size: torchvision:NAME?num_classes=N." if shapes and not missing else ""),
        )
    in_float32(module)  # before values of more digits are put into it
    module.load_state_dict(found, strict=False)  # strictness is checked above; only batch counters may lack


def _unwrapped(found: dict[str, torch.Tensor], wanted: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Return weights without the prefixes of wrappers, as far as the network does not have them itself."""
    while not found.keys() & wanted.keys():
        prefix = next((one for one in PREFIXES if all(key.startswith(one) for key in found)), "")
        if not prefix:
            break
        found = {key.removeprefix(prefix): tensor for key, tensor in found.items()}
    return found


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors in a `.pt`, `.pth` or `.safetensors` file by name; no code in it is run."""
    if not path.is_file():
        raise InputError(f"{path} does not exist.")
    if path.stat().st_size == 0:
        raise InputError(f"{path} is empty.")
    content = _read_safetensors(path) if path.suffix.lower() == ".safetensors" else _read_torch(path)
    return _unwrap(content, path)


def is_torchscript(path: Path) -> bool:
    """Return whether a file is an archive with TorchScript code."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any("/code/" in name or name.endswith("/constants.pkl") for name in archive.namelist())


def check_archive(path: Path) -> None:
    """Refuse a ZIP archive that would grow beyond measure when unpacked: torch's own are not compressed."""
    with zipfile.ZipFile(path) as archive:
        total = sum(entry.file_size for entry in archive.infolist())
    if total > EXPANSION * path.stat().st_size + 2**20:
        raise InputError(f"{path} would unpack to {total} bytes from {path.stat().st_size}; refused.")


def _read_safetensors(path: Path) -> Any:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path, device="cpu")
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{path} is not a whole safetensors file: {first_line(error)}") from error


def _read_torch(path: Path) -> Any:
    import torch

    try:
        if is_torchscript(path):
            raise InputError(
                f"{path} is a TorchScript archive: code and weights together.",
                hint="Save the weights alone: torch.save(torch.jit.load(FILE).state_dict(), 'weights.pt').",
            )
        if zipfile.is_zipfile(path):
            check_archive(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickle protocols: what torch cannot read, it refuses
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "nsupported" not in str(error):
            raise InputError(f"{path} is damaged, or no file of weights.") from error
        raise InputError(
            f"{path} holds pickled objects besides tensors: {_what_was_refused(error)} Nothing was executed.",
            hint="Save the weights alone: torch.save(model.state_dict(), 'weights.pt'), or as safetensors.",
        ) from error
    except (
        RuntimeError,
        ValueError,
        OSError,
        EOFError,
        KeyError,
        TypeError,
        AttributeError,
        IndexError,
    ) as error:
        # torch has no error of its own for a damaged file: these are what its readers raise
        raise InputError(f"{path} is damaged, or no file of weights: {first_line(error)}") from error
    except zipfile.BadZipFile as error:
        raise InputError(f"{path} is damaged: {error}.") from error


def _what_was_refused(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if "nsupported" in line]
    return lines[0].split("Please")[0].removeprefix("WeightsUnpickler error: ").strip() if lines else ""


def _unwrap(content: Any, path: Path) -> dict[str, torch.Tensor]:
    """Return the state dict in a checkpoint."""
    import torch

    for _ in WRAPPERS:  # a wrapper may hold a wrapper, but not without end
        if isinstance(content, Mapping):
            inner = [content[key] for key in WRAPPERS if isinstance(content.get(key), Mapping)]
            content = inner[0] if inner else content
    if not isinstance(content, Mapping) or not content:
        raise InputError(f"{path} holds {_a(content)}, not weights by name.")
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, torch.Tensor):
            packed = "packed_params" in str(key)
            raise InputError(
                f"{path}: {key!r} is {_a(value)}, not a tensor"
                + (": the weights are quantised." if packed else "."),
                hint="Pass the float weights: torch.save(model.state_dict(), 'weights.pt').",
            )
        if value.is_quantized:
            raise InputError(f"{path}: {key} is quantised already.", hint="Pass the float weights.")
    return dict(content)


def _a(value: Any) -> str:
    if isinstance(value, Mapping) and not value:
        return "an empty table"
    name = type(value).__name__
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"
