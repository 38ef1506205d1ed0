"""The README keeps its word."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")

NETWORK = """
from torch import nn


def network():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
"""


def test_the_table_is_that_of_the_report_in_the_picture() -> None:
    from penjing import report

    rendered = report.markdown.render(report.read(ROOT / "docs" / "images" / "report.json"))
    rows = re.findall(
        r"^\| (?:\w[^|]*|) \|.*(?:MB|ms|%|×|points|reference|\d).*\|$",
        _section("What it does to"),
        re.MULTILINE,
    )

    assert len(rows) == 8
    assert [row for row in rows if row not in rendered.splitlines()] == []


def test_the_machine_is_named() -> None:
    from penjing import report

    environment = report.read(ROOT / "docs" / "images" / "report.json")["environment"]
    text = " ".join(_section("What it does to").split())

    assert environment["cpu"] in text
    assert f"ONNX Runtime {environment['packages']['onnxruntime']}" in text
    assert environment["threads"] == 1
    assert "one thread" in text
    assert "avx512_vnni" in environment["isa"]
    assert "AVX-512 and VNNI" in text


def test_pictures_are_there_and_small() -> None:
    pictures = [ROOT / path for path in re.findall(r"docs/images/[\w-]+\.png", README)]

    assert len(pictures) == 2
    assert all(picture.stat().st_size < 250_000 for picture in pictures)


def test_the_developers_command_is_what_continuous_integration_runs() -> None:
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")

    assert '-e ".[demo,test]"' in _section("Develop")
    assert '-e ".[demo,test]"' in ci
    assert "scripts/check" in _section("Develop")
    assert "scripts/check" in ci


@pytest.mark.slow
def test_the_python_example_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("penjing.compare.TIMING", 0.2)
    Path("model.py").write_text(NETWORK, encoding="utf-8")
    Path("preprocess.toml").write_text("resize = [16, 16]\n", encoding="utf-8")
    for number in range(24):
        path = Path("photos", "ab"[number % 2], f"{number}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 20), (number * 10, 255 - number * 10, 99)).save(path)
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip()]) < 10

    exec(compile(code, "README.md", "exec"), {})  # the example is the test

    printed = capsys.readouterr()
    assert [line.split()[0] for line in printed.out.splitlines()] == ["original", "direct", "optimised"]
    assert printed.err == ""


def _section(title: str) -> str:
    return next(part for part in README.split("\n## ") if part.startswith(title))
