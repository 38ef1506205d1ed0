"""Files that are either whole or not there, and digests of their content."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any, BinaryIO

from penjing.errors import InputError


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file atomically: whoever reads `path` finds the old content or the new one, even after kill -9."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o666 & ~_umask())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    sync(path.parent)


def write_text(path: Path, text: str) -> None:
    """Write text as UTF-8, atomically."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, atomically; NaN and infinity are refused."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path, *, limit: int = 64_000_000) -> Any:
    """Read a JSON file of at most `limit` bytes; InputError says what is wrong with it."""
    try:
        if path.stat().st_size > limit:
            raise InputError(f"{path} is {path.stat().st_size} bytes long; at most {limit} are read.")
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise InputError(f"{path} does not exist.") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not valid JSON: {error}.") from error


def sync(folder: Path) -> None:
    """Make names in a folder survive a power cut, where the system can (POSIX)."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def digest(*parts: bytes | str) -> str:
    """Return the SHA-256, in hex, of the parts; their borders count."""
    hasher = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        hasher.update(len(data).to_bytes(8, "little"))
        hasher.update(data)
    return hasher.hexdigest()


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hex."""
    with path.open("rb") as file:
        return sha256_of_open(file)


def sha256_of_open(file: BinaryIO) -> str:
    """Return the SHA-256 of what is left to read of an open file, in hex."""
    hasher = hashlib.sha256()
    while chunk := file.read(1 << 20):
        hasher.update(chunk)
    return hasher.hexdigest()


def inside(folder: Path, name: str) -> Path:
    """Return `folder / name`; InputError where that leaves the folder, also through a link."""
    path = folder / name
    try:
        within = not Path(name).is_absolute() and path.resolve().is_relative_to(folder.resolve())
    except (OSError, ValueError, RuntimeError):  # a link to itself; a null character
        within = False
    if not within:
        raise InputError(f"{name!r} points outside {folder}.")
    return path


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
