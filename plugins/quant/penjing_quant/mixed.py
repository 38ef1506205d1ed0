"""quant.mixed: as many layers on 8-bit integers as the accuracy that may be lost allows."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any, Literal

from penjing.exhibit import Bars, Lines, Table
from penjing.options import option
from penjing.step import Backend, Context

from penjing_quant.static import StaticQuantisation

if TYPE_CHECKING:
    from penjing.device import Device
    from penjing.model import Model
    from typing_extensions import Self

    from penjing_quant.cost import Costs
    from penjing_quant.judge import Judge, Verdict
    from penjing_quant.quantiser import Candidate, Quantiser
    from penjing_quant.search import Found
    from penjing_quant.sensitivity import Noisy

#: photographs to measure sensitivity on
PROBES = 24
#: share of the noise left that storing float weights as 8 bits may add
PACKED = 0.1
#: fewer photographs than this can hardly tell a drop
FEW = 100


@dataclasses.dataclass(frozen=True)
class MixedPrecision(StaticQuantisation):
    """Quantise like quant.static, then put the most sensitive layers back to float until accuracy is kept."""

    name = "quant.mixed"
    heeds_goal = True

    max_drop: float | None = option(
        None,
        "Points that may be lost on select; none: the goal's, or without a goal until no drop is established.",
        between=(0, 100),
    )
    sqnr: float = option(
        25.0, "Output SQNR in dB to reach where labels or answers cannot tell.", between=(0, 200)
    )
    cost: Literal["latency", "size"] = option("latency", "What a layer in float is to cost little of.")
    most: float = option(1.0, "Share of the layers that may go back to float.", between=(0, 1))
    select: int = option(256, "Photographs of the select split to judge by, at most.", between=(1, 10_000))

    def explain(self, device: Device, backend: Backend) -> str:
        """Return what is quantised how, and when layers go back to float."""
        bound = (
            "no drop is established"
            if self.max_drop is None
            else f"at most {self.max_drop:g} points are lost"
        )
        goal = " (or the goal is met)" if self.max_drop is None else ""
        return (
            super().explain(device, backend)
            + f" The layers that cost most accuracy for their {self.cost} go back to float until {bound}{goal}."
        )

    def naive(self) -> Self:
        """Return what quant.static's naive form is: nothing goes back to float."""
        return dataclasses.replace(super().naive(), most=0.0)

    def resources(self, device: Device, backend: Backend) -> dict[str, Any]:
        """Return what quant.static depends on, and whether layers are timed here."""
        return super().resources(device, backend) | {"profiled": self._profiles(device, backend)}

    def apply(self, model: Model, context: Context) -> Model:
        """Return the model as a Q/DQ graph, the layers in float that accuracy asks for."""
        from penjing_quant.quantiser import Quantiser

        quantiser = Quantiser(self, model, self._scheme(context.device, context.backend), context)
        best = quantiser.run()
        why: dict[str, str] = {}
        if not best.written.integer and not quantiser.floats:
            context.warn("Nothing in this network can be quantised; it stays as it was.")
        if best.written.integer and self.most > 0:
            best, why = _Mixing(self, quantiser, best, context).run()
        quantiser.tell(best, why)
        return self._finish(model, quantiser, best)

    def _profiles(self, device: Device, backend: Backend) -> bool:
        """Tell whether this machine's time of each layer decides."""
        scheme = self._scheme(device, backend)
        return (
            self.cost == "latency"
            and scheme.placement == "all"
            and device.here
            and not backend.available(device)
        )


