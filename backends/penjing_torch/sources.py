"""The grammar of sources, and how each kind becomes an `nn.Module`."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias
from urllib.parse import parse_qsl

from penjing.errors import InputError, first_line

if TYPE_CHECKING:
    from penjing.model import Model
    from penjing.preprocess import Preprocess
    from torch import nn

Opener: TypeAlias = "Callable[[str, Path | None, Preprocess | None], Model]"

#: seed of weights that nobody gave, so that the same source is the same model
SEED = 0


def opener_of(source: str) -> Opener | None:
    """Return what opens `source`, or None where its grammar is nobody's here."""
    from penjing_torch import exported, python, registries

    for scheme, opener in (
        ("torchvision:", registries.open_torchvision),
        ("timm:", registries.open_timm),
        ("hub:", registries.open_hub),
    ):
        if source.startswith(scheme):
            return opener
    suffix = Path(source).suffix.lower()
    if suffix == ".pt2":
        return exported.open_program
    if suffix in (".pt", ".pth", ".safetensors"):
        return _refuse_weights
    if re.fullmatch(r".+\.py:\w+", source, re.DOTALL) or re.fullmatch(r"\w+(\.\w+)*:\w+", source):
        return python.open_factory
    return None


def split_query(source: str, scheme: str) -> tuple[str, dict[str, Any]]:
    """Split `scheme:name?key=value&…` into the name and its values read as none, bool, int, float or text."""
    name, _, query = source.removeprefix(scheme).partition("?")
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query))
    except ValueError as error:
        raise InputError(f"{source!r} has a query that is not key=value&…: {error}.") from error
    return name, {key: _value(text) for key, text in pairs}


def make(build: Callable[[], Any], source: str) -> nn.Module:
    """Call `build` with torch's random numbers seeded, and hold it to returning a module.

    The caller's random state is left as it was. Whatever `build` raises becomes an InputError.
    """
    import torch

    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # builders warn of their own deprecations: no matter of the user's
        torch.manual_seed(SEED)
        try:
            module = build()
        except InputError:
            raise
        except Exception as error:  # code that is not ours: any error of it is a fault of the source
            raise InputError(
                f"{source} cannot be built: {type(error).__name__}: {first_line(error)}"
            ) from error
    if isinstance(module, type):
        raise InputError(
            f"{source} is a class, not a module.", hint=f"Name a function that returns {module.__name__}(…)."
        )
    if not isinstance(module, torch.nn.Module):
        raise InputError(
            f"{source} returned a {type(module).__name__}, not a torch.nn.Module.",
            hint="Name a function without arguments that returns the network.",
        )
    return module


def _value(text: str) -> Any:
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _refuse_weights(source: str, weights: Path | None, preprocess: Preprocess | None) -> Model:
    from penjing_torch.weights import is_torchscript

    if not Path(source).is_file():
        raise InputError(f"{source} does not exist.")
    holds = (
        "a TorchScript archive"
        if is_torchscript(Path(source))
        else "weights only, not the network they belong to"
    )
    raise InputError(
        f"{source} holds {holds}.",
        hint=f"Name the network and give the weights to it: torchvision:NAME --weights {source}, "
        f"or model.py:factory --weights {source}; or save it with torch.export.save as .pt2.",
    )
