"""Pruning to a measured latency beside pruning to MACs, at equal latency: one table, printed as Markdown.

    python benchmarks/latency.py [--only NAME] [--share S] [--epochs N] [--seeds N] [--keep FOLDER]

A network is pruned to a share of its latency. It is pruned to MACs as well, by the same importance, with the share of
MACs bisected until the network takes as long as the first does, timed beside it: with the same multiples, and with a
quarter of them. All are trained by distillation, for the same epochs on the same photographs with the same seeds,
scored on the same test photographs, and timed in interleaved rounds at one thread. Differences in accuracy are of
pairs: photographs that one of both has right.
Time on a quiet machine: what else runs there makes shares of the latency differ from round to round.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import statistics
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from networks import Place
from penjing import Context, Goal, Model, interval, measure
from penjing.api import Request, plan
from penjing.files import digest
from penjing.host import Host
from penjing.plan import Plan
from penjing.step import Session, Silent
from penjing_prune.latency import export
from penjing_prune.structured import Structured
from prune import NETWORKS, RUN, Steps, arguments, one, tables

#: how near the latencies of two networks have to be, and how often the share of MACs is bisected for that
NEAR, BISECTIONS = 0.02, 8
#: seconds of timing networks beside each other, while bisecting and for the table
SHORT, LONG = 9.0, 30.0


@dataclasses.dataclass
class Bench:
    """A network with its photographs, and what has been found out about it."""

    request: Request
    host: Host
    folder: Path
    planned: Plan

    def prune(self, step: Structured) -> tuple[Session, dict[str, Any]]:
        """Return the pruned network, ready to be timed, and what the step tells of it."""
        with TemporaryDirectory(dir=self.folder) as scratch:
            work = Path(scratch) / "work"
            work.mkdir()
            planned = self.planned
            context = Context(
                planned.device, Goal(), planned.data, work, planned.backend, original=planned.model
            )
            module = step.apply(planned.model, context).value
            for warning in context.warnings:
                print(f"- {warning}", file=sys.stderr)
            return self.session(module, Path(scratch)), context.details

    def session(self, module: Any, folder: Path) -> Session:
        """Return a module as an ONNX session."""
        export(copy.deepcopy(module), (self.example(),), folder / "timed.onnx")
        return self.opened(folder / "timed.onnx")

    def opened(self, path: Path) -> Session:
        """Return an ONNX file as a session."""
        model = self.planned.model.become("onnx", path, fingerprint=digest(path.read_bytes()))
        return self.planned.backend.open(model, self.planned.device)

    def example(self) -> Any:
        """Return one input."""
        import torch

        shape = [1 if size is None else size for size in self.planned.model.inputs[0].shape]
        return torch.rand(shape, generator=torch.Generator().manual_seed(0))

    def shares(self, sessions: dict[str, Session], seconds: float) -> dict[str, tuple[float, float, float]]:
        """Return the share of the original's time that each takes, with its interval."""
        inputs = self.example().numpy()
        timing = measure.interleave(sessions, inputs, threads=1, seconds=seconds, progress=Silent())
        found = {}
        for name in sessions:
            record = timing.record(name)
            low, high = record["speedup_interval"]
            found[name] = (1 / record["speedup"], 1 / high, 1 / low)
        return found


def as_fast(bench: Bench, original: Session, wanted: Session, multiple: int) -> float:
    """Return the share of MACs that makes a network as fast as `wanted`, as near as steps of channels allow."""
    low, high, best = 0.02, 1.0, (float("inf"), 1.0)
    for _ in range(BISECTIONS):
        macs = (low + high) / 2
        step = Structured(macs=macs, importance="taylor", channel_multiple=multiple)
        session, details = bench.prune(step)
        shares = bench.shares({"original": original, "wanted": wanted, "macs": session}, SHORT)
        ratio = shares["macs"][0] / shares["wanted"][0]
        print(f"multiple {multiple}: {macs:.1%} of the MACs, {ratio:.3f} of the time", file=sys.stderr)
        best = min(best, (abs(ratio - 1), macs))
        if best[0] <= NEAR or (ratio > 1 and details["achieved"] > 1.1 * macs):  # there is nothing faster
            break
        low, high = (low, macs) if ratio > 1 else (macs, high)
    return best[1]


