"""Penjing's structured pruning beside torch-pruning, on trained networks: one table, printed as Markdown.

    python benchmarks/prune.py [--only NAME] [--macs SHARE] [--rows ROW …] [--epochs N] [--seeds N] [--keep FOLDER]

Both prune to the same share of MACs and are trained by the same trainer, for the same epochs, on the same photographs
with the same seeds; torch-pruning's result is trained on labels, as its examples do, Penjing's also by distillation
from the network before pruning, and that one is quantised too. All are scored on the same test photographs and timed
beside the network before pruning, interleaved, at one thread. What a folder given by `--keep` holds is not made again.
Networks and photographs are read from --shared, else PENJING_SHARED, else `../shared`; a row whose files are
missing is skipped, with the reason.
torch-pruning is installed into a folder of its own (`pip install --no-deps --target`).
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import re
import statistics
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from networks import MissingError, Place, cifar, clothing, default_shared
from penjing import Context, Model, Technique, hookimpl, option
from penjing.api import Request, compress
from penjing.here import this_machine
from penjing.host import Host
from penjing_training import TrainingOptions

TORCH_PRUNING = "1.6.1"


#: steps of a recipe, each with its options as TOML values
Steps = list[tuple[str, dict[str, Any]]]


@dataclasses.dataclass(frozen=True)
class TorchPruning(Technique):
    """Prune with torch-pruning: global, group Taylor importance, channels in multiples."""

    name = "peer.torch_pruning"
    accepts = frozenset({"torch"})
    produces = "torch"
    needs = frozenset({"training", "labels"})
    macs: float = option(0.5, "Share of the MACs to keep.", between=(0.05, 1))
    multiple: int = option(16, "Channels are multiples of this.", between=(1, 64))
    photographs: int = option(200, "Photographs whose gradients rank channels.", between=(1, 10_000))
    stay: str = option("", "A regular expression: layers of such a name stay as they are.")

    def apply(self, model: Model, context: Context) -> Model:
        """Return the network with fewer channels, by the smallest ratio that meets the share of MACs."""
        import torch
        import torch_pruning as tp

        shape = [1 if size is None else size for size in model.inputs[0].shape]
        example = torch.zeros(1, *shape[1:])
        whole = tp.utils.count_ops_and_params(copy.deepcopy(model.value), example)[0]
        low, high = 0.0, 0.95
        for _ in range(7):  # the ratio by bisection: it is of channels, and MACs fall about with its square
            ratio = (low + high) / 2
            pruned = self._pruned(tp, model, context, example, ratio)
            share = tp.utils.count_ops_and_params(pruned, example)[0] / whole
            low, high = (ratio, high) if share > self.macs else (low, ratio)
        pruned = self._pruned(tp, model, context, example, high)
        pruned.eval()
        torch.save(pruned, context.folder / MODULE)
        return model.become("torch", pruned)

    def _pruned(self, tp: Any, model: Model, context: Context, example: Any, ratio: float) -> Any:
        import torch

        module = copy.deepcopy(model.value).eval().requires_grad_(True)
        assert context.data is not None and model.preprocess is not None
        importance = tp.importance.GroupTaylorImportance()
        stay = [layer for layer in module.modules() if isinstance(layer, torch.nn.Linear)][-1:]
        stay += [layer for name, layer in module.named_modules() if self.stay and re.search(self.stay, name)]
        pruner = tp.pruner.BasePruner(
            module, example, importance=importance, pruning_ratio=ratio, global_pruning=True,
            round_to=self.multiple, ignored_layers=stay,
        )  # fmt: skip
        for batch in context.data.train.batches(25, model.preprocess, self.photographs):
            scores = module(torch.from_numpy(batch.inputs))
            torch.nn.functional.cross_entropy(scores, torch.from_numpy(batch.labels)).backward()
        pruner.step()
        module.zero_grad(set_to_none=True)
        return module

    def skeleton(self, model: Model, folder: Path, open_model: Any) -> Model:
        """Return what `apply` made, in this process or in one before."""
        import torch

        # a pickle, which Penjing has nowhere: torch-pruning has no other form, and it is our own
        return model.become("torch", torch.load(folder / MODULE, weights_only=False))

    def naive(self) -> None:
        """Leave it out: what it is compared with is not the direct column."""


@dataclasses.dataclass(frozen=True)
class Labels(TrainingOptions, Technique):
    """Train on labels: Penjing's trainer without a teacher."""

    name = "peer.labels"
    accepts = frozenset({"torch"})
    produces = "torch"
    needs = frozenset({"training", "labels"})

    def apply(self, model: Model, context: Context) -> Model:
        """Return the network, trained."""
        from penjing_training.loop import train

        return model.become("torch", train(model.value, self, model, context))

    def naive(self) -> None:
        """Leave it out."""


