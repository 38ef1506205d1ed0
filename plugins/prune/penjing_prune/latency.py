"""Pruning to a measured latency: a table of layer times, the allocation it suggests, and the network timed itself."""

from __future__ import annotations

import copy
import dataclasses
import statistics
import warnings
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal

import torch
from penjing import measure
from penjing.files import digest
from penjing.step import Silent
from torch import nn

from penjing_prune.allocate import Limits, Ranking, choose, lost
from penjing_prune.cost import Cost, Term, macs
from penjing_prune.groups import Group
from penjing_prune.guard import Analysis
from penjing_prune.importance import Scores
from penjing_prune.layer_times import Table
from penjing_prune.surgery import apply

if TYPE_CHECKING:
    from penjing.model import Model
    from penjing.step import Context, Session

#: how near the measured share has to come, and how many networks are timed for it at most
NEAR, TRIES = 0.05, 8
#: seconds for timing a pruned network beside the original, and how often the one that is taken is timed
SECONDS, AGAIN = 6.0, 2


@dataclasses.dataclass(frozen=True)
class Way:
    """How steps of channels are priced: by importance for what they save, to some power (None: the criterion's)."""

    price: Literal["time", "macs"]
    thrift: float | None


#: a step removed early changes what later ones save, so that no one way is best for every network: each is tried on
#: the table, and of those that meet the aim the one that removes the least importance is taken
WAYS = [Way(price, thrift) for price in ("time", "macs") for thrift in (None, 0.75, 1.0)]
#: shares of the aim that each way is tried with: where one step is left out, another path may lose less in less time
BELOW = (1.0, 0.96, 0.92, 0.88, 0.84)
#: opset of the graphs that are timed: the first that torch's exporter writes itself
OPSET = 18
#: steps of channels that are weighed together: kernels do not get faster at each of them
AHEAD = 3


@dataclasses.dataclass
class Try:
    """A network that was timed: the units it lacks, its share of the time by the table, and as measured each time."""

    removed: list[int]
    #: the share that was last asked of the table when it came out
    aim: float
    foretold: float
    times: list[float] = dataclasses.field(default_factory=list)

    @property
    def share(self) -> float:
        """Return the share of the original's time that it takes."""
        return statistics.median(self.times)


class Latency:
    """What is known about times on this machine, which is the device."""

    def __init__(
        self, model: Model, context: Context, module: nn.Module, example: tuple[torch.Tensor, ...]
    ) -> None:
        self.model, self.context, self.example = model, context, example
        self.module = copy.deepcopy(module)
        self.table = Table(context)
        self._told: dict[str, Any] = {"foretold_and_measured": [], "layers_timed": 0, "achieved": 1.0}
        self._whole: float | None = None
        self._original: bytes | None = None

    def choose(
        self,
        analysis: Analysis,
        groups: Sequence[Group],
        scores: Sequence[Scores],
        share: float,
        limits: Limits,
        ranking: Ranking,
        thrift: float,
    ) -> list[int]:
        """Return the units to remove so that `share` of the original's measured time is left.

        The table of layers suggests an allocation, the network it makes is timed beside the original, and the
        aim is corrected by what that missed.
        """
        limits = dataclasses.replace(limits, quarters=True)
        terms = self._terms(analysis, limits.multiple)
        self._whole = self._whole or Cost(analysis.structure, terms).total
        tries: list[Try] = []
        aim, asked = share, dict[float, Try]()
        self.context.progress.begin("correcting by measured time", TRIES)
        for _ in range(TRIES):
            if aim not in asked:
                found = [
                    self._allocate(way, part, analysis, terms, groups, scores, aim, limits, ranking, thrift)
                    for way, part in (product(WAYS, BELOW) if ranking == "global" else [(WAYS[0], 1.0)])
                ]
                best = _best(found, aim, groups, scores)
                asked[aim] = next((one for one in tries if set(one.removed) == set(best.removed)), best)
            here = asked[aim]
            if here not in tries:
                tries.append(here)
            here.aim = aim
            if len(here.times) < AGAIN:  # a machine may have been busy
                here.times.append(self._measure(analysis, here.removed))
            self.context.progress.advance()
            if abs(here.share / share - 1) > NEAR / 2:
                aim = _aim(tries, share)
            elif len(here.times) >= AGAIN:
                break
        best = min(tries, key=lambda one: abs(one.share / share - 1))
        while len(best.times) < AGAIN:  # the tries ran out before
            best.times.append(self._measure(analysis, best.removed))
        shares = [[one.foretold, *one.times] for one in tries]
        self._told = {
            "foretold_and_measured": self._told["foretold_and_measured"] + shares,
            "layers_timed": len(self.table),
            "achieved": best.share,
        }
        self.context.progress.end(f"{best.share:.1%} of the time, {share:.0%} asked")
        if abs(best.share / share - 1) > NEAR:
            self.context.warn(_missed(tries, share, limits))
        return best.removed

    def _allocate(
        self,
        way: Way,
        part: float,
        analysis: Analysis,
        terms: list[Term],
        groups: Sequence[Group],
        scores: Sequence[Scores],
        aim: float,
        limits: Limits,
        ranking: Ranking,
        thrift: float,
    ) -> Try:
        """Return an allocation that takes a share of the time by the table, found in one of several ways.

        The way goes to a part of that share, and what then fits is given back.
        """
        assert self._whole is not None
        time = Cost(analysis.structure, terms)
        price = Cost(analysis.structure, macs(analysis.structure)) if way.price == "macs" else None
        removed = choose(
            groups, scores, time, aim * part * self._whole, limits, ranking,
            thrift=way.thrift or thrift, ahead=AHEAD, price=price, ceiling=aim * self._whole,
        )  # fmt: skip
        return Try(removed, aim, time.total / self._whole)

    def details(self) -> dict[str, Any]:
        """Return what the report tells: the share achieved, those foretold and measured, and the table's size."""
        return dict(self._told)

    def restore(self, told: dict[str, Any]) -> None:
        """Take up what `details` told before a kill."""
        self._told = told

    def _terms(self, analysis: Analysis, multiple: int) -> list[Term]:
        products = [p for p in analysis.traced.products if p.details]
        self.context.progress.begin("timing layers", len(products))
        terms = []
        for one in products:
            terms.append(self.table.term(one, multiple))
            self.context.progress.advance()
        self.table.save()
        self.context.progress.end(f"{len(self.table)} times")
        return terms

    def _measure(self, analysis: Analysis, removed: list[int]) -> float:
        """Return the time of the network without these units, as a share of the original's."""
        pruned = copy.deepcopy(analysis.module)
        apply(pruned, analysis.edit(removed))
        self._original = self._original or self._exported(self.module)
        # both are opened anew each time: where its memory comes to lie makes a session faster or slower for good
        timing = measure.interleave(
            {"original": self._session(self._original), "pruned": self._session(self._exported(pruned))},
            self.example[0].numpy(),
            threads=self.context.backend.threads,
            seconds=SECONDS,
            progress=Silent(),
        )
        return 1 / float(timing.record("pruned")["speedup"])

    def _exported(self, module: nn.Module) -> bytes:
        with TemporaryDirectory(dir=self.context.folder) as folder:
            path = Path(folder) / "model.onnx"
            export(module, self.example, path)
            return path.read_bytes()

    def _session(self, graph: bytes) -> Session:
        with TemporaryDirectory(dir=self.context.folder) as folder:
            path = Path(folder) / "model.onnx"
            path.write_bytes(graph)
            model = self.model.become("onnx", path, fingerprint=digest(graph))
            return self.context.backend.open(model, self.context.device)


