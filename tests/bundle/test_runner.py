"""The stand-alone runner: what it needs, what it does to an image, what it answers, and how it says what is wrong."""

import ast
import io
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from penjing import bundle
from penjing.bundle import runner
from penjing.errors import InputError
from penjing.photos import read_photo
from penjing.preprocess import INTERPOLATIONS, Preprocess
from PIL import Image

Make = Callable[..., Path]
SOURCE = Path(runner.__file__)


def start(folder: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", str(folder / "runner.py"), *words]
    return subprocess.run(
        command, capture_output=True, text=True, env={"OMP_NUM_THREADS": "1", **environment}, check=False
    )


def work(monkeypatch: pytest.MonkeyPatch, folder: Path, *words: str) -> int:
    monkeypatch.setattr(runner, "__file__", str(folder / "runner.py"))
    return runner.main(list(words))


# -- what it needs


def test_it_is_python_3_6() -> None:
    tree = ast.parse(SOURCE.read_text("utf-8"), feature_version=(3, 6))

    # two things that the parser lets pass: added in 3.7
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    assert not {word.arg for call in calls for word in call.keywords} & {"capture_output", "text"}
    assert not [
        node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module == "__future__"
    ]


def test_it_imports_nothing_but_the_standard_library_numpy_pillow_onnxruntime_and_maybe_opencv() -> None:
    names = set()
    for node in ast.walk(ast.parse(SOURCE.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            names.add(node.module or "")

    assert names - sys.stdlib_module_names == {
        "numpy",
        "PIL",
        "cv2",
    }  # onnxruntime by its name in the manifest


@pytest.mark.parametrize("version", ["3.6", "3.7", "3.8", "3.9"])
def test_an_old_python_starts_it(version: str, tmp_path: Path) -> None:
    if not (python := old_python(version)):
        pytest.skip(f"there is no Python {version} here, neither on the path nor in pyenv")
    (tmp_path / "runner.py").write_text(bundle.runner_source("tensorrt"), "utf-8")
    command = [python, str(tmp_path / "runner.py"), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert (done.returncode, done.stderr) == (0, "")
    assert "--build" in done.stdout


def old_python(version: str) -> str | None:
    """Return a Python of that version; pyenv's names on the path only stand for one, so its folder is looked into."""
    root = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    found = [*map(str, root.glob(f"versions/{version}.*/bin/python")), shutil.which(f"python{version}")]
    return next((path for path in found if path and "shims" not in path), None)


# -- what it does to an image

MODES = ("RGB", "L", "RGBA", "LA", "P", "CMYK", "1", "I;16", "YCbCr", "PA", "F")
FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP", "GIF")
sides = st.integers(1, 60)
resizes = st.none() | st.integers(1, 40) | st.tuples(st.integers(1, 40), st.integers(1, 40))


@st.composite
def files(draw: st.DrawFn) -> bytes:
    """Return an image file of some mode, format, size and orientation."""
    height, width, mode = draw(sides), draw(sides), draw(st.sampled_from(MODES))
    noise = np.random.default_rng(draw(st.integers(0, 99)))
    if mode == "I;16":
        image = Image.fromarray(noise.integers(0, 2**16, (height, width), np.uint16))
    else:
        image = Image.fromarray(noise.integers(0, 256, (height, width, 3), np.uint8)).convert("RGB")
        image = image.convert("L" if mode in ("F", "LA", "1") else "P" if mode == "PA" else mode).convert(
            mode
        )
    options: dict[str, Any] = {}
    if mode == "P" and draw(st.booleans()):
        options["transparency"] = draw(st.integers(0, 255))
    if orientation := draw(st.integers(0, 8)):
        exif = Image.Exif()
        exif[0x0112] = orientation
        options["exif"] = exif
    for form in draw(st.permutations(FORMATS)):
        file = io.BytesIO()
        try:
            image.save(file, form, **options)
        except (OSError, KeyError, ValueError):
            continue  # no such mode in this format
        return file.getvalue()
    return b"no format has that mode"


@st.composite
def tables(draw: st.DrawFn) -> Preprocess:
    resize, crop = draw(resizes), draw(resizes)
    channels = draw(st.sampled_from(("RGB", "BGR", "L")))
    try:
        return Preprocess(resize, crop, draw(st.sampled_from(INTERPOLATIONS)), channels=channels)
    except InputError:  # a crop larger than what it crops
        return Preprocess(resize, None, channels=channels)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("images") / "image"


@settings(max_examples=300, deadline=None)
@given(content=files(), table=tables())
def test_an_image_becomes_the_same_input_as_on_the_workstation(
    scratch: Path, content: bytes, table: Preprocess
) -> None:
    scratch.write_bytes(content)
    manifest = json.loads(json.dumps(table.to_dict()))
    runner.check_preprocess(manifest)
    try:
        wanted = table.pixels(read_photo(scratch))
    except InputError:
        with pytest.raises(runner.ImageError):
            runner.pixels(runner.decode(str(scratch)), manifest)
        return

    found = runner.pixels(runner.decode(str(scratch)), manifest)

    assert np.array_equal(found, wanted)  # which is stricter than one grey level
    assert np.array_equal(runner.normalise(found[None], manifest)[0], table(read_photo(scratch)))


def test_a_grey_image_of_16_bits_keeps_its_greys(tmp_path: Path) -> None:
    (tmp_path / "a.pgm").write_bytes(b"P5 2 2 65535\n" + b"\x9c\x40" * 4)

    assert runner.decode(str(tmp_path / "a.pgm")).getpixel((0, 0)) == (156, 156, 156)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    ("form", "version", "turned"),
    [("JPEG", "5.4.1", False), ("TIFF", "6.0.0", False), ("TIFF", "9.5.0", True)],
)
def test_pillow_too_old_to_turn_images_is_helped(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, form: str, version: str, turned: bool, orientation: int
) -> None:
    """Pillow 6.2 to 9 turns a TIFF as it reads it, and would turn it again; before, it never did."""
    from PIL import TiffImagePlugin

    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.effect_noise((6, 4), 90).save(tmp_path / "image", form, exif=exif)
    wanted = np.asarray(runner.decode(str(tmp_path / "image")))
    monkeypatch.setattr("PIL.__version__", version)
    if not turned:
        monkeypatch.setattr(TiffImagePlugin.TiffImageFile, "load_end", lambda image: None)

    assert np.array_equal(np.asarray(runner.decode(str(tmp_path / "image"))), wanted)


# -- what it answers


def test_a_photograph_gets_its_classes_and_a_broken_one_its_reason(
    pristine: Path, photographs: Path, tmp_path: Path
) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    paths = [photographs / "green" / "0.png", tmp_path / "broken.jpg", photographs / "blue" / "1.png"]

    done = start(pristine, *map(str, paths), "--top", "1", "--json")

    first, second, third = map(json.loads, done.stdout.splitlines())
    assert (done.returncode, done.stderr) == (1, "")
    assert (first["image"], first["top"][0]["label"], first["top"][0]["class"]) == (str(paths[0]), "green", 1)
    assert second == {"image": str(paths[1]), "error": "not an image that can be read"}
    assert third["top"][0]["label"] == "blue"


@pytest.mark.parametrize("batch", ["0", "1", "2", "5", "64"])
def test_batches_of_any_size_give_the_same_answers_in_order(
    make: Make, photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    batch: str,
) -> None:  # fmt: skip
    copy = shutil.copytree(photographs, tmp_path / "photographs")
    (copy / "green" / "00-broken.png").write_bytes(b"")
    words = [] if batch == "0" else ["--batch", batch]

    assert work(monkeypatch, make(batch=None), str(copy), "--json", *words) == 1

    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [answer["image"] for answer in answers] == sorted(map(str, copy.rglob("*.png")))
    assert sum("error" in answer for answer in answers) == 1
    assert all(
        answer["top"][0]["label"] == Path(answer["image"]).parent.name
        for answer in answers
        if "top" in answer
    )


def test_a_model_of_a_fixed_batch_gets_its_last_one_filled_up(make: Make, photographs: Path) -> None:
    folder = make(batch=5)
    model = runner.Model(runner.Bundle(str(folder)))
    paths = [(str(path), str(path)) for path in sorted(photographs.rglob("*.png"))]

    labels = [answer["top"][0]["label"] for answer in model.answer(iter(paths), 1)]

    assert labels == [Path(path).parent.name for path, _ in paths]
    with pytest.raises(runner.RunnerError, match="takes batches of 5, not of 3"):
        runner.Model(runner.Bundle(str(folder)), batch=3)


def test_images_of_different_sizes_go_in_one_by_one(make: Make, tmp_path: Path) -> None:
    model = runner.Model(runner.Bundle(str(make(batch=None))), batch=8)
    seen: list[tuple[int, ...]] = []
    session = model.session
    model.session = lambda batch: (
        seen.append(batch.shape),
        session(np.zeros((len(batch), 3, 8, 8), np.float32)),
    )[1]
    model.manifest["preprocess"] = {**model.manifest["preprocess"], "resize": None}
    images = [
        ("a", Image.new("RGB", (4, 5))),
        ("b", Image.new("RGB", (4, 5))),
        ("c", Image.new("RGB", (6, 5))),
    ]

    assert [answer["image"] for answer in model.answer(iter(images), 1)] == ["a", "b", "c"]
    assert seen == [(2, 3, 5, 4), (1, 3, 5, 6)]


def test_a_model_that_does_not_classify_tells_the_range_of_its_outputs(make: Make, photographs: Path) -> None:
    model = runner.Model(runner.Bundle(str(make(task="fidelity"))))

    (answer,) = model.answer(iter([("x", str(photographs / "red" / "0.png"))]), 5)

    assert answer["ranges"][0]["name"] == "scores"
    assert answer["ranges"][0]["shape"] == [1, 3]
    assert answer["ranges"][0]["min"] < answer["ranges"][0]["max"]


@pytest.mark.parametrize(
    ("scores", "shares"), [([0, 0], [0.5, 0.5]), ([0.25, 0.75], [0.25, 0.75]), ([1000, 0], [1, 0])]
)
def test_scores_become_shares_of_one(scores: list[float], shares: list[float]) -> None:
    assert runner.probabilities(np.array(scores, np.float32)).tolist() == shares


# -- checks and times


def test_the_check_passes_where_nothing_changed(pristine: Path) -> None:
    done = start(pristine, "--check", "--json")

    result = json.loads(done.stdout)
    assert (done.returncode, done.stderr) == (0, "")
    assert result["ok"]
    assert result["distance"]["scores"] <= result["tolerance"]


def test_the_check_fails_where_the_model_answers_otherwise(
    copied: Path, reseal: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reseal(copied, lambda manifest: manifest["preprocess"].update(mean=[0.406, 0.456, 0.485]))

    assert work(monkeypatch, copied, "--check") == 3
    assert "NOT those that were recorded" in capsys.readouterr().out


@pytest.mark.parametrize("found", [[[np.nan]], [[np.inf]], [[1.0, 1.0]]])
def test_outputs_that_do_not_compare_are_never_near(found: list[list[float]]) -> None:
    assert runner.distance(np.array(found), np.array([[1.0]])) is None


def test_the_distance_is_that_of_the_worst_item() -> None:
    wanted, found = np.array([[3.0, 4.0], [0.0, 0.0]]), np.array([[3.0, 3.5], [0.0, 0.0]])

    assert runner.distance(found, wanted) == pytest.approx(0.1)
    assert runner.distance(wanted, wanted) == 0


def test_the_bench_says_how_fast_how_often_and_in_what_state(pristine: Path) -> None:
    opened = runner.Bundle(str(pristine))
    result = runner.bench(opened, runner.Model(opened), 0.05)

    assert json.loads(json.dumps(result)) == result
    assert 0 < result["median_ms"] <= result["p90_ms"]
    assert result["runs"] >= 10
    assert result["throughput_per_s"] == pytest.approx(1e3 / result["median_ms"])
    assert {"arch", "cores"} <= result["machine"]["before"].keys()


def test_two_bundles_are_timed_in_turn(
    pristine: Path, copied: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    order: list[bool] = []
    first = runner.Bundle(str(pristine))
    model = runner.Model(first)
    ask = runner.OnnxRuntime.__call__

    def slower(session: Any, batch: Any) -> Any:
        own = session is model.session
        if order[-1:] != [own]:
            order.append(own)
        if not own:
            time.sleep(0.002)
        return ask(session, batch)

    monkeypatch.setattr(runner.OnnxRuntime, "__call__", slower)
    result = runner.bench(first, model, 0.2, str(copied))

    assert order == [True, False] * (len(order) // 2)
    assert len(order) // 2 >= 1 + 5  # once to see how long they take, then in rounds
    assert json.loads(json.dumps(result)) == result
    assert result["beside"]["median_ms"] >= 2 > result["median_ms"]
    assert 1 < result["speedup_interval"][0] <= result["speedup"] <= result["speedup_interval"][1]
    runner.show_bench(result)
    assert f"this one is {result['speedup']:.2f} times as fast" in capsys.readouterr().out


def test_bundles_of_different_batches_are_not_compared(pristine: Path, make: Make) -> None:
    opened = runner.Bundle(str(pristine))

    with pytest.raises(runner.RunnerError, match="batches of 1 and 2"):
        runner.bench(opened, runner.Model(opened), 0.1, str(make(batch=2)))


def test_the_state_of_a_raspberry_pi_and_a_jetson_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    said = {"vcgencmd": "throttled=0x50005\n", "nvpmodel": "NV Power Mode: MAXN_SUPER\n2\n"}
    monkeypatch.setattr(runner, "output_of", lambda *command: said.get(command[0], ""))

    facts = runner.machine()

    assert facts["throttled_now"] == ["under-voltage", "throttled"]
    assert facts["throttled_since_boot"] == ["under-voltage", "throttled"]
    assert facts["power_mode"] == "MAXN_SUPER"


# -- what is wrong, in one line


@pytest.mark.parametrize(
    ("python", "arch", "bits", "minimum", "wanted"),
    [
        ((3, 6), "aarch64", 64, "", '"onnxruntime==1.10.0"'),
        ((3, 8), "aarch64", 64, "1.21", '"onnxruntime==1.19.2"; the bundle asks for 1.21 or later'),
        ((3, 13), "x86_64", 64, "1.21", '"onnxruntime>=1.21"'),
        (
            (3, 11),
            "armv7l",
            32,
            "",
            "There is no onnxruntime for a 32-bit Python on armv7l: install a 64-bit system.",
        ),
        (
            (3, 11),
            "aarch64",
            32,
            "",
            "There is no onnxruntime for a 32-bit Python on aarch64: install a 64-bit system.",
        ),
    ],
)
def test_what_is_to_be_installed_depends_on_the_board(
    python: tuple[int, int], arch: str, bits: int, minimum: str, wanted: str
) -> None:
    assert runner.how_to_install(["onnxruntime"], minimum, python, arch, bits).endswith(wanted)


@pytest.mark.parametrize("name", ["onnxruntime", "numpy", "PIL"])
def test_a_missing_package_is_named_with_what_to_type(
    pristine: Path, photographs: Path, tmp_path: Path, name: str
) -> None:
    (tmp_path / f"{name}.py").write_text(f"raise ModuleNotFoundError('No module', name={name!r})")

    done = start(pristine, str(photographs / "red" / "0.png"), PYTHONPATH=str(tmp_path))

    assert done.returncode == 4
    assert done.stderr.startswith(f"error: {name} is not installed. Type: ")
    assert done.stderr.count("\n") == 1


def test_another_architecture_is_refused_unless_allowed(
    make: Make, photographs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, photo = make(arch="riscv64", title="Board"), str(photographs / "red" / "0.png")

    assert work(monkeypatch, folder, photo) == 4
    assert "for Board, a machine of architecture riscv64, and this is" in capsys.readouterr().err
    assert work(monkeypatch, folder, photo, "--any-machine") == 0


def test_a_cpu_that_would_overflow_is_refused() -> None:
    device = {"title": "Xeon", "arch": "x86_64", "isa": ["avx2", "avx512_vnni"]}

    runner.check_machine(device, "AMD64", "flags : avx2 avx512_vnni")
    with pytest.raises(runner.RunnerError, match="VNNI instructions, which this one lacks"):
        runner.check_machine(device, "x86_64", "flags : avx2")


def test_a_model_that_the_runtime_cannot_load_is_told_in_one_line(pristine: Path) -> None:
    manifest = runner.Bundle(str(pristine)).manifest

    with pytest.raises(
        runner.RunnerError, match=r"^onnxruntime \S+ cannot load the model, of opset 13.*"
    ) as caught:
        runner.OnnxRuntime(b"no model", manifest, 1)
    assert "\n" not in str(caught.value)


def test_an_older_runtime_is_remarked_on() -> None:
    assert runner.older("1.19.2", "1.21") == "; the bundle asks for 1.21 or later"
    assert not runner.older("1.21.0", "1.21")
    assert not runner.older("1.32.0", "")
    assert not runner.older("10.3", "8.6")


def test_a_camera_without_opencv_is_told_what_to_install(
    pristine: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)

    assert work(monkeypatch, pristine, "--camera", "0") == 4
    assert "--camera needs OpenCV" in capsys.readouterr().err


class Capture:
    """A camera that sees red, blue, and then nothing, in OpenCV's order of channels."""

    def __init__(self, source: int | str) -> None:
        self.colours = [(0, 0, 200), (200, 0, 0)] if source != 9 else None

    def isOpened(self) -> bool:  # noqa: N802  # OpenCV's name
        return self.colours is not None

    def read(self) -> tuple[bool, Any]:
        return (True, np.full((4, 4, 3), self.colours.pop(0), np.uint8)) if self.colours else (False, None)


@pytest.mark.parametrize(("source", "code"), [("rtsp://board/stream", 0), ("0", 4), ("9", 4)])
def test_a_camera_is_answered_frame_by_frame(
    pristine: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    source: str,
    code: int,
) -> None:
    import types

    monkeypatch.setitem(sys.modules, "cv2", types.SimpleNamespace(VideoCapture=Capture))

    assert work(monkeypatch, pristine, "--camera", source, "--top", "1") == code

    said = capsys.readouterr()
    assert [line.split()[2] for line in said.out.splitlines()] == ([] if source == "9" else ["red", "blue"])
    assert ("gave no more images" in said.err) == (source == "0")


def test_a_bundle_without_preprocessing_can_be_checked_but_takes_no_photographs(
    make: Make, photographs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make(preprocess=None, data=False)

    assert work(monkeypatch, folder, "--check") == 0
    assert work(monkeypatch, folder, str(photographs)) == 3
    assert "--preprocess" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["a.jpg", "--bench"],
        ["--check", "--bench"],
        ["a.jpg", "--top", "0"],
        ["--batch", "x"],
        ["--check", "--beside", "x"],
    ],
)
def test_a_wrong_command_line_ends_with_2(words: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        runner.arguments(words)
    assert caught.value.code == 2


def test_names_cannot_play_with_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    runner.show({"image": "a\x1b[2J\n.jpg", "error": "no"}, as_json=False)

    assert capsys.readouterr().err == "a?[2J?.jpg: no\n"


def test_a_terminal_without_the_letters_gets_others(make: Make) -> None:
    file = io.TextIOWrapper(io.BytesIO(), "ascii")
    runner.say("hôtel", file)

    assert file.buffer.getvalue() == b"h\\xf4tel\n"  # type: ignore[attr-defined]  # the BytesIO given above


def test_no_line_plays_with_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    runner.show_check({"files": 1, "distance": {"o\x1b[2J": 0.0}, "tolerance": 0.1, "ok": True})

    assert "o?[2J is 0.0000 away" in capsys.readouterr().out


def test_all_packages_that_are_absent_are_named_at_once(
    pristine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)

    with pytest.raises(
        runner.RunnerError, match=r"^numpy and PIL and onnxruntime are not installed.*pillow"
    ) as caught:
        runner.require(runner.Bundle(str(pristine)).manifest["runtime"])
    assert "onnxruntime" in str(caught.value).partition("pillow")[2]


def test_an_old_python_is_told_which_one_has_a_runtime_for_the_model(
    pristine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = json.loads((pristine / "manifest.json").read_text())
    manifest["runtime"]["minimum"] = "99.1"
    monkeypatch.setattr("sys.version_info", (3, 6, 15))

    with pytest.raises(
        runner.RunnerError, match=r"asks for 99\.1 or later, and that Python 3\.11 or later\.$"
    ):
        runner.OnnxRuntime(b"no model", manifest, 1)


def test_folders_without_photographs_are_told(pristine: Path, tmp_path: Path) -> None:
    (tmp_path / "empty" / "deeper").mkdir(parents=True)

    done = start(pristine, str(tmp_path / "empty"))

    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"{tmp_path}/empty: no photograph is in this folder\n"


def test_a_folder_that_may_not_be_looked_into_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def walk(path: str, onerror: Callable[[OSError], None]) -> list[Any]:
        onerror(PermissionError(13, "Permission denied", f"{path}/closed"))
        return [(path, ["closed"], ["a.png"])]

    monkeypatch.setattr("os.walk", walk)

    assert [name for name, _ in runner.found_in([str(tmp_path)])] == [
        f"{tmp_path}/a.png",
        f"{tmp_path}/closed",
    ]


@pytest.mark.parametrize("scores", [[np.nan, 1.0], [np.inf, 0.0], []])
def test_scores_that_are_no_numbers_are_no_answer(scores: list[float]) -> None:
    assert runner.probabilities(np.array(scores, np.float32)) is None


def test_a_model_that_answers_nan_is_told_for_each_image(make: Make, photographs: Path) -> None:
    model = runner.Model(runner.Bundle(str(make())))
    model.session = lambda batch: [np.full((1, 3), np.nan, np.float32)]

    (answer,) = model.answer(iter([("x", str(photographs / "red" / "0.png"))]), 5)

    assert answer["error"] == "the model's scores are no numbers"
    assert json.loads(
        json.dumps(runner.summary("x", np.array([np.nan, np.inf], np.float32)), allow_nan=False)
    )


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_an_answer_that_cannot_be_written_is_told_in_one_line(pristine: Path) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, str(pristine / "runner.py"), "--check"],
            stdout=full, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip

    assert done.returncode == 4
    assert done.stderr == "error: The answer cannot be written: No space left on device.\n"


def test_without_a_standard_output_it_ends_with_a_message(pristine: Path) -> None:
    command = f'exec "{sys.executable}" "{pristine}/runner.py" --check >&-'
    done = subprocess.run(["sh", "-c", command], stderr=subprocess.PIPE, text=True, check=False)

    assert (done.returncode, done.stderr) == (4, "error: There is no standard output to answer on.\n")


def test_a_link_to_the_runner_finds_its_bundle(pristine: Path, tmp_path: Path) -> None:
    (tmp_path / "see.py").symlink_to(pristine / "runner.py")
    done = subprocess.run(
        [sys.executable, str(tmp_path / "see.py"), "--check"], capture_output=True, check=False
    )

    assert done.returncode == 0
