"""Whatever is wrong with what the user gave: one message, what to do, the right exit code, and nothing lost."""

from __future__ import annotations

import errno
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import onnx
import pytest


@pytest.fixture
def refused(command):
    """Return a function that runs a command and demands an orderly refusal; it returns the message."""

    def run(*arguments, cwd, code=3, says=(), hint=True):
        answer = command(*arguments, cwd=cwd)
        assert answer.code == code, answer
        assert answer.out == ""
        assert answer.err.count("error: ") == 1, answer.err
        assert ("what to do: " in answer.err) >= hint, answer.err
        assert "Traceback" not in answer.err
        assert "a fault in Penjing" not in answer.err
        for text in says:
            assert text in answer.err, answer.err
        return answer.err

    return run


@pytest.fixture
def fresh(workplace):
    """Return the folder without the finished run."""
    shutil.rmtree(workplace / "run")
    return workplace


def swap(command, **changes):
    """Return the command with other arguments: `source`, or options by name."""
    words = list(command)
    for name, value in changes.items():
        if name == "source":
            words[1] = value
        elif f"--{name}" in words:
            words[words.index(f"--{name}") + 1] = value
        else:
            words += [f"--{name}", value]
    return words


def test_an_onnx_file_that_is_none(fresh, refused, compress):
    for content in (b"", b"not protobuf", bytes(range(256)) * 8):
        (fresh / "bad.onnx").write_bytes(content)
        refused(*swap(compress, source="bad.onnx"), cwd=fresh, says=["bad.onnx"], hint=False)
    assert not (fresh / "run").exists()


