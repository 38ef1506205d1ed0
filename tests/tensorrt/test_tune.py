"""`penjing tune`: every choice is built and timed once, and the table says which is best at what."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from penjing.api import Request, compress
from penjing.cli import cli
from penjing.errors import InputError, PlanError, StepError
from penjing.testing import photographs

NET = """
import torch
from torch import nn


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 2),
    )
"""
PREPROCESS = """
resize = [32, 32]
scale = 0.00392156862745
mean = [0.0, 0.0, 0.0]
std = [1.0, 1.0, 1.0]
channels = "RGB"
"""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a run of open batch for Jetson Orin Nano."""
    place = tmp_path_factory.mktemp("made")
    photographs(place / "photos", each=10)
    (place / "model.py").write_text(NET)
    (place / "preprocess.toml").write_text(PREPROCESS)
    compress(
        Request(
            f"{place / 'model.py'}:network", "jetson-orin-nano", data=place / "photos", out=place / "run",
            preprocess=place / "preprocess.toml", settings=("onnx.export.batch=0",),
        )
    )  # fmt: skip
    return place


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made / "run", tmp_path / "run")
    return tmp_path / "run"


def tune(run: Path, *words: str) -> Result:
    return CliRunner().invoke(cli, ["tune", str(run), *words])


def found(run: Path, *words: str) -> dict[str, Any]:
    answer = tune(run, "--json", "--quiet", *words)
    assert answer.exit_code == 0, answer.exception
    return json.loads(answer.stdout)


def test_every_precision_is_built_and_timed_and_the_best_is_named(run, on_board, calls) -> None:
    result = found(run, "--batch", "1", "--batch", "4")

    assert [(m["choice"]["precision"], m["choice"]["batch"]) for m in result["measured"]] == [
        (precision, batch) for precision in ("fp32", "fp16", "int8", "best") for batch in (1, 4)
    ]
    assert result["quickest"] == "int8, batch 1"
    assert result["most_images"] == "int8, batch 4"
    wanted = {"precision": "int8", "batch": 4, "level": None, "column": "optimised"}
    int8 = next(m for m in result["measured"] if m["choice"] == wanted)
    assert int8["median_ms"] == pytest.approx(4 / 4 * 2.5 - 0.03)
    assert int8["images_per_s"] == pytest.approx(4 * 1000 / int8["median_ms"], rel=1e-4)
    assert int8["p90_ms"] == pytest.approx(int8["median_ms"])
    built = [words for words in calls() if any(word.startswith("--onnx") for word in words)]
    assert len(built) == 8
    assert "--optShapes=input:4x3x32x32" in built[5]
    assert not any("--int8" in words for words in built[:4])


def test_a_search_takes_up_where_it_was(run, on_board, calls) -> None:
    first = found(run, "--precision", "fp16", "--batch", "1")
    count = len(calls())
    again = found(run, "--precision", "fp16", "--batch", "1", "--batch", "2")

    assert [m["reused"] for m in again["measured"]] == [True, False]
    assert again["measured"][0]["median_ms"] == first["measured"][0]["median_ms"]
    assert len(calls()) == count + 2


def test_what_was_changed_by_hand_is_measured_again(run, on_board, calls) -> None:
    found(run, "--precision", "fp16", "--batch", "1")
    (kept,) = [path for path in (run / "tune").glob("*.json") if path.name != "tune.json"]
    kept.write_text(kept.read_text().replace('"median_ms": 1.97', '"median_ms": 0.01'))

    assert found(run, "--precision", "fp16", "--batch", "1")["measured"][0]["median_ms"] == pytest.approx(
        1.97
    )


def test_levels_are_tried(run, on_board) -> None:
    result = found(run, "--precision", "best", "--batch", "1", "--level", "1", "--level", "5")

    assert result["quickest"] == "best, batch 1, level 5"


def test_a_choice_that_fails_is_told_and_tried_again(run, on_board, monkeypatch) -> None:
    monkeypatch.setenv("FAKE_TRTEXEC_FAILS", "--best")
    result = found(run, "--precision", "fp16", "--precision", "best", "--batch", "1")

    assert "out of memory" in result["measured"][1]["failed"]
    assert result["measured"][1]["median_ms"] is None
    assert result["quickest"] == "fp16, batch 1"
    monkeypatch.setenv("FAKE_TRTEXEC_FAILS", "nothing")
    assert found(run, "--precision", "best", "--batch", "1")["measured"][0]["failed"] == ""


