"""What structured pruning can do with every family of torchvision: one row a network, printed as Markdown.

    python benchmarks/prune_coverage.py [--only NAME …] [--macs 0.7] [--no-export] [--patience 60]

Networks have random weights: what is checked is that the surgery is exact. Each is pruned to a share of its
multiply-accumulates, compared with the masked original on random inputs (detectors are made to choose alike), trained
for a step, exported to ONNX and quantised by Penjing's own steps, and run in onnxruntime. Images are noise, so that
the signal-to-quantisation-noise ratio says that INT8 works, and nothing about accuracy. A detector that cannot be
exported whole is exported without what comes after its backbone. Where torch-pruning can be imported
(`pip install torch-pruning`), its row says what it makes of the same network when it is told the last layer, which
Penjing finds by itself; it is given `--patience` seconds of the processor.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import importlib.util
import re
import signal
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import torchvision
from penjing import Host
from penjing.options import build
from penjing.testing import small_context, torch_model
from penjing_prune.allocate import Limits, choose
from penjing_prune.cost import Cost, macs
from penjing_prune.groups import structure
from penjing_prune.guard import analyse
from penjing_prune.importance import objective, rank
from penjing_prune.surgery import apply
from penjing_prune.trace import trace
from torch import nn
from torch.utils._pytree import tree_leaves

#: networks for classification, and the side of the smallest image that is worth trying
CLASSIFIERS = {
    "resnet18": 64, "resnext50_32x4d": 64, "wide_resnet50_2": 64, "regnet_x_400mf": 64,
    "regnet_y_400mf": 64, "densenet121": 64, "googlenet": 96, "inception_v3": 299, "mobilenet_v2": 64,
    "mobilenet_v3_small": 64, "mnasnet0_5": 64, "shufflenet_v2_x0_5": 64, "squeezenet1_1": 64,
    "efficientnet_b0": 64, "efficientnet_v2_s": 64, "convnext_tiny": 64, "vgg11": 64, "alexnet": 64,
    "vit_b_32": 224, "swin_t": 112, "swin_v2_t": 128, "maxvit_t": 224,
}  # fmt: skip
BARE = {"weights": None, "weights_backbone": None}


class Listed(nn.Module):
    """A detector that takes a batch as other networks do."""

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, images: torch.Tensor) -> Any:
        """Return what it detects in each image; in training, half the power of what its backbone computes."""
        if (
            self.training
        ):  # its losses need boxes: a gradient through the pruned backbone is what matters here
            features = self.detector.backbone(images)
            return sum(f.square().mean() / 2 for f in features.values())
        return self.detector(list(images))


class Flat(nn.Module):
    """A network whose tensors come out as a tuple, whatever holds them."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return every tensor that the network returns."""
        return tuple(tree_leaves(self.network(images)))


def _others() -> dict[str, tuple[Callable[[], nn.Module], int]]:
    detection, segmentation = torchvision.models.detection, torchvision.models.segmentation
    return {
        "ssdlite320_mobilenet_v3_large": (
            lambda: Listed(detection.ssdlite320_mobilenet_v3_large(**BARE)),
            320,
        ),
        "fasterrcnn_mobilenet_v3_large_320_fpn": (
            lambda: Listed(detection.fasterrcnn_mobilenet_v3_large_320_fpn(**BARE)),
            320,
        ),
        "lraspp_mobilenet_v3_large": (lambda: segmentation.lraspp_mobilenet_v3_large(**BARE), 64),
    }


def networks() -> Iterator[tuple[str, Callable[[], nn.Module], int]]:
    """Yield every network by name, how it is made, and the side of its image."""
    for name, size in CLASSIFIERS.items():
        options = {"init_weights": True} if name in ("googlenet", "inception_v3") else {}
        yield name, lambda n=name, o=options: torchvision.models.get_model(n, weights=None, **o), size
    for name, (make, size) in _others().items():
        yield name, make, size


@dataclasses.dataclass
class Row:
    """What came of one network."""

    network: str
    achieved: float = float("nan")
    error: float = float("nan")
    trains: str = ""
    exports: str = ""
    integers: str = ""
    seconds: float = float("nan")
    alone: str = ""
    peer: str = ""

    def __str__(self) -> str:
        return (
            f"| {self.network} | {self.achieved:.1%} | {self.error:.0e} | {self.trains} | {self.exports} | "
            f"{self.integers} | {self.seconds:.0f} | {self.peer} | {self.alone} |"
        )


def one(name: str, make: Callable[[], nn.Module], size: int, share: float, *, exporting: bool) -> Row:
    """Prune a network and try what came of it."""
    torch.manual_seed(0)
    module = _alive(make().eval())
    example = (torch.rand(1, 3, size, size),)
    start = time.monotonic()
    analysis = analyse(module, example)
    found = analysis.structure
    cost = Cost(found, macs(found))
    whole = cost.total
    removed = choose(
        found.groups, rank("l2", module, found, []), cost, share * whole, Limits(0.125, 1), "global"
    )
    edit = analysis.edit(removed)
    error = max(analysis.error(edit)[0], analysis.error_of(module, edit)[0])
    apply(module, edit)
    row = Row(name, error=error, seconds=time.monotonic() - start)
    recounted = structure(trace(copy.deepcopy(module), example), {}, {})
    row.achieved = Cost(recounted, macs(recounted)).total / whole
    row.trains = _attempt(lambda: _train(module, size))
    row.exports, row.integers = _deploy(module, size) if exporting else ("not tried", "not tried")
    reasons = Counter(_short(a.reason) for a in found.alone if a.reason != "it is an output of the network")
    row.alone = "; ".join(f"{n} layers: {reason}" for reason, n in reasons.most_common()) or "the last layer"
    return row