def test_an_onnx_file_cut_short(workplace, refused, compress):
    whole = (workplace / "run/original/model.onnx").read_bytes()
    for size in (10, len(whole) // 2, len(whole) - 1):
        (workplace / "cut.onnx").write_bytes(whole[:size])
        refused(*swap(compress, source="cut.onnx", out="other"), cwd=workplace, says=["cut.onnx"], hint=False)


@pytest.mark.parametrize("where", ["weights.bin", "../weights.bin", "/etc/passwd"])
def test_an_onnx_file_whose_weights_are_missing_or_outside(workplace, refused, compress, where):
    model = onnx.load(workplace / "run/original/model.onnx")
    onnx.external_data_helper.convert_model_to_external_data(model, location="here.bin", size_threshold=0)
    onnx.save(model, workplace / "split.onnx")
    (workplace.parent / "weights.bin").write_bytes(bytes(1 << 20))
    model = onnx.load(workplace / "split.onnx", load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = where
    onnx.save(model, workplace / "split.onnx")
    refused(*swap(compress, source="split.onnx", out="other"), cwd=workplace, says=["split.onnx"], hint=False)


class _Code:
    def __reduce__(self):
        return os.mkdir, ("executed",)


def test_weights_that_are_a_pickle_with_code_are_not_executed(fresh, refused, compress):
    import torch

    (fresh / "plain.pt").write_bytes(pickle.dumps(_Code()))
    torch.save({"0.weight": _Code()}, fresh / "zipped.pt")
    for name in ("plain.pt", "zipped.pt"):
        refused(*compress, "--weights", name, cwd=fresh, says=[name], hint=False)
    assert not (fresh / "executed").exists()


def test_weights_of_another_network_are_named_by_key_and_shape(fresh, refused, compress):
    import torch

    torch.save({"0.weight": torch.zeros(4, 3, 3, 3), "head.bias": torch.zeros(3)}, fresh / "other.pt")
    refused(
        *compress, "--weights", "other.pt", cwd=fresh,
        says=["0.weight is [4, 3, 3, 3], not [16, 3, 3, 3]", "unexpected: head.bias", "missing"],
    )  # fmt: skip


def test_more_classes_than_outputs(fresh, refused, compress):
    shutil.copytree(fresh / "photos" / "a-red", fresh / "photos" / "scarlet")
    refused(*compress, cwd=fresh, says=["4 class folders", "3 outputs"])


def test_photographs_that_are_not_there(fresh, refused, compress):
    (fresh / "empty").mkdir()
    for data, says in (
        ("empty", "holds no photograph"), ("nowhere", "is not there"), ("model.py", "is a file, not a folder")
    ):  # fmt: skip
        refused(*swap(compress, data=data), cwd=fresh, says=[data, says])
    assert not (fresh / "run").exists()


def test_a_run_folder_among_the_photographs_is_refused_before_it_becomes_a_class(fresh, refused, compress):
    for out in ("photos/run", "photos", "photos/red"):
        for verb in ("plan", "compress"):
            refused(verb, *swap(compress, out=out)[1:], cwd=fresh, says=["lies in photos"])
    assert not (fresh / "photos" / "run").exists()


def test_an_output_folder_that_holds_other_things_is_left_alone(fresh, refused, compress):
    (fresh / "thesis").mkdir()
    (fresh / "thesis" / "chapter.txt").write_text("precious")
    refused(*swap(compress, out="thesis"), cwd=fresh, says=["thesis is not empty", "--out"])
    assert [path.name for path in (fresh / "thesis").iterdir()] == ["chapter.txt"]


@pytest.mark.parametrize("out", ["model.py", "model.py/run", "locked/run"])
def test_an_output_that_cannot_be_a_folder(fresh, refused, compress, out):
    (fresh / "locked").symlink_to("/proc/self")  # where not even root can make a folder
    refused(*swap(compress, out=out), cwd=fresh, says=[f"{out} cannot be the folder of a run"])


def test_a_folder_without_permission_to_write(fresh, refused, compress, monkeypatch):
    def denied(path, *arguments, **options):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "mkdir", denied)
    refused(*compress, cwd=fresh, says=["run cannot be the folder of a run: Permission denied"])


@pytest.fixture(scope="module")
def undisturbed(place, finished, command, compress, tmp_path_factory):
    """Return the report of a run from an .onnx file, which needs no torch and so takes little time."""
    folder = tmp_path_factory.mktemp("undisturbed")
    shutil.copy(finished / "original/model.onnx", folder / "model.onnx")
    (folder / "photos").symlink_to(place / "photos")
    (folder / "preprocess.toml").symlink_to(place / "preprocess.toml")
    return command(*swap(compress, source="model.onnx"), "--json", cwd=folder).json


@pytest.mark.parametrize("at", range(1, 32, 3))
def test_a_full_disk_stops_the_run_and_what_was_finished_is_used_when_there_is_room(
    workplace, refused, command, compress, undisturbed, monkeypatch, at
):
    shutil.copy(workplace / "run/original/model.onnx", workplace / "model.onnx")
    words = swap(compress, source="model.onnx", out="other")
    real, calls = os.fsync, iter(range(1, 10_000))

    def full(handle):
        if next(calls) >= at:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        refused(
            *words,
            cwd=workplace,
            code=4,
            says=["No space left on device", "MB are free", "same command again"],
        )
    kept = {path.parent.name: path.stat().st_mtime_ns for path in workplace.glob("other/steps/*/step.json")}
    answer = command(*words, "--json", cwd=workplace)

    assert answer.code == 0
    assert [column["sha256"] for column in answer.json["columns"]] == [
        column["sha256"] for column in undisturbed["columns"]
    ]
    now = {path.parent.name: path.stat().st_mtime_ns for path in workplace.glob("other/steps/*/step.json")}
    assert kept.items() <= now.items()
    assert not [path for path in workplace.glob("other/**/.*") if path.name != ".lock"]


def test_a_recipe_with_a_typo(fresh, refused, compress):
    words = [word for word in compress if word != "--set" and not word.startswith("quant.")]
    for text, says in (
        ('[[recipe]]\nuse = "onnx.exprt"\n[[recipe]]\nuse = "onnxrt"', ["onnx.exprt", "onnx.export"]),
        ('[[recipe]]\nuse = "onnx.export"\nopsett = 17\n[[recipe]]\nuse = "onnxrt"', ["opsett", "opset"]),
        (
            '[[recipe]]\nuse = "onnx.export"\nopset = "high"\n[[recipe]]\nuse = "onnxrt"',
            ["onnx.export.opset"],
        ),
        ('[recipe]\nuse = "onnx.export"', ["two brackets"]),
        ('[[recipie]]\nuse = "onnx.export"', ["recipie"]),
        ('[[recipe]]\nues = "onnx.export"', ["step 1"]),
        ("[[recipe]", ["not valid TOML"]),
        ("", ["no steps"]),
        ('[[recipe]]\nuse = "onnx.export"', ["0 backends"]),
        ('[[recipe]]\nuse = "onnxrt"', ["onnxrt takes a model of form onnx, and gets torch"]),
    ):
        (fresh / "recipe.toml").write_text(text)
        refused(*words, "--recipe", "recipe.toml", cwd=fresh, says=says, hint=False)
    refused(*words, "--recipe", "none.toml", cwd=fresh, says=["none.toml"], hint=False)
    assert not (fresh / "run").exists()


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("quant.static.percentile=nan", "quant.static.percentile takes a number from 90 to 100"),
        ("quant.static.percentile=inf", "quant.static.percentile"),
        ("quant.static.percentile=50", "from 90 to 100"),
        ("quant.static.images=1.5", "an integer"),
        ("quant.static.images=", "an integer"),
        ("quant.static.method=best", "minmax, average"),
        ("quant.static.equalize=no", "Did you mean equalise?"),
        ("quant.statik.method=mse", "Did you mean quant.static?"),
        ("onnxrt.threads=0", "from 1 to 1024"),
        ("onnx.export.opset=99", "opset"),
        ("quant.static", "STEP.OPTION=VALUE"),
        ("=", "STEP.OPTION=VALUE"),
    ],
)
def test_a_setting_that_cannot_be(fresh, refused, compress, setting, says):
    refused(*compress, "--set", setting, cwd=fresh, says=[says], hint=False)
    assert not (fresh / "run").exists()


