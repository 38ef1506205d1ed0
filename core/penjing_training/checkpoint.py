"""Where a training that was killed goes on: one file, whole or not there, without pickle."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from penjing.files import digest, write_bytes
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

Tensors = dict[str, Tensor]
#: part of every job, so that what another version wrote is not taken up
VERSION = "3"


def write(path: Path, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Write tensors and a JSON state as one safetensors file, with the digest of both."""
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    text = json.dumps(state)
    metadata = {"state": text, "digest": digest(text, digest_of(whole))}
    write_bytes(path, save(whole, metadata=metadata))


def read(path: Path, job: str) -> tuple[Tensors, dict[str, Any]] | None:
    """Return what was written; None where there is nothing whole, or where it belongs to another `job`."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        state = json.loads(metadata["state"])
        whole = metadata["digest"] == digest(metadata["state"], digest_of(tensors))
        return (tensors, state) if whole and state["job"] == job else None
    except (SafetensorError, OSError, ValueError, KeyError, TypeError):
        return None  # a damaged one is one that is not there: training begins anew


def below(prefix: str, tensors: Mapping[str, Tensor]) -> Tensors:
    """Return those tensors whose name begins with `prefix.`, without it."""
    return {
        name.removeprefix(f"{prefix}."): t for name, t in tensors.items() if name.startswith(f"{prefix}.")
    }


def above(prefix: str, tensors: Mapping[str, Tensor]) -> Tensors:
    """Return tensors with `prefix.` before their names."""
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def optimiser_tensors(optimiser: torch.optim.Optimizer) -> Tensors:
    """Return the state that an optimiser keeps for each parameter, by index and name."""
    states = optimiser.state_dict()["state"]
    return {
        f"{index}.{name}": value
        for index, values in states.items()
        for name, value in values.items()
        if isinstance(value, Tensor)
    }


def load_optimiser(optimiser: torch.optim.Optimizer, tensors: Tensors) -> None:
    """Put back what `optimiser_tensors` returned."""
    states: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, _, name = key.partition(".")
        states.setdefault(int(index), {})[name] = value
    optimiser.load_state_dict({"state": states, "param_groups": optimiser.state_dict()["param_groups"]})
    for parameter, values in optimiser.state.items():
        for name, value in values.items():
            if (
                value.shape == parameter.shape
            ):  # as the optimiser laid it out in memory, so that it counts alike
                values[name] = torch.empty_like(parameter).detach().copy_(value)


def state_of(module: nn.Module) -> Tensors:
    """Return a copy of all parameters and buffers that are kept."""
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def digest_of(tensors: Mapping[str, Tensor]) -> str:
    """Return a digest of names and values."""
    return digest(*_parts(tensors))


def _parts(tensors: Mapping[str, Tensor]) -> Iterator[bytes | str]:
    for name, tensor in sorted(tensors.items()):
        yield f"{name} {tensor.dtype} {tuple(tensor.shape)}"
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        yield flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""
