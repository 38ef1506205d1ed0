"""What the runner costs: start to answer, and its `--bench` beside bare onnxruntime.

    python benchmarks/runner.py RUN/bundle photo.jpg [--python PATH] [--rounds N]

Prints seconds from start to the answer for one photograph (a fresh process each time), and the median of the runner's
own timing over the median of bare onnxruntime with the same options, in interleaved rounds. Run it on a quiet machine.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from penjing.bundle import runner


def started(python: str, bundle: Path, photo: str, rounds: int) -> list[float]:
    """Return the seconds that fresh processes take to answer for one photograph."""
    seconds = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        subprocess.run(
            [python, str(bundle / "runner.py"), photo, "--any-machine"], check=True, capture_output=True
        )
        seconds.append(time.perf_counter() - start)
    return seconds[1:]  # the first filled the caches of the disk


def bare(model: bytes, manifest: dict[str, Any], batch: Any) -> Callable[[], Any]:
    """Return what runs the model in onnxruntime and nothing else, under the options of the runner."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = manifest["runtime"]["threads"], 1
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda: session.run(None, {name: batch})


def timed(call: Callable[[], Any], seconds: float) -> float:
    """Return the median seconds of a call."""
    for _ in range(5):
        call()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def main() -> None:
    """Print both."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("photo")
    parser.add_argument(
        "--python", default=sys.executable, help="Python with numpy, Pillow and onnxruntime only"
    )
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()
    seconds = started(options.python, options.bundle, options.photo, options.rounds)
    print(
        f"start to answer: median {statistics.median(seconds):.3f} s, longest {max(seconds):.3f} s of {len(seconds)}"
    )

    opened, again = (runner.Bundle(str(options.bundle)) for _ in range(2))
    model = runner.Model(opened, any_machine=True)
    batch = model.inputs(opened.array(opened.manifest["golden"]["input"])[: model.batch])
    other = bare(again.take(again.manifest["model"]["file"]), again.manifest, np.ascontiguousarray(batch))
    ratios = []
    for _ in range(options.rounds):
        alone = timed(other, 1.0)
        ratios.append(statistics.median(runner.run(model.session, batch, 1.0, 10)) / alone)
    extra = [100 * (ratio - 1) for ratio in ratios]
    span = f"from {min(extra):+.1f} to {max(extra):+.1f} %"
    print(f"--bench over bare onnxruntime: median {statistics.median(extra):+.1f} %, {span}")


if __name__ == "__main__":
    main()
