"""The report: three samples of it, what is refused, and what HTML, Markdown and terminal make of it."""

import ast
import copy
import io
import json
import re
import typing
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Annotated, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from penjing.errors import InputError
from penjing.exhibit import Bars, Lanes, Lines, Table, to_dict
from penjing.report import (
    check,
    exhibits,
    html,
    markdown,
    pictures,
    read,
    schema,
    story,
    terminal,
    words,
    write,
)
from rich.console import Console

ROOT = Path(__file__).parents[2]
EVIL = (
    "a<script>alert(1)</script>\"'&|`*_x_ [l](http://evil.example) @octocat \u202egnp.exe\x1b[31m" + "n" * 300
)


def column(name: str, **fields: Any) -> dict[str, Any]:
    bare = dict.fromkeys(schema.Column.__annotations__)
    size = fields.get("size_bytes")
    made = {"file": f"{name}/model.onnx", "sha256": "5d" * 32, "size_ratio": size and size / 8_973_412}
    return {**bare, "name": name, "recipe": [], "latency_why": "", **made, **fields}


def latency(
    median: float, p90: float, speedup: float, ends: tuple[float, float], **fields: Any
) -> dict[str, Any]:
    interval = [round(median * 0.985, 3), round(median * 1.012, 3)]
    rest = {"throughput_per_s": round(1000 / median, 1), "runs": 200, "threads": 2}
    ratio = {"speedup": speedup, "speedup_interval": list(ends)}
    return {"median_ms": median, "p90_ms": p90, "median_interval": interval, **rest, **ratio, **fields}


def accuracy(value: float, ends: tuple[float, float], **fields: Any) -> dict[str, Any]:
    none = {"drop": None, "drop_interval": None, "retained": None}
    return {"metric": "top-1", "value": value, "n": 341, "interval": list(ends), **none, **fields}


def fidelity(agreement: float | None, ends: list[float] | None, sqnr: float) -> dict[str, Any]:
    return {"agreement": agreement, "agreement_interval": ends, "sqnr_db": sqnr, "n": 341}


def step(name: str, **fields: Any) -> dict[str, Any]:
    bare = {
        "columns": ["optimised"],
        "options": {},
        "why": "",
        "seconds": 3.2,
        "reused": False,
        "size_bytes": None,
    }
    return {"name": name, **bare, "details": {}, "exhibits": [], "warnings": [], "score": None, **fields}


EXHIBITS = json.loads(json.dumps([
    to_dict(Bars("Sensitivity of each layer; paler stayed float", "dB",
                 {"conv1": 41.2, "blocks.0.depthwise": -3.5, "blocks.1.expand": None}, marked=("blocks.0.depthwise",))),
    to_dict(Lines("Loss over training", "epoch", "loss",
                  {"train": [(0, 2.3), (1, 1.1), (2, 0.7)], "select": [(0, 2.2), (2, 0.9)], "once": [(1, 1.0)]})),
    to_dict(Table("What stayed float", ("layer", "why"), (("blocks.0.depthwise", "it cost 2.4 points"),))),
    to_dict(Lanes("Where layers run", ("DLA", "GPU"), [("conv1", "DLA", 5.0), ("softmax", "GPU", 1.0),
                                                             ("conv2", "DLA", 2.0)])),
]))  # fmt: skip
QUANT = {"use": "quant.static", "options": {"calibrate": "entropy"}}
EXPORT = {"use": "onnx.export", "options": {"opset": 18}}