def _alive(module: nn.Module) -> nn.Module:
    """Return the module with small weights where a matrix is all zeros, so that it answers something."""
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim > 1 and not parameter.any():
                parameter.normal_(0, 0.02)
    return module


def _short(reason: str) -> str:
    """Return a reason without the place, which differs from layer to layer."""
    reason = re.sub(r" in (?:the network|\S+)(?: \([^)]*\))?", "", reason)
    return reason.split(":", 1)[0].rstrip(",").replace(" all of them", " all channels")


def _attempt(work: Callable[[], None]) -> str:
    try:
        work()
    except Exception as error:  # whatever a network or exporter raises is what the table tells
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0][:80]}"
    return "yes"


def _train(module: nn.Module, size: int) -> None:
    copied = copy.deepcopy(module).train()
    with torch.enable_grad():
        objective(copied(torch.rand(2, 3, size, size)), None).backward()
    assert any(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in copied.parameters())


def _deploy(module: nn.Module, size: int) -> tuple[str, str]:
    """Export and quantise; return how that went, and the signal-to-quantisation-noise ratio."""
    whole = _integers(module, size)
    if not isinstance(module, Listed) or isinstance(whole, float):
        return ("yes", f"{whole:.0f} dB") if isinstance(whole, float) else (whole, "no")
    part = _integers(module.detector.backbone, size)
    return (f"backbone; whole: {whole}", f"{part:.0f} dB") if isinstance(part, float) else (part, "no")


def _integers(module: nn.Module, size: int) -> float | str:
    """Return how far the outputs of INT8 are above their difference from float's, in dB; else what was raised."""
    try:
        with TemporaryDirectory() as folder:
            return _quantised(module, size, Path(folder))
    except Exception as error:  # as above
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0][:100]}"


def _quantised(module: nn.Module, size: int, folder: Path) -> float:
    """Carry out Penjing's steps for a CPU, from export to INT8, and run float and INT8 on an image."""
    import onnxruntime

    context, host = small_context(folder, device="x86-64-avx512-vnni"), Host()
    model = torch_model(Flat(copy.deepcopy(module)), size=size)
    options = {"quant.static": {"images": 6, "float_layers": 0, "equalise": False, "bias_correction": False}}
    files = []
    for number, name in enumerate(("onnx.export", "onnx.simplify", "quant.static")):
        work = folder / str(number)
        work.mkdir()
        step = build(host.step(name), name, options.get(name, {}))
        model = step.apply(model, dataclasses.replace(context, folder=work))
        files.append(model.value)
    image = np.random.default_rng(0).random((1, 3, size, size), np.float32)
    real, rounded = (
        onnxruntime.InferenceSession(str(path)).run(None, {"input": image}) for path in files[1:]
    )
    noise = sum(float(np.square(a - b, dtype=np.float64).sum()) for a, b in zip(real, rounded, strict=True))
    return float(10 * np.log10(sum(float(np.square(a, dtype=np.float64).sum()) for a in real) / noise))


def peer(make: Callable[[], nn.Module], size: int, share: float, patience: float) -> str:
    """Return what torch-pruning makes of the network when its last layers are named, in so many seconds of work."""
    import torch_pruning

    def enough(*_: Any) -> None:
        raise TimeoutError(f"not done after {patience:.0f} s")

    signal.signal(signal.SIGVTALRM, enough)
    signal.setitimer(signal.ITIMER_VIRTUAL, patience)

    torch.manual_seed(0)
    module = make().eval()
    example = torch.rand(1, 3, size, size)
    last = [part for part in module.modules() if isinstance(part, (nn.Linear, nn.Conv2d))][-1:]
    last += [p for p in module.modules() if isinstance(p, nn.Linear) and p.out_features in (1000, 91)]
    try:
        before, _ = torch_pruning.utils.count_ops_and_params(module, example)
        pruner = torch_pruning.pruner.BasePruner(
            module,
            example,
            importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
            pruning_ratio=1 - share**0.5,
            ignored_layers=last,
            global_pruning=False,
        )
        pruner.step()
        with torch.no_grad():
            module(example)
        after, _ = torch_pruning.utils.count_ops_and_params(module, example)
    except Exception as error:  # as above
        return f"{type(error).__name__}: {(str(error).strip() or '?').splitlines()[0][:60]}"
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    return f"{after / before:.1%}"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--macs", type=float, default=0.7)
    parser.add_argument("--no-export", action="store_true")
    parser.add_argument("--patience", type=float, default=60.0)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    known = importlib.util.find_spec("torch_pruning") is not None
    print(f"MACs asked for: {arguments.macs:.0%} of the original's\n")
    print(
        "| network | MACs | off the masked one | trains | exports | INT8 SQNR | seconds | torch-pruning | left alone |"
    )
    print("|--|--|--|--|--|--|--|--|--|", flush=True)
    for name, make, size in networks():
        if arguments.only and name not in arguments.only:
            continue
        try:
            row = one(name, make, size, arguments.macs, exporting=not arguments.no_export)
        except Exception as error:  # as above: the other rows are wanted all the same
            row = Row(name, alone=f"{type(error).__name__}: {str(error).splitlines()[0][:120]}")
        row.peer = peer(make, size, arguments.macs, arguments.patience) if known else "not installed"
        print(row, flush=True)


if __name__ == "__main__":
    main()