def test_an_unknown_device_or_source(fresh, refused, compress):
    refused(*compress, "--device", "jetson-orin-nao", cwd=fresh, says=["Did you mean jetson-orin-na"])
    refused(*compress, "--device", "board.toml", cwd=fresh, says=["board.toml cannot be read"], hint=False)
    refused(*swap(compress, source="resnet50"), cwd=fresh, says=["torchvision:resnet50"])
    refused(*swap(compress, source="model.py:netwrk"), cwd=fresh, says=["Did you mean network?"])
    refused(*swap(compress, source="models.py:network"), cwd=fresh, says=["models.py"], hint=False)


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("import sys\nsys.exit(3)\n", "ends Python"),
        ("def network():\n    import sys\n    sys.exit(0)\n", "ends Python"),
        ("raise RuntimeError('no GPU here')\n", "no GPU here"),
        ("def network():\n    return 1 / 0\n", "division by zero"),
        ("def network():\n    return 'a network'\n", "str, not a torch.nn.Module"),
        ("def network(:\n", "SyntaxError"),
        ("import nonsense_of_a_module\n", "nonsense_of_a_module"),
    ],
)
def test_a_source_that_misbehaves(fresh, refused, compress, code, says):
    (fresh / "bad.py").write_text(code)
    refused(*swap(compress, source="bad.py:network"), cwd=fresh, says=["bad.py", says], hint=False)
    assert not (fresh / "run").exists()


def test_preprocessing_that_does_not_suit(fresh, refused, compress):
    for text, says in (
        ("crp = 32", "Did you mean crop?"),
        ("crop = 32\nscale = nan", "scale must be finite"),
        ("crop = 32\nstd = [0.0, 1.0, 1.0]", "std must not be zero"),
        ("resize = 20\ncrop = 32", "larger than resize"),
        ("crop = [", "not TOML"),
    ):
        (fresh / "preprocess.toml").write_text(text)
        refused(*compress, cwd=fresh, says=["preprocess.toml", says], hint=False)


def test_a_model_that_never_learnt_how_photographs_go_in(fresh, refused, compress):
    words = [word for word in compress if word not in ("--preprocess", "preprocess.toml")]
    refused(*words, cwd=fresh, says=["--preprocess"])


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"schema": 1}', '{"schema": 9}', "null", "\udcff"])
def test_a_damaged_run_json_is_told_by_all_who_read_it_and_mended_by_compress(
    workplace, refused, command, compress, damage
):
    path = workplace / "run" / "run.json"
    path.write_text(damage, errors="surrogateescape")
    for words in (("report", "run"), ("measure", "run"), ("predict", "run", "photos/a-red/0.png")):
        refused(*words, cwd=workplace, says=["run.json"], hint=False)
    answer = command(*compress, "--json", cwd=workplace)
    assert all(step["reused"] for step in answer.json["steps"])


@pytest.mark.parametrize(
    ("name", "value"),
    [("backend", {"name": "onnxrt"}), ("backend", {"name": ["x"], "options": {}}), ("device", 5), ("seed", None),
     ("backend", {"name": "quant.static", "options": {}}), ("backend", {"name": "onnxrt", "options": {"threads": -1}}),
     ("device", "no-such-board"), ("classes", "c-blue"), ("task", 1)],
)  # fmt: skip
def test_a_run_json_that_says_something_else(workplace, refused, name, value):
    path = workplace / "run" / "run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), name: value}))
    refused("predict", "run", "photos/a-red/0.png", cwd=workplace, hint=False)


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"schema": 1}', '{"schema": 9}'])
def test_a_damaged_report_is_told_and_mended_by_compress(workplace, refused, command, compress, damage):
    (workplace / "run" / "report.json").write_text(damage)
    for words in (("report", "run"), ("measure", "run")):
        refused(*words, cwd=workplace, says=["report"], hint=False)
    assert command(*compress, "--json", cwd=workplace).code == 0
    assert command("report", "run", "--quiet", cwd=workplace).code == 0