MODULE = "module.pt"


@hookimpl
def penjing_techniques() -> list[type[Technique]]:
    """Bring the peer."""
    return [TorchPruning, Labels]


@dataclasses.dataclass(frozen=True)
class Network:
    """A trained network, and how it is pruned."""

    #: given the place, a folder for photographs, and how many to train on where it draws them itself
    make: Callable[[Place, Path, int], Request]
    #: shares of MACs to keep
    shares: tuple[float, ...]
    #: of channels, for both
    multiple: int
    #: layers that torch-pruning is told to leave alone, since it raises IndexError where they are not: those whose
    #: channels reach the shortcuts of slices and zeros
    stay: str = ""
    #: options of training where the defaults do not suit it, for all; chosen by Penjing's score on *select*
    training: dict[str, Any] = dataclasses.field(default_factory=dict)


#: photographs of 32 pixels
SMALL = {"learning_rate": 2e-3, "crop": 0.8}
NETWORKS = {
    "MobileNetV2, clothing": Network(lambda place, folder, most: clothing(place, folder), (0.5, 0.33), 16),
    "ResNet-20, CIFAR-10": Network(partial(cifar, "resnet20"), (0.4,), 4, r"^conv1$|conv2$", SMALL),
    "ResNet-56, CIFAR-10": Network(partial(cifar, "resnet56"), (0.4,), 4, r"^conv1$|conv2$", SMALL),
}


ROWS = ("torch-pruning, labels", "penjing, labels", "penjing, distillation", "penjing, distillation, INT8")


def recipes(network: Network, macs: float, epochs: int) -> dict[str, Steps]:
    """Return the recipes compared, by name: steps with their options."""
    multiple = network.multiple
    theirs = ("peer.torch_pruning", {"macs": macs, "multiple": multiple, "stay": f"'{network.stay}'"})
    ours = ("prune.structured", {"macs": macs, "channel_multiple": multiple, "importance": '"taylor"'})
    training = {"epochs": epochs, **network.training}
    labels, teacher = ("peer.labels", training), ("distill.logits", training)
    onnx: Steps = [("onnx.export", {}), ("onnx.simplify", {})]
    steps: tuple[Steps, ...] = (
        [theirs, labels, *onnx, RUN],
        [ours, labels, *onnx, RUN],
        [ours, teacher, *onnx, RUN],
        [ours, teacher, *onnx, ("quant.static", {}), RUN],
    )
    return dict(zip(ROWS, steps, strict=True))


RUN: tuple[str, dict[str, Any]] = ("onnxrt", {})


def write_recipe(path: Path, steps: Steps) -> Path:
    """Write a recipe file."""
    tables = [
        "\n".join(["[[recipe]]", f'use = "{name}"', *(f"{key} = {value}" for key, value in options.items())])
        for name, options in steps
    ]
    path.write_text("\n".join(tables) + "\n")
    return path


def install_peer(folder: Path) -> None:
    """Install torch-pruning into `folder`, and find it there."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder)]
    subprocess.run([*command, f"torch-pruning=={TORCH_PRUNING}"], check=True)
    sys.path.append(str(folder))


def one(request: Request, host: Host, folder: Path, name: str, steps: Steps, seed: int) -> Any:
    """Carry out a recipe and return the report's columns; steps that were carried out in `folder` are not again."""
    folder.mkdir(parents=True, exist_ok=True)
    recipe = write_recipe(folder / f"{name.replace(', ', '-')}.toml", steps)
    request = dataclasses.replace(request, recipe=recipe, seed=seed, out=folder / "run")
    return compress(request, host=host)["columns"]