def _best(found: Sequence[Try], aim: float, groups: Sequence[Group], scores: Sequence[Scores]) -> Try:
    """Return the one that loses the least importance of those that meet the aim, else the one that comes nearest."""
    meet = [one for one in found if one.foretold <= aim * (1 + NEAR / 2)]
    if not meet:
        return min(found, key=lambda one: one.foretold)
    return min(meet, key=lambda one: lost(groups, scores, one.removed))


def _aim(tries: Sequence[Try], share: float) -> float:
    """Return the share of the table's time to ask for next, between those that were too fast and too slow.

    The original takes all of its time, for which the table was asked in a way; layers it does not know make a
    straight line of what is between.
    """
    slow = min(
        [(one.share, one.aim) for one in tries if one.share > share] + [(1.0, 1.0)],
        key=lambda pair: pair[0],
    )
    fast = max([(one.share, one.aim) for one in tries if one.share <= share], default=None)
    if fast is None:
        last, asked = min(((one.share, one.aim) for one in tries), key=lambda pair: pair[1])
        slope = (1 - asked) / (1 - last) if last < 1 and asked < 1 else 1.0
        return max(0.0, asked + (share - last) * slope)
    low, high = min(fast[1], slow[1]), max(fast[1], slow[1])
    part = (share - fast[0]) / max(slow[0] - fast[0], 1e-9)
    # away from both ends, which are known, and further from them the more has been tried in vain
    edge = min(0.5, 0.1 * len(tries))
    return low + (high - low) * min(max(part, edge), 1 - edge)


def _missed(tries: Sequence[Try], share: float, limits: Limits) -> str:
    """Say what came nearest to a share that was not met, and what is in the way."""
    slow = min((one.share for one in tries if one.share > share), default=1.0)
    fast = max((one.share for one in tries if one.share <= share), default=None)
    rule = f"in multiples of {limits.multiple}, and quarters of that below it"
    if fast is None:
        return (
            f"Asked for {share:.0%} of the latency, and the fastest is {slow:.1%}: layers keep {limits.floor:.1%} of "
            f"their channels {rule}, and what remains would not be faster with fewer, or stays as it is."
        )
    return (
        f"Asked for {share:.0%} of the latency, and nothing lies between {fast:.1%} and {slow:.1%}, as measured: "
        f"channels go {rule}."
    )


def export(module: nn.Module, example: tuple[torch.Tensor, ...], path: Path) -> None:
    """Write a module as one ONNX file, for timing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecations
        torch.onnx.export(
            copy.deepcopy(module).eval(),
            example,
            str(path),
            opset_version=OPSET,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
