"""The original on the board: a bundle of its own, to be timed in turn with the optimised one's."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from penjing import bundle
from penjing.errors import InputError

if TYPE_CHECKING:
    from penjing.host import Host
    from penjing.report import Report


def check_runner(folder: Path) -> None:
    """Raise InputError where the run's bundle has a runner that times no two in turn."""
    if "--beside" not in (folder / "bundle" / "runner.py").read_text("utf-8"):
        raise InputError(
            f"The bundle of {folder} was made by an earlier version of Penjing, and cannot time the original.",
            hint="Run the same `penjing compress` again, which renews it, or leave the original out: --no-original.",
        )


@contextlib.contextmanager
def bundled(folder: Path, report: Report, host: Host) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Give a bundle of the run's original, which is gone after it, and its manifest."""
    from penjing.again import backend_of, reported_model
    from penjing.api import described

    asked = described(folder)
    device, backend = host.device(asked["device"]), backend_of(host, asked)
    model = reported_model(host, folder, report["columns"][0])
    deployment = backend.deployment(model, device)
    if deployment and not all(
        path.is_file() for path in (deployment.model or model.value, *deployment.files.values())
    ):
        raise InputError(  # of a source that was quantised for a DLA already
            f"{folder} does not hold what the original's engine is built from.",
            hint="Leave the original out: --no-original.",
        )
    with tempfile.TemporaryDirectory(prefix="penjing-") as name:
        yield Path(name), bundle.write_beside(Path(name), folder / "bundle", model, backend, device)
