"""Pruning to a measured latency: a table of layer times, the allocation it suggests, and the network timed itself."""

from __future__ import annotations

import copy
import dataclasses
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
from penjing import measure
from penjing.files import digest
from penjing.step import Silent
from torch import nn

from penjing_prune.allocate import Limits, Ranking
from penjing_prune.cost import Cost, Term
from penjing_prune.groups import Group
from penjing_prune.guard import Analysis
from penjing_prune.importance import Scores
from penjing_prune.latency_search import NEAR, Search, Try
from penjing_prune.layer_times import Table
from penjing_prune.surgery import apply

if TYPE_CHECKING:
    from penjing.model import Model
    from penjing.step import Context, Session

#: seconds for timing a pruned network beside the original
SECONDS = 6.0
#: opset of the graphs that are timed: the first that torch's exporter writes itself
OPSET = 18


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
        """Return the units to remove so that `share` of the original's measured time is left."""
        limits = dataclasses.replace(limits, quarters=True)
        terms = self._terms(analysis, limits.multiple)
        self._whole = self._whole or Cost(analysis.structure, terms).total
        search = Search(
            analysis.structure, groups, scores, limits, ranking, thrift, terms, self._whole,
            partial(self._measure, analysis), self.context.progress,
        )  # fmt: skip
        best = search.run(share)
        shares = [[one.foretold, *one.times] for one in search.tries]
        self._told = {
            "foretold_and_measured": self._told["foretold_and_measured"] + shares,
            "layers_timed": len(self.table),
            "achieved": best.share,
        }
        if abs(best.share / share - 1) > NEAR:
            self.context.warn(_missed(search.tries, share, limits))
        return best.removed

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
