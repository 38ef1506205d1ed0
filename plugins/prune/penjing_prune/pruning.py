"""Carrying prune.structured out: analyse, rank, choose, remove, prove, and train in between."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from penjing import sealed
from penjing.errors import InputError, PenjingError, PlanError, StepError, first_line
from penjing.exhibit import Bars, Table
from penjing.files import write_text
from torch import nn

from penjing_prune.allocate import Limits, allowed, choose
from penjing_prune.comparison import TOLERANCE
from penjing_prune.cost import Cost, macs, parameters
from penjing_prune.groups import Alone
from penjing_prune.guard import Analysis, analyse
from penjing_prune.importance import THRIFT, Scores, rank
from penjing_prune.latency import Latency
from penjing_prune.structured import EDITS, Structured
from penjing_prune.surgery import VERSION, Edit, apply

if TYPE_CHECKING:
    from penjing.data import Batch
    from penjing.model import Model
    from penjing.step import Context

#: how often a removal that fails its proof is tried again without the groups at fault
ATTEMPTS = 3


class Pruning:
    """One execution of the step."""

    def __init__(self, step: Structured, model: Model, context: Context) -> None:
        self.step, self.model, self.context = step, model, context
        self.module: nn.Module = copy.deepcopy(model.value)
        self.example = _example(model)
        self.edits: list[Edit] = []
        self.alone: list[Alone] = []
        self.latency: Latency | None = None
        self.scores: list[Scores] | None = None
        self.worst = 0.0
        #: how convolutions with groups lose channels: as in the first round, though they become narrower
        self.whole_groups: dict[str, bool] = {}
        multiple = step.channel_multiple or context.device.channel_multiple
        self.limits = Limits(step.floor, multiple)

    def run(self) -> nn.Module:
        """Return the pruned module."""
        what, share = self.step.target
        before = _widths(self.module)
        analysis = self._analyse()
        costs = {
            "macs": Cost(analysis.structure, macs(analysis.structure)).total,
            "parameters": Cost(analysis.structure, parameters(analysis.structure)).total,
        }
        if what == "latency":
            self.latency = Latency(self.model, self.context, self.module, self.example)
        for number in range(1, self.step.steps + 1):
            if number > 1:
                analysis = self._analyse()
            self._shrink(analysis, what, share ** (number / self.step.steps), costs)
            self._recover(number)
        self._tell(analysis, costs, before)
        text = json.dumps({"version": VERSION, "rounds": [edit.to_json() for edit in self.edits]})
        write_text(self.context.folder / EDITS, text)
        return self.module

    def _analyse(self) -> Analysis:
        self.context.progress.begin("finding which channels belong together")
        analysis = analyse(self.module, self.example, self.step.exclude, self.whole_groups)
        self.whole_groups = analysis.traced.whole_groups
        self.context.progress.end(f"{len(analysis.structure.groups)} groups")
        known = {one.layer for one in self.alone}
        self.alone += [
            one for one in analysis.structure.alone if one.layer not in known
        ]  # of a later round too
        if not self.edits:
            widths = {group.name: group.total for group in analysis.structure.groups}
            self.limits = dataclasses.replace(self.limits, widths=widths)
        if not analysis.structure.groups:
            reasons = Counter(one.reason for one in analysis.structure.alone)
            most = reasons.most_common(1)[0][0] if reasons else "it has no convolution or linear layer"
            raise StepError(
                f"No channel of {self.model.source} can be removed: {most}.",
                hint="Exclude fewer layers."
                if self.step.exclude
                else "Leave prune.structured out. Pruning needs the network's source, not an exported program.",
            )
        while self.limits.multiple > 1 and not any(
            len(allowed(group, self.limits)) > 1 for group in analysis.structure.groups
        ):
            less = self.limits.multiple // 2
            self.context.warn(
                f"No layer is wide enough to lose channels in multiples of {self.limits.multiple}: "
                f"multiples of {less} are used."
            )
            self.limits = dataclasses.replace(self.limits, multiple=less)
        return analysis

    def _shrink(self, analysis: Analysis, what: str, share: float, costs: dict[str, float]) -> None:
        """Remove channels until `share` of what the original costs is left."""
        self.scores = None
        barred: set[int] = set()
        for _ in range(ATTEMPTS):
            # times differ from process to process, and sums of gradients by their last bits
            removed = self._agree(partial(self._kept_choice, analysis, what, share, costs, barred))
            edit = analysis.edit(removed)
            faults = self._faults(analysis, edit, removed)
            if not faults:
                apply(self.module, edit)
                self.edits.append(edit)
                return
            barred |= faults
        raise StepError(
            "The pruned network does not compute what the masked one does.",
            hint="This should not happen: please report the network.",
        )

    def _kept_choice(
        self, analysis: Analysis, what: str, share: float, costs: dict[str, float], barred: set[int]
    ) -> list[int]:
        """Return the units to remove, as they were chosen before a kill: a clock does not say the same twice."""
        if self.latency is None or self.context.scratch is None:
            return self._removed(analysis, what, share, costs, barred)
        path = self.context.scratch / f"choice-{len(self.edits)}-{len(barred)}.json"
        if (kept := sealed.read(path)) is not None:
            self.latency.restore(kept["latency"])
            self.context.warnings.extend(kept["warnings"])
            removed: list[int] = kept["removed"]
            return removed
        told = len(self.context.warnings)
        removed = self._removed(analysis, what, share, costs, barred)
        warnings = self.context.warnings[told:]
        path.parent.mkdir(parents=True, exist_ok=True)
        sealed.write(path, {"removed": removed, "latency": self.latency.details(), "warnings": warnings})
        return removed

    def _removed(
        self, analysis: Analysis, what: str, share: float, costs: dict[str, float], barred: set[int]
    ) -> list[int]:
        """Return the units to remove, of groups that are not barred."""
        if self.scores is None:
            self.scores = rank(self.step.importance, self.module, analysis.structure, self._batches())
        groups = [g for i, g in enumerate(analysis.structure.groups) if i not in barred]
        scores = [s for i, s in enumerate(self.scores) if i not in barred]
        thrift = THRIFT.get(self.step.importance, 0.0)
        if self.latency is not None:
            return self.latency.choose(
                analysis, groups, scores, share, self.limits, self.step.ranking, thrift
            )
        cost = Cost(analysis.structure, (macs if what == "macs" else parameters)(analysis.structure))
        return choose(
            groups, scores, cost, share * costs[what], self.limits, self.step.ranking, thrift=thrift
        )

    def _agree(self, choose: Callable[[], list[int]]) -> list[int]:
        """Return what rank 0 chooses, where several processes take part: they do where the step trains."""
        ranks = self.context.ranks
        if not self.step.epochs:
            return choose()
        found: list[int] = ranks.tell(choose() if ranks.first else None)
        return found

    def _faults(self, analysis: Analysis, edit: Edit, removed: list[int]) -> set[int]:
        """Prove a removal; return the groups at fault where it is not exact."""
        error, raised = analysis.error(edit)
        real, failed = analysis.error_of(self.module, edit)
        if max(error, real) <= TOLERANCE:
            self.worst = max(self.worst, real)
            return set()
        faults = set()
        gone = set(removed)
        for number, group in enumerate(analysis.structure.groups):
            units = [unit for unit in group.units.tolist() if unit in gone]
            if units and analysis.error(analysis.edit(units))[0] > TOLERANCE:
                faults.add(number)
                reason = f"removing channels of it is not exact: {raised or failed or f'{max(error, real):.1e} off'}"
                self.alone.append(Alone(group.name.rpartition(".")[0], group.total, group.total, reason))
        if not faults:
            raise StepError(
                f"The pruned network is {max(error, real):.1e} off the masked one: {raised or failed or 'no error'}.",
                hint="Removing less, or another ranking, may go through; please report the network.",
            )
        return faults

    def _batches(self) -> Iterator[Batch]:
        data, preprocess = self.context.data, self.model.preprocess
        if self.step.importance in ("taylor", "activation"):
            if data is None or preprocess is None or not len(data.calibrate):
                raise StepError(
                    f"Importance {self.step.importance} needs photographs.", hint="Give --data FOLDER."
                )
            split = data.train if data.train.labelled and len(data.train) else data.calibrate
            fixed = self.model.inputs[0].shape[0]
            yield from split.batches(16 if fixed in (None, 1) else fixed, preprocess, self.step.images)

    def _recover(self, number: int) -> None:
        """Train the network to answer as it did, from photographs with or without labels."""
        if not self.step.epochs:
            return
        from penjing_prune.recovery import recover

        self.module = recover(self.module, self.step, self.model, self.context, name=f"recovery-{number}")

    def _tell(self, analysis: Analysis, costs: dict[str, float], before: dict[str, int]) -> None:
        """Tell the report what was asked, what came of it, and what stayed."""
        what, share = self.step.target
        left = _costs(self.module, self.example)
        achieved = {name: left[name] / costs[name] for name in costs}
        if self.latency is not None:
            told = self.latency.details()
            achieved["latency"] = told.pop("achieved")
            self.context.details.update(told)
        details = self.context.details
        details["target"], details["asked"], details["achieved"] = what, share, achieved[what]
        for name in costs:
            details[f"{name}_before"], details[f"{name}_after"] = costs[name], left[name]
        details["difference_from_masked"] = self.worst
        details["left_alone"] = [dataclasses.asdict(one) for one in self.alone]
        # a latency that was missed is told where it was measured
        if what != "latency" and abs(achieved[what] - share) > max(0.05 * share, 0.01):
            self.context.warn(
                f"Asked for {share:.0%} of the {what}, and got {achieved[what]:.1%}. Nothing by this ranking comes "
                f"nearer with channels in multiples of {self.limits.multiple}, {self.step.floor:.1%} of every "
                "layer kept, and the layers that stay as they are."
            )
        after = _widths(self.module)
        details["channels"] = {name: [n, after[name]] for name, n in before.items()}
        self._show(before, after)

    def _show(self, before: dict[str, int], after: dict[str, int]) -> None:
        kept = {name: 100 * after[name] / n for name, n in before.items()}
        self.context.show(
            Bars(
                "Channels kept of each layer (marked: all)",
                "%",
                kept,
                [n for n, k in kept.items() if k == 100],
            )
        )
        if self.alone:
            rows = [[one.layer, f"{one.channels} of {one.of}", one.reason] for one in self.alone]
            self.context.show(Table("Layers that keep channels", ["layer", "channels", "why"], rows))


def left_alone(model: Model, exclude: Iterable[str] = ()) -> tuple[tuple[str, str], ...]:
    """Return the layers of a model that keep channels, each with the reason; PlanError where it cannot be run."""
    try:
        alone = analyse(model.value, _example(model), exclude).structure.alone
    except PenjingError:
        raise
    except Exception as error:  # whatever somebody's network raises
        raise PlanError(
            f"{model.source} cannot be run to see which channels hang together: {first_line(error)}.",
            hint="Leave prune.structured out, or open the network with an input that it takes.",
        ) from error
    return tuple(
        (one.layer if one.channels == one.of else f"{one.layer} ({one.channels} of {one.of})", one.reason)
        for one in alone
    )


def replay(module: nn.Module, folder: Path) -> nn.Module:
    """Return a copy of `module` with the edits left in `folder`; InputError where they do not fit."""
    pruned = copy.deepcopy(module)
    for edit in read(folder / EDITS):
        apply(pruned, edit)
    return pruned


def read(path: Path) -> Sequence[Edit]:
    """Return the edits in a file; InputError where it is none of ours."""
    try:
        data: Any = json.loads(path.read_text())
        version, rounds = data["version"], data["rounds"]
        edits = [Edit.from_json(one) for one in rounds]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} is no list of structural edits: {error}.", hint="Run the step again."
        ) from error
    if version != VERSION:
        raise InputError(
            f"{path} has version {str(version)[:20]!r} of structural edits, not {VERSION}.",
            hint="Run the step again.",
        )
    return edits


def _example(model: Model) -> tuple[torch.Tensor, ...]:
    """Return inputs of the model's shapes, a batch of one where it is left open."""
    generator = torch.Generator().manual_seed(0)
    return tuple(
        torch.randn([1 if size is None else size for size in tensor.shape], generator=generator)
        for tensor in model.inputs
    )


def _widths(module: nn.Module) -> dict[str, int]:
    """Return the output channels of every convolution and linear layer."""
    widths = {}
    for name, part in module.named_modules():
        if isinstance(part, nn.Linear):
            widths[name or "network"] = part.weight.shape[0]
        elif isinstance(part, nn.modules.conv._ConvNd):
            widths[name or "network"] = part.weight.shape[0] if not part.transposed else part.out_channels
    return widths


def _costs(module: nn.Module, example: tuple[torch.Tensor, ...]) -> dict[str, float]:
    """Return multiply-accumulates and parameters of a module as it is, counted anew."""
    from penjing_prune.groups import structure
    from penjing_prune.trace import trace

    found = structure(trace(copy.deepcopy(module), example), {}, {})
    return {
        "macs": Cost(found, macs(found)).total,
        "parameters": float(sum(p.numel() for p in module.parameters())),
    }
