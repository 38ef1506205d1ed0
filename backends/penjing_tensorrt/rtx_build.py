"""The process that `penjing_tensorrt.rtx.gate` starts: parse, build, and report as JSON on the last line.

It is a script that imports nothing of Penjing: what kills the native library kills this process alone.
Arguments: the ONNX file, compute capabilities with commas between, where to write the engine or "".
"""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path
from typing import Any

#: what an open dimension besides the batch is built for
SIZE = 224


def main(path: str, capabilities: str, engine: str) -> None:
    """Print the report."""
    import tensorrt_rtx_bindings as trt

    class Log(trt.ILogger):  # type: ignore[misc]  # the library ships no types
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.ERROR:
                self.errors.append(message)

    log = Log()
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    start = time.perf_counter()
    parsed = parser.parse(Path(path).read_bytes())
    errors = _parser_errors(parser, log.errors)
    plan = None
    if parsed and not errors:
        log.errors.clear()
        if not network.num_outputs:
            errors = [_error(message="the file holds no network")]
        else:
            plan = builder.build_serialized_network(network, _config(trt, builder, network, capabilities))
            if plan is None:
                errors = [_build_error(log.errors)]
    elif not errors:
        errors = [_error(message="; ".join(log.errors) or "the parser refuses the file")]
    data = bytes(plan) if plan is not None else b""
    if data and engine:
        Path(engine).write_bytes(data)
    report = {
        "version": trt.__version__,
        "errors": errors,
        "bytes": len(data),
        "seconds": time.perf_counter() - start,
    }
    print(json.dumps(report))


def _config(trt: Any, builder: Any, network: Any, capabilities: str) -> Any:
    config = builder.create_builder_config()
    names = [f"SM{name.replace('.', '')}" for name in capabilities.split(",")]
    config.num_compute_capabilities = len(names)
    for place, name in enumerate(names):
        config.set_compute_capability(getattr(trt.ComputeCapability, name), place)
    profile = builder.create_optimization_profile()
    for number in range(network.num_inputs):
        tensor = network.get_input(number)
        if -1 in tuple(tensor.shape):
            shape = [
                size if size >= 0 else SIZE if place else 1 for place, size in enumerate(tuple(tensor.shape))
            ]
            profile.set_shape(tensor.name, shape, shape, shape)
    config.add_optimization_profile(profile)
    return config


def _parser_errors(parser: Any, logged: list[str]) -> list[dict[str, str]]:
    """Return the parser's errors; a node without a name is called by what it puts out, as the log tells."""
    outputs = re.findall(r'While parsing node number (\d+) \[(\w+) -> "([^"]*)"', "\n".join(logged))
    by_place = {int(place): output for place, _, output in outputs}
    found = []
    for number in range(parser.num_errors):
        error = parser.get_error(number)
        name = error.node_name() or by_place.get(error.node(), "")
        found.append(_error(name, error.node_operator(), error.code().name, error.desc()))
    return found


def _build_error(logged: list[str]) -> dict[str, str]:
    """Return what the builder logged, with the node it names; errors that only tell of the missing GPU left out."""
    telling = [message for message in logged if "cudaError 35" not in message] or logged
    text = "; ".join(telling) or "the builder made no engine"
    found = re.search(r"Error \((?:node )?([^\s:()]+):|for node ([^\s.]+)", text)
    return _error(node=next(filter(None, found.groups()), "") if found else "", message=text)


def _error(node: str = "", operator: str = "", code: str = "", message: str = "") -> dict[str, str]:
    return {"node": node, "operator": operator, "code": code, "message": message}


if __name__ == "__main__":
    del sys.path[0]  # this package's own folder, whose modules are no top-level ones
    main(*sys.argv[1:])
