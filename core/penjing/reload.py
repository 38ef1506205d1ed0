"""The PyTorch network of a finished run, had again in another process. No pickles."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

from penjing import sealed
from penjing.api import described
from penjing.errors import InputError
from penjing.host import Host
from penjing.options import build
from penjing.preprocess import Preprocess
from penjing.run import STEPS, open_source
from penjing.store import Store

if TYPE_CHECKING:
    from torch import nn

    from penjing.model import Model


def load(run: Path | str, column: str = "optimised", *, host: Host | None = None) -> nn.Module:
    """Return the last PyTorch network on the way to a column of the run in the folder `run`, equal to the bit.

    The source is opened again as it was for the run, and the kept results of the steps are put on top. Nothing is
    trained or measured, and the folder is left as it is.

    Raises InputError where the source or its weights have changed, where what a step left is not whole, and where the
    column has no such network, since its steps change an ONNX file.
    """
    folder, host = Path(run), host or Host()
    asked = described(folder)
    steps = _steps(folder, column)
    source = _source(host, asked, folder)
    store = Store(folder, functools.partial(open_source, host, source), reading=True)
    model = source
    for record in steps:
        if record["form"] != "torch":
            break
        step = build(host.step(record["name"]), record["name"], record["options"])
        done = store.find(step, record["key"], model)
        if done is None:
            raise InputError(
                f"What {step.name} left in {store.folder} is not there, or not whole.",
                hint="Run the same `penjing compress` again, which makes it anew.",
            )
        model = done.model
    if model.form != "torch" or (model is source and column != "original"):
        raise InputError(
            f"The {column} column of {folder} has no PyTorch network: its steps change an ONNX file.",
            hint=f"Its result is {folder / column / 'model.onnx'}.",
        )
    network: nn.Module = model.value
    return network


def _steps(folder: Path, column: str) -> list[dict[str, Any]]:
    found = sealed.read(folder / column / STEPS)
    if found is None:
        raise InputError(
            f"{folder} has no finished {column} column.",
            hint="Run the same `penjing compress` again to finish it. Columns are original, direct and optimised.",
        )
    steps: list[dict[str, Any]] = found["steps"]
    return steps


def _source(host: Host, asked: dict[str, Any], folder: Path) -> Model:
    """Open the source as the run did; InputError where it is no longer what it was."""
    weights, preprocess = asked.get("weights"), asked.get("preprocess")
    try:
        model = host.open(
            asked["source"],
            weights=Path(weights) if weights else None,
            preprocess=Preprocess.from_dict(preprocess) if preprocess else None,
        )
    except InputError as error:
        raise InputError(
            f"The source of {folder} cannot be opened: {error.message}",
            hint=f"Paths count from where the run was made, which is {asked.get('cwd')}. {error.hint}",
        ) from error
    if model.fingerprint != asked.get("fingerprint"):
        raise InputError(
            f"{asked['source']}, or the weights that were loaded into it, changed since {folder} was made.",
            hint="Put them back, or run the same `penjing compress` again.",
        )
    return model