class _Mixing:
    """One search, from a network quantised as far as possible."""

    def __init__(self, step: MixedPrecision, quantiser: Quantiser, best: Candidate, context: Context) -> None:
        from penjing_quant.judge import Judge
        from penjing_quant.sensitivity import Sensitivity

        self.step, self.quantiser, self.best, self.context = step, quantiser, best, context
        split = context.data.select if context.data is not None else None
        self.judge: Judge = Judge(
            quantiser.model, split, quantiser.given.preprocess, context.task, step.select, quantiser.judges
        )
        excluded = quantiser.floats | quantiser.excluded
        self.sensitivity = Sensitivity(
            best.exact, best.written, best.calibration.ranges, quantiser.scheme, excluded
        )
        self.groups = self.sensitivity.groups
        self.bound = step.max_drop if step.max_drop is not None else context.goal.max_drop

    def run(self) -> tuple[Candidate, dict[str, str]]:
        """Return the network found, and why each layer in it that was on integers is float."""
        from penjing_quant.search import search

        quantisers = self.sensitivity.measure(self.judge.images[:PROBES], self.context.progress)
        costs = self.costs()
        found = search(
            self.sensitivity.movable(),
            quantisers,
            costs.of,
            self.measure,
            self.met,
            math.floor(self.step.most * len(self.groups)),
            self.context.progress,
        )
        best = self.write(found.floats, self.packable(found, quantisers))
        if best.written.model is not self.best.written.model:
            verdict = self.judge(best.written.model)
            if not self.met(verdict) and self.met(found.verdict):
                best, verdict = self.write(found.floats), found.verdict
        else:
            verdict = found.verdict
        self.warn(found)
        self.show(found, quantisers, costs, verdict)
        reasons = self.reasons(found, quantisers, costs)
        return best, {node: reasons[name] for name in found.floats for node in self.groups[name].nodes}

    def met(self, verdict: Verdict) -> bool:
        """Tell whether no more is lost than may be."""
        return verdict.within(self.bound, self.step.sqnr)

    def measure(self, floats: frozenset[str]) -> Verdict | None:
        """Return how the network does with the groups `floats` in float; None where the backend refuses that graph."""
        from penjing_quant.verify import violations

        written = self.write(floats).written
        if floats and written.integer and violations(written.model, self.quantiser.scheme):
            return None
        return self.judge(written.model)

    def write(self, floats: frozenset[str], packed: frozenset[str] = frozenset()) -> Candidate:
        """Return the network with the groups `floats` in float, weights of the groups `packed` stored as 8 bits."""
        if not floats:
            return self.best
        nodes = {node for name in floats for node in self.groups[name].nodes}
        stored = {node for name in packed for node in self.groups[name].nodes}
        best, quantiser = self.best, self.quantiser
        written = quantiser.write(
            best.model, best.calibration, quantiser.floats | stored, best.rounding, nodes - stored, best.exact
        )
        return dataclasses.replace(best, written=written)

    def costs(self) -> Costs:
        """Return what each group costs in float."""
        from penjing_quant.cost import products, sizes, times

        context, step = self.context, self.step
        if step.cost == "size":
            return sizes(self.best.exact, self.groups)
        if step._profiles(context.device, context.backend):
            image = self.judge.images[0].repeat(self.quantiser.given.inputs[0].shape[0] or 1, axis=0)
            timed = times(
                self.best.exact,
                self.best.written.model,
                self.groups,
                image,
                context.folder,
                context.backend.threads,
            )
            if timed is not None:
                return timed
        return products(self.best.exact, self.groups)

    def packable(self, found: Found, quantisers: list[Noisy]) -> frozenset[str]:
        """Return the groups in float whose weights, as 8 bits, add little to the noise left."""
        from penjing_quant.sensitivity import remaining

        if self.quantiser.scheme.placement != "all" or self.step.weight_bits == 4:
            return frozenset()
        room = PACKED * remaining(quantisers, found.floats)
        packed = []
        own = [one for one in quantisers if one.kind == "weights" and one.name in found.floats]
        for one in sorted(own, key=lambda one: one.noise):
            room -= one.noise
            if room < 0:
                break
            packed.append(one.name)
        return frozenset(packed)

    # -- telling

    def warn(self, found: Found) -> None:
        """Tell the user where the bound is out of reach, or hardly to be told."""
        what = self.wanted(found.verdict)
        if not found.met:
            self.context.warn(
                f"The bound, {what}, was not reached on {self.judge.where} with {len(found.floats)} of "
                f"{len(self.groups)} groups of layers in float; the best network seen is returned."
            )
        if self.judge.labelled and len(self.judge.images) < FEW:
            self.context.warn(
                f"Only {len(self.judge.images)} photographs of the select split judge: so few can hardly tell a drop."
            )
        if self.judge.where != "select":
            self.context.warn(
                "The select split is empty: photographs kept from calibration judge, without labels."
            )

    def wanted(self, verdict: Verdict) -> str:
        """Return the bound in words."""
        if self.judge.labelled:
            return "no established drop" if self.bound is None else f"{self.bound:g} points"
        if self.bound is None or verdict.agreement is None:
            return f"an SQNR of {self.step.sqnr:g} dB"
        return f"answers that differ on {self.bound:g} %"

    def reasons(self, found: Found, quantisers: list[Noisy], costs: Costs) -> dict[str, str]:
        """Return why each group went back to float."""
        total = sum(one.noise for one in quantisers) or 1.0
        reasons = {}
        for name in found.floats:
            gone = sum(one.noise for one in quantisers if name in one.groups and one.groups <= found.floats)
            reasons[name] = (
                f"on integers, {gone / total:.1%} of the noise comes from it and its activations; in float it "
                f"costs {costs.of[name]:.3g} {costs.unit}"
            )
        return reasons

    def show(self, found: Found, quantisers: list[Noisy], costs: Costs, verdict: Verdict) -> None:
        """Put sensitivity, what stayed float and the course of the search into the report."""
        context = self.context
        context.details.update(
            bound=self.bound,
            met=found.met,
            judged={"split": self.judge.where, "photographs": len(self.judge.images), **verdict.told()},
            cost=costs.how,
            search=[
                {"float": len(step.floats), "kept": step.kept, **step.verdict.told()} for step in found.steps
            ],
        )
        worst = sorted(quantisers, key=lambda one: -one.noise)[:40]
        values = {f"{one.name}, {one.kind}": _decibels(one.noise) for one in worst}
        marked = [f"{one.name}, {one.kind}" for one in worst if one.groups and one.groups <= found.floats]
        context.show(
            Bars(
                "Sensitivity: output SQNR with one quantiser alone; the marked ones went back to float",
                "dB",
                values,
                marked,
            )
        )
        reasons = self.reasons(found, quantisers, costs)
        if found.floats:
            order = [name for name in self.groups if name in found.floats]
            context.show(Table("Back to float", ["layer", "why"], [[name, reasons[name]] for name in order]))
        if len(found.steps) > 1:
            label = "drop, points" if self.judge.labelled else "output SQNR, dB"
            points = [
                (
                    float(len(step.floats)),
                    step.verdict.drop if step.verdict.drop is not None else step.verdict.sqnr,
                )
                for step in found.steps
            ]
            context.show(Lines("The search, step by step", "groups in float", label, {label: points}))


def _decibels(noise: float) -> float | None:
    return None if noise <= 1e-30 else round(-10 * math.log10(noise), 2)
