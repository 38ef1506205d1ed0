"""Command lines of trtexec: the same wish in the words of each release."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st
from penjing.device import Device, builtin_profiles, find_device, read_profile
from penjing.errors import PlanError
from penjing_tensorrt.backend import TensorRT
from penjing_tensorrt.build import Build
from penjing_tensorrt.trtexec import build_command, checked, measure_command
from penjing_tensorrt.versions import flags_of, nearest, of_version, releases, target

PROGRAM = "/usr/src/tensorrt/bin/trtexec"


def devices() -> list[Device]:
    found = []
    for path in builtin_profiles():
        device = read_profile(path)
        if device.backend == "tensorrt":
            found += [read_profile(path, stack) for stack in device.stacks]
    return found


DEVICES = devices()
each_device = pytest.mark.parametrize("device", DEVICES, ids=str)


def device(name: str) -> Device:
    return find_device(name, builtin_profiles())


def command(name: str, **options: object) -> list[str]:
    """Return the flags for a quantised graph of open batch on a device."""
    step, where = TensorRT(**options), device(name)
    step.check(where, step)
    build = step.build(where, {"int8"}, (1, 3, 224, 224), "input")
    return build_command(target(where), build, onnx="model.onnx", engine="model.plan", layers="layers.json")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("jetson-xavier-nx@jetpack-4.6", "--fp16 --int8 SHAPES --workspace=1907 CACHE LAYERS --buildOnly"),
        ("jetson-xavier-nx@jetpack-5.1", "--fp16 --int8 SHAPES POOL:1907 CACHE LAYERS --buildOnly"),
        ("jetson-orin-nano@jetpack-6.0", "--fp16 --int8 SHAPES POOL:1907 CACHE LAYERS SKIP"),
        ("jetson-orin-nano@jetpack-6.2", "--fp16 --int8 SHAPES POOL:1907 CACHE LAYERS SKIP"),
        ("jetson-thor@jetpack-7.2", "--fp16 --int8 SHAPES POOL:30517 CACHE LAYERS SKIP"),
        ("jetson-thor@jetpack-7.2.2", "SHAPES POOL:30517 CACHE LAYERS SKIP"),
        ("rtx-3090@tensorrt-11", "SHAPES POOL:5722 CACHE LAYERS SKIP"),
    ],
)  # fmt: skip
def test_the_same_engine_is_asked_for_in_the_words_of_each_release(name: str, expected: str) -> None:
    expected = expected.replace(
        "SHAPES",
        "--minShapes=input:1x3x224x224 --optShapes=input:1x3x224x224 --maxShapes=input:1x3x224x224",
    )
    expected = expected.replace("SKIP", "--skipInference").replace("POOL", "--memPoolSize=workspace")
    expected = expected.replace("CACHE", "--timingCacheFile=timing.cache")
    expected = expected.replace("LAYERS", "--profilingVerbosity=detailed --exportLayerInfo=layers.json")

    assert command(name) == [PROGRAM, "--onnx=model.onnx", "--saveEngine=model.plan", *expected.split()]


def test_a_strongly_typed_engine_is_asked_for_where_weak_ones_are_built_too() -> None:
    flags = command("jetson-orin-nano@jetpack-6.2", typing="strong")

    assert "--stronglyTyped" in flags
    assert not {"--fp16", "--int8"} & set(flags)
    assert "--stronglyTyped" not in command("rtx-3090@tensorrt-11")


def test_options_become_flags() -> None:
    flags = command(
        "jetson-orin-nano@jetpack-6.2", batch=4, max_batch=8, level=5, layers=("fc:fp32", "a:b:fp16"),
        tf32=False, sparse=True, version_compatible=True, timing_cache=False, precision="best",
    )  # fmt: skip

    assert {
        "--best", "--builderOptimizationLevel=5", "--precisionConstraints=obey", "--layerPrecisions=fc:fp32,a:b:fp16",
        "--noTF32", "--sparsity=enable", "--versionCompatible", "--maxShapes=input:8x3x224x224",
    } <= set(flags)  # fmt: skip
    assert not [flag for flag in flags if "timingCache" in flag or flag in ("--fp16", "--int8")]


def test_half_precision_goes_with_integers_and_not_with_floats() -> None:
    where = device("jetson-orin-nano")

    assert TensorRT().build(where, {"int8"}).formats == ("fp16", "int8")
    assert TensorRT().build(where, ()).formats == ()
    assert TensorRT().build(where, {"fp16"}).formats == ("fp16",)
    assert TensorRT(precision="fp32").build(where, {"int8"}).formats == ("int8",)
    assert TensorRT(precision="fp16").build(where, ()).formats == ("fp16",)


def test_an_accelerator_is_asked_for_with_its_pools_and_fallback() -> None:
    build = Build(
        "weak",
        ("fp16", "int8"),
        pools={"dlaSRAM": 1},
        calibration="calib.cache",
        dla_core=0,
        gpu_fallback=True,
    )
    flags = build_command(of_version("10.3"), build, onnx="m.onnx", engine="m.plan")

    assert {"--useDLACore=0", "--allowGPUFallback", "--calib=calib.cache", "--memPoolSize=dlaSRAM:1"} <= set(
        flags
    )
    with pytest.raises(PlanError, match=r"no --memPoolSize: 8\.4 and later"):
        build_command(of_version("8.2"), build, onnx="m.onnx", engine="m.plan")


def test_times_of_all_releases_mean_the_same() -> None:
    old = measure_command(of_version("8.5"), Build("weak"), engine="m.plan")
    new = measure_command(
        of_version("11.1"), Build("strong"), engine="m.plan", times="t.json", profile="p.json"
    )

    assert {"--useCudaGraph", "--useSpinWait", "--noDataTransfers"} <= set(old)
    assert not {"--useCudaGraph", "--useSpinWait", "--noDataTransfers"} & set(new)
    assert {"--exportTimes=t.json", "--exportProfile=p.json", "--separateProfileRun"} <= set(new)


def test_a_flag_that_a_release_lacks_is_refused_with_those_that_have_it() -> None:
    for version, flag, words in (
        ("10.3", "--workspace=64", "up to 8.6 they have it"),
        ("11.1", "--int8", "up to 10.16 they have it"),
        ("8.5", "--builderOptimizationLevel=5", "8.6 and later have it"),
        ("10.3", "--heuristic", "8.5 to 8.6 have it"),
        ("10.3", "--fast", "none has it"),
    ):
        with pytest.raises(PlanError, match=words):
            checked(of_version(version), [flag])


@each_device
def test_every_device_gets_a_plan_with_its_command(device: Device) -> None:
    step = TensorRT()
    step.check(device, step)
    why = step.explain(device, step)

    assert PROGRAM in why
    assert f"TensorRT {target(device).name}" in why
    assert target(device).typing == ("strong" if device.facts.get("typing") == "strong" else "weak")


OPTIONS = st.fixed_dictionaries(
    {
        "precision": st.sampled_from(["auto", "fp32", "fp16", "bf16", "int8", "fp8", "best"]),
        "typing": st.sampled_from(["auto", "weak", "strong"]),
        "batch": st.integers(1, 64),
        "max_batch": st.integers(0, 64),
        "workspace": st.floats(0.01, 1),
        "level": st.none() | st.integers(0, 5),
        "layers": st.sampled_from([(), ("fc:fp32",)]),
        "constraints": st.sampled_from(["obey", "prefer"]),
        "tf32": st.booleans(),
        "sparse": st.booleans(),
        "timing_cache": st.booleans(),
        "version_compatible": st.booleans(),
        "hardware_compatible": st.sampled_from(["none", "ampere+", "same-compute-capability"]),
    }
)


@given(st.sampled_from(DEVICES), OPTIONS, st.sets(st.sampled_from(["fp16", "int8"])), st.booleans())
def test_every_flag_exists_in_every_release_a_device_may_have(where, options, formats, shapes) -> None:
    """Whatever the options: the plan refuses them, or trtexec knows each flag."""
    step = TensorRT(**options)
    try:
        step.check(where, step)
    except PlanError:
        return
    build = step.build(where, formats, (options["batch"], 3, 8, 8) if shapes else (), "x")
    build = dataclasses.replace(build, dla_core=0 if where.dla_cores else None)
    aim = target(where)
    words = build_command(aim, build, onnx="m", engine="e", layers="l")[1:]
    words += measure_command(aim, build, engine="e", times="t", profile="p")[1:]
    within = [release for release in releases() if release in aim.listed]

    assert within
    for release in within:
        assert {word.partition("=")[0] for word in words} <= flags_of(release)


def test_the_nearest_release_is_never_newer() -> None:
    assert nearest("10.3.0.30") == "10.3.0"
    assert nearest("10.5") == "10.3.0"
    assert nearest("11.4.1") == "11.1"
    assert nearest("9.3") == "8.6.1"
    assert nearest("7.1") == "8.2.1"


def test_a_range_has_the_flags_that_all_its_releases_have() -> None:
    aim = target(device("rtx-3090"))

    assert aim.listed == ("10.0.1", "10.3.0", "10.7.0", "10.8.0", "10.13.3", "10.16")
    assert aim.has("--int8")
    assert not aim.has("--int4")
    assert not target(device("rtx-3090@tensorrt-11")).has("--int8")
