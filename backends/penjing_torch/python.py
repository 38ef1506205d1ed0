"""Networks that a function in Python returns."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from penjing.errors import InputError, did_you_mean, first_line
from penjing.files import digest

from penjing_torch.fold import folded
from penjing_torch.module import as_model
from penjing_torch.sources import make
from penjing_torch.weights import load_weights

if TYPE_CHECKING:
    from penjing.model import Model
    from penjing.preprocess import Preprocess


def open_factory(source: str, weights: Path | None, preprocess: Preprocess | None) -> Model:
    """Open `path/model.py:factory` or `package.module:factory`, a function without arguments.

    This runs that code. The file, and those that it imports from its folder, count for the fingerprint.
    """
    import torch

    where, _, name = source.rpartition(":")
    content = ""

    def build() -> Any:
        nonlocal content
        if not where.endswith(".py"):
            return _factory(_package(where, source), name, source)()
        with _imported(Path(where)) as (module, code):
            network = _factory(module, name, source)()
            content = digest(*(path.read_bytes() for path in code()))
        return network

    network = make(build, source)
    if isinstance(network, torch.jit.ScriptModule):
        raise InputError(
            f"{source} is TorchScript, which can be neither traced nor changed.",
            hint="Return the network before torch.jit.script or torch.jit.trace.",
        )
    try:
        network = folded(network)  # a factory may return one that others hold too
    except Exception as error:  # whatever a module's own __deepcopy__ raises
        raise InputError(f"{source} returned a module that cannot be copied: {first_line(error)}") from error
    if weights is not None:
        load_weights(network, weights)
    return as_model(network, source, preprocess, content=content)


def _factory(module: ModuleType, name: str, source: str) -> Any:
    factory = getattr(module, name, None)
    if factory is None:
        functions = [
            key for key, value in vars(module).items() if callable(value) and not key.startswith("_")
        ]
        raise InputError(f"{source}: there is no {name!r} in it.", hint=did_you_mean(name, functions))
    if not callable(factory):
        raise InputError(f"{source} is a {type(factory).__name__}, not a function that returns a network.")
    try:
        inspect.signature(factory).bind()
    except TypeError as error:
        raise InputError(
            f"{source} cannot be called without arguments: {error}.",
            hint="Write a function without arguments that calls it with yours.",
        ) from error
    except ValueError:
        return factory  # builtins without a signature: calling them will tell
    return factory


def _package(name: str, source: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(error.name + ".")):
            raise InputError(
                f"{source}: there is no Python module {error.name!r}.",
                hint="Install it, or name a file: path/model.py:factory.",
            ) from error
        raise InputError(f"{source}: importing {name} failed: {first_line(error)}") from error
    except Exception as error:  # code that is not ours: any error of it is a fault of the source
        raise InputError(
            f"{source}: importing {name} failed: {type(error).__name__}: {first_line(error)}"
        ) from error


@contextlib.contextmanager
def _imported(path: Path) -> Iterator[tuple[ModuleType, Any]]:
    """Import a file under a name of its own, its folder importable meanwhile.

    Gives the module, and a function that returns the files loaded from that folder. Neighbours that it
    imports are forgotten afterwards: another source may have neighbours of the same names.
    """
    if not path.is_file():
        raise InputError(f"{path} does not exist.")
    folder = path.resolve().parent
    name = "penjing_source_" + digest(str(path.resolve()))[:16]
    specification = importlib.util.spec_from_file_location(name, path)
    if specification is None or specification.loader is None:
        raise InputError(f"{path} cannot be imported.")
    module = importlib.util.module_from_spec(specification)
    before = set(sys.modules) - {name}
    sys.modules[name] = module
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()

    def neighbours() -> dict[str, Path]:
        files = {key: getattr(sys.modules[key], "__file__", None) for key in set(sys.modules) - before}
        return {
            key: Path(file)
            for key, file in files.items()
            if file and Path(file).resolve().is_relative_to(folder)
        }

    try:
        try:
            specification.loader.exec_module(module)
        except Exception as error:  # code that is not ours: any error of it is a fault of the source
            raise InputError(
                f"{path} cannot be imported: {type(error).__name__}: {first_line(error)}"
            ) from error
        yield module, lambda: sorted(neighbours().values())
    finally:
        sys.path.remove(str(folder))
        for key in neighbours().keys() - {name}:
            del sys.modules[key]
