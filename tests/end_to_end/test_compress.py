"""The main job from the command line: what is written, what is printed, how it exits."""

from __future__ import annotations

import hashlib
import json
import os
import pty
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from penjing import report as reports


def below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def test_a_run_leaves_the_report_and_the_three_models(finished):
    report = reports.read(finished / "report.json")

    assert [column["name"] for column in report["columns"]] == ["original", "direct", "optimised"]
    for column in report["columns"]:
        content = (finished / column["file"]).read_bytes()
        assert column["sha256"] == hashlib.sha256(content).hexdigest()
        assert column["size_bytes"] == len(content)
        assert column["latency"]["median_ms"] > 0
        assert column["accuracy"]["n"] == report["data"]["splits"]["test"]
    assert {"report.html", "report.md", "report.json", "run.json"} <= below(finished)


def test_the_network_is_worth_measuring(finished):
    original, _, optimised = reports.read(finished / "report.json")["columns"]
    assert original["accuracy"]["value"] > 0.6
    assert optimised["size_ratio"] < 0.6
    assert optimised["fidelity"]["sqnr_db"] > 20


def test_json_is_all_that_is_on_standard_output(finished):
    printed = (finished.parent / "finished.txt").read_text()
    assert json.loads(printed) == json.loads((finished / "report.json").read_text())


def test_where_no_terminal_is_progress_is_plain_lines_one_for_each_piece(finished):
    lines = (finished.parent / "progress.txt").read_text().splitlines()
    assert not any("\x1b" in line for line in lines)
    assert any(re.fullmatch(r"  quant\.static: \d+\.\d s", line) for line in lines)
    assert not any(line.startswith("warning") for line in lines)


def test_the_same_command_does_nothing_twice_and_says_the_same(workplace, command, compress, finished):
    records = {path: path.stat().st_mtime_ns for path in workplace.glob("run/steps/*/step.json")}
    answer = command(*compress, "--json", cwd=workplace)

    again, before = answer.json, reports.read(finished / "report.json")
    assert all(step["reused"] for step in again["steps"])
    assert again["columns"] == before["columns"]
    assert again["data"] == before["data"]
    assert records == {path: path.stat().st_mtime_ns for path in workplace.glob("run/steps/*/step.json")}
    assert "scoring" not in answer.err
    assert "timing" not in answer.err


def test_quiet_prints_nothing(workplace, command, compress):
    answer = command(*compress, "--quiet", cwd=workplace)
    assert (answer.code, answer.out, answer.err) == (0, "", "")


def test_without_json_the_table_and_the_path_of_the_report_are_printed(workplace, command, compress):
    answer = command(*compress, cwd=workplace)
    assert answer.out.splitlines()[-1] == "Report: run/report.html"
    assert re.search(r"Accuracy, top-1 +\d", answer.out)
    assert max(map(len, answer.out.splitlines())) <= 80


@pytest.mark.parametrize(
    ("demands", "code", "verdicts"),
    [
        (("--max-drop", 100, "--max-size", 1, "--max-latency", 1000), 0, ["met", "met", "met"]),
        (("--max-size", "0.001"), 10, ["not met"]),
        (("--max-latency", "0.000001"), 10, ["not met"]),
        (("--max-drop", "0.1"), 11, ["not decidable"]),
        (("--max-drop", "0.1", "--max-size", "0.001"), 10, ["not decidable", "not met"]),
    ],
)
def test_demands_decide_the_exit_code(workplace, command, compress, demands, code, verdicts):
    answer = command(*compress, *demands, "--json", cwd=workplace)
    assert answer.code == code
    assert [goal["verdict"] for goal in answer.json["goals"]] == verdicts
    assert all(step["reused"] for step in answer.json["steps"]), "a demand changes no model"


@pytest.mark.parametrize("bound", ["nan", "inf", "-1", "1e999", "much"])
@pytest.mark.parametrize("demand", ["--max-drop", "--max-latency", "--max-size"])
def test_a_demand_that_is_no_finite_number_is_no_command_line(workplace, command, compress, demand, bound):
    answer = command(*compress, f"{demand}={bound}", cwd=workplace)
    assert answer.code == 2
    assert demand in answer.err