def labelled() -> dict[str, Any]:
    """A run with labels for this machine's processor: everything measured."""
    direct = {"use": "quant.static", "options": {"calibrate": "minmax", "per_channel": False}}
    layers = [
        {"layer": f"features.{index}.conv", "sqnr_db": 41.25 - index, "kept": index == 3}
        for index in range(6)
    ]
    return {
        "schema": 1,
        "penjing": "0.1.0",
        "created": "2026-11-25T05:00:00Z",
        "source": "torchvision:mobilenet_v2?num_classes=10",
        "command": "penjing compress 'torchvision:mobilenet_v2?num_classes=10' --device cpu-x86 --data data",
        "device": {"name": "cpu-x86", "title": "x86-64 with VNNI", "stack": "ONNX Runtime", "here": True,
                   "builds_engine": False},
        "task": "classification",
        "data": {
            "root": "photos",
            "classes": ["bus", "cat", "cup", "dog", "fern", "kite", "oak", "pear", "ship", "tram"],
            "labelled": True,
            "splits": {"calibrate": 256, "train": 1843, "select": 340, "test": 341},
            "broken": [{"file": "cat/IMG_0031.jpg", "reason": "the image is cut off after 18 432 bytes"}],
        },
        "preprocess": {"resize": 176, "crop": 160, "channels": "RGB", "mean": [0.485, 0.456, 0.406]},
        "columns": [
            column(
                "original",
                size_bytes=8_973_412,
                recipe=[EXPORT],
                parameters=2_236_682,
                macs=160_214_000,
                latency=latency(9.84, 10.61, 1.0, (1.0, 1.0)),
                accuracy=accuracy(0.9238, (0.8908, 0.9474)),
            ),
            column(
                "direct",
                size_bytes=2_441_977,
                recipe=[EXPORT, direct],
                parameters=2_236_682,
                macs=160_214_000,
                latency=latency(4.71, 5.02, 2.09, (2.05, 2.14)),
                accuracy=accuracy(
                    0.6921, (0.6412, 0.7388), drop=23.17, drop_interval=[18.4, 27.7], retained=0.7492
                ),
                fidelity=fidelity(0.7185, [0.6684, 0.7637], 6.2),
            ),
            column(
                "optimised",
                size_bytes=2_602_290,
                recipe=[EXPORT, {"use": "quant.equalise", "options": {}}, QUANT],
                parameters=2_236_682,
                macs=160_214_000,
                latency=latency(4.66, 4.97, 2.11, (2.07, 2.16)),
                accuracy=accuracy(
                    0.9179, (0.8841, 0.9426), drop=0.59, drop_interval=[-0.9, 2.1], retained=0.9936
                ),
                fidelity=fidelity(0.9824, [0.9621, 0.9919], 27.4),
            ),
        ],
        "steps": [
            step("onnx.export", columns=["original", "direct", "optimised"], options={"opset": 18},
                 why="every backend reads ONNX", seconds=4.31, size_bytes=8_973_412, reused=True),
            step("quant.equalise", why="scales of depthwise channels differ by 10^3; levelled before INT8",
                 seconds=0.84, size_bytes=8_973_412,
                 details={"pairs": 17, "largest_ratio": {"before": 1180.5, "after": 3.2}}),
            step("quant.static", options=QUANT["options"], why="the processor is faster in INT8",
                 seconds=38.7, size_bytes=2_602_290, details={"layers": layers, "images": 256},
                 warnings=["features.0.conv is left in FP32: INT8 alone cost 2.4 points there."],
                 exhibits=copy.deepcopy(EXHIBITS),
                 score={"metric": "top-1", "value": 0.9206, "n": 340, "split": "select"}),
        ],
        "left_out": [{"name": "distill.logits", "why": "it would take hours here"}],
        "goals": [
            {"name": "max_drop", "bound": 1.0, "unit": "points", "value": 0.59, "interval": [-0.9, 2.1],
             "verdict": "not decidable", "why": "The interval holds the bound: more photographs would tell."},
            {"name": "max_latency", "bound": 5.0, "unit": "ms", "value": 4.66, "interval": [4.59, 4.72],
             "verdict": "met", "why": "The whole interval is below the bound."},
            {"name": "max_size", "bound": 2.5, "unit": "MB", "value": 2.60229, "interval": None,
             "verdict": "not met", "why": "The file is larger than the bound."},
        ],
        "warnings": ["Class “kite” has 9 test photographs: its own accuracy says little."],
        "on_board": None,
        "environment": {
            "python": "3.11.9",
            "platform": "Linux-6.1-x86_64",
            "cpu": "Intel Xeon, 2.60 GHz",
            "cores": 2,
            "isa": ["avx2", "avx512f", "avx512_vnni"],
            "packages": {"onnx": "1.23.0", "onnxruntime": "1.32.0", "torch": "2.14.1"},
            "threads": 2,
            "seed": 0,
        },
    }  # fmt: skip


