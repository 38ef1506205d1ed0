"""Other quantisers on the same network and photographs: onnxruntime's own, and nncf in an environment of its own."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from penjing.here import this_machine

if TYPE_CHECKING:
    from penjing.plan import Plan

NNCF = "nncf>=3.4,<3.5"


def onnxruntime_peers(original: Path, folder: Path, planned: Plan) -> dict[str, Path]:
    """Quantise with onnxruntime's quantize_static as it comes, and as its guide advises for this CPU."""
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quant_pre_process, quantize_static

    assert planned.data is not None and planned.model.preprocess is not None
    calibrate, preprocess = planned.data.calibrate, planned.model.preprocess
    name = input_name(original)

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime ships no types
        def __init__(self) -> None:
            self.batches: Iterator[Any] = calibrate.batches(1, preprocess)

        def get_next(self) -> dict[str, Any] | None:
            batch = next(self.batches, None)
            return None if batch is None else {name: batch.inputs}

    logging.getLogger().setLevel(logging.ERROR)
    prepared = folder / "prepared.onnx"
    quant_pre_process(str(original), str(prepared), skip_symbolic_shape=True)
    paths = {
        "onnxruntime, defaults": folder / "default.onnx",
        "onnxruntime, per channel": folder / "channel.onnx",
    }
    plain, best = paths.values()
    quantize_static(original, plain, Reader())
    quantize_static(
        prepared,
        best,
        Reader(),
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
        reduce_range=not this_machine().isa & {"avx512_vnni", "avx_vnni", "amx"},
    )
    return paths


def nncf_peer(original: Path, folder: Path, planned: Plan, environment: Path) -> dict[str, Path]:
    """Quantise with nncf at its most accurate settings: mixed preset, and bias correction layer by layer."""
    import numpy as np

    assert planned.data is not None and planned.model.preprocess is not None
    batches = planned.data.calibrate.batches(1, planned.model.preprocess)
    photographs, target = folder / "calibration.npy", folder / "nncf.onnx"
    np.save(photographs, np.concatenate([batch.inputs for batch in batches]))
    python = _environment(environment)
    script = Path(__file__).with_name("nncf_peer.py")
    try:
        for correction in ("accurate", "fast"):
            command = [python, script, original, photographs, target, correction]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if not done.returncode:
                return {f"nncf 3.4, {correction} bias correction": target}
            reason = (done.stderr.strip().splitlines() or ["?"])[-1]
            print(f"nncf fails with its {correction} bias correction: {reason}", file=sys.stderr)
    finally:
        photographs.unlink()
    return {}


def _environment(folder: Path) -> Path:
    """Return the Python of a virtual environment with nncf, made in `folder` where it is not there yet."""
    python = folder / "bin" / "python"
    if not (folder / "complete").exists():
        print(f"Installing {NNCF} into {folder} …", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", NNCF, "onnx", "onnxruntime"], check=True)
        (folder / "complete").touch()
    return python


def input_name(path: Path) -> str:
    """Return the name of an ONNX file's input."""
    import onnx

    return str(onnx.load(path, load_external_data=False).graph.input[0].name)