def test_without_labels_a_drop_cannot_be_decided(workplace, command, compress):
    for photo in (workplace / "photos").glob("*/*.png"):
        photo.rename(workplace / "photos" / f"{photo.parent.name}{photo.name}")
    for folder in ("c-blue", "b-green", "a-red"):
        (workplace / "photos" / folder).rmdir()
    answer = command(*compress, "--max-drop", 5, "--json", cwd=workplace)

    assert answer.code == 11
    assert answer.json["goals"][0]["why"] == "Without labels there is no accuracy."
    assert all(column["accuracy"] is None for column in answer.json["columns"])
    assert answer.json["columns"][2]["fidelity"]["agreement"] > 0.5


def test_a_plan_runs_nothing_and_writes_nothing(workplace, command, compress):
    shutil.rmtree(workplace / "run")
    before = below(workplace)
    people = command("plan", *compress[1:], cwd=workplace)
    machines = command("plan", *compress[1:], "--json", cwd=workplace)

    assert (people.code, machines.code) == (0, 0)
    assert {name for name in below(workplace) if "__pycache__" not in name} == {
        name for name in before if "__pycache__" not in name
    }
    assert [step["use"] for step in machines.json["steps"]] == [
        *("onnx.export", "onnx.simplify", "quant.static", "onnxrt")
    ]
    assert all(step["use"] in people.out and step["why"] for step in machines.json["steps"])


def test_without_photographs_the_plan_says_what_is_missing(workplace, command):
    words = ("model.py:network", "--preprocess", "preprocess.toml")
    for verb in ("plan", "compress"):
        answer = command(verb, *words, "--out", "other", cwd=workplace)
        assert answer.code == 3
        assert "quant.static needs photographs" in answer.err
        assert "--data" in answer.err
    assert not (workplace / "other").exists()


def test_report_shows_a_run_again_and_writes_its_pages_anew(workplace, command, finished):
    for name in ("report.html", "report.md"):
        (workplace / "run" / name).unlink()
    answer = command("report", "run", "--json", cwd=workplace)
    assert answer.json == reports.read(finished / "report.json")
    assert (workplace / "run" / "report.html").stat().st_size > 10_000
    assert (workplace / "run" / "report.md").exists()


def test_report_keeps_the_verdict_in_its_exit_code(workplace, command, compress):
    command(*compress, "--max-size", "0.001", "--quiet", cwd=workplace)
    assert command("report", "run", "--quiet", cwd=workplace).code == 10


def test_measure_times_anew_and_judges_by_the_demands_of_the_report(workplace, command, compress):
    before = command(*compress, "--max-latency", 1000, "--json", cwd=workplace).json
    answer = command("measure", "run", "--seconds", 1, "--json", cwd=workplace)

    assert answer.code == 0
    after = answer.json
    for old, new in zip(before["columns"], after["columns"], strict=True):
        assert old["latency"] != new["latency"]
        assert {**old, "latency": None} == {**new, "latency": None}
    assert [goal["verdict"] for goal in after["goals"]] == ["met"]
    assert (
        command(*compress, "--max-latency", 1000, "--json", cwd=workplace).json["columns"] == after["columns"]
    )


def test_measure_refuses_a_model_that_is_not_the_reports(workplace, command):
    shutil.copy(workplace / "run/original/model.onnx", workplace / "run/optimised/model.onnx")
    answer = command("measure", "run", "--seconds", 1, cwd=workplace)
    assert answer.code == 3
    assert "is not the model that report.json tells of" in answer.err


def test_predict_names_the_class_of_a_photograph(workplace, command):
    photos = [
        f"photos/{colour}/{number}.png" for colour in ("c-blue", "b-green", "a-red") for number in range(20)
    ]
    answer = command("predict", "run", *photos, "--json", cwd=workplace)
    found = answer.json

    assert [entry["image"] for entry in found] == photos
    right = sum(entry["answers"][0]["label"] in entry["image"] for entry in found)
    assert right > 36
    assert all(abs(sum(a["share"] for a in entry["answers"]) - 1) < 1e-6 for entry in found)
    people = command("predict", "run", photos[0], "--column", "original", "--top", 1, cwd=workplace)
    assert re.fullmatch(rf"{photos[0]}\n +\d+\.\d%  (a-red|b-green|c-blue)\n", people.out)


