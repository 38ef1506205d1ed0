"""Command lines of trtexec for any release from 8.2 to 11, and running them."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from penjing.errors import PlanError, StepError

from penjing_tensorrt.adapters import adapter
from penjing_tensorrt.build import Build
from penjing_tensorrt.versions import Target, since

#: where NVIDIA's packages put it, which is not on PATH (jetson_dla_tutorial)
PLACE = "/usr/src/tensorrt/bin/trtexec"
#: longest time that one command may take, in seconds: engines with FP16 and INT8 take minutes to build
LONGEST = 3 * 3600.0
_LARGEST_LOG = 2**24


def find() -> str:
    """Return the path of trtexec on this machine, "" where there is none."""
    return shutil.which("trtexec") or (PLACE if Path(PLACE).is_file() else "")


def build_command(
    aim: Target, build: Build, *, onnx: str, engine: str, layers: str = "", program: str = PLACE
) -> list[str]:
    """Return the command that builds an engine and does not run it.

    `onnx`, `engine` and `layers` are names of files: the graph, the engine to save, and where to export what
    each layer became. Raises PlanError for what some release of `aim` has no flag for.
    """
    flags = [f"--onnx={onnx}", f"--saveEngine={engine}", *_build_flags(aim, build)]
    if layers:
        flags += ["--profilingVerbosity=detailed", f"--exportLayerInfo={layers}"]
    flags.append("--skipInference" if aim.has("--skipInference") else "--buildOnly")
    return [program, *checked(aim, flags)]


def measure_command(
    aim: Target,
    build: Build,
    *,
    engine: str,
    times: str = "",
    profile: str = "",
    seconds: int = 10,
    program: str = PLACE,
) -> list[str]:
    """Return the command that times an engine, so that numbers of all releases mean the same.

    Copies to and from the GPU are left out, the CPU waits actively and launches one CUDA graph. From 11 on that
    is the default, and the flags that ask for it only log warnings.
    """
    flags = [f"--loadEngine={engine}", "--warmUp=500", f"--duration={seconds}"]
    if aim.weak:
        flags += ["--useCudaGraph", "--useSpinWait", "--noDataTransfers"]
    elif aim.choice:
        raise PlanError(
            f"What trtexec times by default differs among TensorRT {aim.name}.",
            hint="Name one major version.",
        )
    flags += [f"--shapes={_shape(name, usual)}" for name, (_, usual, _) in build.shapes.items()]
    if build.dla_core is not None:
        flags.append(f"--useDLACore={build.dla_core}")
    flags += [f"--exportTimes={times}"] if times else []
    # without a run of its own for the profiler, no summary is printed
    flags += [f"--exportProfile={profile}", "--separateProfileRun"] if profile else []
    return [program, *checked(aim, flags)]


def checked(aim: Target, flags: Iterable[str]) -> list[str]:
    """Return `flags`, each of which trtexec of every release takes; PlanError names one that it does not."""
    flags = list(flags)
    for flag in flags:
        if not aim.has(flag):
            bare = flag.partition("=")[0]
            raise PlanError(
                f"trtexec of TensorRT {aim.name} has no {bare}: {since(bare)}.",
                hint="It would end with `Unknown option`. Leave out the option that asks for it.",
            )
    return flags


def _build_flags(aim: Target, build: Build) -> Iterator[str]:
    yield from adapter(build.typing).flags(build, aim)
    yield from _shape_flags(build)
    yield from _memory_flags(aim, build)
    if build.level is not None:
        yield f"--builderOptimizationLevel={build.level}"
    if not build.tf32:
        yield "--noTF32"
    if build.sparse:
        yield "--sparsity=enable"
    if build.version_compatible:
        yield "--versionCompatible"
    if build.hardware != "none":
        yield f"--hardwareCompatibilityLevel={build.hardware}"
    if build.timing_cache:
        yield f"--timingCacheFile={build.timing_cache}"
    if build.dla_core is not None:
        yield f"--useDLACore={build.dla_core}"
        if build.gpu_fallback:
            yield "--allowGPUFallback"
    yield from build.extra


def _shape_flags(build: Build) -> Iterator[str]:
    for place, flag in enumerate(("--minShapes", "--optShapes", "--maxShapes")):
        if build.shapes:
            yield f"{flag}=" + ",".join(_shape(name, shapes[place]) for name, shapes in build.shapes.items())


def _memory_flags(aim: Target, build: Build) -> Iterator[str]:
    """Yield the pools' sizes in MiB: as plain numbers, which 8.4 to 11 read alike; 8.2 has one flag of its own."""
    pools = {**({"workspace": build.workspace} if build.workspace else {}), **build.pools}
    if not pools:
        return
    if aim.has("--memPoolSize"):
        yield "--memPoolSize=" + ",".join(f"{pool}:{size}" for pool, size in pools.items())
    elif build.pools:
        yield "--memPoolSize"  # refused with the releases that have it
    else:
        yield f"--workspace={build.workspace}"


def _shape(name: str, shape: Sequence[int]) -> str:
    return f"{name}:{'x'.join(map(str, shape))}"


def run(command: Sequence[str], folder: Path, *, timeout: float = LONGEST) -> str:
    """Run a command in `folder` and return its log, both streams together, however it ended.

    Raises StepError where it cannot be started, takes longer than `timeout` seconds, or prints too much.
    """
    # numbers are read by our parsers: no locale of the user's may write them with commas
    environment = {**os.environ, "LC_ALL": "C"}
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=timeout,
            check=False,
            env=environment,
        )
    except OSError as error:
        raise StepError(
            f"{command[0]} cannot be started: {error.strerror or error}.",
            hint="It comes with TensorRT's apt or tar package, at " + PLACE + ".",
        ) from error
    except subprocess.TimeoutExpired as error:
        raise StepError(
            f"trtexec did not end within {timeout / 60:.0f} minutes.", hint="Lower the optimisation level."
        ) from error
    if len(done.stdout) > _LARGEST_LOG:
        raise StepError(f"trtexec printed {len(done.stdout)} bytes; no log is that long.")
    return done.stdout.decode("utf-8", "replace")