def rows(name: str, options: argparse.Namespace, folder: Path) -> None:
    """Make and measure all models of one network, and print them when each has been made with every seed."""
    network = NETWORKS[name]
    request = network.make(Place(options.shared), folder / "photographs", options.photographs)
    host = Host([sys.modules[__name__]])
    for macs in (options.macs,) if options.macs else network.shares:
        every = recipes(network, macs, options.epochs)
        wanted = {label: steps for label, steps in every.items() if not options.rows or label in options.rows}
        found: dict[str, list[Any]] = {label: [] for label in wanted}
        for seed in range(options.seeds):
            for label, steps in wanted.items():
                found[label].append(one(request, host, folder / f"{macs}-{seed}", label, steps, seed))
                print(f"seed {seed}: {line(label, found[label][-1:])}", file=sys.stderr, flush=True)
        test = found[next(iter(wanted))][0][0]["accuracy"]["n"]
        print(f"\n**{name}**, {macs:.0%} of the MACs, {options.epochs} epochs, n = {test}\n")
        print(
            "| | MACs left % | size % | top-1 % by seed | mean | kept % | speed |\n|---|---|---|---|---|---|---|"
        )
        for label in wanted:
            print(line(label, found[label]), flush=True)


def line(label: str, found: list[Any]) -> str:
    """Return the line of one recipe: its optimised columns over all seeds."""
    originals, results = [columns[0] for columns in found], [columns[-1] for columns in found]
    accuracies = [result["accuracy"]["value"] for result in results]
    kept = [result["accuracy"]["retained"] for result in results]
    speeds = [result["latency"]["speedup"] for result in results]
    macs = [result["macs"] / original["macs"] for original, result in zip(originals, results, strict=True)]
    size = [result["size_ratio"] for result in results]
    each = " / ".join(f"{100 * value:.1f}" for value in accuracies)
    return (
        f"| {label} | {100 * statistics.mean(macs):.1f} | {100 * statistics.mean(size):.1f} | {each} "
        f"| {100 * statistics.mean(accuracies):.2f} | {100 * statistics.mean(kept):.1f} "
        f"| {statistics.mean(speeds):.2f} |"
    )


def arguments(parser: argparse.ArgumentParser, *, epochs: int, photographs: int) -> argparse.Namespace:
    """Return the parser's own arguments and those of every benchmark that prunes and trains."""
    parser.add_argument("--only", choices=list(NETWORKS), help="one network")
    parser.add_argument("--epochs", type=int, default=epochs, help="epochs of training after pruning")
    parser.add_argument("--seeds", type=int, default=3, help="runs with different seeds")
    parser.add_argument(
        "--photographs", type=int, default=photographs, help="of CIFAR-10 to train on, at most"
    )
    parser.add_argument("--keep", type=Path, help="folder to leave models and reports in, and to go on from")
    parser.add_argument("--shared", type=Path, default=default_shared(), help="networks and photographs")
    return parser.parse_args()


def tables(
    options: argparse.Namespace, rows: Callable[[str, argparse.Namespace, Path], None], *peers: str
) -> None:
    """Print what was measured with, and the table of each network, in a folder of its own."""
    device = this_machine()
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("penjing", "torch", "onnxruntime"))
    print(f"{device.title} ({', '.join(sorted(device.isa))}), 1 thread; {'; '.join([versions, *peers])}.")
    with TemporaryDirectory() as scratch:
        for name in [options.only] if options.only else NETWORKS:
            folder = (options.keep or Path(scratch)) / name.split(",")[0].lower()
            folder.mkdir(parents=True, exist_ok=True)
            try:
                rows(name, options, folder)
            except MissingError as missing:
                print(f"\n**{name}**: skipped, {missing}", flush=True)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--macs", type=float, help="one share of MACs to keep, in place of the usual ones")
    parser.add_argument(
        "--rows", nargs="+", choices=ROWS, metavar="ROW", help=f"of {', '.join(map(repr, ROWS))}"
    )
    options = arguments(parser, epochs=6, photographs=50_000)
    with TemporaryDirectory() as folder:
        install_peer(Path(folder))
        tables(options, rows, f"torch-pruning {TORCH_PRUNING}")


if __name__ == "__main__":
    main()
