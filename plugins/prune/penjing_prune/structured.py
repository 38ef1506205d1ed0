"""prune.structured: whole channels, heads and groups removed, and everything that hangs on them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from penjing.errors import PlanError
from penjing.options import option
from penjing.step import Technique
from penjing_training import TrainingOptions

if TYPE_CHECKING:
    from penjing.device import Device
    from penjing.model import Model
    from penjing.step import Backend, Context, Open
    from typing_extensions import Self


#: where the structural edits are kept in the folder of a step
EDITS = "edits.json"


class _Needs:
    """What a step must be given, as its options ask; nothing by default."""

    def __get__(self, step: Structured | None, owner: type | None = None) -> frozenset[str]:
        if step is None:
            return frozenset()
        calibration = {"calibration"} if step.importance in ("taylor", "activation") else set()
        return frozenset(calibration | ({"training"} if step.epochs else set()))


@dataclasses.dataclass(frozen=True)
class Structured(TrainingOptions, Technique):
    """Remove the channels that matter least, with everything that hangs on them."""

    name = "prune.structured"
    accepts = frozenset({"torch"})
    produces = "torch"
    needs = _Needs()  # of the class nothing, of an object what its options ask

    macs: float | None = option(
        None, "Share of the multiply-accumulates to keep; 0.5 where no target is given.", between=(0.01, 1)
    )
    parameters: float | None = option(
        None, "Share of the parameters to keep, instead of macs.", between=(0.01, 1)
    )
    latency: float | None = option(
        None,
        "Share of the measured latency to keep, instead of macs; the device must be here.",
        between=(0.05, 1),
    )
    importance: Literal["l1", "l2", "taylor", "batchnorm", "activation"] = option(
        "l2", "What tells how much a channel matters; taylor and activation look at photographs."
    )
    ranking: Literal["global", "uniform"] = option(
        "global", "Remove what matters least anywhere, or the same share of every layer."
    )
    channel_multiple: int = option(
        0, "Leave channels in multiples of this; 0 takes the device's, 1 any number.", between=(0, 1024)
    )
    floor: float = option(0.125, "Smallest share of its channels that a layer keeps.", between=(0, 1))
    exclude: tuple[str, ...] = option(
        (), "Layers that keep their channels, by name or pattern (* and ?), and what hangs on them."
    )
    steps: int = option(1, "Steps in which the target is approached.", between=(1, 100))
    epochs: int = option(0, "Times that all photographs are seen after each step.", between=(0, 10_000))
    images: int = option(
        128, "Photographs for importance taylor and activation, at most.", between=(1, 100_000)
    )

    @property
    def target(self) -> tuple[Literal["macs", "parameters", "latency"], float]:
        """Return what is to shrink, and the share to keep."""
        if self.parameters is not None:
            return "parameters", self.parameters
        if self.latency is not None:
            return "latency", self.latency
        return "macs", 0.5 if self.macs is None else self.macs

    def check(self, device: Device, backend: Backend) -> None:
        """Raise PlanError for two targets, and for a latency that cannot be measured here."""
        given = [name for name in ("macs", "parameters", "latency") if getattr(self, name) is not None]
        if len(given) > 1:
            raise PlanError(
                f"{self.name} takes one target, and got {' and '.join(given)}.",
                hint="Set one of them to none.",
            )
        if self.latency is not None and (why := _not_here(device, backend)):
            raise PlanError(
                f"{self.name}.latency needs the device to be measured: {why}.",
                hint="Run it on the device, or give macs instead.",
            )

    def explain(self, device: Device, backend: Backend) -> str:
        """Say what is asked: the target, how channels are ranked, and in how many steps."""
        what, share = self.target
        names = {"macs": "multiply-accumulates", "parameters": "parameters", "latency": "measured latency"}
        schedule = "" if self.steps == 1 else f" in {self.steps} steps"
        recovery = f", {self.epochs} epochs of recovery after each" if self.epochs else ""
        multiple = self.channel_multiple or device.channel_multiple
        return (
            f"Keep {share:.0%} of the {names[what]}{schedule}{recovery}: channels of least {self.importance} "
            f"{'anywhere' if self.ranking == 'global' else 'in every layer'} go, multiples of {multiple} stay."
            + (f" {', '.join(self.exclude)} stay whole." if self.exclude else "")
        )

    def stays(self, model: Model) -> tuple[tuple[str, str], ...]:
        """Return the layers that keep all or some of their channels, found by trying removals out."""
        from penjing_prune.pruning import left_alone

        return left_alone(model, self.exclude)

    def resources(self, device: Device, backend: Backend) -> dict[str, Any]:
        """Return the multiple, the version of torch, and for a latency what it is measured with."""
        from importlib.metadata import version

        from penjing.here import this_machine

        facts: dict[str, Any] = {
            "channel_multiple": self.channel_multiple or device.channel_multiple,
            "torch": version("torch"),
        }
        if self.latency is not None:
            facts |= {"runtime": backend.resources(device, backend), "cpu": this_machine().title}
        return facts

    def naive(self) -> Self:
        """Return the one-shot form: the same share of every layer by L2 norm, without recovery."""
        return dataclasses.replace(self, steps=1, epochs=0, importance="l2", ranking="uniform")

    def apply(self, model: Model, context: Context) -> Model:
        """Return a smaller network, and leave the list of structural edits in the step's folder."""
        from penjing_prune.pruning import Pruning

        return model.become("torch", Pruning(self, model, context).run())

    def skeleton(self, model: Model, folder: Path, open_model: Open) -> Model:
        """Return the module with the structural edits left in `folder`."""
        from penjing_prune.pruning import replay

        return model.become("torch", replay(model.value, folder))


def _not_here(device: Device, backend: Backend) -> str:
    """Return why models of the device cannot be timed here; "" where they can."""
    if not backend.available(device) and backend.accepts == frozenset({"onnx"}):
        return ""
    return backend.available(device) or f"{backend.name} does not read ONNX files"


__all__ = ["EDITS", "Structured"]
