"""Bringing a run's bundle to a board: all of it or nothing."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from penjing import bundle
from penjing.api import described
from penjing.errors import InputError, StepError
from penjing.remote.copying import Parcel, arrived, persist, send
from penjing.remote.ssh import Board, check_path

if TYPE_CHECKING:
    from penjing.step import Progress

#: where bundles go on the board unless a path is given, in the home there
ABOVE = "penjing-bundles"
#: bytes to be left on the board besides the files
SPARE = 5 * 10**6


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a bundle goes: a host as ssh knows it, a folder there ("" for one named after the run), and how."""

    host: str
    path: str = ""
    #: the user's ssh, with options
    ssh: str = "ssh"
    #: the Python on the board; "" for that of the bundle's README
    python: str = ""

    def on_board(self, folder: Path) -> str:
        """Return the folder on the board for the bundle of the run in `folder`."""
        name = re.sub(r"[^A-Za-z0-9_-]+", "-", folder.resolve().name).strip("-") or "run"
        return check_path(self.path) if self.path else f"{ABOVE}/{name}"

    def board(self, manifest: dict[str, Any]) -> Board:
        """Return the connection."""
        on_system = manifest["runtime"]["name"] == "tensorrt" and manifest["device"]["arch"] == "aarch64"
        return Board(self.host, ssh=self.ssh, python=self.python or ("python3" if on_system else ""))


def deploy(folder: Path, place: Place, progress: Progress) -> dict[str, Any]:
    """Bring the bundle of the run in `folder` to a board and check it there; return what the check said.

    Raises InputError where there is no sound bundle, StepError where the board refuses or cannot run it.
    """
    manifest = bundle_of(folder)
    path = place.on_board(folder)
    with place.board(manifest) as board:
        facts = bring(board, folder / "bundle", manifest, path, progress)
        checked = check(board, path, progress)
    return {
        "host": place.host,
        "path": facts["path"],
        "digest": manifest["digest"],
        "board": facts,
        "check": checked,
    }


def clean(folder: Path, place: Place, progress: Progress) -> dict[str, Any]:
    """Remove what `deploy` and `measure` left on the board; return where that was."""
    manifest = bundle_of(folder)
    path = place.on_board(folder)
    with place.board(manifest) as board, piece(progress, f"cleaning {place.host}"):
        facts = board.ask("probe", path=path)
        beside = original_of(path)
        board.ask(
            "clean", path=path, part=part_of(path, manifest), photos=photos_of(path), above=ABOVE,
            original=beside, original_part=part_of(beside, manifest),
        )  # fmt: skip
    return {"host": place.host, "path": facts["path"], "removed": facts["there"] != ""}


def bundle_of(folder: Path) -> dict[str, Any]:
    """Return the manifest of a run's bundle; InputError where there is none, or not a sound one."""
    described(folder)
    if not (folder / "bundle").is_dir():
        raise InputError(
            f"{folder} has no bundle.",
            hint="Run the same `penjing compress` again; it says why where it makes none.",
        )
    return bundle.read(folder / "bundle").manifest


def part_of(path: str, manifest: dict[str, Any]) -> str:
    """Return the folder on the board in which a bundle gathers until it is whole."""
    above, slash, name = path.rpartition("/")
    return f"{above}{slash}.{name}.part-{manifest['digest'][:12]}"


def photos_of(path: str) -> str:
    """Return the folder on the board for photographs, while they are needed."""
    above, slash, name = path.rpartition("/")
    return f"{above}{slash}.{name}.photos"


def original_of(path: str) -> str:
    """Return the folder on the board for the bundle of the original, timed beside the optimised one's."""
    above, slash, name = path.rpartition("/")
    return f"{above}{slash}.{name}.original"


def bring(
    board: Board,
    source: Path,
    manifest: dict[str, Any],
    path: str,
    progress: Progress,
    what: str = "the bundle",
) -> dict[str, Any]:
    """Copy the bundle in `source`, unless it is there already; return what the board told of itself."""
    facts = board.ask("probe", path=path)
    parcel = Parcel({name: source / name for name in ("manifest.json", *sorted(manifest["files"]))})
    if facts["there"] == manifest["digest"] and arrived(board, parcel, path):
        return facts
    if facts["there"] == "other":
        raise StepError(
            f"{board.host}: {facts['path']} holds something that is no bundle.",
            hint="Name another folder with --path.",
        )
    if not facts["writable"]:
        raise StepError(
            f"{board.host}: {facts['path']} cannot be written.",
            hint="Name a folder with --path that you may write to there.",
        )
    if facts["free"] < parcel.size + SPARE:
        raise StepError(
            f"{board.host}: {facts['free'] / 1e6:.0f} MB are free, and {what} takes "
            f"{parcel.size / 1e6:.0f} MB and some room.",
            hint="Make room on the board, or name another folder with --path.",
        )
    part = part_of(path, manifest)
    send(board, parcel, part, progress, what)
    wanted, digest = json.dumps(parcel.wanted).encode(), manifest["digest"]
    persist(lambda: board.ask("finish", wanted, part=part, path=path, digest=digest), progress)
    return facts


def check(board: Board, path: str, progress: Progress) -> dict[str, Any]:
    """Run the runner's check there; StepError with its words where answers are not as recorded."""
    with piece(progress, "checking it there") as result:
        found = runner(board, path, ["--check", "--json"])
        result.append("as recorded" if found["ok"] else "other answers")
    if not found["ok"]:
        apart = ", ".join(f"{name}: {value}" for name, value in found["distance"].items())
        raise StepError(
            f"The bundle answers otherwise on {board.host}: {apart} away, {found['tolerance']} allowed.",
            hint=f"{found['runtime']} there is {found['version']}; docs/bundle.md tells how near answers must be.",
        )
    return found


def runner(board: Board, path: str, words: list[str]) -> dict[str, Any]:
    """Run the bundle's runner for one JSON object; StepError with its own words where it fails."""
    lines: list[str] = []
    code, said = board.run(path, words, lines.append)
    try:
        found = json.loads(lines[-1])
    except (ValueError, IndexError):
        raise failed(board, code, said) from None
    if not isinstance(found, dict):
        raise failed(board, code, said)
    return found


def failed(board: Board, code: int, said: str) -> StepError:
    """Return the error for a runner that gave no answer."""
    errors = [line.removeprefix("error: ") for line in said.splitlines() if line.startswith("error: ")]
    words = errors[-1] if errors else (said.splitlines() or ["it says nothing"])[-1]
    words = "".join(letter if letter.isprintable() else "?" for letter in words)[:500]
    hint = "The bundle's README.md has the commands for that board." if code == 4 else ""
    return StepError(f"{board.host}: {words}", hint=hint)


def name_of(path: Path, index: int) -> str:
    """Return the name of a photograph on the board: nothing of its own name but a known suffix."""
    return f"{index:06d}{path.suffix.lower()}"


@contextlib.contextmanager
def piece(progress: Progress, what: str) -> Iterator[list[str]]:
    """Show a piece of work; put its result into the list."""
    result: list[str] = []
    progress.begin(what)
    try:
        yield result
    except BaseException:
        progress.end("failed")
        raise
    progress.end(*result)