def variants(bench: Bench, share: float) -> dict[str, dict[str, Any]]:
    """Return the options of prune.structured compared, by name; all make networks as fast as the first."""
    multiple = bench.planned.device.channel_multiple
    with TemporaryDirectory(dir=bench.folder) as scratch:
        original = bench.session(bench.planned.model.value, Path(scratch))
    wanted, details = bench.prune(Structured(latency=share, importance="taylor"))
    print(
        f"latency: {details['achieved']:.3f}, tries {details['foretold_and_measured']}",
        file=sys.stderr,
    )
    found: dict[str, dict[str, Any]] = {"latency": {"latency": share, "importance": '"taylor"'}}
    for each in (multiple, multiple // 4):
        macs = as_fast(bench, original, wanted, each)
        options = {"macs": macs, "importance": '"taylor"', "channel_multiple": each}
        found[f"MACs, multiples of {each}"] = options
    return found


def rows(name: str, options: argparse.Namespace, folder: Path) -> None:
    """Prune one network in every way, train and measure all of them, and print them."""
    network = NETWORKS[name]
    request = network.make(Place(options.shared), folder / "photographs", options.photographs)
    host = Host()
    bench = Bench(request, host, folder, plan(request, host=host))
    compared = variants(bench, options.share)
    end: Steps = [
        ("distill.logits", {"epochs": options.epochs, **network.training}),
        ("onnx.export", {}),
        ("onnx.simplify", {}),
        RUN,
    ]
    seen: dict[str, list[Result]] = {label: [] for label in compared}
    for seed in range(options.seeds):
        runs = {}
        for label, chosen in compared.items():
            runs[label] = folder / f"{label.replace(', ', '-').replace(' ', '-')}-{seed}"
            columns = one(request, host, runs[label], label, [("prune.structured", chosen), *end], seed)
            seen[label].append(Result(columns[-1]["macs"] / columns[0]["macs"]))
        judge(
            bench, {label: path / "run" for label, path in runs.items()}, {k: v[-1] for k, v in seen.items()}
        )
    n = len(next(iter(seen.values()))[0].right)
    print(f"\n**{name}**, {options.share:.0%} of the latency, {options.epochs} epochs, n = {n}\n")
    print(
        "| target | MACs left % | latency left % by seed | top-1 % by seed | mean | behind latency, points |"
    )
    print("|---|---|---|---|---|---|")
    for label, results in seen.items():
        print(line(label, results, seen["latency"]), flush=True)


@dataclasses.dataclass
class Result:
    """What one network came to."""

    macs: float
    share: float = 1.0
    right: list[bool] = dataclasses.field(default_factory=list)


def judge(bench: Bench, runs: dict[str, Path], results: dict[str, Result]) -> None:
    """Score the networks that runs made on the same photographs, and time them beside each other."""
    planned = bench.planned
    assert planned.data is not None and planned.model.preprocess is not None
    first = next(iter(runs.values()))
    sessions = {"original": bench.opened(first / "original" / "model.onnx")}
    sessions |= {label: bench.opened(path / "optimised" / "model.onnx") for label, path in runs.items()}
    model: Model = planned.model
    tallies = measure.answer(
        sessions, model, planned.data.test, planned.model.preprocess, planned.task, Silent()
    )
    shares = bench.shares(sessions, LONG)
    for label, result in results.items():
        result.right, result.share = tallies[label].right, shares[label][0]
        low, high = shares[label][1:]
        accuracy = statistics.mean(result.right)
        print(
            f"{label}: {accuracy:.2%}, latency {result.share:.1%} ({low:.1%} to {high:.1%})", file=sys.stderr
        )


def line(label: str, results: list[Result], first: list[Result]) -> str:
    """Return the line of one way to prune: all seeds, and how far it lies behind the first over all of them."""
    accuracies = [statistics.mean(one.right) for one in results]
    shares = " / ".join(f"{100 * one.share:.1f}" for one in results)
    each = " / ".join(f"{100 * value:.1f}" for value in accuracies)
    behind = []
    for own, other in zip(results, first, strict=True):
        lost = sum(a and not b for a, b in zip(other.right, own.right, strict=True))
        won = sum(b and not a for a, b in zip(other.right, own.right, strict=True))
        low, high = interval.paired_drop(lost, won, len(own.right))
        behind.append(f"{100 * (lost - won) / len(own.right):.1f} ({100 * low:.1f} to {100 * high:.1f})")
    gap = "" if results is first else " / ".join(behind)
    macs = 100 * statistics.mean(one.macs for one in results)
    return f"| {label} | {macs:.1f} | {shares} | {each} | {100 * statistics.mean(accuracies):.2f} | {gap} |"


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--share", type=float, default=0.5, help="share of the latency to keep")
    tables(arguments(parser, epochs=2, photographs=10_000), rows)


if __name__ == "__main__":
    main()
