"""Files to a board, over a connection that may break: what arrived is not sent twice."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from penjing.files import sha256_of
from penjing.remote.ssh import LostError

if TYPE_CHECKING:
    from penjing.remote.ssh import Board
    from penjing.step import Progress

T = TypeVar("T")

#: seconds to wait before each further attempt
PAUSES = (1.0, 2.0, 4.0, 8.0, 15.0)
CHUNK = 2**16


@dataclasses.dataclass(frozen=True)
class Parcel:
    """Files to send, by the name they get: relative, and chosen here."""

    files: Mapping[str, Path]

    @property
    def size(self) -> int:
        """Return the bytes of all of them."""
        return sum(path.stat().st_size for path in self.files.values())

    @property
    def wanted(self) -> dict[str, list[int | str]]:
        """Return size and SHA-256 of each, as the board compares them."""
        return {name: [path.stat().st_size, sha256_of(path)] for name, path in self.files.items()}


def send(board: Board, parcel: Parcel, folder: str, progress: Progress, what: str) -> int:
    """Bring the files into a folder on the board, going on where the connection breaks; return the bytes sent.

    Raises LostError where it breaks again and again, StepError with the board's words where it refuses.
    """
    progress.begin(f"copying {what} to {board.host}", parcel.size)
    done = sent = 0

    def attempt() -> None:
        nonlocal done, sent
        offsets = _there(board, parcel, folder)
        there = sum(offsets.values())
        progress.advance(there - done)  # backwards, where less arrived than was sent
        done = there

        def counted(count: int) -> None:
            nonlocal done, sent
            done, sent = done + count, sent + count
            progress.advance(count)

        missing = {name: path for name, path in parcel.files.items() if _left(name, path, offsets)}
        if missing:
            board.ask("receive", _stream(missing, offsets, counted), path=folder)

    try:
        persist(attempt, progress)
    except BaseException:
        progress.end("failed")
        raise
    progress.end("already there" if not sent else f"{sent / 1e6:.1f} MB")
    return sent


def arrived(board: Board, parcel: Parcel, folder: str) -> bool:
    """Tell whether every file is on the board as it is here."""
    found: dict[str, list[int | str]] = board.ask(
        "have", json.dumps(list(parcel.files)).encode(), path=folder
    )["files"]
    return found == parcel.wanted


def persist(attempt: Callable[[], T], progress: Progress) -> T:
    """Do something that can be done again, until the connection holds; LostError where it does not."""
    for pause in PAUSES:
        try:
            return attempt()
        except LostError as lost:
            progress.warn(f"{lost.message} Trying again in {pause:g} s.")
            time.sleep(pause)
    return attempt()


def _there(board: Board, parcel: Parcel, folder: str) -> dict[str, int]:
    """Return how many bytes of each file are on the board already, and right."""
    names = json.dumps(list(parcel.files)).encode()
    found = board.ask("have", names, path=folder)["files"]
    offsets = {}
    for name, (size, sha256) in found.items():
        path = parcel.files[name]
        if 0 < size <= path.stat().st_size and _hash_of_start(path, size) == sha256:
            offsets[name] = size
    return offsets


def _left(name: str, path: Path, offsets: Mapping[str, int]) -> bool:
    """Tell whether there is something to send of a file; an empty one that is not there counts."""
    return name not in offsets or offsets[name] < path.stat().st_size


def _hash_of_start(path: Path, size: int) -> str:
    hasher = hashlib.sha256()
    with path.open("rb") as file:
        while size > 0 and (chunk := file.read(min(CHUNK, size))):
            hasher.update(chunk)
            size -= len(chunk)
    return hasher.hexdigest()


def _stream(
    files: Mapping[str, Path], offsets: Mapping[str, int], counted: Callable[[int], None]
) -> Iterator[bytes]:
    """Yield what board.py reads: a line with name, offset and size of each part, then the parts."""
    parts = [
        [name, offsets.get(name, 0), path.stat().st_size - offsets.get(name, 0)]
        for name, path in files.items()
    ]
    yield json.dumps(parts).encode() + b"\n"
    for name, path in files.items():
        with path.open("rb") as file:
            file.seek(offsets.get(name, 0))
            while chunk := file.read(CHUNK):
                yield chunk
                counted(len(chunk))