def unlabelled() -> dict[str, Any]:
    """A run on a folder without labels: fidelity, never accuracy; and INT8 is slower here."""
    report = labelled()
    report["task"] = "fidelity"
    report["data"] |= {"classes": [], "labelled": False, "broken": []}
    for one in report["columns"]:
        one["accuracy"] = None
    report["columns"][2]["latency"] = latency(11.2, 12.9, 0.879, (0.861, 0.897))
    report["goals"], report["warnings"] = [], []
    return report


def elsewhere() -> dict[str, Any]:
    """A run without photographs for a board that is not here, its direct column failed."""
    report = labelled()
    report["source"] = "models/detector of the north gate (final, really final).onnx"
    board = {
        "name": "jetson-orin-nano",
        "title": "Jetson Orin Nano 8 GB",
        "stack": "JetPack 6.2, TensorRT 10.3",
    }
    report["device"] = {**board, "here": False, "builds_engine": True}
    report["data"] = report["preprocess"] = None
    for one in report["columns"]:
        one.update(latency=None, accuracy=None, fidelity=None)
        one["latency_why"] = "not measured: TensorRT is not installed on this machine"
    failure = "onnxruntime refuses the graph: Resize_12 has no INT8 kernel"
    report["columns"][1] = column("direct", failed=failure, file=None, sha256=None, recipe=[QUANT])
    report["columns"][1]["latency_why"] = "not measured: the model could not be made"
    report["goals"] = [report["goals"][1] | {
        "value": None, "interval": None, "verdict": "not decidable", "why": "Latency was not measured."
    }]  # fmt: skip
    report["steps"][2]["score"] = None
    return report