def test_where_nothing_could_be_timed_it_fails_and_what_was_found_before_stays(
    run, on_board, monkeypatch
) -> None:
    found(run, "--precision", "fp32", "--batch", "1")
    before = (run / "tune" / "tune.json").read_bytes()
    monkeypatch.setenv("FAKE_TRTEXEC_FAILS", "--onnx")

    answer = tune(run, "--precision", "fp16", "--batch", "1")

    assert isinstance(answer.exception, StepError)
    assert "out of memory" in answer.exception.message
    assert (run / "tune" / "tune.json").read_bytes() == before


def test_the_table_fits_80_columns_and_says_below_it_why_a_choice_failed(run, on_board, monkeypatch) -> None:
    monkeypatch.setenv("FAKE_TRTEXEC_FAILS", "--fp16")

    lines = tune(run, "--batch", "1", "--level", "3").stdout.splitlines()

    assert max(map(len, lines)) <= 80
    assert not any("…" in line for line in lines)
    assert any(line.startswith("failed: fp16, batch 1, level 3: trtexec failed") for line in lines)


def test_what_cannot_be_tried_is_said_once_for_each_reason(made: Path, run, on_board) -> None:
    answer = tune(run, "--precision", "int8", "--precision", "fp32", "--level", "3", "--batch", "1")
    assert answer.exit_code == 0

    (run / "optimised" / "model.onnx").unlink()
    (run / "direct" / "model.onnx").unlink()
    refused = tune(run, "--precision", "int8")

    assert isinstance(refused.exception, PlanError)
    assert refused.exception.message.count("no model of the run is quantised") == 1


def test_a_table_goes_to_people_and_into_the_report(run, on_board) -> None:
    said = tune(run, "--precision", "fp16", "--precision", "int8", "--batch", "1")

    assert said.exit_code == 0
    assert "Quickest: int8, batch 1" in said.stdout
    tune(run, "--precision", "fp16", "--batch", "1")
    report = json.loads((run / "report.json").read_text())
    shown = [
        exhibit
        for step in report["steps"]
        for exhibit in step["exhibits"]
        if "Build choices" in exhibit["title"]
    ]
    assert [exhibit["kind"] for exhibit in shown] == ["table", "bars"]
    assert len(shown[0]["rows"]) == 1


def test_elsewhere_it_is_refused_with_the_commands_for_the_board(run: Path) -> None:
    answer = tune(run)

    assert isinstance(answer.exception, PlanError)
    assert "cannot be tried here: this machine" in answer.exception.message
    assert "penjing tune" in answer.exception.hint
    assert "/usr/src/tensorrt/bin/trtexec --onnx=model.onnx" in answer.exception.hint
    assert not (run / "tune").exists()


def test_a_run_of_another_backend_or_an_unfinished_one_is_refused(run: Path, on_board) -> None:
    (run / "original" / "model.onnx").unlink()
    assert isinstance(tune(run).exception, InputError)
    asked = json.loads((run / "run.json").read_text())
    asked["backend"] = {"name": "onnxrt", "options": {"threads": 1}}
    (run / "run.json").write_text(json.dumps(asked))
    answer = tune(run)
    assert "made for the backend onnxrt" in str(answer.exception)


def test_a_program_that_is_no_trtexec_is_refused(run: Path, tmp_path: Path, on_board) -> None:
    other = tmp_path / "other"
    other.write_text("#!/bin/sh\necho hello\n")
    other.chmod(0o755)

    assert "does not say that it is trtexec" in str(tune(run, "--trtexec", str(other)).exception)


def test_the_engine_is_built_and_timed_by_trtexec_while_compressing(
    made: Path, tmp_path: Path, on_board, calls: Callable[[], list[list[str]]]
) -> None:
    """On a board without TensorRT's Python module the step builds and times, and answers are simulated."""
    report = compress(
        Request(
            f"{made / 'model.py'}:network", "jetson-orin-nano", data=made / "photos", out=tmp_path / "out",
            preprocess=made / "preprocess.toml",
        )
    )  # fmt: skip

    step = report["steps"][-1]
    assert step["details"]["engine"]["tensorrt"] == "10.3.0"
    assert step["details"]["engine"]["built_by"] == "trtexec"
    assert step["details"]["trtexec"]["gpu"]["median"] == pytest.approx(0.97)
    assert {exhibit["kind"] for exhibit in step["exhibits"]} == {"table", "bars"}
    assert "only trtexec is here" in report["columns"][-1]["latency_why"]
    assert report["columns"][-1]["fidelity"]["sqnr_db"] > 10
    assert sum("--saveEngine=model.plan" in words for words in calls()) == 3