def test_predict_of_something_that_is_no_photograph_names_it(workplace, command):
    answer = command("predict", "run", "model.py", cwd=workplace)
    assert (answer.code, answer.out) == (3, "")
    assert "model.py: not an image" in answer.err


@pytest.mark.parametrize("words", [("report",), ("measure",), ("predict", "x.png")])
def test_a_folder_that_is_no_run_is_said_to_be_none(workplace, command, words):
    for folder in ("photos", "nowhere", "model.py"):
        answer = command(words[0], folder, *words[1:], cwd=workplace)
        assert answer.code == 3
        assert f"{folder} is not the folder of a run." in answer.err


def test_commands_about_what_there_is_speak_json(workplace, command):
    devices = command("devices", "--json", cwd=workplace).json
    assert devices[0]["name"] == "this-machine"
    assert {"rtx-3090", "jetson-orin-nano", "raspberry-pi-5"} <= {device["name"] for device in devices}
    assert command("devices", "this-machine", "--json", cwd=workplace).json["name"] == "this-machine"
    steps = command("plugins", "--json", cwd=workplace).json["steps"]
    assert {"onnx.export", "quant.static", "onnxrt"} <= {step["name"] for step in steps}
    assert all("cure" in finding for finding in command("doctor", "--json", cwd=workplace).json)


def test_people_read_devices_plugins_and_doctor(workplace, command):
    assert "Raspberry Pi 5" in command("devices", cwd=workplace).out
    assert "quant.static" in command("devices", "raspberry-pi-5", cwd=workplace).out
    assert "minmax" in command("plugins", "quant.static", cwd=workplace).out
    assert "onnxruntime" in command("doctor", "--device", "raspberry-pi-5", cwd=workplace).out


def test_what_a_source_prints_does_not_mix_with_the_answer(workplace, command, compress):
    (workplace / "loud.py").write_text(
        "print('importing')\nfrom model import network as quiet\n"
        "def network():\n    print('building')\n    return quiet()\n"
    )
    answer = command("plan", "loud.py:network", *compress[2:], "--json", cwd=workplace)
    assert answer.json["source"] == "loud.py:network"
    assert "building" in answer.err


def test_a_reader_that_stops_early_is_no_error(workplace):
    program = [sys.executable, "-m", "penjing", "plugins"]
    reader = subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    reader.stdout.close()
    errors = reader.stderr.read().decode()
    reader.stderr.close()
    reader.wait()
    assert errors == ""


@pytest.mark.slow
def test_on_a_terminal_progress_is_drawn_and_leaves_a_line_for_each_piece(workplace, compress):
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "penjing", *compress],
        cwd=workplace, stdin=follower, stdout=follower, stderr=follower,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "80", "LINES": "24"},
    )  # fmt: skip
    os.close(follower)
    seen = b""
    while True:
        try:
            piece = os.read(leader, 65536)
        except OSError:  # how Linux tells that the other end is closed
            break
        if not piece:
            break
        seen += piece
    os.close(leader)
    assert process.wait() == 0
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen.decode())
    assert "✓ quant.static  already done" in text
    assert "0/?" not in text
    assert "Report: run/report.html" in text


def test_the_demo_says_which_package_it_lacks_before_it_writes_anything(tmp_path, command, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    answer = command("demo", cwd=tmp_path)
    assert answer.code == 3
    assert "foolbox" in answer.err
    assert 'pip install "penjing[demo]"' in answer.err
    assert below(tmp_path) == set()


def test_the_demo_lays_out_its_photographs_beside_the_run(tmp_path):
    pytest.importorskip("foolbox", reason="the demo's packages are an extra")
    from penjing.demo import TESTED, request

    asked = request("this-machine", tmp_path / "demo")
    assert asked.data == tmp_path / "demo-photographs"
    assert len(list((asked.data / "test").rglob("*.*"))) == TESTED
    assert len(list((asked.data / "train").iterdir())) == 20 - TESTED
