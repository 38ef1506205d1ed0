"""The main job repeated, cut off, changed, and for devices that are elsewhere."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
from penjing import report as reports


def results(run):
    """Return what does not depend on the clock."""
    found = reports.read(run / "report.json")
    return [
        {key: column[key] for key in ("name", "sha256", "accuracy", "fidelity")}
        for column in found["columns"]
    ]


def steps(run):
    return {path.parent.name: path.stat().st_mtime_ns for path in run.glob("steps/[!.]*/step.json")}


@pytest.mark.slow
def test_a_run_killed_ten_times_is_taken_up_where_it_was(workplace, finished, compress, command):
    """Ten times SIGKILL at random moments; what was finished before stays finished, and the result is the same."""
    run, chance = workplace / "run", random.Random(0)
    shutil.rmtree(run)
    known = {}
    for attempt in range(10):
        process = subprocess.Popen(
            [sys.executable, "-m", "penjing", *compress, "--quiet"], cwd=workplace, stderr=subprocess.DEVNULL
        )
        time.sleep(chance.uniform(0.3, 1.2 + attempt / 2))
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert known.items() <= steps(run).items()
        known = steps(run)

    assert command(*compress, "--quiet", cwd=workplace).code == 0
    assert known.items() <= steps(run).items()
    assert results(run) == results(finished)
    assert [path for path in run.rglob(".*") if path.name != ".lock"] == []


@pytest.mark.parametrize("change", ["option", "preprocessing", "weights", "labels"])
def test_what_depends_on_a_change_is_made_anew(workplace, command, compress, change):
    """Fault R30, with the real steps; test_run.py has the other changes."""
    before, extra = steps(workplace / "run"), []
    if change == "option":
        extra = ["--set", "quant.static.method=minmax"]
    elif change == "preprocessing":
        text = (workplace / "preprocess.toml").read_text()
        (workplace / "preprocess.toml").write_text(text.replace("[0.0, 0.0, 0.0]", "[0.1, 0.0, 0.0]"))
    elif change == "weights":
        text = (workplace / "model.py").read_text()
        (workplace / "model.py").write_text(text.replace("mul_(0.01)", "mul_(0.02)"))
    else:
        (workplace / "photos" / "a-red" / "0.png").rename(workplace / "photos" / "b-green" / "moved.png")
    answer = command(*compress, *extra, "--json", cwd=workplace)

    assert answer.code == 0
    made = {name.rsplit("-", 1)[0] for name in steps(workplace / "run").keys() - before.keys()}
    assert "quant.static" in made
    assert ("onnx.export" in made) == (change in ("preprocessing", "weights"))


def test_a_raspberry_pi_that_is_not_here_is_simulated_and_never_timed(workplace, command, compress):
    answer = command(*compress, "--device", "raspberry-pi-5", "--max-latency", 5, "--json", cwd=workplace)
    assert answer.code == 11
    for column in answer.json["columns"]:
        assert column["latency"] is None
        assert "is not a Raspberry Pi 5" in column["latency_why"]
    assert answer.json["columns"][2]["accuracy"]["value"] > 0.6
    assert "not measured" in command("report", "run", cwd=workplace).out
    again = command("measure", "run", cwd=workplace)
    assert again.code == 3
    assert "cannot be measured here" in again.err


@pytest.mark.parametrize("device", ["rtx-3090@tensorrt-11", "jetson-orin-nano", "jetson-xavier-nx"])
def test_a_gpu_that_is_not_here_gets_its_graph_its_command_and_simulated_answers(
    workplace, command, compress, device
):
    shutil.rmtree(workplace / "run")
    plan = command("plan", *compress[1:], "--device", device, "--json", cwd=workplace)
    assert plan.json["refusal"] == ""
    assert "/usr/src/tensorrt/bin/trtexec --onnx=model.onnx" in plan.json["steps"][-1]["why"]
    answer = command(*compress, "--device", device, "--json", cwd=workplace)
    assert answer.code == 0
    original, _, optimised = answer.json["columns"]
    assert optimised["accuracy"]["value"] > 0.6
    assert optimised["fidelity"]["sqnr_db"] > 15
    assert optimised["size_bytes"] < original["size_bytes"]
    assert optimised["latency"] is None
    assert optimised["latency_why"]
    manifest = json.loads((workplace / "run" / "bundle" / "manifest.json").read_text())
    assert manifest["runtime"]["name"] == "tensorrt"
    assert "--onnx=model.onnx" in manifest["runtime"]["build"]["command"]


def test_an_onnx_file_goes_the_same_way_and_is_never_quantised_twice(workplace, command, compress):
    words = ["compress", "run/original/model.onnx", "--data", "photos", "--json"]
    answer = command(*words, "--out", "other", cwd=workplace)
    assert answer.code == 0
    assert answer.json["columns"][2]["accuracy"]["value"] > 0.6
    words[1] = "run/direct/model.onnx"
    twice = command(*words, "--out", "twice", cwd=workplace)
    assert "quantised" in twice.err
    assert "a fault in Penjing" not in twice.err
    if twice.code == 0:
        columns = twice.json["columns"]
        assert columns[0]["sha256"] == columns[2]["sha256"]
    else:
        assert twice.code in (3, 4)


def test_a_tool_embeds_the_main_job_in_a_few_lines_and_nothing_is_printed(workplace, capfd):
    from penjing import Goal, Request, compress

    report = compress(
        Request(
            f"{workplace}/model.py:network",
            "this-machine",
            data=workplace / "photos",
            preprocess=workplace / "preprocess.toml",
            goal=Goal(max_drop=100),
            out=workplace / "embedded",
        )
    )
    assert report["goals"][0]["verdict"] == "met"
    assert capfd.readouterr() == ("", "")
