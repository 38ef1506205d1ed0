"""How much memory calibrating ResNet-50 takes above its float session, by the number of photographs."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from penjing.preprocess import Preprocess

if TYPE_CHECKING:
    from networks import Place

PREPROCESS = Preprocess(resize=256, crop=224, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
METHOD = "entropy"


def table(place: Place, counts: tuple[int, ...] = (100, 500)) -> Iterator[str]:
    """Yield the lines of the table, each measured in a process of its own."""
    photographs = place.find("data/imagenet-samples")
    yield f"**ResNet-50 at 224, calibrated by {METHOD}: peak memory of the process**"
    yield ""
    yield "| photographs | float session, MB | calibrating, MB | above it, MB |\n|---|---|---|---|"
    with TemporaryDirectory() as scratch:
        model = _export(Path(scratch))
        for count in counts:
            command = [sys.executable, __file__, model, photographs, str(place.most(count))]
            found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            before, after = found["before"], found["after"]
            yield f"| {found['photographs']} | {before:.0f} | {after:.0f} | {after - before:.0f} |"


def _export(folder: Path) -> Path:
    from penjing.host import Host
    from penjing.options import build
    from penjing.testing import small_context

    host = Host()
    model = host.open("torchvision:resnet50?weights=none", preprocess=PREPROCESS)
    for name in ("onnx.export", "onnx.simplify"):
        (folder / name).mkdir()
        model = build(host.step(name), name, {}).apply(model, small_context(folder / name))
    path: Path = model.value
    return path


def main() -> None:
    """Calibrate a network with so many photographs, and print the memory used."""
    import onnx_ir as ir
    from penjing.data import read_photo
    from penjing.host import Host
    from penjing_quant.calibrate import calibrate
    from penjing_quant.graph import load
    from penjing_quant.placement import observed
    from penjing_quant.session import Network

    path, folder, count = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    files = sorted(folder.glob("*/*.jpg"))[:count]

    def photographs() -> Iterator[tuple[str, Any]]:
        for file in files:
            yield file.name, PREPROCESS(read_photo(file))[None]

    host, model = Host(), load(path)
    scheme = host.backend("onnxrt").scheme(host.device("this-machine"))
    assert scheme is not None
    Network(model)(next(photographs())[1])
    before = _peak()
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here anew (proc(5))
    calibrate(model, observed(ir.from_proto(model).graph, scheme), photographs, scheme, METHOD)
    print(json.dumps({"photographs": len(files), "before": before, "after": _peak()}))


def _peak() -> float:
    """Return the greatest resident memory in MiB; `getrusage` would count the parent's before exec."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


if __name__ == "__main__":
    main()