def hostile() -> dict[str, Any]:
    """A report whose every text is an attack, with the texts that have a fixed form left alone."""

    def spoilt(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {name: spoilt(item, name) for name, item in value.items()}
        if isinstance(value, list):
            return [spoilt(item, key) for item in value]
        return (
            EVIL
            if isinstance(value, str) and key not in ("created", "verdict", "unit", "kind", "fixed")
            else value
        )

    report = labelled()
    names = [one["name"] for one in report["columns"]], [one["name"] for one in report["goals"]]
    report = spoilt(report)
    for one, name in zip(report["columns"] + report["goals"], names[0] + names[1], strict=True):
        one["name"] = name
    report["steps"][0]["details"] = {EVIL: [{EVIL: EVIL}], "more": {EVIL: EVIL}}
    return report


SAMPLES = [labelled, unlabelled, elsewhere, hostile]


def on_terminal(report: Any, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(terminal.render(report))
    return typing.cast(io.StringIO, console.file).getvalue()


class Page(HTMLParser):
    """The text and the tags of a page, and whether every tag is closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.text, self.tags, self.open, self.ids = "", [], [], []
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data if self.open[-1:] in (["code"], ["bdi"]) else f" {data} "


def text_of(page: str) -> str:
    return " ".join(Page(page).text.split())


# --- the check


@pytest.mark.parametrize("sample", SAMPLES)
def test_a_report_passes_the_check_and_a_trip_through_json(sample: Any) -> None:
    assert check(json.loads(json.dumps(sample()))) == sample()


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        ("schema", 2, "schema 2"),
        ("schema", True, "field schema must be 1, not True"),
        ("created", "yesterday", "field created must be a date and time"),
        ("created", "2026-11-25T05:00:00", None),
        ("created", "0001-01-01T00:00:00+14:00", "field created must be"),
        ("device.here", 1, "field device.here must be true or false, not 1"),
        ("data.splits.test", -1, "field data.splits.test must be 0 or more"),
        ("columns", [], "field columns must start with the original"),
        ("columns.2.name", "direct", "field columns[2].name repeats 'direct'"),
        ("columns.1.name", "fastest", "field columns[1].name must be 'original' or 'direct' or 'optimised'"),
        (
            "columns.1.latency.median_ms",
            "4.7",
            "field columns[1].latency.median_ms must be a number, not '4.7'",
        ),
        ("columns.1.latency.median_ms", 0, "above 0"),
        ("columns.1.latency.runs", True, "columns[1].latency.runs must be a whole number"),
        ("columns.1.size_bytes", 10**400, "columns[1].size_bytes is too large"),
        ("columns.1.accuracy.value", float("nan"), "columns[1].accuracy.value must be a number, not nan"),
        ("columns.1.accuracy.value", 91.7, "must be from 0 to 1"),
        (
            "columns.1.accuracy.interval",
            [0.9, 0.1],
            "columns[1].accuracy.interval must be a low and a high end",
        ),
        ("columns.1.accuracy.interval", [0.9], "columns[1].accuracy.interval must be a low and a high end"),
        ("steps.0.details", {"a": {1, 2}}, "steps[0].details.a must be JSON, not a set"),
        ("steps.0.details", {"a": float("inf")}, "steps[0].details.a must be a number, not inf"),
        ("steps.0.options", {3: 4}, "steps[0].options must be an object with text for keys"),
        ("goals.0.verdict", "passed", "goals[0].verdict must be 'met'"),
        ("environment.cores", None, "environment.cores must be a whole number, not null"),
    ],
)
def test_the_check_names_the_first_field_that_is_wrong(path: str, value: Any, told: str | None) -> None:
    report = labelled()
    *way, last = path.split(".")
    place: Any = report
    for key in way:
        place = place[int(key) if key.isdigit() else key]
    place[last] = value
    if told is None:
        check(report)
        return
    with pytest.raises(InputError) as caught:
        check(report)
    assert told in caught.value.message
    assert caught.value.hint
    assert len(caught.value.message) < 400


def test_a_missing_and_an_unknown_field_are_refused() -> None:
    report = labelled()
    del report["columns"][1]["sha256"]
    with pytest.raises(InputError, match=re.escape("columns[1].sha256 is missing")):
        check(report)
    report = labelled()
    report["columns"][1]["latency_wy"] = ""
    with pytest.raises(InputError, match=re.escape("columns[1].latency_wy is unknown")) as caught:
        check(report)
    assert "latency_why" in caught.value.hint


def test_details_that_are_too_deep_or_go_in_circles_are_refused() -> None:
    report = labelled()
    circle: dict[str, Any] = {}
    circle["again"] = circle
    report["steps"][0]["details"] = circle
    with pytest.raises(InputError, match="nested more than"):
        check(report)


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"null", b"{", b"[" * 100_000, b'{"schema": NaN}', b"\xff\xfe{"]
)
def test_a_file_that_is_no_report_is_an_input_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "report.json").write_bytes(content)
    with pytest.raises(InputError):
        read(tmp_path / "report.json")


def places(value: Any, way: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield way
    if isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(item, (*way, key))


PLACES = [(sample, way) for sample in (labelled, elsewhere) for way in places(sample()) if way]
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just(10**30)
anything = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3)
)
numbers = (
    st.floats(-1e18, 1e18)
    | st.integers(-(10**18), 10**18)
    | st.sampled_from([0, 1, 5e-324, 1e18, 0.99999, 1e-9])
)


@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(st.sampled_from(PLACES), numbers | anything, st.sampled_from(["put", "put", "put", "drop"]))
def test_a_spoilt_report_is_refused_with_an_input_error_or_rendered(
    place: Any, value: Any, action: str
) -> None:
    sample, (*way, last) = place
    report = copy.deepcopy(sample())  # samples share parts
    target = report
    for key in way:
        target = target[key]
    if action == "drop":
        del target[last]
    else:
        target[last] = value
    try:
        checked = check(report)
    except InputError:
        return
    Page(html.render(checked))
    markdown.render(checked)
    on_terminal(checked)


def test_a_report_from_before_boards_could_be_measured_is_read_and_written(tmp_path: Path) -> None:
    report = labelled()
    del report["on_board"]
    write(typing.cast(Any, report), tmp_path)

    assert read(tmp_path / "report.json")["on_board"] is None


# --- what is shown


RENDERED = [
    lambda report: text_of(html.render(report)),
    markdown.render,
    lambda report: on_terminal(report, 200),
]


@pytest.mark.parametrize("render", RENDERED)
@pytest.mark.parametrize("sample", SAMPLES[:3])
def test_every_value_of_the_comparison_is_shown(sample: Any, render: Any) -> None:
    report = sample()
    shown = " ".join(render(report).split()).replace("\xa0", " ")
    for label, cells in story.comparison(report).rows:
        assert label in shown
        for cell in cells:
            assert cell.text in shown
            assert all(line in shown for line in cell.under.splitlines())
    for note in story.comparison(report).notes:
        assert note in shown


def forms(value: Any) -> Iterator[str]:
    """Every way in which a number of the report may be written."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from (key, *forms(item))
    elif isinstance(value, list):
        yield from (str(len(value)), *(form for item in value for form in forms(item)))
    elif isinstance(value, str):
        yield value
    elif value is not None:
        ways = [words.decimal, words.percent, words.points, words.decibels, words.times, words.plain, str]
        ways += [words.many, words.size] if isinstance(value, int) else [words.seconds]
        yield from (way(size) for way in ways for size in (value, abs(value)))
        yield f"{value:,}"


@pytest.mark.parametrize("render", RENDERED)
@pytest.mark.parametrize("sample", SAMPLES[:3])
def test_no_number_is_shown_that_is_not_in_the_report(sample: Any, render: Any) -> None:
    report = sample()
    pattern = re.compile(r"\d[\d,.]*\d|\d")
    known = {number for form in forms(report) for number in pattern.findall(form)}
    known |= {"95", "90", "10", "100", "256"}  # intervals, percentiles, "10⁶", "100 %"; SHA-256
    known |= {"2026-11-25", "05", "00", "11", "25"} | {
        str(index) for index in range(10)
    }  # the date; numbered notes
    axis = set(re.findall(r'class="axis">([\d.]+) %', pictures.quality(report) or ""))
    assert not set(pattern.findall(render(report))) - known - axis


@pytest.mark.parametrize("sample", SAMPLES)
def test_the_page_fetches_nothing_and_runs_nothing(sample: Any) -> None:
    page = html.render(sample())
    parsed = Page(page)
    assert not {"script", "link", "img", "iframe", "object", "image", "use", "a", "form"} & {
        tag for tag, _ in parsed.tags
    }
    for _, attributes in parsed.tags:
        assert not {"src", "href", "xlink:href", "srcset"} & set(attributes)
        assert not any(name.startswith("on") for name in attributes)
    style = page[page.index("<style>") : page.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    policy = [
        attributes
        for tag, attributes in parsed.tags
        if attributes.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy[0]["content"] == "default-src 'none'; style-src 'unsafe-inline'"
    assert len(parsed.ids) == len(set(parsed.ids))


@pytest.mark.parametrize("sample", SAMPLES)
def test_every_picture_has_a_title_and_a_description(sample: Any) -> None:
    parsed = Page(html.render(sample()))
    pictured = [
        attributes for tag, attributes in parsed.tags if tag == "svg" and "aria-hidden" not in attributes
    ]
    assert len(pictured) >= 5
    for attributes in pictured:
        assert attributes["role"] == "img"
        assert all(name in parsed.ids for name in str(attributes["aria-labelledby"]).split())


def test_hostile_text_stays_text() -> None:
    report = hostile()
    page, marked, shown = html.render(report), markdown.render(report), on_terminal(report)
    assert "<script" not in page.lower()
    assert "alert(1)" in text_of(page)
    outside_code = re.sub(r"(?<![\\`])(`+)(?!`).*?(?<!`)\1(?!`)", "", marked, flags=re.DOTALL)
    assert len(outside_code) > 5_000
    assert "<script" not in outside_code
    assert not re.search(r"(?<!\\)\[l\]", outside_code)
    assert "@octocat" not in outside_code
    assert "http://" not in outside_code
    for output in (page, marked, shown):
        assert "\u202e" not in output
        assert "\x1b" not in output
        assert "u202e" in output


def test_where_the_device_builds_an_engine_sizes_are_said_to_be_of_the_graph() -> None:
    report = labelled()
    told = (html.render(report), markdown.render(report), on_terminal(report))
    assert not any("Size of the graph" in output for output in told)

    report["device"]["builds_engine"] = True
    told = (text_of(html.render(report)), markdown.render(report), on_terminal(report))
    for output in told:
        assert "Size of the graph" in output
        assert "the engine that the device builds of it has another" in " ".join(output.split())


def test_what_earlier_reports_do_not_tell_is_taken_as_absent(tmp_path: Path) -> None:
    report: Any = labelled()
    del report["device"]["builds_engine"], report["on_board"]
    (tmp_path / "report.json").write_text(json.dumps(report))

    assert read(tmp_path / "report.json")["device"]["builds_engine"] is False


def test_a_page_beside_the_report_is_linked_as_long_as_it_is_about_a_model_of_the_report(
    tmp_path: Path,
) -> None:
    report = labelled()
    sha256 = report["columns"][-1]["sha256"] = "0123456789abcdef" * 4
    (tmp_path / "a & b.html").write_text(f"<p>about {sha256}")
    (tmp_path / "stale.html").write_text(f"<p>about {'f' * 64}")

    write(report, tmp_path)

    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert '<a href="a%20%26%20b.html">a &amp; b.html</a>' in page
    assert "stale.html" not in page


def test_a_file_name_that_is_no_text_is_written_and_read_back(tmp_path: Path) -> None:
    report = labelled()
    report["data"]["broken"] = [{"file": "caf\udce9.jpg", "reason": "no image"}]
    write(report, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "report.json", "report.md"]
    assert read(tmp_path / "report.json") == report
    assert "caf\\udce9.jpg" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_nothing_is_written_of_a_report_that_fails_the_check(tmp_path: Path) -> None:
    report = labelled()
    report["columns"][2]["latency"]["median_ms"] = float("nan")
    with pytest.raises(InputError):
        write(report, tmp_path)
    assert not list(tmp_path.iterdir())


# --- the headline


def changed(**fields: Any) -> dict[str, Any]:
    report = labelled()
    report["columns"][2].update(fields)
    return report


def test_the_headline_gives_size_speed_and_accuracy() -> None:
    assert (
        story.headline(labelled())
        == "29.0 % of the size, 2.11 × as fast, 99.4 % of the accuracy kept (341 photographs)"
    )


@pytest.mark.parametrize(
    ("speedup", "ends", "said"),
    [
        (0.8, [0.78, 0.83], "slower (0.800 × the speed)"),
        (1.02, [0.97, 1.08], "not measurably faster (1.02 ×)"),
        (0.98, [0.93, 1.04], "not measurably faster (0.980 ×)"),
        (1.0, [1.0, 1.0], "not measurably faster (1.00 ×)"),
        (1.0, None, "not faster (1.00 ×)"),
        (1.04, [1.01, 1.08], "1.04 × as fast"),
        (1.9, None, "1.90 × as fast"),
        (None, None, "4.00 ms"),
    ],
)
def test_the_headline_claims_speed_only_where_the_interval_does(speedup: Any, ends: Any, said: str) -> None:
    report = changed(latency=latency(4.0, 5.0, speedup, (1, 1), speedup_interval=ends))
    assert check(report)
    assert said in story.headline(report)
    assert ("as fast" in story.headline(report)) == ("as fast" in said)


def test_a_model_that_grew_is_not_called_smaller() -> None:
    assert story.headline(changed(size_ratio=1.04)).startswith("Not smaller (104.0 % of the size)")
    assert story.headline(changed(size_ratio=1.0)).startswith("Not smaller (100 % of the size)")


def test_without_labels_the_headline_speaks_of_agreement_never_of_accuracy() -> None:
    report = unlabelled()
    assert story.headline(report) == (
        "29.0 % of the size, slower (0.879 × the speed), the original’s answer on 98.2 % of 341 photographs"
    )
    assert "Accuracy is not measured: the photographs have no labels." in story.lede(report)


def test_what_is_not_measured_is_said_with_its_reason() -> None:
    report = elsewhere()
    assert story.headline(report) == "29.0 % of the size, speed and accuracy not measured"
    assert story.lede(report)[:4] == [
        "Speed on Jetson Orin Nano 8 GB is not measured: TensorRT is not installed on this machine.",
        "Accuracy is not measured: no photographs were given.",
        "Sizes are of the graph: the engine that the device builds of it has another.",
        "The direct model could not be made: onnxruntime refuses the graph: Resize_12 has no INT8 kernel.",
    ]
    for render in RENDERED:
        assert not re.search(r"\d ms", render({**report, "goals": []}))


def test_a_drop_whose_interval_holds_zero_is_not_told_as_a_loss() -> None:
    assert any(
        "cannot be told from none with 341 photographs" in sentence for sentence in story.lede(labelled())
    )
    lost = accuracy(0.85, (0.81, 0.88), drop=7.4, drop_interval=[4.4, 10.3], retained=0.92)
    assert "The accuracy dropped by 7.4 points (95 % interval 4.4 to 10.3 points)." in story.lede(
        changed(accuracy=lost)
    )
    gained = accuracy(0.95, (0.93, 0.97), drop=-2.9, drop_interval=[-4.6, -1.2], retained=1.031)
    report = changed(accuracy=gained)
    assert any(sentence.startswith("The accuracy rose by 2.9 points") for sentence in story.lede(report))
    assert "accuracy no lower (" in story.headline(report)


def test_an_optimised_model_that_failed_or_was_not_asked_for_is_no_success() -> None:
    report = changed(failed="out of memory")
    assert story.headline(report) == "The optimised model could not be made"
    assert "The optimised model could not be made: out of memory." in story.lede(report)
    report["columns"].pop()
    assert story.headline(report) == "No optimised model was asked for"
    assert "optimised" not in story.comparison(report).names


# --- numbers in words


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (words.size(3_520_000), "3.52 MB"),
        (words.size(1_234_567_890), "1,235 MB"),
        (words.size(312), "0.000312 MB"),
        (words.milliseconds(9.996), "10.0 ms"),
        (words.percent(0.9996), "99.96 %"),
        (words.percent(1.0), "100 %"),
        (words.percent(0.0), "0 %"),
        (words.points(-0.3), "−0.3 points"),
        (words.points(0.04), "0.04 points"),
        (words.many(2_236_682), "2.24 M"),
        (words.many(999), "999"),
        (words.seconds(150), "2.5 min"),
        (words.span([-0.9, 2.1], words.points), "−0.9 to 2.1 points"),
        (words.span([0.9, 1.0], words.percent), "90.0 to 100 %"),
        (words.superscript(12), "¹²"),
        (words.clipped("torchvision:mobilenet_v2", 12), "torchvis…_v2"),
        (words.visible("a\tb\nc\x1b\u202e\ud800"), "a b c\\u001b\\u202e\\ud800"),
        (words.plain({"a": [1, 2.5, True, None]}), "a 1, 2.5, yes, none"),
    ],
)
def test_numbers_and_names_read_well(shown: str, expected: str) -> None:
    assert shown == expected


def test_a_share_that_is_not_all_is_never_rounded_to_all() -> None:
    assert [words.percent(share) for share in (0.99951, 0.0004, 0.000004)] == ["99.95 %", "0.04 %", "0 %"]


# --- Markdown and terminal


@pytest.mark.parametrize("sample", SAMPLES)
def test_every_markdown_table_has_the_same_number_of_cells_in_each_row(sample: Any) -> None:
    tables = re.findall(r"(?:^\|.*\n?)+", markdown.render(sample()), flags=re.MULTILINE)
    shown = sum(len(step["exhibits"]) for step in sample()["steps"])
    assert len(tables) == 3 + shown
    for table in tables:
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(widths) == 1


@pytest.mark.parametrize("sample", SAMPLES)
def test_the_terminal_needs_no_more_than_80_columns_and_no_colour(sample: Any) -> None:
    shown = on_terminal(sample())
    assert max(map(len, shown.splitlines())) <= 80
    assert "\x1b" not in shown


@pytest.mark.parametrize("render", [html.render, markdown.render])
def test_what_a_step_shows_is_drawn_with_its_numbers(render: Any) -> None:
    text = render(labelled())

    assert "Sensitivity of each layer" in text and "41.2" in text and "-3.5" in text.replace("−", "-")
    assert "Loss over training" in text and "0.7" in text
    assert "it cost 2.4 points" in text


def test_a_bar_below_zero_lies_left_of_zero_and_an_absent_value_has_none() -> None:
    drawn = exhibits.render(typing.cast(Any, to_dict(Bars("t", "dB", {"a": -1.0, "b": 1.0, "c": None}))))
    bars = re.findall(r'<rect x="([\d.]+)%" y="[\d.]+" width="([\d.]+)%"', drawn)

    assert [(float(x), float(x) + float(width)) for x, width in bars] == [(40.0, 63.0), (63.0, 86.0)]


def test_lanes_lie_one_after_the_other_and_a_line_joins_them_where_the_lane_changes() -> None:
    shown = Lanes("t", ("DLA", "GPU"), [("a", "DLA", 1.0), ("b", "DLA", 1.0), ("c", "GPU", 2.0)])
    drawn = exhibits.render(typing.cast(Any, to_dict(shown)))
    parts = re.findall(r'<rect x="([\d.]+)%" y="([\d.]+)" width="([\d.]+)%"', drawn)

    assert [(float(x), float(y), float(width)) for x, y, width in parts] == [
        (12.0, 0.0, 22.0), (34.0, 0.0, 22.0), (56.0, 40.0, 44.0),
    ]  # fmt: skip
    assert re.findall(r'<line x1="([\d.]+)%"', drawn) == ["56.000"]


def test_verdicts_are_told_by_word_and_sign() -> None:
    shown, page = on_terminal(labelled()), text_of(html.render(labelled()))
    for verdict in ("✓ met", "✗ not met", "? not decidable"):
        assert verdict in page
        assert verdict in " ".join(shown.split())


# --- house rules


def records() -> dict[str, type]:
    return {name: kind for name, kind in vars(schema).items() if typing.is_typeddict(kind)}


def test_the_documentation_describes_every_field_in_the_words_of_the_schema() -> None:
    text = (ROOT / "docs" / "report.md").read_text(encoding="utf-8")
    for name, kind in records().items():
        section = re.search(rf"^### {name}\n(.*?)(?=^##|\Z)", text, flags=re.MULTILINE | re.DOTALL)
        assert section, f"docs/report.md lacks a section {name}"
        told = dict(re.findall(r"^\| `(\w+)` \| (.+?) \|$", section[1], flags=re.MULTILINE))
        hints = typing.get_type_hints(kind, include_extras=True)
        assert told == {
            field: next(part for part in typing.get_args(hint)[1:] if isinstance(part, str))
            for field, hint in hints.items()
        }
        assert all(typing.get_origin(hint) is Annotated for hint in hints.values())


def test_no_module_of_the_report_imports_a_framework() -> None:
    for path in (ROOT / "core" / "penjing" / "report").glob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {name.split(".")[0] for name in names} & {
                "torch",
                "onnx",
                "onnxruntime",
                "numpy",
                "PIL",
                "rich",
            }


def test_rendering_does_not_change_the_report() -> None:
    report = labelled()
    before = copy.deepcopy(report)
    html.render(report), markdown.render(report), on_terminal(report)
    assert report == before
