"""What trtexec prints and exports is read to the last figure, or it is an error."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from penjing.errors import StepError
from penjing_tensorrt import exports, failures
from penjing_tensorrt.output import Layer, MalformedError, as_json, read_log, read_version

LOGS = Path(__file__).parent / "logs"
PASSED = ["8.5", "8.6", "10.3", "10.16", "11.1"]


def text(name: str) -> str:
    return (LOGS / f"{name}.log").read_text()


@pytest.mark.parametrize(
    ("name", "version"),
    [("8.5", "8.5.2"), ("8.6", "8.6.2"), ("10.3", "10.3.0"), ("10.16", "10.16.2"), ("11.1", "11.1.0")],
)
def test_the_summary_of_each_release_is_read(name: str, version: str) -> None:
    log = read_log(text(name), timed=True)

    assert log.version == version
    assert log.summary is not None
    assert log.summary.throughput == 939.909
    assert (log.summary.gpu.median, log.summary.gpu.max) == (1.04688, 1.29395)
    assert log.summary.latency.percentiles == {90: 1.08, 95: 1.09, 99: 1.2}
    assert (log.summary.host_seconds, log.summary.queries) == (10.0031, 9402)
    assert log.build_seconds == 48.2169
    assert log.engine_mib == (None if name.startswith("8") else 11.9872)


def test_numbers_with_an_exponent_and_copies_that_are_left_out_are_read() -> None:
    assert read_log(text("8.5")).summary.d2h.min == 0.000244141
    assert (
        read_log(text("8.5").replace("min = 0.000244141 ms", "min = 2.44141e-04 ms")).summary.d2h.min
        == 0.000244141
    )
    assert read_log(text("11.1")).summary.h2d.median == 0


@pytest.mark.parametrize("name", ["8.5", "10.3"])
def test_the_profile_is_read_in_both_orders_of_its_columns(name: str) -> None:
    layers = read_log(text(name)).profile

    assert [layer.name for layer in layers] == [
        "conv1 + relu1", 'layer1.0: "a" 2 conv 3', "Reformatting CopyNode for Output Tensor 0 to fc",
    ]  # fmt: skip
    assert layers[1] == Layer('layer1.0: "a" 2 conv 3', 0.9626, 0.9601, 91.3)


def test_warnings_are_kept_once() -> None:
    assert read_log(text("10.16")).warnings[0].startswith("ModelImporter.cpp:459: Make sure")


def test_figures_go_into_json() -> None:
    assert (
        json.loads(json.dumps(as_json(read_log(text("10.3")))))["summary"]["gpu"]["percentiles"]["99"] == 1.18
    )


def test_a_log_without_a_summary_is_an_error_where_times_are_asked_for() -> None:
    built = text("8.6").replace("=== Performance summary ===", "=== Nothing ===")

    assert read_log(built).summary is None
    with pytest.raises(MalformedError, match="no performance summary") as error:
        read_log(built, timed=True)
    assert "--separateProfileRun" in error.value.hint


@pytest.mark.parametrize(
    ("pattern", "replacement", "message"),
    [
        (r".*Throughput: .*\n", "", "lacks Throughput"),
        (r".*GPU Compute Time: min.*\n", "", "lacks GPU Compute Time"),
        (r".*Total Host Walltime.*\n", "", "lacks Total Host Walltime"),
        (r"GPU Compute Time: min = [\d.]+ ms", "GPU Compute Time: min = nan ms", "lacks GPU Compute Time"),
        (r"GPU Compute Time: min = [\d.]+ ms", "GPU Compute Time: min = 1,2 ms", "lacks GPU Compute Time"),
        (r"GPU Compute Time: min = [\d.]+ ms", "GPU Compute Time: min = 99 ms", "contradicts itself"),
        (r"GPU Compute Time: min = [\d.]+ ms", "GPU Compute Time: min = 1e999 ms", "too large"),
        (r"&&&& PASSED.*\n", "", "cut off"),
        (r"&&&& .*\n", "", "no log of trtexec"),
        (r".*\[I\]\s{20,}Total .*\n", "", "row Total"),
        (r"Layer   Time \(ms\)", "Ebene   Time (ms)", "another head"),
    ],
)
def test_a_malformed_log_is_an_error_and_never_zeros(pattern: str, replacement: str, message: str) -> None:
    broken, count = re.subn(pattern, replacement, text("8.5"))

    assert count
    with pytest.raises(MalformedError, match=message):
        read_log(broken, timed=True)


@pytest.mark.parametrize("name", PASSED)
def test_a_log_cut_anywhere_is_an_error_or_says_the_same(name: str) -> None:
    whole, expected = text(name), read_log(text(name), timed=True)
    for end in range(0, len(whole), 37):
        try:
            found = read_log(whole[:end], timed=True)
        except StepError:
            continue
        assert found.summary == expected.summary


@given(st.sampled_from(PASSED), st.data())
def test_a_log_with_lines_lost_is_an_error_or_says_the_same(name: str, data: st.DataObject) -> None:
    lines = text(name).splitlines()
    lost = data.draw(st.sets(st.integers(0, len(lines) - 1), max_size=6))
    expected = read_log(text(name), timed=True).summary
    try:
        found = read_log("\n".join(line for index, line in enumerate(lines) if index not in lost), timed=True)
    except StepError:
        return
    assert found.summary is not None
    assert found.summary.gpu == expected.gpu
    assert found.summary.throughput == expected.throughput


@given(st.text(max_size=300))
def test_any_text_is_read_or_refused(said: str) -> None:
    with pytest.raises(StepError):
        read_log(said)


@pytest.mark.parametrize(
    ("name", "says", "cure"),
    [
        ("failed-memory", "out of memory", "workspace"),
        ("failed-operator", "could not find plugin: Round", "does not read that operator"),
        ("failed-version", "expecting library version 8.6.2.3 got 10.3.0.30", "penjing doctor --engine"),
        ("failed-gpu", "expecting compute 8.7 got compute 8.6", "another GPU"),
        ("failed-int8", "int8 is not configured", "needs --int8"),
        ("failed-dla", "not supported on DLA", "fallback"),
        ("failed-option", "Unknown option: --workspace", "another release"),
    ],
)
def test_a_failure_tells_the_first_error_and_the_cure(name: str, says: str, cure: str) -> None:
    with pytest.raises(StepError) as error:
        read_log(text(name))

    assert not isinstance(error.value, MalformedError)
    assert says in error.value.message
    assert cure in error.value.hint


def test_an_error_that_nobody_knows_is_told_as_it_is() -> None:
    odd = (
        text("failed-int8")
        .replace("Int8 precision has been set", "The moon is full")
        .replace("int8 is", "so it is")
    )
    with pytest.raises(StepError, match="The moon is full") as error:
        read_log(odd)
    assert "--verbose" in error.value.hint


def test_every_cure_has_a_source_and_a_pattern_that_compiles() -> None:
    assert all(entry["source"] and entry["cure"].endswith(".") for entry in failures._known())


@pytest.mark.parametrize(
    ("tag", "version"),
    [("8502", "8.5.2"), ("8001", "8.0.1"), ("100300", "10.3.0"), ("101602", "10.16.2"), ("110401", "11.4.1")],
)
def test_the_tag_of_a_version_is_read(tag: str, version: str) -> None:
    assert read_version(tag) == version


TIMES = [
    {"startEnqMs": 0.1, "endEnqMs": 0.2, "startH2dMs": 0, "endH2dMs": 0, "startComputeMs": 0.2, "endComputeMs": 1.3,
     "startD2hMs": 1.3, "endD2hMs": 1.3, "h2dMs": 0, "computeMs": 1.1, "d2hMs": 0, "latencyMs": 1.1},
]  # fmt: skip
PROFILE = """[
  { "count" : 941 }
  , { "name" : "conv1 + relu", "timeMs" : 41.2, "averageMs" : 0.0438, "medianMs" : 0.0436, "percentage" : 4.1 }
  , { "name" : "a "quoted" \\back\\slash", "timeMs" : 4e+02, "averageMs" : 0.4, "medianMs" : 0.43, "percentage" : 95 }
]
"""


def test_exported_times_are_read(tmp_path: Path) -> None:
    (tmp_path / "times.json").write_text(json.dumps(TIMES))

    assert exports.read_times(tmp_path / "times.json") == [exports.Query(0, 1.1, 0, 1.1)]


def test_an_exported_profile_is_read_though_its_names_are_not_escaped(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    path.write_text(PROFILE)

    assert exports.read_profile(path) == [
        Layer("conv1 + relu", 0.0438, 0.0436, 4.1),
        Layer('a "quoted" \\back\\slash', 0.4, 0.43, 95),
    ]
    path.write_text(PROFILE.replace('"quoted" \\back\\slash', "b"))
    assert [layer.name for layer in exports.read_profile(path)] == ["conv1 + relu", "a b"]


def test_layers_are_read_by_name_or_in_detail(tmp_path: Path) -> None:
    path = tmp_path / "layers.json"
    path.write_text(json.dumps({"Layers": ["conv1", "fc"], "Bindings": ["x"]}))
    assert [layer.name for layer in exports.read_layers(path)] == ["conv1", "fc"]
    outputs = [
        {
            "Name": "y",
            "Dimensions": [1, 64],
            "Format/Datatype": "Thirty-two wide channel vectorized row major Int8 format",
        }
    ]
    path.write_text(
        json.dumps({"Layers": [{"Name": "conv1", "LayerType": "CaskConvolution", "Outputs": outputs}]})
    )
    assert exports.read_layers(path) == [exports.EngineLayer("conv1", "CaskConvolution", ("Int8",))]


@pytest.mark.parametrize("read", [exports.read_times, exports.read_profile, exports.read_layers])
@pytest.mark.parametrize(
    "content",
    ["", "[", "{}", "[]", "null", '{"Layers": 3}', '{"Layers": [{"Name": 3}]}', '[{"computeMs": "fast"}]', "[" * 9999],
)  # fmt: skip
def test_a_malformed_export_is_an_error(tmp_path: Path, read, content: str) -> None:
    (tmp_path / "file.json").write_text(content)

    with pytest.raises(MalformedError, match=r"file\.json"):
        read(tmp_path / "file.json")
    with pytest.raises(MalformedError, match=r"wrote no missing\.json"):
        read(tmp_path / "missing.json")


@pytest.mark.parametrize("value", [float("nan"), -1, None, True, "1"])
def test_a_time_that_is_none_is_an_error(tmp_path: Path, value: object) -> None:
    (tmp_path / "times.json").write_text(json.dumps([{**TIMES[0], "computeMs": value}]))

    with pytest.raises(MalformedError, match="computeMs"):
        exports.read_times(tmp_path / "times.json")


def test_an_export_cut_anywhere_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    for end in range(len(PROFILE) - 2):
        path.write_text(PROFILE[:end])
        with pytest.raises(MalformedError):
            exports.read_profile(path)
