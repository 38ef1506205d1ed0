"""Bundles to a board and back, over a real sshd: whole or not at all, and each fault in one clear message."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO, TextIOWrapper
from pathlib import Path
from typing import Any

import pytest
from penjing import bundle, remote
from penjing import report as reports
from penjing.api import Request, compress
from penjing.errors import InputError, PenjingError, PlanError, StepError
from penjing.remote import board as program
from penjing.remote.ssh import Board, LostError, check_host, check_path
from penjing.step import Silent


class Watch(Silent):
    """Progress that remembers."""

    def __init__(self) -> None:
        self.ended: list[str] = []
        self.warned: list[str] = []
        self.moved = 0

    def advance(self, count: int = 1) -> None:
        self.moved += count

    def end(self, result: str = "") -> None:
        self.ended.append(result)

    def warn(self, message: str) -> None:
        self.warned.append(message)


def digest(run: Path) -> str:
    found: str = json.loads((run / "bundle" / "manifest.json").read_text())["digest"]
    return found


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def at_home(board: Any) -> list[str]:
    """Return what lies in the home of the board, but for what onnxruntime itself puts there."""
    return [path.name for path in board.home.iterdir() if path.name != ".cache"]


def complaint(call: Callable[[], Any]) -> str:
    with pytest.raises(PenjingError) as caught:
        call()
    assert "\n" not in caught.value.message
    assert caught.value.hint
    return caught.value.message


# -- what goes well


def test_a_bundle_arrives_whole_and_is_checked_there(board: Any, run: Path) -> None:
    found = remote.deploy(run, board.place(), Silent())

    there = board.home / "penjing-bundles" / "a-run-of-mine"
    assert found["path"] == str(there)
    assert found["check"]["ok"]
    assert files(there) == files(run / "bundle")
    assert [path.name for path in there.parent.iterdir()] == [there.name]


def test_what_is_there_already_is_not_sent_again(board: Any, run: Path) -> None:
    remote.deploy(run, board.place(), Silent())
    before = board.proxy.up

    remote.deploy(run, board.place(), Silent())

    assert board.proxy.up - before < 50_000


def test_a_new_bundle_takes_the_place_of_the_old(
    board: Any, run: Path, make_run: Callable[..., Path], tmp_path: Path
) -> None:
    path = str(tmp_path / "place")
    remote.deploy(run, board.place(path=path), Silent())
    other = make_run()
    (other / "bundle" / "README.md").write_text("another")
    _reseal(other / "bundle")

    remote.deploy(other, board.place(path=path), Silent())

    assert (tmp_path / "place" / "README.md").read_text() == "another"
    assert [path.name for path in tmp_path.iterdir() if "place" in path.name] == ["place"]


def _reseal(folder: Path) -> None:
    from penjing.bundle import runner
    from penjing.files import sha256_of

    manifest = json.loads((folder / "manifest.json").read_text())
    for name in ("README.md", "runner.py"):
        path = folder / name
        manifest["files"][name] = {"size": path.stat().st_size, "sha256": sha256_of(path)}
    manifest["digest"] = runner.digest(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_the_board_is_left_clean_on_request(board: Any, run: Path) -> None:
    remote.deploy(run, board.place(), Silent())

    assert remote.clean(run, board.place(), Silent())["removed"]
    assert not at_home(board)
    assert not remote.clean(run, board.place(), Silent())["removed"]


def test_measuring_fills_the_report_with_speed_and_score_of_the_board(
    board: Any, make_run: Callable[..., Path]
) -> None:
    run = make_run()

    report = remote.measure(run, board.place(), Silent(), seconds=1)

    there = report["on_board"]
    assert there is not None
    assert (there["host"], there["check"]["distance"]) == ("board", {"scores": 0.0})
    assert there["runtime"].startswith("onnxruntime ")
    assert there["accuracy"] is not None
    assert (there["accuracy"]["value"], there["agreement"]) == (1.0, 1.0)
    assert there["accuracy"]["n"] == there["agreement_n"] == report["data"]["splits"]["test"]  # type: ignore[index]
    latency = report["columns"][-1]["latency"]
    assert latency is not None
    assert latency["median_interval"][0] <= latency["median_ms"] <= latency["p90_ms"]
    assert reports.read(run / "report.json") == report
    text = (run / "report.md").read_text()
    assert "(board)" in text
    assert "Board: same answer as here" in text
    # timed in turn with the original, which is the same network
    original = report["columns"][0]["latency"]
    assert original == there["original"]
    assert original is not None
    assert latency["speedup_interval"] is not None
    assert latency["speedup_interval"][0] <= latency["speedup"] <= latency["speedup_interval"][1]  # type: ignore[operator]
    assert 1 / 3 < latency["speedup"] < 3  # type: ignore[operator]
    assert "in turn with the original" in text
    # the photographs are gone from the board, the bundles stay until they are cleaned up
    left = sorted(path.name for path in (board.home / "penjing-bundles").iterdir())
    assert left == [".a-run-of-mine.original", "a-run-of-mine"]
    remote.clean(run, board.place(), Silent())
    assert not at_home(board)


def test_the_original_can_be_left_out_and_what_it_took_before_is_forgotten(
    board: Any, make_run: Callable[..., Path]
) -> None:
    run = make_run()
    remote.measure(run, board.place(), Silent(), seconds=1, photos=0)
    assert remote.clean(run, board.place(), Silent())["removed"]

    report = remote.measure(run, board.place(), Silent(), seconds=1, photos=0, original=False)

    assert report["on_board"] is not None
    assert (report["on_board"]["original"], report["on_board"]["latency"]["speedup"]) == (None, None)
    assert report["columns"][0]["latency"] is None
    assert report["columns"][0]["latency_why"] == "left out on the board"
    assert [path.name for path in (board.home / "penjing-bundles").iterdir()] == ["a-run-of-mine"]


def test_the_original_is_sent_once_and_taken_up_where_the_connection_broke(
    board: Any, make_run: Callable[..., Path]
) -> None:
    run = make_run()
    remote.deploy(run, board.place(), Silent())
    board.proxy.allowance, before = 7_000_000, board.proxy.up

    remote.measure(run, board.place(), Silent(), seconds=1, photos=0)

    assert board.proxy.breaks == 1
    assert board.proxy.up - before < 14_000_000
    before = board.proxy.up
    remote.measure(run, board.place(), Silent(), seconds=1, photos=0)
    assert board.proxy.up - before < 200_000


def test_a_bundle_whose_runner_times_no_two_is_told_before_anything_is_sent_for_it(
    board: Any, make_run: Callable[..., Path]
) -> None:
    run = make_run()
    script = run / "bundle" / "runner.py"
    script.write_text(script.read_text().replace("--beside", "--next-to"))
    _reseal(run / "bundle")

    assert "made by an earlier version" in complaint(
        lambda: remote.measure(run, board.place(), Silent(), seconds=1)
    )
    assert not at_home(board)


def test_a_run_taken_up_again_still_tells_what_was_measured(
    board: Any, make_run: Callable[..., Path]
) -> None:
    run = make_run()
    before = remote.measure(run, board.place(), Silent(), seconds=1, photos=3)
    asked = json.loads((run / "run.json").read_text())

    after = compress(
        Request(
            asked["source"], asked["device"], data=Path(before["data"]["root"]), out=run,  # type: ignore[index]
            preprocess=_preprocess(asked["preprocess"]),
        )
    )  # fmt: skip

    assert after["on_board"] == before["on_board"]
    assert after["columns"][-1]["latency"] == before["columns"][-1]["latency"]


def _preprocess(table: dict[str, Any]) -> Any:
    from penjing.preprocess import Preprocess

    return Preprocess.from_dict(table)


def test_the_command_line_deploys_measures_and_cleans(
    board: Any,
    make_run: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from penjing.cli import main

    run = make_run()
    where = ["--host", "board", "--ssh", board.ssh, "--python", sys.executable]

    def penjing(*words: str) -> str:
        monkeypatch.setattr(sys, "argv", ["penjing", *words, str(run), *where])
        try:
            main()
        except SystemExit as stop:
            assert not stop.code
        return capsys.readouterr().out

    assert "penjing-bundles/a-run-of-mine answers as recorded." in penjing("deploy")
    assert (
        json.loads(penjing("measure", "--seconds", "1", "--photos", "2", "--json"))["on_board"]["agreement_n"]
        == 2
    )
    assert "is clean" in penjing("deploy", "--clean")


# -- connections that break


def test_a_broken_connection_is_taken_up_where_it_was(board: Any, run: Path) -> None:
    board.proxy.allowance = 7_000_000
    watch = Watch()

    remote.deploy(run, board.place(), watch)

    size = sum(len(content) for content in files(run / "bundle").values())
    assert board.proxy.breaks == 1
    assert "was lost" in watch.warned[0]
    # what was on its way is lost, as much as ssh's window holds; the rest is not sent a second time
    assert board.proxy.up < 7_000_000 + size - 3_000_000


def test_a_connection_that_breaks_twice_is_taken_up_twice(board: Any, run: Path) -> None:
    board.proxy.allowance, board.proxy.then = 5_000_000, [4_000_000]
    watch = Watch()

    assert remote.deploy(run, board.place(), watch)["check"]["ok"]

    assert (board.proxy.breaks, len(watch.warned)) == (2, 2)
    assert files(board.home / "penjing-bundles" / "a-run-of-mine") == files(run / "bundle")


@pytest.mark.parametrize("shell", ["tcsh", "csh", "fish", "bash", "zsh", "dash"])
def test_any_login_shell_hands_a_request_on_as_it_is(shell: str, tmp_path: Path) -> None:
    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"there is no {shell} here")
    path = f"{tmp_path}/a b'c\"d$(e)`f`!g\\h"
    with Board("board", ssh=sys.executable, python=sys.executable) as connection:
        asked = connection._command({"ask": "probe", "path": path})[-1]

    done = subprocess.run([program, "-c", asked], capture_output=True, text=True, check=True)

    assert json.loads(done.stdout)["path"] == path


def test_a_connection_that_stays_broken_leaves_nothing_to_be_taken_for_a_bundle(
    board: Any, run: Path
) -> None:
    board.proxy.allowance, board.proxy.mends = 7_000_000, False

    message = complaint(lambda: remote.deploy(run, board.place(), Silent()))

    assert "was lost" in message
    assert not (board.home / "penjing-bundles" / "a-run-of-mine").exists()
    # mended, the same command goes on
    board.proxy.breaks, before = 0, board.proxy.up
    remote.deploy(run, board.place(), Silent())
    size = sum(len(content) for content in files(run / "bundle").values())
    assert board.proxy.up - before < size - 3_000_000


def test_a_killed_sshd_is_told(board: Any, run: Path) -> None:
    board.process.kill()
    board.process.wait()

    assert "cannot be reached" in complaint(lambda: remote.deploy(run, board.place(), Silent()))


def test_a_file_that_was_changed_on_the_way_is_not_taken(
    board: Any, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    send = remote.deploy.__globals__["send"]

    def spoil(connection: Board, parcel: Any, folder: str, *rest: Any) -> int:
        sent: int = send(connection, parcel, folder, *rest)
        model = board.home / folder / "model.onnx"
        content = bytearray(model.read_bytes())
        content[1000] ^= 1
        model.write_bytes(content)
        return sent

    monkeypatch.setitem(remote.deploy.__globals__, "send", spoil)
    assert "model.onnx did not arrive as it was sent" in complaint(
        lambda: remote.deploy(run, board.place(), Silent())
    )
    assert not (board.home / "penjing-bundles" / "a-run-of-mine").exists()

    # next time, what is wrong is found and sent again
    monkeypatch.undo()
    monkeypatch.setattr("penjing.remote.copying.PAUSES", ())
    assert remote.deploy(run, board.place(), Silent())["check"]["ok"]


def test_two_who_bring_the_same_at_once_both_succeed(board: Any, run: Path) -> None:
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda _: remote.deploy(run, board.place(), Silent()), range(3)))

    there = board.home / "penjing-bundles" / "a-run-of-mine"
    assert all(answer["check"]["ok"] for answer in found)
    assert files(there) == files(run / "bundle")
    assert [path.name for path in there.parent.iterdir()] == [there.name]


def test_what_is_brought_a_second_time_never_makes_a_file_shorter(tmp_path: Path) -> None:
    """Not even for a moment: it may be about to become part of a bundle."""
    (tmp_path / "a").write_bytes(b"0123456789")
    stream = TextIOWrapper(BytesIO(b'[["a", 0, 10]]\n01234'))  # and there the connection breaks

    with pytest.MonkeyPatch.context() as patch, pytest.raises(program.RefusedError):
        patch.setattr(sys, "stdin", stream)
        program.receive({"path": str(tmp_path)})

    assert (tmp_path / "a").read_bytes() == b"0123456789"


def test_a_bundle_that_was_damaged_on_the_board_is_mended(board: Any, run: Path) -> None:
    remote.deploy(run, board.place(), Silent())
    there = board.home / "penjing-bundles" / "a-run-of-mine"
    (there / "model.onnx").write_bytes(b"damaged")

    assert remote.deploy(run, board.place(), Silent())["check"]["ok"]
    assert files(there) == files(run / "bundle")


def test_what_an_earlier_bundle_left_half_way_is_cleaned_too(board: Any, run: Path) -> None:
    remote.deploy(run, board.place(), Silent())
    above = board.home / "penjing-bundles"
    for name in (".a-run-of-mine.part-0123456789ab", ".a-run-of-mine.part-0123456789ab.77.old"):
        (above / name).mkdir()
        (above / name / "model.onnx").write_bytes(b"half")
    (above / ".a-run-of-mine.part-of-something-else").mkdir()

    remote.clean(run, board.place(), Silent())

    assert [path.name for path in above.iterdir()] == [".a-run-of-mine.part-of-something-else"]


# -- boards that cannot


def test_a_host_key_that_is_not_known_is_refused(board: Any, run: Path) -> None:
    board.known_hosts.write_text("")

    assert "host key is not known" in complaint(lambda: remote.deploy(run, board.place(), Silent()))


def test_a_host_key_that_changed_is_refused(board: Any, run: Path, tmp_path: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "other")], check=True)
    name, _, _ = board.known_hosts.read_text().partition(" ")
    board.known_hosts.write_text(
        f"{name} " + " ".join((tmp_path / "other.pub").read_text().split()[:2]) + "\n"
    )

    assert "host key is not" in complaint(lambda: remote.deploy(run, board.place(), Silent()))


def test_a_key_that_is_not_let_in_is_told(board: Any, run: Path) -> None:
    (board.config.parent / "authorized_keys").write_text("")

    assert "it does not let you in" in complaint(lambda: remote.deploy(run, board.place(), Silent()))


def test_a_board_without_python_is_told(board: Any, run: Path) -> None:
    assert "has no /nowhere/python" in complaint(
        lambda: remote.deploy(run, board.place(python="/nowhere/python"), Silent())
    )


def test_a_python_that_is_too_old_is_told(board: Any, run: Path, tmp_path: Path) -> None:
    old = "import sys\nsys.version_info = (2, 7, 18)\n"

    message = complaint(
        lambda: remote.deploy(run, board.place(python=wrapped(tmp_path, "sitecustomize", old)), Silent())
    )

    assert message.endswith("is Python 2.7, and 3.6 or later is needed.")


def test_a_board_without_onnxruntime_is_told_what_to_type(board: Any, run: Path, tmp_path: Path) -> None:
    python = wrapped(tmp_path, "onnxruntime", "raise ModuleNotFoundError('No', name='onnxruntime')")

    message = complaint(lambda: remote.deploy(run, board.place(python=python), Silent()))

    assert "board: onnxruntime is not installed. Type: " in message


def test_another_architecture_is_told(board: Any, make_run: Callable[..., Path]) -> None:
    other = "x86_64" if os.uname().machine == "aarch64" else "aarch64"

    message = complaint(lambda: remote.deploy(make_run(other), board.place(), Silent()))

    assert f"The bundle is for Test board, a machine of architecture {other}" in message


def test_answers_that_are_others_are_told(board: Any, make_run: Callable[..., Path]) -> None:
    run = make_run()
    manifest = json.loads((run / "bundle" / "manifest.json").read_text())
    manifest["preprocess"]["mean"] = [3.0, -2.0, 1.0]
    (run / "bundle" / "manifest.json").write_text(json.dumps(manifest))
    _reseal(run / "bundle")

    assert "answers otherwise on board: scores: " in complaint(
        lambda: remote.deploy(run, board.place(), Silent())
    )


def test_a_full_disk_is_told_before_anything_is_sent(
    board: Any, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = Board.ask
    monkeypatch.setattr(
        Board, "ask", lambda self, what, *rest, **words: {**ask(self, what, *rest, **words), "free": 10**6}
    )

    assert "1 MB are free, and the bundle takes 10 MB and some room" in complaint(
        lambda: remote.deploy(run, board.place(), Silent())
    )
    assert not at_home(board)


def test_a_disk_that_becomes_full_is_told_and_nothing_is_taken_for_a_bundle(
    board: Any, run: Path, tmp_path: Path
) -> None:
    full = (
        "import os\n\ndef fsync(_):\n    raise OSError(28, 'No space left on device')\n\nos.fsync = fsync\n"
    )

    message = complaint(
        lambda: remote.deploy(run, board.place(python=wrapped(tmp_path, "sitecustomize", full)), Silent())
    )

    assert message.endswith("No space left on device.")
    assert not (board.home / "penjing-bundles" / "a-run-of-mine").exists()


def wrapped(folder: Path, module: str, source: str) -> str:
    """Return a Python for the board that finds a module of this source first."""
    (folder / "first").mkdir()
    (folder / "first" / f"{module}.py").write_text(source)
    python = folder / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={folder}/first exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    return str(python)


def test_a_full_disk_is_an_answer_of_the_program_on_the_board(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import base64

    def full(request: dict[str, Any]) -> None:
        raise OSError(28, "No space left on device", "/data/model.onnx")

    monkeypatch.setattr(program, "receive", full)
    request = base64.b64encode(json.dumps({"ask": "receive", "path": "x"}).encode()).decode()
    monkeypatch.setattr(sys, "argv", ["-c", request])

    assert program.main() == 1
    assert json.loads(capsys.readouterr().out) == {"error": "/data/model.onnx: No space left on device"}


def test_something_else_that_lies_there_is_never_touched(board: Any, run: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter").write_text("dear")
    place = board.place(path=str(tmp_path / "mine"))

    assert "holds something that is no bundle" in complaint(lambda: remote.deploy(run, place, Silent()))
    with pytest.raises(StepError, match="stays"):
        remote.clean(run, place, Silent())
    assert files(tmp_path / "mine") == {"letter": b"dear"}


# -- what is asked for


@pytest.mark.parametrize(
    "host",
    [
        "-oProxyCommand=touch x",
        "a b",
        "a;b",
        "a$(b)",
        "a`b`",
        "",
        "@",
        "user@-oProxyCommand=x",
        "a\nb",
        "ssh://-x",
        "a/b",
        "-",
    ],
)
def test_what_is_no_host_is_refused(host: str) -> None:
    with pytest.raises(InputError):
        check_host(host)


@pytest.mark.parametrize(
    "host",
    ["board", "pi@raspberrypi.local", "10.0.0.7", "user@[fe80::1%eth0]", "ssh://pi@board:2222", "a-b_c"],
)
def test_what_ssh_takes_for_a_host_is_taken(host: str) -> None:
    assert check_host(host) == host


@pytest.mark.parametrize("path", ["", "/", "~", ".", "..", "a/../b", "-rf", "a\nb", "~/", "a\x00b"])
def test_what_is_no_folder_for_a_bundle_is_refused(path: str) -> None:
    with pytest.raises(InputError):
        check_path(path)


@pytest.mark.parametrize(
    "name", ["with space", "quote'\"quote", "$(touch x); `touch x`", "ümläut", "back\\slash"]
)
def test_a_path_reaches_the_board_as_it_is(board: Any, run: Path, tmp_path: Path, name: str) -> None:
    remote.deploy(run, board.place(path=f"~/{name}"), Silent())

    assert at_home(board) == [name]
    assert bundle.read(board.home / name)


@pytest.mark.parametrize("python", ["-c", "a b", "a;b", "$(x)"])
def test_what_is_no_python_is_refused(python: str) -> None:
    with pytest.raises(InputError):
        Board("board", python=python)


def test_an_ssh_that_is_not_there_is_told() -> None:
    with pytest.raises(PlanError, match="no 'nowhere-ssh'"):
        Board("board", ssh="nowhere-ssh")


def test_a_run_without_bundle_is_told(run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "copy")
    shutil.rmtree(copy / "bundle")

    with pytest.raises(InputError, match="has no bundle"):
        remote.deploy(copy, remote.Place("board"), Silent())


def test_host_keys_are_never_left_unchecked() -> None:
    with Board("board", ssh=sys.executable) as connection:  # which here is only to exist
        words = connection._command({"ask": "probe"})

    assert not [word for word in words if "StrictHostKeyChecking" in word or "KnownHosts" in word]
    assert words[words.index("--") + 1] == "board"


def test_the_program_on_the_board_is_python_3_6() -> None:
    import ast

    source = Path(program.__file__).read_text("utf-8")

    ast.parse(source, feature_version=(3, 6))
    names = {
        alias.name
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    assert names <= sys.stdlib_module_names
    assert issubclass(LostError, StepError)
