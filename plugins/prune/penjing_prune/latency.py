"""Pruning to a measured latency: a table of layer times, the allocation it suggests, and the network timed itself."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
from penjing import measure
from penjing.files import digest
from penjing.step import Silent
from torch import nn

from penjing_prune.allocate import Limits, Ranking, choose
from penjing_prune.cost import Cost, Term
from penjing_prune.groups import Group
from penjing_prune.guard import Analysis
from penjing_prune.importance import Scores
from penjing_prune.layer_times import Table
from penjing_prune.surgery import apply

if TYPE_CHECKING:
    from penjing.model import Model
    from penjing.step import Context, Session

#: how near the measured share has to come, and how often the allocation is corrected for it
NEAR, CORRECTIONS = 0.05, 6
#: seconds for timing a pruned network beside the original, once to correct by
SECONDS = 6.0


class Latency:
    """What is known about times on this machine, which is the device."""

    def __init__(
        self, model: Model, context: Context, module: nn.Module, example: tuple[torch.Tensor, ...]
    ) -> None:
        self.model, self.context, self.example = model, context, example
        self.module = copy.deepcopy(module)
        self.table = Table(context)
        self.achieved = 1.0
        self.tries: list[tuple[float, float]] = []
        self._whole: float | None = None

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
        terms = self._terms(analysis, limits.multiple)
        self._whole = self._whole or Cost(analysis.structure, terms).total
        aim, best = share, (float("inf"), [0], 1.0)
        seen: dict[tuple[int, ...], float] = {}
        self.context.progress.begin("correcting by measured time", CORRECTIONS)
        low, high = 0.0, 1.0  # shares of the table's time known to be too fast, and too slow
        for _ in range(CORRECTIONS):
            cost = Cost(analysis.structure, terms)
            removed = choose(groups, scores, cost, aim * self._whole, limits, ranking, thrift=thrift)
            key = tuple(sorted(removed))
            if key not in seen:
                seen[key] = self._measure(analysis, removed)
                self.tries.append((cost.total / self._whole, seen[key]))
            miss = abs(seen[key] / share - 1)
            if miss < best[0]:
                best = (miss, removed, seen[key])
            self.context.progress.advance()
            if miss <= NEAR / 2:
                break
            if seen[key] < share:
                low = max(low, aim)
            else:
                high = min(high, aim)
            further = aim * share / seen[key]
            aim = further if low < further < high else (low + high) / 2
        self.achieved = best[2]
        self.context.progress.end(f"{self.achieved:.1%} of the time, {share:.0%} asked")
        if best[0] > NEAR:
            self.context.warn(
                f"Asked for {share:.0%} of the latency, and got {self.achieved:.1%}: no step of channels comes nearer."
            )
        return best[1]

    def details(self) -> dict[str, Any]:
        """Return what the report tells: shares that the table foretold and those measured, and the table's size."""
        return {
            "foretold_and_measured": [list(pair) for pair in self.tries],
            "layers_timed": len(self.table),
        }

    def _terms(self, analysis: Analysis, multiple: int) -> list[Term]:
        products = [p for p in analysis.traced.products if p.details]
        self.context.progress.begin("timing layers", len(products))
        terms = []
        for product in products:
            terms.append(self.table.term(product, multiple))
            self.context.progress.advance()
        self.table.save()
        self.context.progress.end(f"{len(self.table)} times")
        return terms

    def _measure(self, analysis: Analysis, removed: list[int]) -> float:
        """Return the time of the network without these units, as a share of the original's."""
        pruned = copy.deepcopy(analysis.module)
        apply(pruned, analysis.edit(removed))
        with TemporaryDirectory(dir=self.context.folder) as folder:
            sessions = {
                "original": self._session(self.module, Path(folder) / "original.onnx"),
                "pruned": self._session(pruned, Path(folder) / "pruned.onnx"),
            }
            timing = measure.interleave(
                sessions,
                self.example[0].numpy(),
                threads=self.context.backend.threads,
                seconds=SECONDS,
                progress=Silent(),
            )
        return 1 / float(timing.record("pruned")["speedup"])

    def _session(self, module: nn.Module, path: Path) -> Session:
        export(module, self.example, path, min(self.context.device.max_opset, 18))
        model = self.model.become("onnx", path, fingerprint=digest(path.read_bytes()))
        return self.context.backend.open(model, self.context.device)


def export(module: nn.Module, example: tuple[torch.Tensor, ...], path: Path, opset: int = 18) -> None:
    """Write a module as one ONNX file, for timing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecations
        torch.onnx.export(
            copy.deepcopy(module).eval(),
            example,
            str(path),
            opset_version=max(opset, 18),
            dynamo=True,
            external_data=False,
            verbose=False,
        )
