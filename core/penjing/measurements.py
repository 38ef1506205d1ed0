"""Measurements kept in a run folder, each under the facts it depends on."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from penjing import measure, sealed
from penjing.environment import packages
from penjing.files import digest, sha256_of
from penjing.here import this_machine

if TYPE_CHECKING:
    from penjing.device import Device
    from penjing.model import Model
    from penjing.step import Backend, Progress, Session


def remembered(
    run: Path, kind: str, facts: Mapping[str, Any], ask: Callable[[], Any], *, renew: bool = False
) -> Any:
    """Return what `ask` returned when it was last asked under the same facts, or ask it now; always with `renew`."""
    folder = run / "measurements"
    folder.mkdir(exist_ok=True)
    path = folder / f"{kind}-{digest(json.dumps(facts, sort_keys=True))[:16]}.json"
    if not renew and (kept := sealed.read(path)) is not None:
        return kept["result"]
    result = ask()
    sealed.write(path, {"facts": facts, "result": result})
    return result


def times(
    run: Path,
    models: Mapping[str, Model],
    sessions: Callable[[], Mapping[str, Session]],
    backend: Backend,
    device: Device,
    progress: Progress,
    *,
    seconds: float,
    renew: bool = False,
) -> dict[str, dict[str, Any]]:
    """Return the report's `latency` record of each model, timed beside each other for about `seconds`."""
    facts = {
        "models": {name: content(model) for name, model in models.items()},
        "threads": backend.threads,
        "cpu": this_machine().title,
        "runtime": backend.resources(device, backend),
        "packages": packages(),
    }

    def ask() -> dict[str, Any]:
        opened = sessions()
        timing = measure.interleave(
            opened,
            any_input(models["original"]),
            threads=backend.threads,
            seconds=seconds,
            progress=progress,
        )
        return {name: timing.record(name) for name in opened}

    found: dict[str, dict[str, Any]] = remembered(run, "times", facts, ask, renew=renew)
    return found


def content(model: Model) -> str:
    """Return a digest of the model itself: of its file where it is one."""
    return sha256_of(model.value) if isinstance(model.value, Path) else model.fingerprint


def any_input(model: Model) -> Any:
    """Return an input of the right shape, for timing: the time of a network does not depend on its values."""
    import numpy as np

    shape = [1 if size is None else size for size in model.inputs[0].shape]
    return np.random.default_rng(0).random(shape, np.float32)
