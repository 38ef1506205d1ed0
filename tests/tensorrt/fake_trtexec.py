#!/usr/bin/env python3
"""Stands in for trtexec 10.3: it checks its flags, leaves the files it is asked for, and prints a log in its form.

The time that it tells depends on precision, batch and level, so that a search has something to find.
"""

import json
import os
import sys
from pathlib import Path

HERE = Path(__file__).parent
flags = dict(word.partition("=")[::2] for word in sys.argv[1:])
version = os.environ.get("FAKE_TRTEXEC", "10.3")
tag = {"10.3": "100300] [b30", "8.5": "8502", "11.1": "110100] [b7"}[version]
command = " ".join(sys.argv)
print(f"&&&& RUNNING TensorRT.trtexec [TensorRT v{tag}] # {command}")


def fail(message: str) -> None:
    print(f"[11/24/2026-10:15:01] [E] {message}")
    print(f"&&&& FAILED TensorRT.trtexec [TensorRT v{tag}] # {command}")
    sys.exit(1)


with Path(os.environ.get("FAKE_TRTEXEC_CALLS", os.devnull)).open("a") as calls:
    calls.write(json.dumps(sys.argv[1:]) + "\n")
if "--help" in flags:
    sys.exit(0)
if os.environ.get("FAKE_TRTEXEC_FAILS", "nothing") in command:
    fail("Error[1]: [defaultAllocator.cpp::allocate::31] Error Code 1: Cuda Runtime (out of memory)")
if "--onnx" in flags:
    if not Path(flags["--onnx"]).is_file():
        fail(f"Could not open file {flags['--onnx']}")
    Path(flags["--saveEngine"]).write_bytes(
        b"ftrt" + bytes(20) + bytes([10, 3, 0, 30]) + json.dumps(flags).encode()
    )
    if "--timingCacheFile" in flags:
        Path(flags["--timingCacheFile"]).write_bytes(b"timings")
    if "--exportLayerInfo" in flags:
        layer = {
            "Name": "conv",
            "LayerType": "Convolution",
            "Outputs": [{"Name": "y", "Format/Datatype": "Int8"}],
        }
        Path(flags["--exportLayerInfo"]).write_text(json.dumps({"Layers": [layer], "Bindings": ["x", "y"]}))
    print("[11/24/2026-10:15:01] [I] Engine built in 48.2169 sec.")
    print(f"&&&& PASSED TensorRT.trtexec [TensorRT v{tag}] # {command}")
    sys.exit(0)
engine = Path(flags["--loadEngine"]).read_bytes()
built = json.loads(engine[28:])
batch = int(built.get("--optShapes", ":1x").rpartition(":")[2].split("x")[0])
ms = (
    4.0
    / (1 + ("--fp16" in built) + 2 * ("--int8" in built) + 2.5 * ("--best" in built))
    * (0.5 + 0.5 * batch)
)
ms -= 0.01 * int(built.get("--builderOptimizationLevel", 3))
log = (HERE / "logs" / "10.3.log").read_text().splitlines()
for line in log[1:-1]:
    if "GPU Compute Time: min" in line:
        line = line.partition("GPU")[0] + (
            f"GPU Compute Time: min = {ms:g} ms, max = {ms:g} ms, mean = {ms:g} ms, median = {ms:g} ms, "
            f"percentile(90%) = {ms:g} ms"
        )
    elif "Throughput:" in line:
        line = line.partition("Throughput")[0] + f"Throughput: {1000 / ms:g} qps"
    print(line)
if "--exportProfile" in flags:
    row = '{ "name" : "conv", "timeMs" : 41.2, "averageMs" : 0.04, "medianMs" : 0.04, "percentage" : 100.0 }'
    Path(flags["--exportProfile"]).write_text(f'[\n  {{ "count" : 941 }}\n  , {row}\n]\n')
print(f"&&&& PASSED TensorRT.trtexec [TensorRT v{tag}] # {command}")