def test_a_run_without_a_report_or_a_model_says_how_to_finish_it(workplace, refused):
    (workplace / "run" / "report.json").unlink()
    (workplace / "run" / "optimised" / "model.onnx").unlink()
    for words in (("report", "run"), ("measure", "run"), ("predict", "run", "photos/a-red/0.png")):
        refused(*words, cwd=workplace, says=["same `penjing compress` again"])


def test_more_broken_photographs_than_are_put_up_with(fresh, refused, command, compress):
    for number in range(6):
        (fresh / "photos" / "a-red" / f"{number}.png").write_bytes(b"no photograph")
    refused(*compress, cwd=fresh, says=["6 of 60 photographs", "a-red/0.png", "larger share"])
    answer = command(*compress, "--max-broken", "0.2", "--json", cwd=fresh)
    assert len(answer.json["data"]["broken"]) == 6


def test_photographs_found_broken_while_scoring_are_told_again_when_the_answers_are_reused(
    fresh, command, compress
):
    for number in range(10):
        path = fresh / "photos" / "a-red" / f"{number}.png"
        path.write_bytes(path.read_bytes()[:2000])  # the header is whole
    first = command(*compress, "--max-broken", 1, "--json", cwd=fresh).json
    again = command(*compress, "--max-broken", 1, "--json", cwd=fresh).json
    assert first["columns"][0]["accuracy"]["n"] < first["data"]["splits"]["test"]
    assert first["data"] == again["data"]
    assert first["columns"] == again["columns"]


def test_a_network_whose_outputs_are_no_numbers_is_wrong_everywhere_and_said_to_be(fresh, command, compress):
    text = (
        (fresh / "model.py")
        .read_text()
        .replace("return net", "net[7].bias.data[0] = float('nan')\n    return net")
    )
    (fresh / "model.py").write_text(text)
    answer = command(*compress, "--json", cwd=fresh)
    if answer.code == 0:
        assert [column["accuracy"]["value"] for column in answer.json["columns"]] == [0, 0, 0]
        assert answer.json["columns"][2]["fidelity"]["sqnr_db"] is None
    else:
        assert answer.code in (3, 4)
        assert "what to do: " in answer.err
        assert "a fault in Penjing" not in answer.err


@pytest.mark.parametrize(
    "name", ["with space", "写真 ö", "-dash", "quo'te\"s", "percent%20[brackets]", "a:b=c?d"]
)
def test_names_of_any_letters(workplace, command, compress, name):
    shutil.copytree(workplace, workplace.parent / name)
    here = workplace.parent
    words = swap(compress, source=f"./{name}/model.py:network", data=f"./{name}/photos", out=f"./{name}/run")
    words[words.index("--preprocess") + 1] = f"./{name}/preprocess.toml"
    answer = command(*words, "--json", cwd=here)
    assert answer.code == 0, answer.err
    found = command("predict", f"./{name}/run", f"./{name}/photos/a-red/0.png", "--json", cwd=here)
    assert found.code == 0, found.err


def test_a_name_that_is_no_text(fresh, command, compress):
    name = os.fsdecode(b"ph\xffotos")
    (fresh / "photos").rename(fresh / name)
    (fresh / name / "a-red" / "0.png").rename(fresh / name / "a-red" / os.fsdecode(b"\xfe.png"))
    (fresh / name / "a-red" / os.fsdecode(b"\xfe.png")).write_bytes(b"broken")
    answer = command(*swap(compress, data=name), "--json", cwd=fresh)
    assert answer.code == 0, answer.err


def test_a_second_process_at_the_same_run_is_refused(fresh, refused, compress):
    (fresh / "run").mkdir()
    holder = subprocess.Popen(
        [sys.executable, "-c", "import sys, filelock\nwith filelock.FileLock('run/.lock'): print(flush=True); input()"],
        cwd=fresh, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    with holder:
        holder.stdout.readline()
        refused(*compress, cwd=fresh, says=["Another process is at work in run"])
        holder.stdin.close()
    assert [path.name for path in (fresh / "run").iterdir()] == [".lock"]


def test_the_keyboard_stops_a_run_with_a_word(fresh, command, compress, monkeypatch):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("penjing.host.Host.apply", interrupted)
    answer = command(*compress, cwd=fresh)
    assert answer.code == 130
    assert "same command again" in answer.err
    assert list((fresh / "run" / "steps").iterdir()) == []


def test_debug_shows_where(fresh, compress):
    from penjing.cli import main
    from penjing.errors import InputError

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(fresh)
        patch.setattr(sys, "argv", ["penjing", "--debug", *swap(compress, data="nowhere"), "--quiet"])
        with pytest.raises(InputError, match="nowhere"):
            main()
